"""What a sweep stores: created once, read back as it was."""

import dataclasses
from pathlib import Path

import pytest

from ebm_core.errors import ConfigError
from orchestrator.records.sweeps import PlannedTrial, SweepRecord, TrialResult, marked_sweep, sweeps
from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import RunStore
from orchestrator.sweeps.plan import SweepRequest, make_plan


@pytest.fixture
def record(tmp_path: Path) -> SweepRecord:
    return SweepRecord(RunStore(str(tmp_path)), "table2-digits")


PLANNED = PlannedTrial(trial="plain-seed0", run="table2-digits-plain-seed0", index=0, settings=("seed=0",), row="plain")
RESULT = TrialResult(
    trial="plain-seed0", run=PLANNED.run, state="unstable", step=30, num_steps=60, reason="diverged", unstable_at=41,
    value=1.5, scores={"fid_small": 1.5}, score_step=30, best={"step": 30, "value": 1.5}, cost={"seconds": 3.5},
)  # fmt: skip


def test_everything_is_read_back_as_it_was_written(record: SweepRecord):
    plan, _ = make_plan("table2", SweepRequest(preset="digits", seeds=2))
    assert record.create_plan(plan)
    assert record.plan() == plan
    assert record.create_planned(PLANNED)
    assert record.read().trials[0].state == "unfinished"
    record.write_crash("plain-seed0", "the disk is full", "2026-01-01T00:00:00")
    assert record.read().trials[0].crash == "the disk is full"
    assert record.create_result(RESULT)
    (trial,) = record.read().trials
    assert (trial.planned, trial.result, trial.crash, trial.state) == (PLANNED, RESULT, None, "unstable")


def test_a_sweep_stored_by_version_0_1_is_compared_by_the_column_of_today(record: SweepRecord):
    plan, _ = make_plan("table2", SweepRequest(preset="digits", metric="cd"))
    record.create_plan(dataclasses.replace(plan, metric="cd"))  # as 0.1 wrote it
    assert record.plan() == plan
    assert plan.metric == "loss/cd"


def test_a_result_is_created_once_and_never_changes(record: SweepRecord):
    assert record.create_result(RESULT)
    assert not record.create_result(dataclasses.replace(RESULT, state="finished"))
    assert record.result("plain-seed0") == RESULT


def test_a_sweep_is_no_run_and_its_runs_know_it(record: SweepRecord):
    plan, _ = make_plan("table2", SweepRequest(preset="digits"))
    record.create_plan(plan)
    record.mark_run(PLANNED)
    assert sweeps(record.store) == ["table2-digits"]
    assert record.store.runs() == []
    assert marked_sweep(record.store.run(PLANNED.run)) == ("table2-digits", "plain-seed0")
    assert marked_sweep(record.store.run("other")) is None


def test_damage_and_newer_versions_are_one_line(record: SweepRecord, tmp_path: Path):
    with pytest.raises(ConfigError, match="no sweep 'table2-digits'"):
        record.plan()
    record.create_result(RESULT)
    path = tmp_path / "table2-digits" / "trials" / "plain-seed0.json"
    path.write_text('{"version": 2}')
    with pytest.raises(StorageError, match="is of version 2"):
        record.result("plain-seed0")
    path.write_text('{"trial": "plain-seed0"}')
    with pytest.raises(StorageError, match="damaged"):
        record.result("plain-seed0")
