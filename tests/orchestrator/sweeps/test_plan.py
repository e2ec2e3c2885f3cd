"""From words to a plan: what is refused, and that nothing starts before."""

import dataclasses
from pathlib import Path

import pytest

from ebm_core.errors import ConfigError
from orchestrator.sweeps.plan import SweepRequest, check_same, concurrent_trials, make_plan


def request(*settings: str, **options) -> SweepRequest:
    return SweepRequest(settings=settings, **options)


@pytest.mark.parametrize(
    ("what", "asked", "said"),
    [
        ("tabel2", {}, "did you mean table2?"),
        ("table2", {"settings": ("sampler.num_stesp=3",)}, "did you mean sampler.num_steps?"),
        ("table2", {"settings": ("sampler.step_size=uniform(1,2)",)}, "has rows of its own"),
        ("table2", {"metric": "fid_smal"}, "no evaluation produces it"),
        ("table2", {"metric": "energy_gap"}, "neither less nor more of it is better; add `mode` min or `mode` max"),
        ("table2", {"metric": "steps_per_s"}, "no evaluation produces it"),
        ("table2", {"scheduler": "asha"}, "a grid is a table of whole runs"),
        ("table2", {"name": "a/b"}, "a run's name"),
        ("digits_paper", {}, "needs a range"),
        ("digits_paper", {"settings": ("seed=1",)}, "needs a range"),
        ("digits_paper", {"settings": ("sampler.step_size=uniform(1,2)",), "seeds": 3}, "is for grids"),
        ("digits_paper", {"settings": ("sampler.step_size=uniform(2,1)",)}, "below the highest"),
        ("table2", {"preset": "nothing"}, "preset 'nothing'"),
    ],
)
def test_a_wrong_request_is_one_line(what: str, asked: dict, said: str):
    with pytest.raises(ConfigError) as end:
        make_plan(what, SweepRequest(**asked))
    assert said in str(end.value)
    assert "\n" not in str(end.value)


@pytest.mark.parametrize(
    "asked", [{"seeds": 0}, {"trials": 0}, {"max_concurrent": 0}, {"scheduler": "x"}, {"search": "x"}, {"mode": "x"}]
)
def test_an_option_out_of_range_is_named(asked: dict):
    with pytest.raises(ConfigError, match=f"`{next(iter(asked))}`"):
        SweepRequest(**asked)


def test_the_metric_joins_the_scores_and_the_last_step_is_scored():
    _, base = make_plan("table2", request("train.num_steps=700", preset="cifar10", metric="kid_small"))
    assert "kid_small" in base.evaluation.metrics
    assert base.evaluation.every == 700
    assert base.evaluation.every % base.checkpoint.every == 0


def test_asha_gets_scores_before_the_end():
    _, base = make_plan("cifar10", request("sampler.step_size=uniform(50,200)", scheduler="asha"))
    assert base.evaluation.every == 20_000 // 9
    assert base.evaluation.every % base.checkpoint.every == 0


def test_the_same_command_makes_the_same_plan_wherever_it_runs():
    first, _ = make_plan("table2", request("storage=a", "cluster.num_workers=2", preset="digits_paper"))
    second, _ = make_plan("table2", request("storage=b", preset="digits_paper"))
    check_same(first, second)
    third, _ = make_plan("table2", request("train.num_steps=9", preset="digits_paper"))
    with pytest.raises(ConfigError, match=r"base.train.num_steps was 1500, now 9"):
        check_same(first, third)
    with pytest.raises(ConfigError, match="seeds"):
        check_same(first, dataclasses.replace(first, seeds=(0, 1)))


YAML = """
preset: digits_paper
name: mine
settings: {train.num_steps: 30, model.widths: [8, 16, 16], augment.enabled: true}
space:
  sampler.step_size: loguniform(1, 10)
trials: 5
search: optuna
"""


def test_a_yaml_file_is_a_search_and_the_command_line_wins(tmp_path: Path):
    path = tmp_path / "my.yaml"
    path.write_text(YAML)
    plan, base = make_plan(str(path), request("train.num_steps=40"))
    assert (plan.name, plan.kind, plan.num_trials, plan.search) == ("mine", "search", 5, "optuna")
    assert plan.space == {"sampler.step_size": "loguniform(1, 10)"}
    assert base.train.num_steps == 40
    assert base.model.widths == (8, 16, 16)
    assert base.augment.enabled


def test_a_yaml_file_with_rows_is_a_grid(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: digits_paper\nseeds: 2\nrows:\n- {key: a}\n- {key: b, settings: {optimizer.lr: 0.01}}\n")
    plan, _ = make_plan(str(path), SweepRequest())
    assert (plan.name, plan.kind, plan.seeds) == ("mine", "grid", (0, 1))
    assert [row.settings for row in plan.rows] == [(), ("optimizer.lr=0.01",)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("presset: digits", "did you mean preset?"),
        ("preset: digits_paper\nspace: 3", "must be a map"),
        ("preset: digits_paper\ntrials: many", "must be a whole number"),
        ("preset: [digits_paper]", "must be a text"),
        ("- 1", "must be a map"),
        ("a: [", "not YAML"),
        ("space: {seed: randint(0,9)}", "needs preset"),
        ("preset: digits_paper\nrows: [{key: a/b}]", "names its runs"),
        ("preset: digits_paper\nrows: [{key: a, setings: {}}]", "did you mean settings?"),
        ("preset: digits_paper\nrows: [{key: a, settings: {optimizer.lr: 7}}]", "row a: optimizer.lr = 7.0"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_wrong_yaml_file_is_one_line(text: str, said: str, tmp_path: Path):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as end:
        make_plan(str(path), SweepRequest())
    assert said in str(end.value)
    assert "\n" not in str(end.value)


def test_a_file_may_say_how_many_trials_run_at_once_and_the_command_line_wins(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text("preset: digits_paper\nmax_concurrent: 3\nrows:\n- {key: a}\n")
    assert concurrent_trials(str(path), SweepRequest()) == 3
    assert concurrent_trials(str(path), SweepRequest(max_concurrent=1)) == 1
    assert concurrent_trials("table2", SweepRequest(max_concurrent=2)) == 2
    assert concurrent_trials("table2", SweepRequest()) is None


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("inception_score", "max"),
        ("precision_recall", "max"),
        ("precision_recall_judge", "max"),
        ("classifier", "max"),
        ("fid_judge", "min"),
        ("kid_small", "min"),
        ("running_gap", "max"),
        ("grad_norm", "min"),
    ],
)
def test_a_sweep_looks_for_what_is_better_for_its_metric(metric: str, mode: str):
    assert make_plan("table2", request(metric=metric))[0].mode == mode
    other = "max" if mode == "min" else "min"
    assert make_plan("table2", request(metric=metric, mode=other))[0].mode == other


def test_a_score_without_a_better_direction_needs_mode():
    assert make_plan("table2", request(metric="energy_gap", mode="max"))[0].mode == "max"


@pytest.mark.parametrize(
    ("preset", "metric"), [("digits", "fid_judge"), ("cifar10", "fid_judge"), ("celeba_hq", "fid_rotation")]
)
def test_the_default_metric_is_the_headline_of_the_data_set(preset: str, metric: str):
    plan, base = make_plan("table2", request(preset=preset))
    assert (plan.metric, plan.mode) == (metric, "min")
    assert metric in base.evaluation.metrics
    assert "fid_small" not in base.evaluation.metrics


def test_a_term_of_the_loss_is_a_metric_by_its_present_name_or_the_one_of_0_1():
    old, new = (make_plan("table2", request(metric=name))[0] for name in ("cd", "loss/cd"))
    assert old.metric == new.metric == "loss/cd"
    check_same(old, new)
    assert make_plan("table2", request(metric="loss/novel"))[0].metric == "loss/novel"
    with pytest.raises(ConfigError, match="no evaluation produces it"):
        make_plan("table2", request(metric="novel"))


def test_a_grid_runs_on_its_own_preset_and_shrinks_by_its_own_settings_too():
    plan, base = make_plan("recipe", SweepRequest())
    assert (plan.preset, plan.name, base.warmup.num_steps) == ("digits", "recipe-digits", 6000)
    assert make_plan("buffer", SweepRequest())[0].preset == "cifar10"
    _, small = make_plan("recipe", SweepRequest(smoke=True))
    assert (small.warmup.num_steps, small.train.num_steps, small.buffer.restart_steps) == (30, 60, 5)
