"""Which trial comes next: replayed from the record, the same again at concurrency 1."""

import math
from pathlib import Path

import pytest

from ebm_core.config import to_tree
from orchestrator.records.sweeps import PlannedTrial, SweepPlan, SweepRecord, TrialResult
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import RunStore
from orchestrator.sweeps.plan import SweepRequest, make_plan
from orchestrator.sweeps.ranges import parse_space
from orchestrator.sweeps.search import OptunaSuggester, RandomSuggester, Suggester, Trials, asha, trial_of_row

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")
SPACE = ("sampler.step_size=loguniform(0.1,100)", "sampler.num_steps=randint(2,9)", "loss.kl_weight=choice(0,0.3,1)")


def search_plan(**options) -> tuple[SweepPlan, JobConfig]:
    return make_plan("digits_paper", SweepRequest(settings=SPACE, name="s", **options))


def suggester(plan: SweepPlan, base: JobConfig) -> Suggester:
    ranges = parse_space(plan.space, base)
    if plan.search == "random":
        return RandomSuggester(ranges, plan.search_seed)
    return OptunaSuggester(ranges, plan.search_seed, plan.metric, plan.mode)


def value_of(planned: PlannedTrial) -> float:
    """A smooth score with its best at a step size of 10: what a trial would find."""
    settings = dict(setting.split("=", 1) for setting in planned.settings)
    return (math.log10(float(settings["sampler.step_size"])) - 1) ** 2


def result_of(planned: PlannedTrial, value: float | None, state: str = "finished") -> TrialResult:
    step = 10
    return TrialResult(trial=planned.trial, run=planned.run, state=state, step=step, num_steps=step, value=value)  # pyright: ignore[reportArgumentType]


def run_some(folder: Path, plan: SweepPlan, base: JobConfig, count: int) -> list[PlannedTrial]:
    """One launch that is killed after `count` trials: what it gave out, the last without a result."""
    record = SweepRecord(RunStore(str(folder)), plan.name)
    record.create_plan(plan)
    trials = Trials(record, plan, base, suggester(plan, base), plan.num_trials)
    given = []
    while (found := trials.next()) is not None:
        given.append(found[0])
        if len(given) > count:
            break
        record.create_result(result_of(found[0], value_of(found[0])))
        trials.ended(found[0])
    return given


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_an_interrupted_search_goes_on_with_the_trials_that_it_would_have_had(search: str, tmp_path: Path):
    plan, base = search_plan(trials=14, search=search, seed=5)
    whole = run_some(tmp_path / "whole", plan, base, 99)
    assert len(whole) == 14
    first = run_some(tmp_path / "parts", plan, base, 4)
    second = run_some(tmp_path / "parts", plan, base, 7)
    third = run_some(tmp_path / "parts", plan, base, 99)
    assert first[:4] + second[:7] + third == whole
    other, _ = search_plan(trials=14, search=search, seed=6)
    assert run_some(tmp_path / "other", other, base, 99) != whole


def test_optuna_learns_from_results(tmp_path: Path):
    plan, base = search_plan(trials=40, search="optuna", seed=1)
    values = [value_of(trial) for trial in run_some(tmp_path, plan, base, 99)]
    assert sum(values[20:]) / 20 < 0.5 * sum(values[:10]) / 10  # the first ten are random


def test_optuna_hears_of_recorded_trials_that_it_would_not_have_asked_for(tmp_path: Path):
    # Several at a time end in any order, so a replay may ask for other values than were run.
    plan, base = search_plan(trials=3, search="optuna", seed=1)
    record = SweepRecord(RunStore(str(tmp_path)), plan.name)
    record.create_plan(plan)
    settings = ("sampler.step_size=3.5", "sampler.num_steps=4", "loss.kl_weight=0.3")
    run = PlannedTrial(trial="0000", run="s-0000", index=0, settings=settings)
    record.create_planned(run)
    record.create_result(result_of(run, 2.0))
    found = Trials(record, plan, base, suggester(plan, base), 3).next()
    assert found is not None
    assert found[0].index == 1
    assert next(trial.planned for trial in record.read().trials) == run


def test_values_that_exclude_each_other_are_refused_and_not_run(tmp_path: Path):
    space = ("model.multiscale=choice(true,false)", "model.widths=choice([8,16,16],[8,16,16,16])")
    plan, base = make_plan(
        "digits_paper", SweepRequest(settings=("model.widths=8,16,16,16", *space), name="s", trials=30)
    )
    record = SweepRecord(RunStore(str(tmp_path)), plan.name)
    record.create_plan(plan)
    trials = Trials(record, plan, base, suggester(plan, base), plan.num_trials)
    given = []
    while (found := trials.next()) is not None:
        given.append(found[0])
    results = [trial.result for trial in record.read().trials]
    refused = [result for result in results if result is not None]
    assert len(given) + len(refused) == 30
    assert refused
    assert given
    assert all(result.state == "refused" and "three scales need 4 widths" in result.reason for result in refused)


def test_a_grid_goes_seed_by_seed_and_names_its_runs(tmp_path: Path):
    plan, base = make_plan("table2", SweepRequest(preset="digits", seeds=2))
    record = SweepRecord(RunStore(str(tmp_path)), plan.name)
    record.create_plan(plan)
    trials = Trials(record, plan, base, None, 12)
    given = []
    while (found := trials.next()) is not None:
        planned, job = found
        given.append(planned.trial)
        assert job == override(base, [*planned.settings, f"name=table2-digits-{planned.trial}"])
        assert job.seed == planned.seed
    assert given[:6] == [f"{row.key}-seed0" for row in plan.rows]
    assert given[6:] == [f"{row.key}-seed1" for row in plan.rows]
    record.create_result(result_of(trial_of_row(plan, 0), 1.0))
    again = Trials(record, plan, base, None, 12).next()
    assert again is not None
    assert again[0].trial == given[1]


def test_asha_remembers_the_rungs_of_earlier_launches(tmp_path: Path):
    plan, base = search_plan(scheduler="asha", trials=9, metric="fid_small")
    base = override(base, ["train.num_steps=90", "evaluation.every=10"])
    record = SweepRecord(RunStore(str(tmp_path)), plan.name)
    record.create_plan(plan)
    for index, value in enumerate((1.0, 2.0, 3.0)):
        planned = PlannedTrial(trial=f"{index:04d}", run=f"s-{index:04d}", index=index, settings=())
        record.create_planned(planned)
        run = record.store.run(planned.run)
        run.write_config(to_tree(base))
        run.write_json("evaluations/step-000000010/fid_small.json", {"value": value})

    class Now:
        trial_id = "now"

    for value, verdict in ((1.2, "CONTINUE"), (2.9, "STOP")):
        scheduler = asha(plan, record, base)
        scheduler.on_trial_add(None, Now())  # pyright: ignore[reportArgumentType]
        said = scheduler.on_trial_result(None, Now(), {"step": 10, "fid_small": value})  # pyright: ignore[reportArgumentType]
        assert said == verdict
