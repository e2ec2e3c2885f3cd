"""A trial: one whole training job in a process of Tune, and the result that it leaves in the sweep's record.

Tune schedules, our record decides: the result is created in storage before Tune hears of it, and a trial that has none
goes on from its run's newest checkpoint, whoever was killed.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import ray

from ebm_core.errors import ConfigError, DivergenceError, EbmError
from orchestrator.cluster.environment import adopt
from orchestrator.evaluation.beside_training import Scorer
from orchestrator.records import provenance, runs
from orchestrator.records.rows import WALL_CLOCK, Row, training_seconds
from orchestrator.records.scores import grid_key, headline, lacking_scores, read_scores, unscored
from orchestrator.records.sweeps import PlannedTrial, SweepPlan, SweepRecord, TrialResult, TrialState
from orchestrator.settings.job import JobConfig, parse
from orchestrator.storage.commits import parse_step_name
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.training.driver import Watcher, run_training
from workers.metrics.registry import METRICS

STOP_CHECK_S = 1.0
"""Seconds between questions to the sweep's mailbox whether the driver wants to stop."""


@dataclass(frozen=True)
class Launch:
    """What a trial's process is given."""

    job: dict[str, Any]
    """The job as a tree; its storage holds the sweep, its name is the trial's run."""
    sweep: str
    trial: dict[str, Any]
    """A PlannedTrial as a tree."""
    cpus: float
    gpus: float
    mailbox: Any
    environment: Mapping[str, str]


def run_trial(config: dict[str, Any]) -> None:
    """What Tune runs. An error that is no EbmError, and the death of the process, are Tune's to try again."""
    from ray import tune

    launch = Launch(**config["launch"])
    adopt(launch.environment)
    said = _TrialWatch(launch, report=tune.report)
    outcome = attempt(launch, said)
    tune.report(outcome)


def attempt(launch: Launch, watch: "_TrialWatch") -> dict[str, Any]:
    """Train and conclude; what Tune hears last: `state`, and the sweep's metric where there is one."""
    planned = planned_of(launch.trial)
    record = SweepRecord(RunStore(str(launch.job["storage"])), launch.sweep)
    plan, job = record.plan(), parse(launch.job)
    started = time.time()
    try:
        state, reason, diverged_at = _train(job, record, planned, watch)
        if state == "interrupted":
            return {"state": state, "step": 0}
        run = record.store.run(planned.run)
        if state == "unstable":
            _score_newest(run, job, watch)
        result = conclude(run, job, plan, planned, state, reason=reason, unstable_at=diverged_at)
        result = with_cost(result, run, started, launch)
        record.create_result(result)
    except EbmError as why:  # lost workers, a full disk, an absent server: the same command goes on from here
        reason = " ".join(str(why).split())
        with contextlib.suppress(EbmError):
            record.write_crash(planned.trial, reason, datetime.now(UTC).isoformat(timespec="seconds"))
        return {"state": "crashed", "reason": reason, "step": 0}
    said = {"state": result.state, "step": result.step, "reason": result.reason}
    return said if result.value is None else said | {plan.metric: result.value}


def planned_of(tree: Mapping[str, Any]) -> PlannedTrial:
    """The planned trial that `asdict` wrote."""
    return PlannedTrial(**{**tree, "settings": tuple(tree["settings"])})


def _train(
    job: JobConfig, record: SweepRecord, planned: PlannedTrial, watch: "_TrialWatch"
) -> tuple[Any, str, int | None]:
    """(state, reason, step of divergence) of one launch of the job."""
    record.mark_run(planned)
    try:
        found = run_training(job, display=watch, watcher=watch)
    except DivergenceError as why:
        return "unstable", str(why), why.step
    except ConfigError as why:
        return "refused", " ".join(str(why).split()), None
    complete = found.step >= found.num_steps and not unscored(record.store.run(planned.run), job)
    return ("finished" if complete else "interrupted" if watch.stopping else _lost_scores(planned)), "", None


def _lost_scores(planned: PlannedTrial) -> str:
    raise EbmError(f"run {planned.run} is trained, and its last checkpoint could not be scored; see its messages")


def _score_newest(run: Run, job: JobConfig, watch: "_TrialWatch") -> None:
    """Score the newest sound checkpoint of a run that diverged, whatever evaluation.every says."""
    steps = run.checkpoints()
    if not lacking_scores(run, job, steps[-1:]):
        return
    scorer = Scorer(job, run)
    try:
        scorer.offer(steps[-1], always=True)
        while scorer.busy():
            time.sleep(0.1)
        for message in scorer.messages():
            watch.note(message)
    finally:
        scorer.close()


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
    """(when stored, step, value of a sweep's metric) of each scored checkpoint, by step."""
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
    """The sweep's metric: a score, else a column of the logged rows; None if absent or not finite."""
    value = scores.get(metric) if metric in METRICS else row.get(metric)
    return value if value is not None and math.isfinite(value) else None


def with_cost(result: TrialResult, run: Run, started: float, launch: Launch) -> TrialResult:
    """The result with what its trial took, of which the last launch began at `started` (seconds since 1970)."""
    from dataclasses import replace

    now = time.time()
    try:
        attempts = len(run.read_json(provenance.PROVENANCE)["launches"])
    except (EbmError, KeyError, TypeError):
        attempts = 1
    cost = {
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "ended": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        "seconds": round(now - started, 3),
        "train_seconds": round(training_seconds(runs.read_metrics(run).to_pydict()), 3),
        "cpus": launch.cpus,
        "gpus": launch.gpus,
        "attempts": attempts,
    }
    return replace(result, cost=cost)


class _TrialWatch(Watcher):
    """Passes a job's rows, scores and remarks to the sweep's mailbox, and its scores to Tune's scheduler."""

    def __init__(self, launch: Launch, report: Any) -> None:
        self._trial, self._mailbox, self._report = str(launch.trial["trial"]), launch.mailbox, report
        self._num_steps = int(launch.job["train"]["num_steps"])
        self._rows: list[Row] = []
        self._asked_at = 0.0
        self.stopping = False
        """Whether the driver has asked to stop."""

    def row(self, row: Row) -> None:
        self._rows.append(row)
        self._mailbox.post.remote("row", (self._trial, row))

    def note(self, text: str) -> None:
        self._mailbox.post.remote("note", (self._trial, text))

    def close(self) -> None: ...

    def scored(self, step: int, documents: Mapping[str, Any]) -> None:
        """Let the scheduler judge, unless training has come to its end: then the result comes first."""
        values = {name: headline(document) for name, document in documents.items()}
        self._mailbox.post.remote("scored", (self._trial, step, values))
        if step < self._num_steps:
            row = _row_at(self._rows, step)
            columns = {name: value for name, value in row.items() if name not in ("step", *WALL_CLOCK)}
            self._report({**columns, **values, "step": step})

    def stop_requested(self) -> bool:
        if not self.stopping and time.monotonic() - self._asked_at >= STOP_CHECK_S:
            self._asked_at = time.monotonic()
            self.stopping = bool(ray.get(self._mailbox.stop_requested.remote()))
        return self.stopping


def launch_tree(launch: Launch) -> dict[str, Any]:
    """A launch as Tune carries it to the trial's process."""
    return {name: getattr(launch, name) for name in Launch.__dataclass_fields__}


def planned_tree(planned: PlannedTrial) -> dict[str, Any]:
    """The tree that `planned_of` reads."""
    return asdict(planned)
