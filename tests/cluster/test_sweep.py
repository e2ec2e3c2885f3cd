"""A sweep on a real Ray of two CPUs: trials are whole jobs, none starves another, a kill costs nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from ebm_core.errors import ConfigError
from orchestrator import cluster, runs
from orchestrator.config import JobConfig, override
from orchestrator.storage import RunStore
from orchestrator.sweep import _Driver, find_room, run_sweep
from orchestrator.sweep_display import Quiet
from orchestrator.sweep_plan import SweepRequest, make_plan
from orchestrator.sweep_record import PlannedTrial, StoredSweep, SweepPlan, SweepRecord, without_cost
from tests.cluster.test_train_job import ROOT, TINY, files_of, plain_loop

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
    pytest.mark.filterwarnings(r"ignore::ResourceWarning:ray\..*"),
]
SETTINGS = [
    *TINY[:-1],
    "evaluation.every=6",
    "evaluation.metrics=energy_gap",
    "evaluation.num_images=8",
    "data.root=/nowhere",  # digits need no files, and a relative folder would differ between the drivers
]
YAML = """
preset: digits
name: tiny
metric: energy_gap
rows:
- {key: a}
- {key: b, settings: {optimizer.lr: 0.01}}
- {key: diverges, settings: {train.energy_limit: 1.0e-9}}
"""


@pytest.fixture(autouse=True)
def environment(cluster: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        yield


class Seen(Quiet):
    """Keeps which trials started."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[str] = []

    def started(self, trial: str, num_steps: int) -> None:
        self.begun.append(trial)


def tiny_plan(folder: Path) -> tuple[SweepPlan, JobConfig]:
    path = folder / "tiny.yaml"
    path.write_text(YAML)
    return make_plan(str(path), SweepRequest(settings=(*SETTINGS, f"storage={folder}/runs")))


def results(stored: StoredSweep) -> dict[str, Any]:
    return {trial.planned.trial: trial.result and dict(without_cost(trial.result)) for trial in stored.trials}


@pytest.mark.timeout(1200)  # a minute or two, and more beside busy neighbours
def test_three_trials_share_two_cpus_and_a_killed_driver_costs_no_result(tmp_path: Path):
    # Were a CPU reserved for each trial's own process, the two that start first would wait for workers for ever.
    whole = tmp_path / "whole"
    whole.mkdir()
    plan, base = tiny_plan(whole)
    seen = Seen()
    stored, number = run_sweep(plan, base, display=seen)
    assert number is None
    assert sorted(seen.begun) == ["a-seed0", "b-seed0", "diverges-seed0"]
    states = {trial.planned.trial: trial.state for trial in stored.trials}
    assert states == {"a-seed0": "finished", "b-seed0": "finished", "diverges-seed0": "unstable"}
    check_trials(stored, base, tmp_path)

    again = Seen()
    assert results(run_sweep(plan, base, display=again)[0]) == results(stored)
    assert again.begun == []

    parts = tmp_path / "parts"
    parts.mkdir()
    kill_driver_when_first_checkpoint_is_there(parts)
    plan, base = tiny_plan(parts)
    after = Seen()
    interrupted, _ = run_sweep(plan, base, display=after)
    assert after.begun
    assert results(interrupted) == results(stored)
    for row in "ab":
        one, two = (RunStore(str(folder / "runs")).run(f"tiny-{row}-seed0") for folder in (whole, parts))
        assert files_of(one, 6, tmp_path / f"one{row}") == files_of(two, 6, tmp_path / f"two{row}")


def check_trials(stored: StoredSweep, base: JobConfig, folder: Path) -> None:
    """Trials are ordinary runs with the numbers of a plain loop; a divergence is a result."""
    by_name = {trial.planned.trial: trial for trial in stored.trials}
    store = RunStore(base.storage)
    assert store.runs() == [f"tiny-{trial}" for trial in sorted(by_name)]
    one = by_name["b-seed0"]
    assert one.result is not None
    job = override(base, [*one.planned.settings, "name=tiny-b-seed0"])
    assert files_of(store.run("tiny-b-seed0"), 6, folder / "fetched") == plain_loop(job, folder / "plain")
    assert one.result.scores["energy_gap"] == runs.read_scores(store.run("tiny-b-seed0"), 6)["energy_gap"]["value"]
    assert one.result.value == one.result.scores["energy_gap"]
    assert one.result.cost["cpus"] == 1.0
    broken = by_name["diverges-seed0"].result
    assert broken is not None
    assert broken.unstable_at == 1
    assert "diverged at step 1" in broken.reason
    assert broken.value is None


def kill_driver_when_first_checkpoint_is_there(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(YAML)
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "tiny.yaml", *SETTINGS, f"storage={folder}/runs"]
    with (folder / "log.txt").open("w") as log:
        driver = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"RAY_ADDRESS": address}, stdout=log, stderr=log
        )
        while driver.poll() is None and not list(folder.glob("runs/tiny-*/checkpoints/*/COMMITTED")):
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL, (folder / "log.txt").read_text()


def test_trials_that_can_never_fit_are_refused_before_anything_is_stored(tmp_path: Path):
    for settings in (("cluster.num_workers=8",), ("cluster.cpus_per_worker=3",), ("cluster.use_gpu=true",)):
        plan, base = make_plan(
            "table2", SweepRequest(preset="digits", settings=(*settings, f"storage={tmp_path}/runs"))
        )
        with pytest.raises(cluster.ClusterError, match="each needs"):
            run_sweep(plan, base)
    space = ("cluster.num_workers=choice(1,8)", f"storage={tmp_path}/runs")
    plan, base = make_plan("digits", SweepRequest(settings=space))
    with pytest.raises(cluster.ClusterError, match=r"cluster\.num_workers = 8"):
        run_sweep(plan, base)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        ((), None, (2, 1)),
        ((), 1, (1, 2)),
        (("cluster.num_workers=2",), None, (1, 1)),
        (("cluster.cpus_per_worker=2",), None, (1, 2)),
        ((), 9, (2, 1)),
    ],
)
def test_concurrent_trials_fill_the_cpus_and_no_more(
    settings: tuple[str, ...], asked: int | None, expected: tuple[int, int]
):
    plan, base = make_plan("table2", SweepRequest(preset="digits", settings=settings))
    room = find_room(plan, base, asked)
    assert (room.concurrent, room.cpus_per_worker) == expected


def test_a_run_of_somebody_else_is_not_taken_for_a_trial(tmp_path: Path):
    plan, base = tiny_plan(tmp_path)
    store = RunStore(base.storage)
    store.run("tiny-b-seed0").write_config({"seed": 1})
    with pytest.raises(ConfigError, match="run tiny-b-seed0 exists"):
        run_sweep(plan, base)
    assert store.run("tiny-b-seed0").read_config() == {"seed": 1}


def test_what_the_scheduler_stops_is_recorded_as_stopped_at_its_last_score(tmp_path: Path):
    asked = SweepRequest(settings=(*SETTINGS, "train.num_steps=18", "sampler.step_size=uniform(1,2)"), scheduler="asha")
    plan, base = make_plan("digits", asked)
    record = SweepRecord(RunStore(str(tmp_path)), plan.name)
    record.create_plan(plan)
    planned = PlannedTrial(trial="0000", run="digits-search-0000", index=0, settings=("sampler.step_size=1.5",))
    run = record.store.run(planned.run)
    run.write_json("evaluations/step-000000006/energy_gap.json", {"value": 0.5})
    run.write_json("evaluations/step-000000012/energy_gap.json", {"value": 0.1})  # after the verdict: does not count

    class Stopped:
        config = {"launch": {"trial": {"trial": "0000", "run": planned.run, "index": 0, "settings": planned.settings}}}  # noqa: RUF012
        last_result = {"step": 6, "energy_gap": 0.5}  # noqa: RUF012

    driver = _Driver(plan, base, record, find_room(plan, base, None), Quiet())
    driver.on_trial_complete(0, [], Stopped())  # pyright: ignore[reportArgumentType]
    result = record.result("0000")
    assert result is not None
    assert (result.state, result.step, result.scores) == ("stopped", 6, {"energy_gap": 0.5})
