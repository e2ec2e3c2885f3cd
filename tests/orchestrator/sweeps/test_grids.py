"""The paper's grids as settings."""

import pytest

from ebm_core.errors import ConfigError
from ebm_core.presets import PRESETS
from orchestrator.settings.job import core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.sweeps.grids import GRIDS, SMOKE, find_grid, grid_base


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_grid_fits_every_preset(name: str, preset: str):
    grid = GRIDS[name]
    base = grid_base(grid, preset)
    if name == "recipe" and base.warmup.num_steps == 0:
        with pytest.raises(ConfigError, match="grid recipe: takes apart a warm start"):
            grid.rows(base)
        return
    jobs = [core_config(override(base, row.settings)) for row in grid.rows(base)]
    assert len({str(job) for job in jobs}) == len(jobs)  # no two rows are the same job


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_has_a_smoke_form_on_digits(name: str):
    grid = GRIDS[name]
    base = override(grid_base(grid, "digits"), (*SMOKE, *grid.smoke))
    for row in grid.rows(base):
        job = override(base, row.settings)
        assert job.train.num_steps <= 60
        assert job.train.num_steps % job.checkpoint.every == 0


def test_the_last_row_of_table_2_is_the_presets_own_run():
    for preset in ("cifar10", "celeba_hq"):
        job = job_preset(preset)
        rows = GRIDS["table2"].rows(job)
        assert core_config(override(job, rows[-1].settings)) == core_config(job)


def test_each_row_of_table_2_adds_choices_and_takes_none_away_but_the_papers_order():
    job = job_preset("cifar10")
    rows = GRIDS["table2"].rows(job)
    counts = [sum(value == "yes" for value in row.choices.values()) for row in rows]
    assert counts == [0, 1, 2, 3, 4, 5]
    plain = override(job, rows[0].settings)
    assert plain.loss.kl_weight == plain.loss.entropy_weight == 0
    assert not plain.augment.enabled
    assert plain.buffer.kind == "fifo"
    assert not plain.model.multiscale
    assert [row.paper["fid"] for row in rows] == [253.1, 61.3, 59.8, 54.3, 50.8, 35.4]
    assert [row.paper["stable"] for row in rows] == [False, False, True, True, True, True]


def test_figure_9_changes_one_part_of_the_architecture_at_a_time():
    job = job_preset("cifar10")
    rows = {row.key: override(job, row.settings) for row in GRIDS["figure9"].rows(job)}
    parts = {
        key: (one.model.norm != "none", one.model.attention, one.model.spectral_norm, one.loss.kl_weight > 0)
        for key, one in rows.items()
    }
    assert parts["norm-kl"] == (True, False, False, True)
    assert parts["attention-nokl"] == (False, True, False, False)
    assert parts["spectral-kl"] == (False, False, True, True)
    assert parts["plain-nokl"] == (False, False, False, False)
    assert len(parts) == 8


def test_the_recipe_changes_one_part_at_a_time_and_begins_with_the_preset_itself():
    grid = GRIDS["recipe"]
    assert grid.preset == "digits"
    job = grid_base(grid, "digits")
    assert job == job_preset("digits")  # not the paper's
    first, *others = grid.rows(job)
    assert first.settings == ()
    assert override(job, others[0].settings).train.num_steps == job.warmup.num_steps  # no step of L_CD
    assert all(len(row.settings) == 1 for row in others[:-1])


def test_langevin_steps_scale_with_the_preset():
    rows = GRIDS["steps"].rows(job_preset("cifar10"))
    assert [row.choices["Langevin steps"] for row in rows] == ["10", "20", "40", "60"]


def test_an_unknown_grid_lists_the_known_ones():
    with pytest.raises(ConfigError, match="table2, figure9"):
        find_grid("table3")
