import dataclasses
from pathlib import Path
from typing import get_type_hints

from docs.config_reference import meanings, reference
from ebm_core.config import to_tree
from orchestrator.settings.job import JobConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def leaves(tree, prefix=""):
    for name, value in tree.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else (f"{prefix}{name}",)


def test_the_page_is_the_one_that_the_classes_make():
    assert PAGE.read_text() == reference(), "run: python -m docs.config_reference > docs/configuration.md"


def test_every_setting_is_listed_with_a_meaning():
    page, paths = reference(), list(leaves(to_tree(JobConfig())))
    assert len(paths) > 60
    for path in paths:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{path}` |")]
        assert len(row.split(" | ")[-1].strip(" |")) > 5, f"{path} needs a docstring below its field"


def test_a_meaning_is_the_text_below_the_field_also_of_an_inherited_one():
    hints = get_type_hints(JobConfig)
    buffer = meanings(hints["buffer"])
    assert buffer["capacity"] == "Number of past samples kept, over all workers (Section 3.1)."
    assert meanings(JobConfig)["seed"].startswith("Seed of all randomness")
    assert set(buffer) == {field.name for field in dataclasses.fields(hints["buffer"])}
