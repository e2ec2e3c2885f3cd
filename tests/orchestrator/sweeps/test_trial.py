"""What a stored run amounts to as the result of a trial: a function of the run alone."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from ebm_core.config import to_tree
from orchestrator.records.rows import Row, part_bytes, part_name
from orchestrator.records.scores import lacking_scores, unscored
from orchestrator.records.sweeps import SweepPlan
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.sweeps.plan import SweepRequest, make_plan
from orchestrator.sweeps.result import conclude, score_history
from orchestrator.sweeps.search import trial_of_row
from orchestrator.sweeps.trial import Launch, with_cost

SETTINGS = ("train.num_steps=30", "checkpoint.every=10", "evaluation.every=10", "evaluation.metrics=fid_judge")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Run, JobConfig, SweepPlan]:
    """A run of 30 steps with a score at each checkpoint: 3, 1, 2."""
    plan, base = make_plan("table2", SweepRequest(preset="digits", settings=SETTINGS))
    planned = trial_of_row(plan, 0)
    job = override(base, [*planned.settings, f"name={planned.run}", f"storage={tmp_path}"])
    run = RunStore(str(tmp_path)).run(planned.run)
    run.write_config(to_tree(job))
    for step, value in ((10, 3.0), (20, 1.0), (30, 2.0)):
        rows: list[Row] = [
            {"step": step, "energy_gap": -step / 100, "running_gap": -0.1, "steps_per_s": 5.0, "time": 1.0 + step}
        ]
        run.write_bytes(f"metrics/{part_name(rows)}", part_bytes(rows))
        run.write_bytes(f"checkpoints/step-{step:09d}/COMMITTED", b"{}")
        run.write_json(f"evaluations/step-{step:09d}/fid_judge.json", {"value": value})
        run.write_bytes(f"samples/step-{step:09d}-ema.png", b"png")
    return run, job, plan


def test_a_finished_trial_has_its_last_score_and_its_best(made: tuple[Run, JobConfig, SweepPlan]):
    run, job, plan = made
    result = conclude(run, job, plan, trial_of_row(plan, 0), "finished")
    assert (result.step, result.num_steps, result.score_step, result.value) == (30, 30, 30, 2.0)
    assert result.best == {"step": 20, "value": 1.0}
    assert conclude(run, job, replace(plan, mode="max"), trial_of_row(plan, 0), "finished").best == {
        "step": 10,
        "value": 3.0,
    }
    assert result.metrics == {"energy_gap": -0.3, "running_gap": -0.1}  # no wall clock
    assert result.grid == "samples/step-000000030-ema.png"


def test_the_cost_of_a_trial_leaves_out_the_night_between_two_launches(made: tuple[Run, JobConfig, SweepPlan]):
    run, job, plan = made
    night: list[Row] = [{"step": 40, "steps_per_s": 2.0, "time": 40_000.0}]
    run.write_bytes(f"metrics/{part_name(night)}", part_bytes(night))
    result = conclude(run, job, plan, trial_of_row(plan, 0), "finished")
    launch = Launch({}, "sweep", {}, cpus=2.0, gpus=0.0, mailbox=None, environment={})
    cost = with_cost(result, run, time.time() - 60, launch).cost
    assert cost["train_seconds"] == 3 * 2.0 + 5.0  # ten steps each, at 5 and at 2 a second
    assert cost["seconds"] == pytest.approx(60, abs=5)


def test_a_logged_column_can_be_the_metric(made: tuple[Run, JobConfig, SweepPlan]):
    run, job, plan = made
    plan = replace(plan, metric="grad_norm")
    assert conclude(run, job, plan, trial_of_row(plan, 0), "finished").value is None
    plan = replace(plan, metric="loss", mode="min")
    assert conclude(run, job, plan, trial_of_row(plan, 0), "finished").best is None
    plan = replace(plan, metric="running_gap", mode="max")
    assert conclude(run, job, plan, trial_of_row(plan, 0), "finished").value == -0.1


def test_an_unstable_trial_has_the_score_of_its_last_sound_checkpoint(made: tuple[Run, JobConfig, SweepPlan]):
    run, job, plan = made
    run.store.objects.delete(f"{run.name}/checkpoints/step-000000030/COMMITTED")
    result = conclude(run, job, plan, trial_of_row(plan, 0), "unstable", reason="diverged", unstable_at=27)
    assert (result.state, result.step, result.unstable_at, result.value) == ("unstable", 20, 27, 1.0)


def test_what_a_stopped_trial_did_after_the_verdict_counts_for_nothing(made: tuple[Run, JobConfig, SweepPlan]):
    run, job, plan = made
    result = conclude(run, job, plan, trial_of_row(plan, 0), "stopped", stopped_at=10)
    assert (result.step, result.value, result.best) == (10, 3.0, {"step": 10, "value": 3.0})
    assert result.metrics["energy_gap"] == -0.1


def test_a_refused_trial_has_no_numbers(made: tuple[Run, JobConfig, SweepPlan]):
    run, job, plan = made
    result = conclude(run, job, plan, trial_of_row(plan, 0), "refused", reason="why")
    assert (result.step, result.value, result.scores, result.reason) == (0, None, {}, "why")


def test_history_is_what_was_scored_by_step(made: tuple[Run, JobConfig, SweepPlan]):
    run, _, _ = made
    assert [(step, value) for _, step, value in score_history(run, "fid_judge")] == [(10, 3.0), (20, 1.0), (30, 2.0)]


def test_a_checkpoint_is_scored_again_when_a_kill_left_its_scores_or_its_grid_out(
    made: tuple[Run, JobConfig, SweepPlan],
):
    run, job, _ = made
    assert unscored(run, job) == []
    run.store.objects.delete(f"{run.name}/samples/step-000000020-ema.png")  # stored last
    assert unscored(run, job) == [20]
    run.store.objects.delete(f"{run.name}/evaluations/step-000000010/fid_judge.json")
    assert unscored(run, job) == [10, 20]
    assert unscored(run, override(job, ["evaluation.every=20"])) == [20]
    assert lacking_scores(run, job, [10, 30]) == [10]
