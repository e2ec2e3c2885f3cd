"""Composition of one conditional energy with itself: its attributes, each as an energy of its own, together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ebm_core.config import DataConfig
from ebm_core.errors import ConfigError
from orchestrator.evaluation.compose import GRID_IMAGES, draw
from orchestrator.evaluation.compose import tables as compose_tables
from orchestrator.evaluation.request import EvaluationRequest
from orchestrator.evaluation.study import Asked, Document, Study
from orchestrator.storage.run_store import Run
from orchestrator.terminal.tables import Table
from workers.calls import call
from workers.evaluator import Evaluator
from workers.pictures import grids_png
from workers.studies.composer import AT_ONCE, COMPOSED


@dataclass(frozen=True)
class _Draws:
    num_images: int
    seed: int
    num_steps: int | None = None


def check(request: EvaluationRequest, trained: DataConfig) -> None:
    """ConfigError unless the run is conditional on attributes."""
    if trained.condition != "attributes":
        raise ConfigError(
            f"metric composition: data.condition is {trained.condition}; it needs a run conditional on attributes, "
            "or compose several runs with `ebm compose`"
        )


def prepare(asked: Asked) -> None:
    """ConfigError for attributes that cannot be composed."""
    asked.one(call(Evaluator.own_recipes))


def measure(asked: Asked) -> Document:
    """The result of metric composition; its member `images` holds the images by what they were drawn from."""
    request = asked.request
    recipes = asked.one(call(Evaluator.own_recipes))
    images = draw(asked.runner, Evaluator.draw_composed, recipes, _Draws(request.num_images, request.seed))
    document = asked.one(call(Evaluator.report_composition, recipes[COMPOSED], images))
    return {
        "metric": "composition",
        "value": document["rows"][COMPOSED]["as_asked"],
        **document,
        "num_images": request.num_images,
        "seed": request.seed,
        "images": images,
    }


def store(run: Run, folder: str, document: Document) -> None:
    """A picture: each attribute alone, all told at once, and composed, side by side."""
    images = document.pop("images")
    order = (*(name for name in images if name not in (COMPOSED, AT_ONCE)), AT_ONCE, COMPOSED)
    run.write_bytes(f"{folder}/composition.png", grids_png([images[name][:GRID_IMAGES] for name in order]))


def tables(document: Mapping[str, Any], step: int) -> list[Table]:
    """As `ebm compose` shows it."""
    return compose_tables(document)


STUDY = Study(check=check, prepare=prepare, measure=measure, store=store, tables=tables)
