import re
import shlex
from pathlib import Path

from docs.command_reference import USE, commands, reference
from orchestrator.cli.sweep import parse_words
from orchestrator.sweeps.plan import make_plan

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_page_is_the_one_that_the_commands_make():
    assert PAGE.read_text() == reference(), "run: python -m docs.command_reference > docs/commands.md"


def test_every_command_has_a_section_and_every_option_a_row_with_a_meaning():
    page = reference()
    known = dict(commands())
    assert len(known) >= 20
    assert known.keys() == USE.keys()
    for name, command in known.items():
        (part,) = re.findall(rf"^## `ebm {name}`$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        options = [one for one in command.params if one.param_type_name == "option" and one.name != "help"]
        for option in options:
            (row,) = [line for line in part.splitlines() if re.match(rf"\| `{option.opts[0]}[ `]", line)]
            assert len(row.split(" | ")[1]) > 5, f"ebm {name} {option.opts[0]} needs a help text"


def test_every_example_is_understood_by_its_command():
    known = dict(commands())
    examples = re.findall(r"^ebm .+$", reference(), re.MULTILINE)
    assert len(examples) >= 30
    for line in examples:
        words = shlex.split(line.partition(" > ")[0])[1:]
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        rest = words[len(name.split()) :]
        with known[name].make_context(name, list(rest)) as context:  # raises what a person would read
            assert context.params


def test_every_example_of_a_sweep_makes_a_plan():
    examples = re.findall(r"^ebm (?:submit )?sweep (.+)$", reference(), re.MULTILINE)
    assert len(examples) >= 4
    for line in examples:
        plan, _ = make_plan(*parse_words(shlex.split(line)))
        assert plan.rows or plan.space
