"""What a sweep stores, and who wrote it when: our own record, which decides what exists, what ran and what is left.

    <root>/<sweep>/sweep.json            SweepPlan: what was asked for. Created once; the same command finds it again
    <root>/<sweep>/planned/<trial>.json  PlannedTrial: the settings of a trial. Created once, before it starts
    <root>/<sweep>/trials/<trial>.json   TrialResult: how it ended. Created once, by whoever is first; never changed
    <root>/<sweep>/crashes/<trial>.json  {"reason", "time"} of the last crash; counts only while there is no result
    <root>/<sweep>/owners/               which command runs the sweep, and which ran it before; see ownership.py
    <root>/<sweep>-<trial>/              the trial's run: an ordinary run folder, readable by every other command
    <root>/<sweep>-<trial>/trial.json    {"sweep", "trial"}: the way back from the run

`create` has exactly one winner (folder.py), so a trial has one result for ever, whoever is killed in between. A trial
without a result has not ended: the same command goes on with it from its run's newest checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ebm_core.errors import ConfigError
from orchestrator.records.rows import column_name
from orchestrator.storage.interface import ObjectMissing, StorageError
from orchestrator.storage.run_store import Run, RunStore, require_run_name

VERSION = 1
PLAN, TRIAL_MARK, OWNERS = "sweep.json", "trial.json", "owners"

TrialState = Literal["finished", "unstable", "stopped", "refused"]
"""finished: all steps. unstable: DivergenceError, a result like any other. stopped: early, by the scheduler.
refused: its settings contradict each other or the data; not tried again."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a grid: one choice of settings, run once for each seed."""

    key: str
    """A part of trial and run names."""
    label: str
    """For a person."""
    settings: tuple[str, ...]
    """PATH=VALUE on top of the sweep's base."""
    choices: dict[str, str] = field(default_factory=dict)
    """{column of the table: what the row has there}, such as {"KL (opt)": "yes"}."""
    paper: dict[str, Any] = field(default_factory=dict)
    """What the paper reports: any of inception_score, fid (numbers), stable (true or false)."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What was asked for. Everything in it decides which trials there are, or what they are judged by."""

    version: int = VERSION
    name: str
    kind: Literal["grid", "search"]
    title: str
    """For the head of a table or page."""
    preset: str
    base: dict[str, Any]
    """Resolved settings (a JobConfig as a tree) that every trial starts from, without those of this machine."""
    metric: str
    """Compares trials: a score of `workers.metrics.registry.METRICS`, or a logged column (`rows.is_column`)."""
    mode: Literal["min", "max"]
    rows: tuple[Row, ...] = ()
    """Of a grid; a trial is a row and a seed."""
    seeds: tuple[int, ...] = ()
    """Of a grid."""
    space: dict[str, str] = field(default_factory=dict)
    """Of a search: {dotted path: loguniform(1,10) and so on}."""
    num_trials: int = 0
    search: Literal["random", "optuna"] = "random"
    search_seed: int = 0
    scheduler: Literal["none", "asha"] = "none"
    note: str = ""
    """What a reader of the table must know, such as where the grid departs from the paper."""


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial before it starts."""

    trial: str
    """Its name in the sweep."""
    run: str
    """Name of its run in the same storage."""
    index: int
    """Its number, from 0, in the order of the plan."""
    settings: tuple[str, ...]
    """PATH=VALUE on top of the sweep's base."""
    row: str | None = None
    """Key of the grid's row."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended. All but `cost` is a function of its settings, so that sweeps can be compared bit for bit."""

    version: int = VERSION
    trial: str
    run: str
    state: TrialState
    step: int
    """Last step of the training that counts: of the newest checkpoint; of a trial stopped early, of its last score."""
    num_steps: int
    reason: str = ""
    """Why it is not `finished`, in a line."""
    unstable_at: int | None = None
    """The step of the DivergenceError."""
    value: float | None = None
    """The sweep's objective, at score_step; None if there is no score."""
    scores: dict[str, float] = field(default_factory=dict)
    """{metric: its headline number} at score_step; the documents are in the run's evaluations/."""
    score_step: int | None = None
    """The last scored checkpoint; of an unstable trial, its last sound one."""
    best: dict[str, float] | None = None
    """{"value", "step"} of the best value of the sweep's objective among all scored checkpoints."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last logged row without its wall clock."""
    grid: str | None = None
    """Key of the last sample grid, below the run."""
    cost: dict[str, Any] = field(default_factory=dict)
    """started, ended (ISO 8601, UTC), seconds, cpus, gpus, attempts: of the launch that ended it, and of earlier
    launches as far as the rows of the run tell (train_seconds: what its logged steps took, without pauses)."""


@dataclass(frozen=True)
class Trial:
    """A planned trial and what became of it."""

    planned: PlannedTrial
    result: TrialResult | None
    crash: str | None = None
    """Why it crashed the last time, if it has no result."""

    @property
    def state(self) -> str:
        """That of the result; `crashed` or `unfinished` without one."""
        return self.result.state if self.result else "crashed" if self.crash else "unfinished"


@dataclass(frozen=True)
class StoredSweep:
    """A sweep as it is in storage now."""

    plan: SweepPlan
    trials: list[Trial]
    """In the order of the plan."""


class SweepRecord:
    """The objects of one sweep. Keys are relative to its folder."""

    def __init__(self, store: RunStore, name: str) -> None:
        self.store, self.name = store, require_run_name(name)
        self._folder = Run(store, name)

    @property
    def uri(self) -> str:
        """Where the sweep is, without secrets."""
        return self._folder.uri

    def exists(self) -> bool:
        """Has a plan been stored under this name?"""
        return self.store.objects.exists(f"{self.name}/{PLAN}")

    def plan(self) -> SweepPlan:
        """What was asked for. Raises ConfigError if there is no such sweep, StorageError if it is damaged."""
        try:
            tree = self._folder.read_json(PLAN)
        except ObjectMissing:
            raise ConfigError(f"no sweep {self.name!r} in {self.store.uri}; `ebm sweep` makes one") from None
        plan = self._read(SweepPlan, tree, PLAN)
        rows = tuple(self._read(Row, row, PLAN) for row in tree.get("rows", ()))
        return dataclasses.replace(plan, rows=rows, metric=column_name(plan.metric))

    def create_plan(self, plan: SweepPlan) -> bool:
        """Store the plan of a new sweep. False: the name has one already."""
        return self._create(PLAN, plan)

    def create_planned(self, planned: PlannedTrial) -> bool:
        """Store a trial's settings before it starts. False: they are there."""
        return self._create(f"planned/{planned.trial}.json", planned)

    def create_result(self, result: TrialResult) -> bool:
        """Store how a trial ended. False: it had ended already, and what is stored stays."""
        return self._create(f"trials/{result.trial}.json", result)

    def result(self, trial: str) -> TrialResult | None:
        """How a trial ended; None: it has not."""
        key = f"trials/{trial}.json"
        try:
            return self._read(TrialResult, self._folder.read_json(key), key)
        except ObjectMissing:
            return None

    def write_crash(self, trial: str, reason: str, time: str) -> None:
        """Note why a trial stopped that will be gone on with."""
        self._folder.write_json(f"crashes/{trial}.json", {"reason": reason, "time": time})

    def mark_run(self, planned: PlannedTrial) -> None:
        """Let the trial's run say to which sweep it belongs."""
        mark = {"sweep": self.name, "trial": planned.trial}
        self.store.run(planned.run).write_json(TRIAL_MARK, mark)

    def read(self) -> StoredSweep:
        """The sweep as it is now: one listing, and one read for each planned and each ended trial."""
        plan = self.plan()
        keys = {info.key for info in self._folder.list()}
        trials = []
        for key in sorted(k for k in keys if k.startswith("planned/")):
            planned = self._read(PlannedTrial, self._folder.read_json(key), key)
            result = self.result(planned.trial) if f"trials/{planned.trial}.json" in keys else None
            crashed = f"crashes/{planned.trial}.json"
            crash = self._folder.read_json(crashed)["reason"] if result is None and crashed in keys else None
            trials.append(Trial(planned, result, crash))
        return StoredSweep(plan, sorted(trials, key=lambda trial: trial.planned.index))

    def _create(self, key: str, record: Any) -> bool:
        text = json.dumps(dataclasses.asdict(record), indent=2, allow_nan=False)
        return self.store.objects.create(f"{self.name}/{key}", (text + "\n").encode())

    def _read(self, cls: Any, tree: Any, key: str) -> Any:
        """A record of type `cls`; a field that this version does not know is left out."""
        names = {f.name: f for f in dataclasses.fields(cls)}
        try:
            if tree.get("version", VERSION) != VERSION:
                raise StorageError(f"{self.uri}/{key} is of version {tree['version']}; use the program that wrote it")
            values = {name: value for name, value in tree.items() if name in names}
            tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            return cls(**values | tuples)
        except (AttributeError, TypeError):
            raise StorageError(f"{self.uri}/{key} is damaged: not what a sweep writes; restore it") from None


def marked_sweep(run: Run) -> tuple[str, str] | None:
    """(sweep, trial) to which a run belongs; None for a run of its own."""
    try:
        mark = run.read_json(TRIAL_MARK)
        return str(mark["sweep"]), str(mark["trial"])
    except (ObjectMissing, KeyError, TypeError):
        return None


def sweeps(store: RunStore) -> list[str]:
    """Sorted names of the sweeps of a store."""
    return [name for name in store.objects.folders() if store.objects.exists(f"{name}/{PLAN}")]


def is_trial_state(text: str) -> bool:
    """Is this a state that a result can have?"""
    return text in get_args(TrialState)


def without_cost(result: TrialResult) -> Mapping[str, Any]:
    """What is the same each time a trial is run."""
    return {name: value for name, value in dataclasses.asdict(result).items() if name != "cost"}
