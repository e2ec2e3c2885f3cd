"""Long chains (Fig. 5 to 8) of a stored checkpoint, a variant to an actor, in segments that outlive the driver."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ebm_core.errors import CheckpointError
from orchestrator.evaluation.chain_progress import Progress, clear
from orchestrator.evaluation.request import EvaluationRequest
from orchestrator.evaluation.study import Asked, Document, Study
from orchestrator.storage.run_store import Run
from orchestrator.terminal.tables import Table
from workers.calls import call
from workers.evaluator import Evaluator
from workers.pictures import curves_png, grids_png, strip_png
from workers.studies.chains import NUM_TIMES, Plan, Segment

STRIP_CHAINS = 8
"""Chains whose states are drawn from left to right."""

GRID_CHAINS = 64
"""Chains of the pool that are drawn at its first, middle and last time."""


def plan_of(request: EvaluationRequest) -> Plan:
    """The pool of chains that a request asks for."""
    return Plan(
        num_chains=request.num_chains,
        num_steps=request.chain_steps,
        descent_steps=request.descent_steps,
        transition_every=request.transition_every,
        seed=request.seed,
    )


def measure(asked: Asked) -> Document:
    """The result of metric chains; its member `studies` holds every variant's states.

    What an interrupted study of the same plan and checkpoint has stored is not run again.
    """
    plan = plan_of(asked.request)
    variants, key = asked.one(call(Evaluator.plan_chains, plan))
    progress = Progress(asked.run, asked.folder, key)
    segments = {variant: progress.load(variant) for variant in variants}
    try:
        while unfinished := [variant for variant in variants if len(segments[variant]) <= NUM_TIMES]:
            _extend(asked, plan, progress, {variant: segments[variant] for variant in unfinished})
    except CheckpointError:
        clear(asked.run, asked.folder)  # it would fail again: nothing to go on with
        raise
    light = {
        variant: [replace(one, state=one.state[:0]) for one in segments[variant]] for variant in variants
    }  # fmt: skip
    document, studies = asked.one(call(Evaluator.report_chains, plan, light))
    return document | {"studies": studies}


def _extend(asked: Asked, plan: Plan, progress: Progress, segments: Mapping[str, list[Segment]]) -> None:
    """Run the next segment of each variant, store it, and append it."""
    calls = {
        variant: call(Evaluator.run_chains, plan, variant, len(done), done[-1] if done else None)
        for variant, done in segments.items()
    }
    for variant, segment in asked.runner.run(calls).items():
        progress.save(variant, len(segments[variant]), segment)
        segments[variant].append(segment)


def store(run: Run, folder: str, document: Document) -> None:
    """Pictures: curves over steps; of every variant, its first chains from left to right, and the pool's first, middle
    and last state."""
    for name, study in document.pop("studies").items():
        strip = study.states[:, :STRIP_CHAINS].transpose(0, 1)
        run.write_bytes(f"{folder}/chains-{name}.png", strip_png(strip))
        pool = [study.states[i, :GRID_CHAINS] for i in (0, NUM_TIMES // 2, NUM_TIMES)]
        run.write_bytes(f"{folder}/chains-{name}-pool.png", grids_png(pool))
    curves = {name: (one["steps"][1:], one["fid_small"][1:]) for name, one in document["variants"].items()}
    title = f"{document['num_chains']} chains of {run.name} running on"
    label = "fid_small to training images"
    run.write_bytes(f"{folder}/chains.png", curves_png(curves, title, label, xlabel="Langevin step"))


def tables(document: Mapping[str, Any], step: int) -> list[Table]:
    """Each variant early, half way and at its end, beside held-out images; and how long its chains remember."""
    columns = ("kind", "steps", "fid_small", "class score", "energy", "gradient", "clamped", "variation", "distance")
    memory = ("kind", "transitions", "noise", "energy", "pixels")
    title = f"{document['num_chains']} long chains, step {step}"
    return [
        Table(title, columns, chain_rows(document)),
        Table("autocorrelation time of their second half, in steps", memory, memory_rows(document)),
    ]


def chain_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(variant, step, fid_small, class score, energy, gradient norm, clamped, variation, distance between chains)."""
    keys = ("energy", "gradient_norm", "clamped_fraction", "total_variation", "pairwise_distance")
    real = document["heldout"]
    rows = [("real, held out", "-", f"{real['fid_small']:.4g}", _text(real.get("class_score")), *("-" for _ in keys))]
    for name, one in document["variants"].items():
        last = len(one["steps"]) - 1
        for i in sorted({last // 10, last // 2, last}):
            judged = _text(one["class_score"][i]) if "class_score" in one else "-"
            values = (f"{one[key][i]:.4g}" for key in keys)
            rows.append((name, str(one["steps"][i]), f"{one['fid_small'][i]:.4g}", judged, *values))
    return rows


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
    check=lambda request, trained: plan_of(request),
    prepare=lambda asked: asked.one(call(Evaluator.plan_chains, plan_of(asked.request))),
    measure=measure,
    store=store,
    tables=tables,
    tidy=clear,
)
