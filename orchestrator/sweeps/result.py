"""The result that a stored run amounts to in its sweep."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from orchestrator.records import runs
from orchestrator.records.rows import WALL_CLOCK
from orchestrator.records.scores import grid_key, headline, read_scores
from orchestrator.records.sweeps import PlannedTrial, SweepPlan, TrialResult, TrialState
from orchestrator.settings.job import JobConfig
from orchestrator.storage.commits import parse_step_name
from orchestrator.storage.run_store import Run
from workers.metrics.registry import METRICS


def scored_steps(run: Run) -> list[int]:
    """Steps with any score, ascending."""
    names = {info.key.split("/")[1] for info in run.list("evaluations/") if info.key.count("/") == 2}
    return sorted(step for step in map(parse_step_name, names) if step is not None)


def conclude(
    run: Run,
    job: JobConfig,
    plan: SweepPlan,
    planned: PlannedTrial,
    state: TrialState,
    *,
    reason: str = "",
    unstable_at: int | None = None,
    stopped_at: int | None = None,
) -> TrialResult:
    """The result that the stored run amounts to: nothing in it but `cost` depends on when or how often it was started.

    stopped_at: the step of the score by which it was stopped, for what came after it counts for nothing.
    """
    committed = 0 if state == "refused" else stopped_at or max(run.checkpoints(), default=0)
    steps = [step for step in scored_steps(run) if step <= committed]
    at = steps[-1] if steps else None
    step = (at or 0) if state == "stopped" else committed
    rows = runs.read_metrics(run).to_pylist()
    last = _row_at(rows, step if state != "unstable" else unstable_at or step)
    scores = {step: _headlines(run, step) for step in steps}
    values = {step: _value(plan.metric, scores[step], _row_at(rows, step)) for step in steps}
    known = {step: value for step, value in values.items() if value is not None}
    choose = min if plan.mode == "min" else max
    best = choose(known, key=lambda step: known[step]) if known else None
    kept = {name: v for name, v in last.items() if name not in (*WALL_CLOCK, "step") and v is not None}
    return TrialResult(
        trial=planned.trial,
        run=planned.run,
        state=state,
        step=step,
        num_steps=job.train.num_steps,
        reason=reason,
        unstable_at=unstable_at,
        value=None if at is None else values[at],
        scores={} if at is None else scores[at],
        score_step=at,
        best=None if best is None else {"step": best, "value": known[best]},
        metrics={name: value for name, value in kept.items() if math.isfinite(value)},
        grid=grid_key(run, at if at is not None else step),
    )


def score_history(run: Run, metric: str) -> list[tuple[datetime, int, float]]:
    """(when stored, step, value of a sweep's objective) of each scored checkpoint, by step."""
    stored: dict[int, datetime] = {}
    for info in run.list("evaluations/"):
        step = parse_step_name(info.key.split("/")[1])
        if step is not None and info.key.endswith(".json"):
            stored[step] = max(info.modified, stored.get(step, info.modified))
    rows = runs.read_metrics(run).to_pylist() if stored else []
    values = {step: _value(metric, _headlines(run, step), _row_at(rows, step)) for step in sorted(stored)}
    return [(stored[step], step, value) for step, value in values.items() if value is not None]


def _headlines(run: Run, step: int) -> dict[str, float]:
    found = {name: headline(document) for name, document in read_scores(run, step).items()}
    return {name: value for name, value in sorted(found.items()) if math.isfinite(value)}


def _row_at(rows: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """The last row at or before a step; empty if there is none."""
    return next((row for row in reversed(rows) if row["step"] <= step), {})


def _value(metric: str, scores: Mapping[str, float], row: Mapping[str, Any]) -> float | None:
    """The sweep's objective: a score, else a column of the logged rows; None if absent or not finite."""
    value = scores.get(metric) if metric in METRICS else row.get(metric)
    return value if value is not None and math.isfinite(value) else None
