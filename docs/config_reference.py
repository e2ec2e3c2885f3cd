"""docs/configuration.md, made from the configuration's own classes: `python -m docs.config_reference`.

A setting's meaning is the docstring that stands below its field; a setting without one is listed by its name alone.
"""

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ebm_core.config import to_tree
from orchestrator.settings.job import JobConfig

HEAD = """\
# Configuration

Made by `python -m docs.config_reference` from the classes that check the settings; a test compares them.

Every setting is a dotted path, given as `path=value` to `ebm train`, `ebm config`, `ebm sweep` and `ebm submit`.
`ebm evaluate` takes the settings of a study, without `evaluation.`: `chains.num_steps=3000`.
Defaults are the paper's CIFAR-10 run (Appendix A.2); `ebm config PRESET` prints what a preset makes of them.
"""


def reference() -> str:
    """The whole page, Markdown."""
    default = to_tree(JobConfig())
    hints = get_type_hints(JobConfig)
    alone = [field for field in dataclasses.fields(JobConfig) if not dataclasses.is_dataclass(hints[field.name])]
    parts = [HEAD, section("The run", None, JobConfig, [f.name for f in alone], default)]
    for field in dataclasses.fields(JobConfig):
        kind: Any = hints[field.name]
        if dataclasses.is_dataclass(kind):
            parts += sections(field.name, kind, default[field.name])
    return "\n".join(parts)


def sections(path: str, kind: Any, defaults: dict[str, Any]) -> Iterator[str]:
    """The section at a dotted path, then those within it."""
    hints = get_type_hints(kind)
    within = [field.name for field in dataclasses.fields(kind) if dataclasses.is_dataclass(hints[field.name])]
    names = [field.name for field in dataclasses.fields(kind) if field.name not in within]
    yield section(f"`{path}`", path, kind, names, defaults)
    for name in within:
        yield from sections(f"{path}.{name}", hints[name], defaults[name])


def section(title: str, prefix: str | None, kind: Any, names: list[str], defaults: dict[str, Any]) -> str:
    """One heading and a table of its settings."""
    said, hints = meanings(kind), get_type_hints(kind)
    lines = [f"## {title}", ""]
    if prefix is not None:
        lines += [inspect.cleandoc(kind.__doc__ or ""), ""]
    lines += ["| Setting | Values | Default | Meaning |", "| --- | --- | --- | --- |"]
    for name in names:
        path = name if prefix is None else f"{prefix}.{name}"
        value = json.dumps(defaults[name], ensure_ascii=False)
        cells = (f"`{path}`", shown_type(hints[name]), f"`{value}`", said.get(name, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def meanings(kind: type) -> dict[str, str]:
    """{field: the docstring below it} of a dataclass and of those that it extends."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                words = ast.literal_eval(text.value)
                found[field.target.id] = " ".join(str(words).split())
    return found


def shown_type(hint: Any) -> str:
    """A type as a person would say it."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        many = len(inner) == 2 and inner[1] is Ellipsis
        return f"list of {shown_type(inner[0])}" if many else f"{len(inner)} of {shown_type(inner[0])}"
    if get_origin(hint) is Union or type(hint).__name__ == "UnionType":
        return " or ".join("`null`" if one is type(None) else shown_type(one) for one in get_args(hint))
    plain = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    return plain.get(hint, getattr(hint, "__name__", str(hint)))


if __name__ == "__main__":
    print(reference(), end="")
