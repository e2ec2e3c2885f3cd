"""Composition of one conditional energy with itself: its attributes, each as an energy of its own, together (Fig. 10).

`recipes.py` has the mathematics, `composer.py` draws and judges; `ebm compose` draws from several runs as is done here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ebm_core.config import DataConfig, require
from ebm_core.data import chosen_attributes
from ebm_core.errors import ConfigError
from ebm_core.types import Pixels
from workers.calls import Runner, call
from workers.evaluator import Evaluator
from workers.pictures import grids_png
from workers.studies.composer import AT_ONCE, COMPOSED, Composer
from workers.studies.recipes import SHARD_SIZE, Recipe, own_concepts, recipe
from workers.studies.study import Asked, Document, Study
from workers.tables import Table

S = TypeVar("S")

GRID_IMAGES = 36
"""Images of each set that are drawn side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompositionOptions:
    """How images are drawn from the attributes of one run, composed."""

    num_steps: int | None = None
    """Langevin steps of each chain; null: sampler.generate_steps."""

    def __post_init__(self) -> None:
        steps = self.num_steps
        require(steps is None or steps >= 1, "composition.num_steps", steps, "must be at least 1, or null")


def own_recipes(judge: Evaluator) -> dict[str, Recipe]:
    """What is drawn from: the run's attributes composed, each alone, and all told at once."""
    assert judge.rows is not None  # `check` has seen that the run is conditional
    names = chosen_attributes(judge.cfg.data)
    concepts, together = own_concepts(judge.rows, names)
    composed = recipe("and", concepts)
    alone = {f"{name} alone": composed.alone(i) for i, name in enumerate(names)}
    at_once = Recipe("and", (together,), (1.0,), composed.sharpness, 1.0)
    return {COMPOSED: composed, AT_ONCE: at_once, **alone}


def draw_composed(judge: Evaluator, how: Recipe, shard: int, seed: int, num_steps: int | None) -> Pixels:
    """An image shard of one of these recipes."""
    return _composer(judge).draw(how, shard, seed, num_steps)


def report_composition(
    judge: Evaluator, how: Recipe, images: Mapping[str, Pixels], num_steps: int | None
) -> dict[str, Any]:
    """What a judge reads off sets of images, ready for JSON."""
    return _composer(judge).report(how, images, num_steps)


def _composer(judge: Evaluator) -> Composer:
    return Composer([judge.model], [judge.cfg], judge.train, judge.heldout, [judge.digest])


def draw(
    runner: Runner[S],
    draw_shard: Callable[[S, Recipe, int, int, int | None], Pixels],
    recipes: Mapping[str, Recipe],
    *,
    num_images: int,
    seed: int,
    num_steps: int | None,
) -> dict[str, Pixels]:
    """`num_images` images of each recipe, by shards that `draw_shard` (its subject, recipe, shard, seed, number of
    steps) draws."""
    shards = range(math.ceil(num_images / SHARD_SIZE))
    calls = {
        (name, shard): call(draw_shard, how, shard, seed, num_steps)
        for name, how in recipes.items()
        for shard in shards
    }
    found = runner.run(calls)
    return {name: torch.cat([found[name, shard] for shard in shards])[:num_images] for name in recipes}


def check(options: CompositionOptions, trained: DataConfig) -> None:
    """ConfigError unless the run is conditional on attributes."""
    if trained.condition != "attributes":
        raise ConfigError(
            f"metric composition: data.condition is {trained.condition}; it needs a run conditional on attributes, "
            "or compose several runs with `ebm compose`"
        )


def prepare(asked: Asked[CompositionOptions]) -> None:
    """ConfigError for attributes that cannot be composed."""
    asked.one(call(own_recipes))


def measure(asked: Asked[CompositionOptions]) -> Document:
    """The result of metric composition; its member `images` holds the images by what they were drawn from."""
    recipes, steps = asked.one(call(own_recipes)), asked.options.num_steps
    how = {"num_images": asked.num_images, "seed": asked.seed}
    images = draw(asked.runner, draw_composed, recipes, **how, num_steps=steps)
    document = asked.one(call(report_composition, recipes[COMPOSED], images, steps))
    return {
        "metric": "composition",
        "value": document["rows"][COMPOSED]["as_asked"],
        **document,
        **how,
        "images": images,
    }


def store(asked: Asked[CompositionOptions], document: Document) -> None:
    """A picture: each attribute alone, all told at once, and composed, side by side."""
    images = document.pop("images")
    order = (*(name for name in images if name not in (COMPOSED, AT_ONCE)), AT_ONCE, COMPOSED)
    asked.folder.write("composition.png", grids_png([images[name][:GRID_IMAGES] for name in order]))


def compose_tables(document: Mapping[str, Any]) -> list[Table]:
    """Share of images that have each value asked for, of every set, beside real images; nothing if none was."""
    if "rows" not in document:
        return []
    judge, rows = document["judge"], document["rows"]
    factors = list(judge["accuracy"])
    order = [name for name in rows if name != COMPOSED]
    lines = [
        (name, *(f"{rows[name]['factors'][factor]:.3f}" for factor in factors), f"{rows[name]['as_asked']:.3f}")
        for name in (COMPOSED, *order)
    ]
    lines.append(("real, held out: have it", *(f"{judge['real_share'][factor]:.3f}" for factor in factors), "-"))
    lines.append(("real, held out: read rightly", *(f"{judge['accuracy'][factor]:.3f}" for factor in factors), "-"))
    title = f"{document['operation']}: share of {rows[COMPOSED]['num_images']} images in which a judge reads"
    return [Table(title, ("images", *factors, "as asked"), lines)]


STUDY = Study(
    options=CompositionOptions,
    check=check,
    prepare=prepare,
    measure=measure,
    store=store,
    tables=lambda document, step: compose_tables(document),
)
