"""A sweep on a real Ray of two CPUs: trials are whole jobs, none starves another, a kill costs nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from ebm_core.errors import ConfigError
from orchestrator.cluster import connection
from orchestrator.records import catalogue, scores
from orchestrator.records.sweeps import PlannedTrial, StoredSweep, SweepPlan, SweepRecord, without_cost
from orchestrator.reports.sweep_page import sweep_page
from orchestrator.reports.sweep_table import sweep_table
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import override
from orchestrator.storage.ownership import OwnedError
from orchestrator.storage.run_store import RunStore
from orchestrator.sweeps.driver import _Driver, run_sweep
from orchestrator.sweeps.plan import SweepRequest, make_plan
from orchestrator.sweeps.room import find_room
from orchestrator.terminal.sweep_progress import Quiet
from tests.cluster.test_train_job import TINY, Killer, files_of, plain_loop

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
preset: digits_paper
name: tiny
metric: energy_gap
mode: min
rows:
- {key: a}
- {key: b, settings: {optimizer.lr: 0.01}}
- {key: diverges, settings: {train.energy_limit: 1.0e-9}}
"""


@pytest.fixture(scope="module", autouse=True)
def _shared(cluster: None) -> None:
    """Every test of this file runs on the Ray that tests share."""


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredSweep, SweepPlan, JobConfig, list[str]]:
    """The tiny sweep in one go: what is stored, its plan and base, and which trials were started."""
    plan, base = tiny_plan(tmp_path_factory.mktemp("whole"))
    seen = Seen()
    stored, number = run_sweep(plan, base, display=seen)
    assert number is None
    return stored, plan, base, seen.begun


@pytest.mark.full
@pytest.mark.timeout(1200)  # a minute or two, and more beside busy neighbours
def test_three_trials_share_two_cpus_and_are_ordinary_runs(
    undisturbed: tuple[StoredSweep, SweepPlan, JobConfig, list[str]], tmp_path: Path
):
    # Were a CPU reserved for each trial's own process, the two that start first would wait for workers for ever.
    stored, plan, base, begun = undisturbed
    assert sorted(begun) == ["a-seed0", "b-seed0", "diverges-seed0"]
    states = {trial.planned.trial: trial.state for trial in stored.trials}
    assert states == {"a-seed0": "finished", "b-seed0": "finished", "diverges-seed0": "unstable"}
    check_trials(stored, base, tmp_path)
    again = Seen()
    assert results(run_sweep(plan, base, display=again)[0]) == results(stored)
    assert again.begun == []


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_second_command_is_turned_away_and_a_killed_first_one_costs_no_result(
    undisturbed: tuple[StoredSweep, SweepPlan, JobConfig, list[str]], tmp_path: Path
):
    stored, _, whole, _ = undisturbed
    plan, base = tiny_plan(tmp_path)

    def second_command(first: int) -> None:
        with pytest.raises(OwnedError, match=f"sweep tiny is being run by process {first} "):
            run_sweep(plan, base)

    kill_driver_when_first_checkpoint_is_there(tmp_path, second_command)
    after = Seen()
    interrupted, _ = run_sweep(plan, base, display=after)
    assert after.begun
    assert results(interrupted) == results(stored)
    assert same_checkpoints(whole, base, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_trial_whose_processes_are_killed_is_retried_from_its_checkpoint_and_ends_with_the_same_result(
    undisturbed: tuple[StoredSweep, SweepPlan, JobConfig, list[str]], tmp_path: Path
):
    stored, _, whole, _ = undisturbed
    plan, base = tiny_plan(tmp_path)

    def has_stored(step: int) -> bool:
        return bool(list(tmp_path.glob(f"runs/tiny-*/checkpoints/step-{step:09d}/COMMITTED")))

    worker, trial = Killer(lambda: has_stored(3)), Killer(lambda: has_stored(6), b"ImplicitFunc")
    seen = Seen()
    with worker, trial:
        disturbed, number = run_sweep(plan, base, display=seen)
    assert worker.killed
    assert trial.killed
    assert number is None
    assert len(seen.begun) == len(set(seen.begun)) + 1  # Tune has started one process again
    assert sum(one.result.cost["attempts"] for one in disturbed.trials if one.result) == 4
    assert results(disturbed) == results(stored)
    assert same_checkpoints(whole, base, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_what_asha_stops_is_stopped_in_record_table_catalogue_and_page_and_is_not_run_again(tmp_path: Path):
    # The smaller learning rate counts as better: of trials one after another, each larger one is stopped at the rung.
    # Training is far quicker here than scoring: checkpoint.keep must hold all that are to be scored.
    steps = ("train.num_steps=18", "checkpoint.every=6", "checkpoint.keep=3")
    settings = (*SETTINGS, *steps, "optimizer.lr=choice(0.001,0.002)", f"storage={tmp_path}")
    asked = SweepRequest(settings=settings, metric="lr", mode="min", scheduler="asha", trials=3, seed=0, name="asha")
    plan, base = make_plan("digits_paper", asked)
    seen = Seen()
    stored, number = run_sweep(plan, base, max_concurrent=1, display=seen)
    assert number is None
    drawn = [trial.planned.settings for trial in stored.trials]
    assert drawn == [("optimizer.lr=0.001",), ("optimizer.lr=0.002",), ("optimizer.lr=0.001",)]
    assert [trial.state for trial in stored.trials] == ["finished", "stopped", "finished"]
    stopped = stored.trials[1].result
    assert stopped is not None
    assert (stopped.step, stopped.score_step, stopped.num_steps, stopped.value) == (6, 6, 18, 0.002)
    assert stopped.reason == "stopped at step 6 by asha"
    lines = {row[0]: row for row in sweep_table(stored).rows}
    assert lines["0001"][2:4] == ("stopped", "6/18")
    assert lines["0000"][2:4] == ("finished", "18/18")
    store = RunStore(base.storage)
    found = catalogue.select(catalogue.read(store), sweep="asha").to_pylist()
    assert [row["state"] for row in found] == ["finished", "stopped", "finished"]
    page = sweep_page(store.run("asha"))
    assert page.count("stopped at step 6 of 18") >= 1

    again = Seen()
    assert results(run_sweep(plan, base, max_concurrent=1, display=again)[0]) == results(stored)
    assert again.begun == []
    assert [row["state"] for row in catalogue.select(catalogue.rebuild(store), sweep="asha").to_pylist()] == [
        "finished",
        "stopped",
        "finished",
    ]


def same_checkpoints(one: JobConfig, two: JobConfig, folder: Path) -> bool:
    """Are the last checkpoints of both finished trials the same in all bytes?"""

    def files(base: JobConfig, row: str) -> Any:
        return files_of(RunStore(base.storage).run(f"tiny-{row}-seed0"), 6, folder / f"{row}{base is one}")

    return all(files(one, row) == files(two, row) for row in "ab")


def check_trials(stored: StoredSweep, base: JobConfig, folder: Path) -> None:
    """Trials are ordinary runs with the numbers of a plain loop; a divergence is a result."""
    by_name = {trial.planned.trial: trial for trial in stored.trials}
    store = RunStore(base.storage)
    assert store.runs() == [f"tiny-{trial}" for trial in sorted(by_name)]
    one = by_name["b-seed0"]
    assert one.result is not None
    job = override(base, [*one.planned.settings, "name=tiny-b-seed0"])
    assert files_of(store.run("tiny-b-seed0"), 6, folder / "fetched") == plain_loop(job, folder / "plain")
    assert one.result.scores["energy_gap"] == scores.read_scores(store.run("tiny-b-seed0"), 6)["energy_gap"]["value"]
    assert one.result.value == one.result.scores["energy_gap"]
    assert one.result.cost["cpus"] == 1.0
    broken = by_name["diverges-seed0"].result
    assert broken is not None
    assert broken.unstable_at == 1
    assert "diverged at step 1" in broken.reason
    assert broken.value is None


def kill_driver_when_first_checkpoint_is_there(folder: Path, before: Callable[[int], None]) -> None:
    """Start the sweep in a process of its own, and hand its pid to `before` in the middle of it; then kill it."""
    (folder / "tiny.yaml").write_text(YAML)
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "tiny.yaml", *SETTINGS, f"storage={folder}/runs"]
    with (folder / "log.txt").open("w") as log:
        driver = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"RAY_ADDRESS": address}, stdout=log, stderr=log
        )
        while driver.poll() is None and not list(folder.glob("runs/tiny-*/checkpoints/*/COMMITTED")):
            time.sleep(0.02)
        before(driver.pid)
        driver.send_signal(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL, (folder / "log.txt").read_text()


def test_trials_that_can_never_fit_are_refused_before_anything_is_stored(tmp_path: Path):
    for settings in (("cluster.num_workers=8",), ("cluster.cpus_per_worker=3",), ("cluster.use_gpu=true",)):
        plan, base = make_plan(
            "table2", SweepRequest(preset="digits_paper", settings=(*settings, f"storage={tmp_path}/runs"))
        )
        with pytest.raises(connection.ClusterError, match="each needs"):
            run_sweep(plan, base)
    space = ("cluster.num_workers=choice(1,8)", f"storage={tmp_path}/runs")
    plan, base = make_plan("digits_paper", SweepRequest(settings=space))
    with pytest.raises(connection.ClusterError, match=r"cluster\.num_workers = 8"):
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
    plan, base = make_plan("table2", SweepRequest(preset="digits_paper", settings=settings))
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
    plan, base = make_plan("digits_paper", asked)
    record = SweepRecord(RunStore(str(tmp_path)), plan.name)
    record.create_plan(plan)
    planned = PlannedTrial(trial="0000", run="digits-search-0000", index=0, settings=("sampler.step_size=1.5",))
    run = record.store.run(planned.run)
    run.write_json("evaluations/step-000000006/energy_gap.json", {"value": 0.5})
    run.write_json("evaluations/step-000000012/energy_gap.json", {"value": 0.1})  # after the verdict: does not count

    driver = _Driver(plan, base, record, find_room(plan, base, None), Quiet())
    driver.conclude_stopped(planned, {"step": 6, "energy_gap": 0.5})
    result = record.result("0000")
    assert result is not None
    assert (result.state, result.step, result.scores) == ("stopped", 6, {"energy_gap": 0.5})
