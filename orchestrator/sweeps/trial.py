"""A trial: one whole training job in a process of Tune, and the result that it leaves in the sweep's record.

Tune schedules, our record decides: the result is created in storage before Tune hears of it, and a trial that has none
goes on from its run's newest checkpoint, whoever was killed.
"""

import contextlib
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
from orchestrator.records.scores import headline, lacking_scores, unscored
from orchestrator.records.sweeps import PlannedTrial, SweepRecord, TrialResult
from orchestrator.settings.job import JobConfig, parse
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.sweeps.result import _row_at, conclude
from orchestrator.training.driver import Watcher, run_training

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
    """Train and conclude; what Tune hears last: `state`, and the sweep's objective where there is one."""
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
