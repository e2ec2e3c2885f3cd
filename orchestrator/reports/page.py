"""Templates to text: everything that comes from a run is escaped, and nothing is loaded from elsewhere."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).with_name("templates")

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy of every page: no script, nothing from outside, pictures from the page itself."""


def as_json(value: Any) -> str:
    """A setting as it would be written on the command line."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def environment() -> Environment:
    """Where pages are made: escaping is on for every template, and a name that is not given is an error."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["setting"] = as_json
    made.globals["style"] = Markup((FOLDER / "style.css").read_text())  # ours, without any value
    made.globals["policy"] = POLICY
    return made


def render(template: str, **values: Any) -> str:
    """The page of a template."""
    return environment().get_template(template).render(**values)
