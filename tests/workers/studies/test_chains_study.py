"""A study of long chains that is stopped and started again: same bits, nothing run twice, nothing left behind."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ebm_core.config import TrainConfig
from ebm_core.errors import CheckpointError
from orchestrator.evaluation.folder import ResultsFolder
from orchestrator.settings.job import EvaluationConfig
from orchestrator.settings.overrides import override_studies
from orchestrator.storage.run_store import Run, RunStore
from tests.orchestrator.evaluation.test_evaluate import STEP, store_run
from tests.workers.conftest import Quadratic, settings
from workers.studies import chains, chains_study
from workers.studies.chain_progress import PLACE, Progress, clear
from workers.studies.chains import ChainsOptions
from workers.studies.chains_study import STUDY, measure, plan_of
from workers.studies.study import Asked

ROOT = Path(__file__).parents[3]
RESULTS = f"evaluations/step-{STEP:09d}"


class Here:
    """One who makes calls in this process, about a quadratic energy; `limit` calls, then it is killed."""

    def __init__(self, limit: int = 10**6, scale: float = 1.0, key: str = "key") -> None:
        self.limit, self.calls, self.key, self.model = limit, [], key, Quadratic(torch.full((1, 1, 8, 8), 0.3))
        self.cfg: TrainConfig = settings(
            sampler={"step_size": 0.3 * scale, "noise_std": 0.05, "clamp": scale == 1, "transition_every": 4},
            augment={"enabled": True},
        )

    def run(self, calls):
        return {key: self._answer(call.function, *call.arguments) for key, call in calls.items()}

    def _answer(self, function, plan, *rest):
        if len(self.calls) >= self.limit:
            raise KeyboardInterrupt
        if function is chains_study.plan_chains:
            return chains.variants(self.cfg, plan), self.key
        if function is chains_study.report_chains:
            return {"studies of": len(rest[0])}, {name: chains.study(plan, name, one) for name, one in rest[0].items()}
        variant, number, before = rest
        self.calls.append((variant, number))
        return chains.advance(self.model, self.cfg, plan, variant, number, before)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return RunStore(str(tmp_path)).run("some")


def asked(run: Run, pool: Here, **changes) -> Asked:
    options = ChainsOptions(**{"num_chains": 3, "num_steps": 40, "descent_steps": 20, **changes})
    return Asked(
        options=options, num_images=2, seed=0, trained=settings().data, run_name=run.name, step=STEP,
        folder=ResultsFolder(run, STEP), runner=pool,
    )  # fmt: skip


def test_a_study_stopped_at_any_time_goes_on_and_ends_with_the_same_bits(run: Run, tmp_path: Path):
    whole = Here()
    expected = measure(asked(RunStore(str(tmp_path / "other")).run("some"), whole))["studies"]
    assert len(whole.calls) == 4 * (chains.NUM_TIMES + 1)
    made: list[tuple[str, int]] = []
    for limit in (0, 1, 5, 40, 10**6):
        pool = Here(limit)
        try:
            found = measure(asked(run, pool))["studies"]
        except KeyboardInterrupt:
            assert limit < 10**6
        made += pool.calls
    assert len(set(made)) == len(whole.calls)
    assert len(made) - len(whole.calls) <= 3 * 3  # of a round that was cut short, what was not stored yet
    for name, study in expected.items():
        assert torch.equal(found[name].states, study.states)
        assert found[name].memory == study.memory
        assert all((found[name].curves[key] == values).all() for key, values in study.curves.items())


def test_another_study_does_not_go_on_from_these_segments(run: Run):
    with pytest.raises(KeyboardInterrupt):
        measure(asked(run, Here(8)))
    other = Here(key="other")
    measure(asked(run, other))
    assert len(other.calls) == 4 * (chains.NUM_TIMES + 1)


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty"])
def test_a_damaged_segment_is_made_again_with_those_after_it(run: Run, harm: str):
    with pytest.raises(KeyboardInterrupt):
        measure(asked(run, Here(16)))
    progress = Progress(ResultsFolder(run, STEP), "key")
    kept = progress.load("descent")
    assert len(kept) == 4
    key = f"{RESULTS}/{PLACE}/key/descent-02.safetensors"
    data = bytearray(run.read_bytes(key))
    data[-3] ^= 1
    run.write_bytes(key, {"flip": bytes(data), "truncate": bytes(data[:-9]), "empty": b""}[harm])
    again = progress.load("descent")
    assert len(again) == 2
    for one, two in zip(again, kept, strict=False):
        assert all(torch.equal(getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one))


def test_chains_that_diverge_leave_nothing_behind(run: Run):
    with pytest.raises(CheckpointError, match="leave the finite numbers"):
        measure(asked(run, Here(scale=1e5)))
    assert list(run.list(RESULTS)) == []


def test_what_is_stored_is_pictures_and_numbers_and_no_progress(run: Run):
    part = asked(run, Here())
    document = measure(part)
    report = chains.report(document["studies"], {"fid_small": lambda _: 1.0})
    STUDY.store(part, report | {"studies": document["studies"]})
    STUDY.tidy(part)
    names = [info.key.rpartition("/")[2] for info in run.list(RESULTS)]
    expected = [f"chains-{name}{end}.png" for name in chains.VARIANTS for end in ("", "-pool")]
    assert sorted(names) == sorted([*expected, "chains.png"])
    clear(part.folder)  # nothing to remove is no error


def test_the_table_says_how_long_chains_remember(run: Run):
    pool = Here()
    plan = plan_of(asked(run, pool, descent_steps=400))
    studies = {name: chains.run_variant(pool.model, pool.cfg, name, plan) for name in ("no_transitions", "descent")}
    document = chains.report(studies, {"fid_small": lambda _: 1.0}) | {"heldout": {"fid_small": 0.5}}
    rows = {row[0]: row for row in STUDY.tables(document, STEP)[1].rows}
    assert rows["descent"][1:] == ("no", "no", "still", "still")
    assert float(rows["no_transitions"][4].removeprefix("at least ")) > 1


@pytest.mark.full
@pytest.mark.cluster
def test_a_driver_killed_in_the_middle_is_continued_by_the_next(cluster, tmp_path: Path):
    run = store_run(tmp_path / "runs", "sampler.noise_std=0.01")
    options = ["chains.num_chains=4", "chains.num_steps=60", "chains.descent_steps=20"]
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "orchestrator.cli", "evaluate", "tiny", "--storage", str(tmp_path / "runs")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(
        [*command, *options, "--metrics", "chains", "--actors", "1", "--address", address],
        cwd=tmp_path,
        env=environment,
    )
    try:
        until = time.monotonic() + 120
        while sum(1 for _ in run.list(f"{RESULTS}/{PLACE}/")) < 3 and time.monotonic() < until and first.poll() is None:
            time.sleep(0.02)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    kept = {info.key: run.read_bytes(info.key) for info in run.list(f"{RESULTS}/{PLACE}/")}
    assert 3 <= len(kept) < 2 * (chains.NUM_TIMES + 1)
    from orchestrator.evaluation.evaluate import evaluate

    request = override_studies(EvaluationConfig(metrics=("chains",)), options)
    evaluate("tiny", request, storage=str(tmp_path / "runs"))
    continued = {info.key: run.read_bytes(info.key) for info in run.list(RESULTS)}
    assert not any(PLACE in key for key in continued)
    evaluate("tiny", request, storage=str(tmp_path / "runs"))  # from the beginning
    assert {info.key: run.read_bytes(info.key) for info in run.list(RESULTS)} == continued
