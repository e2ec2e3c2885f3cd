"""Lists of values: which commas part values, and the grid that they make."""

import itertools

import pytest

from ebm_core.errors import ConfigError
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import require_run_name
from orchestrator.sweeps.estimate import planned_trials
from orchestrator.sweeps.lists import listed_values
from orchestrator.sweeps.plan import SweepRequest, make_plan


def plan_of(*settings: str, **options):
    return make_plan("digits_paper", SweepRequest(settings=settings, **options))


def test_a_list_of_values_is_a_grid_whose_trials_are_every_value_with_every_seed():
    plan, base = plan_of("optimizer.lr=1e-4,1e-3", seeds=2, name="lr")
    assert (plan.kind, plan.name, plan.seeds) == ("grid", "lr", (0, 1))
    jobs = [override(base, trial.settings) for trial in planned_trials(plan, base)]
    assert sorted((job.optimizer.lr, job.seed) for job in jobs) == [(1e-4, 0), (1e-4, 1), (1e-3, 0), (1e-3, 1)]
    names = [trial.run for trial in planned_trials(plan, base)]
    assert names == ["lr-lr-1e-4-seed0", "lr-lr-1e-3-seed0", "lr-lr-1e-4-seed1", "lr-lr-1e-3-seed1"]
    assert [row.choices for row in plan.rows] == [{"optimizer.lr": "1e-4"}, {"optimizer.lr": "1e-3"}]


def test_two_lists_are_every_combination_and_other_settings_are_of_all_trials():
    plan, base = plan_of("loss.kl_weight=0,0.3,1", "buffer.kind=fifo,reservoir", "train.num_steps=70")
    assert plan.name == "digits_paper-grid"
    jobs = [override(base, row.settings) for row in plan.rows]
    wanted = itertools.product((0.0, 0.3, 1.0), ("fifo", "reservoir"))
    assert [(job.loss.kl_weight, job.buffer.kind) for job in jobs] == list(wanted)
    assert {job.train.num_steps for job in jobs} == {70}


@pytest.mark.parametrize(
    ("path", "text", "values"),
    [
        ("model.widths", "16,32", ("16,32",)),
        ("model.widths", "[16,32]", ("[16,32]",)),
        ("model.widths", "[16,32],[16, 32, 64]", ("[16,32]", "[16, 32, 64]")),
        ("evaluation.metrics", "fid_judge,diversity", ("fid_judge,diversity",)),
        ("optimizer.betas", "0,0.9", ("0,0.9",)),
        ("data.root", "/a,b", ("/a,b",)),
        ("storage", "/a,b", ("/a,b",)),
        ("augment.enabled", "true,false", ("true", "false")),
        ("cluster.cpus_per_worker", "1,null", ("1", "null")),
        ("optimizer.lr", "1e-4", ("1e-4",)),
        ("optimizer.lr", "choice(1e-4,1e-3)", ("choice(1e-4,1e-3)",)),
        ("no.such", "1,2", ("1,2",)),
    ],
)
def test_a_comma_parts_values_only_where_one_value_has_none(path: str, text: str, values: tuple):
    assert listed_values(path, text) == values


def test_a_setting_that_is_a_list_itself_is_one_value_of_a_search_and_several_in_brackets_of_a_grid():
    _, base = plan_of("model.widths=8,16,16", "sampler.step_size=uniform(1,2)")
    assert base.model.widths == (8, 16, 16)
    plan, base = plan_of("model.widths=[8,16,16],[8,8,16]")
    assert [override(base, row.settings).model.widths for row in plan.rows] == [(8, 16, 16), (8, 8, 16)]
    assert [row.key for row in plan.rows] == ["widths-_8_16_16_", "widths-_8_8_16_"]


def test_rows_have_names_of_their_own_that_a_run_may_have():
    plan, _ = plan_of("loss.kl_weight=0,1e-3", "train.num_steps=40,80", "sampler.num_steps=5,10")
    assert plan.rows[0].key == "0000"  # by their settings it would be longer than 40 letters
    plan, _ = plan_of("train.num_steps=40,80", "sampler.num_steps=5,10")
    assert plan.rows[0].key == "train.num_steps-40-sampler.num_steps-5"
    plan, _ = plan_of("model.widths=[8,16,16],[8, 16, 16, 16]", "loss.l2_weight=0.5,1")
    assert len({row.key for row in plan.rows}) == 4
    for row in plan.rows:
        require_run_name(f"{plan.name}-{row.key}-seed0")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("optimizer.lr=1e-4,",), "optimizer.lr = '1e-4,': a value of the list is empty"),
        (("optimizer.lr=1e-3,0.001",), "0.001 is listed twice"),
        (("optimizer.lr=1e-4,fast",), "optimizer.lr = 'fast': must be a number"),
        (("optimizer.lr=1e-4,7",), "optimizer.lr = 7.0"),
        (("optimizer.lrr=1e-4,1e-3",), "did you mean optimizer.lr?"),
        (("seed=0,1",), "give `seeds`, their number, and `seed`, the first"),
        (("optimizer.lr=1e-4,1e-3", "loss.kl_weight=uniform(0,1)"), "write optimizer.lr='choice(1e-4,1e-3)'"),
        ((f"train.num_steps={','.join(map(str, range(1, 102)))}", f"loss.kl_weight={','.join(map(str, range(100)))}"),
         "10100 combinations"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_one_line(settings: tuple[str, ...], said: str):
    with pytest.raises(ConfigError) as end:
        plan_of(*settings)
    assert said in str(end.value)
    assert "\n" not in str(end.value)


def test_a_grid_of_the_paper_has_its_own_rows():
    with pytest.raises(ConfigError, match="table2 has rows of its own"):
        make_plan("table2", SweepRequest(settings=("optimizer.lr=1e-4,1e-3",)))


def test_a_yaml_file_may_list_values_and_the_command_line_chooses_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: digits_paper\nsettings:\n  optimizer.lr: [0.001, 0.002]\n  model.widths: [[8, 16, 16]]\n")
    plan, base = make_plan(str(path), SweepRequest())
    assert (plan.name, base.model.widths) == ("mine", (8, 16, 16))
    assert [row.settings for row in plan.rows] == [("optimizer.lr=0.001",), ("optimizer.lr=0.002",)]
    path.write_text("preset: digits_paper\nsettings:\n  augment.enabled: [true, false]\n  optimizer.lr: [0.1, 0.2]\n")
    plan, base = make_plan(str(path), SweepRequest(settings=("optimizer.lr=0.003",)))
    assert [override(base, row.settings).augment.enabled for row in plan.rows] == [True, False]
    assert base.optimizer.lr == 0.003
