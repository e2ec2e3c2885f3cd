"""Who may know whom, what is public, and losses that must not change by accident."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from typer.main import get_command

import ebm_core
import orchestrator
from ebm_core.trainer import init_state, train_step
from orchestrator.cli.app import app
from orchestrator.cli.flags import FLAGS
from tests.ebm_core.tiny import batch, tiny_config

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    str(path.relative_to(ROOT))
    for package in ("ebm_core", "workers", "orchestrator")
    for path in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("ebm_core", ["ray", "pydantic", "boto3", "typer", "torchvision", "matplotlib", "workers", "orchestrator"]),
        ("workers.evaluator", ["ray", "pydantic", "boto3", "typer", "orchestrator"]),
    ],
)
def test_importing_a_package_loads_nothing_from_outside_its_room(package, forbidden):
    assert loaded_by(package, forbidden) == []


@pytest.mark.full
@pytest.mark.parametrize("module", ["orchestrator.training.driver", "orchestrator.training.worker", "workers.actor"])
def test_a_process_of_a_job_starts_without_what_only_some_scores_need(module: str):
    # A job starts five processes or more, and these libraries cost each of them over a second of a core.
    assert loaded_by(module, ["sklearn", "scipy", "matplotlib", "torchvision", "boto3"]) == []


def test_what_may_be_called_from_python_is_loaded_when_it_is_asked_for():
    assert loaded_by("orchestrator", ["ray", "torch", "pydantic", "boto3", "typer"]) == []
    for name in orchestrator.__all__:
        assert callable(getattr(orchestrator, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        orchestrator.train  # noqa: B018


def loaded_by(module: str, candidates: list[str]) -> list[str]:
    """Those of the candidates that a new process has loaded once it has imported the module."""
    code = f"import json, sys, {module}; print(json.dumps([m for m in {candidates!r} if m in sys.modules]))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_rays_private_api_stands_in_one_file():
    private = re.compile(r"_private|_raylet|gcs_pb2|_base_exc|_TorchBackend|\b_node_ip_address")
    found = {file for file in SOURCES if private.search((ROOT / file).read_text())}
    assert found == {"orchestrator/cluster/ray_internals.py"}


def test_each_use_of_rays_private_api_says_what_would_replace_it():
    tree = ast.parse((ROOT / "orchestrator/cluster/ray_internals.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(functions) >= 8
    for function in functions:
        text = " ".join((ast.get_docstring(function) or "").split())
        assert "Private because" in text, function.name
        assert "would replace it" in text, function.name


PRINTERS = {"workers/ood.py": "a command of its own: `python -m workers.ood FILE`"}
"""Files outside cli/ and terminal/ that print, with the reason."""


def test_only_the_command_line_and_the_terminal_print():
    rooms = ("orchestrator/cli/", "orchestrator/terminal/")
    found = {file for file in SOURCES if not file.startswith(rooms) and prints((ROOT / file).read_text())}
    assert found == set(PRINTERS)


def prints(source: str) -> bool:
    """Whether a module calls print, writes to a standard stream, or opens a console."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "Console", "open_console"):
            return True
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr", "rich.print"):
            return True
    return False


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "import typer\ntyper.echo('a')",
        "sys.stderr.write('a')",
        "from rich.console import Console\nConsole()",
    ],
)
def test_every_way_to_print_is_seen(source: str):
    assert prints(source)


COMMAND_LINES = re.compile(r"\b(ebm|ray) [^`;]*--[a-z][\w-]*")
"""Whole commands, printed as the next step, may have flags in them."""


def test_only_the_command_line_knows_a_flag():
    found = {}
    for file in SOURCES:
        for text in strings_of((ROOT / file).read_text()) if not file.startswith("orchestrator/cli/") else ():
            if flag := re.search(r"(?<![\w-])--[a-z][\w-]*", COMMAND_LINES.sub("", text)):
                found[file] = flag[0]
    assert found == {}


def strings_of(source: str) -> list[str]:
    """All texts of a module, the parts of formatted ones joined, docstrings too."""
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in inside]
    joined = [
        "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
    ]
    return [text for text in texts if isinstance(text, str)] + joined


def test_every_argument_that_an_error_names_has_the_flag_of_a_command():
    def options(command: click.Command) -> set[str]:
        below = [options(one) for one in getattr(command, "commands", {}).values()]
        return {name for parameter in command.params for name in parameter.opts}.union(*below)

    assert set(FLAGS.values()) <= options(get_command(app))
    named = re.compile(r"(?:^|\W)`(\w+)`")
    for file in SOURCES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                for name in named.findall(" ".join(strings_of(ast.unparse(node)))):
                    assert name in {*FLAGS, "X"}, (file, name)  # X: chosen when it runs


def test_the_public_names_are_the_recorded_ones():
    recorded = (GOLDEN / "public_names.txt").read_text().split()
    assert sorted(ebm_core.__all__) == sorted(recorded)
    assert all(hasattr(ebm_core, name) for name in recorded)


def test_losses_are_the_recorded_ones():
    # A change that should not alter numbers reproduces these; one that should says why and records anew.
    cfg = tiny_config()
    state = init_state(cfg)
    recorded = json.loads((GOLDEN / "losses.json").read_text())
    for step, row in enumerate(recorded):
        terms = train_step(state, batch(step, cfg), cfg)
        for name, value in row.items():
            assert terms[name] == pytest.approx(value, rel=1e-3, abs=1e-6), f"step {step + 1}, {name}"
