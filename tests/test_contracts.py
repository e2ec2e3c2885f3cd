"""Who may know whom, what is public, and losses that must not change by accident."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ebm_core
from ebm_core.trainer import init_state, train_step
from tests.ebm_core.tiny import batch, tiny_config

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("ebm_core", ["ray", "pydantic", "boto3", "typer", "torchvision", "matplotlib", "workers", "orchestrator"]),
        ("workers.evaluator", ["ray", "pydantic", "boto3", "typer", "orchestrator"]),
    ],
)
def test_importing_a_package_loads_nothing_from_outside_its_room(package, forbidden):
    assert loaded_by(package, forbidden) == []


@pytest.mark.parametrize("module", ["orchestrator.training.driver", "orchestrator.training.worker", "workers.actor"])
def test_a_process_of_a_job_starts_without_what_only_some_scores_need(module: str):
    # A job starts five processes or more, and these libraries cost each of them over a second of a core.
    assert loaded_by(module, ["sklearn", "scipy", "matplotlib", "torchvision", "boto3"]) == []


def loaded_by(module: str, candidates: list[str]) -> list[str]:
    """Those of the candidates that a new process has loaded once it has imported the module."""
    code = f"import json, sys, {module}; print(json.dumps([m for m in {candidates!r} if m in sys.modules]))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


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
