"""A loss term added as CONTRIBUTING.md says, one function and one line of a dict: what a job does with it."""

from pathlib import Path

import pytest

from ebm_core import losses, trainer
from orchestrator.monitoring.values import exported_name
from orchestrator.records import runs
from orchestrator.reports.run_data import gather
from orchestrator.reports.run_page import gradient_figures, loss_figures
from orchestrator.reports.tensorboard import events
from orchestrator.terminal.tables import line
from tests.orchestrator.training.test_rollback import Job

WEIGHT = 0.25


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose loss has one term more, trained to its end."""
    plain = losses.improved_cd_loss

    def with_novel(energy, x_data, x_neg, *rest) -> losses.Loss:
        return plain(energy, x_data, x_neg, *rest).plus("novel", WEIGHT * energy(x_data).square().mean())

    monkeypatch.setattr(trainer, "improved_cd_loss", with_novel)
    monkeypatch.setattr("tests.orchestrator.training.test_rollback.DIVERGES", 100)
    job = Job(tmp_path, monkeypatch, grad_norms_every=4)
    job.train()
    return job


def test_it_is_trained_logged_stored_and_told(job: Job):
    table = runs.read_metrics(job.run)
    stored = dict(zip(table["step"].to_pylist(), table["loss/novel"].to_pylist(), strict=True))
    assert list(stored) == [1, 2, 4, 6, 8, 10, 12, 14, 16]
    assert all(value > 0 for value in stored.values())
    assert stored == {step: row["loss/novel"] for step, row in job.rows.items()}
    last = job.rows[16]
    terms = [value for name, value in last.items() if name.startswith("loss/")]
    assert last["loss"] == pytest.approx(sum(terms), rel=1e-5)
    assert last["grad_norm/novel"] > 0
    assert f"novel {last['loss/novel']:.4g}" in line(last, 16)
    assert exported_name("loss/novel") == ("ebm_loss_term", {"term": "novel"})
    assert exported_name("grad_norm/novel") == ("ebm_grad_norm_term", {"term": "novel"})


def test_it_is_on_the_page_and_in_the_event_files(job: Job):
    data = gather(job.run)
    for figure in (*loss_figures(data), *gradient_figures(data)):
        assert "novel" in [name for _, name, _ in figure.legend], figure.title
    tags = {value.tag for event in events(data) for value in event.summary.value}
    assert {"loss/novel", "grad_norm/novel"} <= tags
