"""kill -9 of a whole job between two reports, and during an evaluation: it ends as the one that nobody touched.

Five minutes, so not a part of `make test`: run by `make kills`.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.records import runs
from orchestrator.records.scores import read_scores
from tests.faults import moto_bucket
from tests.jobs import Job

pytestmark = [pytest.mark.kills, pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS = 40
SCORED = 24
SETTINGS = [
    "model.widths=8,16,16",
    "sampler.num_steps=80",  # slow enough to be killed between two given steps
    "sampler.generate_steps=200",
    "loss.num_past=20",
    "buffer.capacity=400",
    "train.batch_size=32",
    f"train.num_steps={STEPS}",
    "train.log_every=20",
    "checkpoint.every=8",
    f"evaluation.every={SCORED}",
    "evaluation.metrics=energy_gap",
    "evaluation.num_images=64",
    "engine.num_threads=1",
    "cluster.cpus_per_worker=1",
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For Ray's own files: sockets have short names only."""
    folder = Path(tempfile.mkdtemp(prefix="kill", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """Where runs are stored."""
    if request.param == "folder":
        yield str(folder / "runs")
    else:
        with moto_bucket("kills") as endpoint:
            yield f"s3://kills/runs?endpoint_url={endpoint}"


def below(place: str, name: str) -> str:
    path, question, options = place.partition("?")
    return f"{path}/{name}{question}{options}"


def finish(job: Job) -> dict[str, Any]:
    """Let it train to its end; its last checkpoint, rows and scores, without what a clock says."""
    assert job.driver
    assert job.driver.wait(timeout=200) == 0, job.log.read_text()[-3000:]
    scores = {step: read_scores(job.run, step) for step in (SCORED, STEPS)}
    assert all("energy_gap" in documents for documents in scores.values())
    values = {step: {name: document["value"] for name, document in found.items()} for step, found in scores.items()}
    return job.outcome(STEPS) | {"scores": values}


def kill_when(job: Job, holds: Callable[[], bool]) -> None:
    """kill -9 of all that belongs to the job as soon as it holds."""
    assert job.driver
    while not holds():
        assert job.driver.poll() is None, f"over before it could be killed: {job.log.read_text()[-3000:]}"
        time.sleep(0.02)
    job.kill()


def committed(job: Job) -> int:
    """Step of the newest checkpoint."""
    return max(job.run.checkpoints(), default=0) if job.run.exists() else 0


def keys(job: Job, prefix: str) -> list[str]:
    return [info.key for info in job.run.list(prefix)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_killed_between_reports_and_during_an_evaluation_ends_as_the_undisturbed_one(
    place: str, workers: int, folder: Path
):
    settings = [*SETTINGS, f"cluster.num_workers={workers}"]
    calm, hurt = (Job(folder / name, below(place, name), settings) for name in ("calm", "hurt"))
    try:
        calm.launch()
        expected = finish(calm)

        hurt.launch()
        kill_when(hurt, lambda: committed(hurt) >= 8)
        assert committed(hurt) < 20, "reports are made at steps 1, 20 and 40; this kill was to fall between two of them"
        rows = runs.read_metrics(hurt.run)["step"].to_pylist()
        assert rows == [1]

        hurt.launch()
        kill_when(hurt, lambda: committed(hurt) >= SCORED and hurt.one("ray::ScoreActor") is not None)
        assert not keys(hurt, "evaluations/"), "this kill was to fall before the first score was stored"

        hurt.launch()
        assert finish(hurt) == expected
        assert hurt.launches == 3
        assert len(keys(hurt, f"evaluations/step-{SCORED:09d}/")) == len(keys(calm, f"evaluations/step-{SCORED:09d}/"))
    finally:
        calm.kill()
        hurt.kill()
