"""Long chains (Fig. 5 to 8) of a stored checkpoint, a variant to an actor, in segments that outlive the driver."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from ebm_core.config import to_tree
from ebm_core.errors import CheckpointError, DataError
from ebm_core.types import Pixels
from workers.calls import call
from workers.evaluator import Evaluator
from workers.generate import shard_condition
from workers.pictures import curves_png, grids_png, strip_png
from workers.studies import chains
from workers.studies.chain_progress import Progress, clear
from workers.studies.chains import NUM_TIMES, ChainsOptions, Plan, Segment
from workers.studies.study import Asked, Document, Study
from workers.tables import Table

STRIP_CHAINS = 8
"""Chains whose states are drawn from left to right."""

GRID_CHAINS = 64
"""Chains of the pool that are drawn at its first, middle and last time."""


def plan_chains(judge: Evaluator, plan: Plan) -> tuple[tuple[str, ...], str]:
    """The variants of chains that differ under this run's settings, and a name for what their bits depend on."""
    told = json.dumps([judge.digest, asdict(plan), to_tree(judge.cfg)], sort_keys=True)
    return chains.variants(judge.cfg, plan), hashlib.sha256(told.encode()).hexdigest()[:16]


def run_chains(judge: Evaluator, plan: Plan, variant: str, number: int, before: Segment | None = None) -> Segment:
    """One segment of a pool of long chains from noise, of one of `chains.VARIANTS`."""
    condition = shard_condition(judge.rows, 0, plan.num_chains)
    return chains.advance(judge.model, judge.cfg, plan, variant, number, before, condition)


def report_chains(
    judge: Evaluator, plan: Plan, found: Mapping[str, Sequence[Segment]]
) -> tuple[Document, dict[str, chains.Study]]:
    """The result of metric chains, ready for JSON, from every variant's segments, and the courses it is made of."""
    compares = "a pool of chains from noise, run on: with and without augmentation transitions, and noise"
    courses = {name: chains.study(plan, name, segments) for name, segments in found.items()}
    real, classify = judge.reference.heldout.images[: plan.num_chains], _classifier(judge)
    distances = {
        f"fid_{name}": partial(judge.reference.frechet, name=name) for name in (judge.reference.trained, "small")
    }
    document = {
        "metric": "chains",
        **chains.report(courses, distances, classify),
        "heldout": {
            "num_images": len(real),
            **{name: distance(real) for name, distance in distances.items()},
            **({} if classify is None else {"class_score": chains.class_score(classify(real))}),
        },
        "seed": plan.seed,
        "transition_every": plan.transition_every or judge.cfg.sampler.transition_every,
        **judge.provenance(compares),
    }
    return document, courses


def _classifier(judge: Evaluator) -> Callable[[Pixels], Float[np.ndarray, "n k"]] | None:
    """Class probabilities by a judge trained on the labels, where the data have any."""
    try:
        return judge.reference.class_probabilities if judge.reference.judge else None
    except DataError:
        return None


def plan_of(asked: Asked[ChainsOptions]) -> Plan:
    """The pool of chains that is asked for."""
    return Plan(**asdict(asked.options), seed=asked.seed)


def measure(asked: Asked[ChainsOptions]) -> Document:
    """The result of metric chains; its member `studies` holds every variant's states.

    What an interrupted study of the same plan and checkpoint has stored is not run again.
    """
    plan = plan_of(asked)
    variants, key = asked.one(call(plan_chains, plan))
    progress = Progress(asked.folder, key)
    segments = {variant: progress.load(variant) for variant in variants}
    try:
        while unfinished := [variant for variant in variants if len(segments[variant]) <= NUM_TIMES]:
            _extend(asked, plan, progress, {variant: segments[variant] for variant in unfinished})
    except CheckpointError:
        clear(asked.folder)  # it would fail again: nothing to go on with
        raise
    light = {
        variant: [replace(one, state=one.state[:0]) for one in segments[variant]] for variant in variants
    }  # fmt: skip
    document, studies = asked.one(call(report_chains, plan, light))
    return document | {"studies": studies}


def _extend(asked: Asked[ChainsOptions], plan: Plan, progress: Progress, segments: Mapping[str, list[Segment]]) -> None:
    """Run the next segment of each variant, store it, and append it."""
    calls = {
        variant: call(run_chains, plan, variant, len(done), done[-1] if done else None)
        for variant, done in segments.items()
    }
    for variant, segment in asked.runner.run(calls).items():
        progress.save(variant, len(segments[variant]), segment)
        segments[variant].append(segment)


def store(asked: Asked[ChainsOptions], document: Document) -> None:
    """Pictures: curves over steps; of every variant, its first chains from left to right, and the pool's first, middle
    and last state."""
    for name, study in document.pop("studies").items():
        strip = study.states[:, :STRIP_CHAINS].transpose(0, 1)
        asked.folder.write(f"chains-{name}.png", strip_png(strip))
        pool = [study.states[i, :GRID_CHAINS] for i in (0, NUM_TIMES // 2, NUM_TIMES)]
        asked.folder.write(f"chains-{name}-pool.png", grids_png(pool))
    shown = document["distance"]
    curves = {name: (one["steps"][1:], one[shown][1:]) for name, one in document["variants"].items()}
    title = f"{document['num_chains']} chains of {asked.run_name} running on"
    label = f"{shown} to training images"
    asked.folder.write("chains.png", curves_png(curves, title, label, xlabel="Langevin step"))


def tables(document: Mapping[str, Any], step: int) -> list[Table]:
    """Each variant early, half way and at its end, beside held-out images; and how long its chains remember."""
    columns = (
        "kind",
        "steps",
        _distance(document),
        "class score",
        "energy",
        "gradient",
        "clamped",
        "variation",
        "distance",
    )
    memory = ("kind", "transitions", "noise", "energy", "pixels")
    title = f"{document['num_chains']} long chains, step {step}"
    return [
        Table(title, columns, chain_rows(document)),
        Table("autocorrelation time of their second half, in steps", memory, memory_rows(document)),
    ]


def chain_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(variant, step, distance, class score, energy, gradient norm, clamped, variation, distance between chains)."""
    keys = ("energy", "gradient_norm", "clamped_fraction", "total_variation", "pairwise_distance")
    real = document["heldout"]
    shown = _distance(document)
    rows = [("real, held out", "-", f"{real[shown]:.4g}", _text(real.get("class_score")), *("-" for _ in keys))]
    for name, one in document["variants"].items():
        last = len(one["steps"]) - 1
        for i in sorted({last // 10, last // 2, last}):
            judged = _text(one["class_score"][i]) if "class_score" in one else "-"
            values = (f"{one[key][i]:.4g}" for key in keys)
            rows.append((name, str(one["steps"][i]), f"{one[shown][i]:.4g}", judged, *values))
    return rows


def _distance(document: Mapping[str, Any]) -> str:
    return document.get("distance", "fid_small")  # the only one until 0.1


def memory_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(variant, transitions, noise, of energy, of pixels); "at least" where the chains are too short to tell."""

    def text(memory: Mapping[str, Any] | None) -> str:
        if memory is None:
            return "still"
        return f"{'' if memory['resolved'] else 'at least '}{memory['time']:.3g}"

    def told(value: bool) -> str:
        return "yes" if value else "no"

    return [
        (name, told(one["transitions"]), told(one["noise"]), *map(text, one["autocorrelation_steps"].values()))
        for name, one in document["variants"].items()
    ]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


STUDY = Study(
    options=ChainsOptions,
    prepare=lambda asked: asked.one(call(plan_chains, plan_of(asked))),
    measure=measure,
    store=store,
    tables=tables,
    tidy=lambda asked: clear(asked.folder),
)
