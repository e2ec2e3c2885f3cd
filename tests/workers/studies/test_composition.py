"""Composition of the attributes of one run, its calls made in this process."""

from typing import Any

import pytest
import torch

from ebm_core.data import load
from ebm_core.errors import ConfigError
from ebm_core.trainer import init_state
from orchestrator.settings.job import core_config, job_preset
from orchestrator.settings.overrides import override
from tests.orchestrator.evaluation.test_compose import SMALL
from workers.calls import Here
from workers.evaluator import Evaluator
from workers.studies.composer import AT_ONCE, COMPOSED, Composer
from workers.studies.composition import STUDY, CompositionOptions, own_recipes
from workers.studies.study import Asked

STEP = 3


@pytest.fixture(scope="module")
def judge() -> Evaluator:
    """An untrained energy of objects, conditional on two attributes."""
    sides = ["data.condition=attributes", "data.attributes=left,top"]
    cfg = core_config(override(job_preset("objects"), [*SMALL, *sides]))
    return Evaluator(init_state(cfg).ema, cfg, load(cfg.data, "train"), load(cfg.data, "test"), "d" * 64)


class Memory(dict[str, bytes]):
    """A folder in this process."""

    write = dict.__setitem__


def asked(judge: Evaluator, folder: Any = None, **options: Any) -> Asked[CompositionOptions]:
    return Asked(
        options=CompositionOptions(**options),
        num_images=5,
        seed=1,
        trained=judge.cfg.data,
        run_name="sides",
        step=STEP,
        folder=folder,
        runner=Here(judge),
    )


def test_images_are_those_of_the_composer_and_chains_have_the_steps_that_are_asked_for(judge):
    folder, steps = Memory(), 1  # the run's own are 2
    part = asked(judge, folder, num_steps=steps)
    document = STUDY.measure(part)
    composer = Composer([judge.model], [judge.cfg], judge.train, judge.heldout)
    for name, how in own_recipes(judge).items():
        assert torch.equal(document["images"][name], composer.draw(how, 0, 1, steps)[:5])
    assert list(document["images"]) == [COMPOSED, AT_ONCE, "left alone", "top alone"]
    assert (document["num_steps"], document["num_images"], document["seed"]) == (steps, 5, 1)
    STUDY.store(part, document)
    assert list(folder) == ["composition.png"]
    assert "images" not in document
    (table,) = STUDY.tables(document, STEP)
    assert [row[0] for row in table.rows][:2] == [COMPOSED, AT_ONCE]


def test_what_cannot_be_composed_is_refused_before_anything_starts(judge):
    with pytest.raises(ConfigError, match=r"composition\.num_steps = 0: must be at least 1, or null"):
        CompositionOptions(num_steps=0)
    with pytest.raises(ConfigError, match=r"data\.condition is none"):
        STUDY.check(CompositionOptions(), override(job_preset("objects"), SMALL).data)
    STUDY.check(CompositionOptions(), judge.cfg.data)
