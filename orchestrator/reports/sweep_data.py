"""What the page of a sweep is made of, read from what the sweep stores (sweep.json, planned/, trials/, crashes/).

The record is read as plain trees: an absent member is a gap on the page, and a trial that cannot be read is left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ebm_core.errors import ConfigError, EbmError
from orchestrator.records.rows import training_seconds
from orchestrator.records.sweeps import PLAN
from orchestrator.reports.run_data import read_rows
from orchestrator.reports.sweep_table import rank
from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import Run


@dataclass(frozen=True)
class TrialData:
    """A trial as planned, and what became of it."""

    planned: Mapping[str, Any]
    result: Mapping[str, Any] | None
    crash: str | None
    run: Run | None

    @property
    def name(self) -> str:
        """Its name in the sweep."""
        return str(self.planned.get("trial", "?"))

    @property
    def state(self) -> str:
        """finished, unstable, stopped, refused; without a result crashed or unfinished."""
        if self.result is not None:
            return str(self.result.get("state", "?"))
        return "crashed" if self.crash else "unfinished"

    @property
    def value(self) -> float | None:
        """The sweep's objective at the last score."""
        return number((self.result or {}).get("value"))

    @property
    def best(self) -> float | None:
        """The best value of the sweep's objective among its checkpoints."""
        best = (self.result or {}).get("best")
        return number(best.get("value")) if isinstance(best, Mapping) else None

    @property
    def unstable_at(self) -> int | None:
        """The step at which it diverged."""
        step = (self.result or {}).get("unstable_at")
        return step if isinstance(step, int) else None

    @property
    def settings(self) -> dict[str, str]:
        """{path: value as text} on top of the sweep's base."""
        pairs = (str(text).partition("=") for text in listed(self.planned.get("settings")))
        return {path: value for path, _, value in pairs}

    @property
    def cost(self) -> Mapping[str, Any]:
        """Seconds, cpus, gpus and attempts; empty while it runs."""
        cost = (self.result or {}).get("cost")
        return cost if isinstance(cost, Mapping) else {}

    @property
    def hours(self) -> float:
        """Core-hours, or GPU-hours where it held GPUs."""
        held = number(self.cost.get("gpus")) or number(self.cost.get("cpus")) or 0.0
        return max(number(self.cost.get("seconds")) or 0.0, self.train_seconds or 0.0) / 3600 * held

    @property
    def train_seconds(self) -> float | None:
        """What its logged steps took, over all launches; as recorded where the run is gone."""
        return training_seconds(self.rows) or number(self.cost.get("train_seconds"))

    @cached_property
    def rows(self) -> dict[str, list[Any]]:
        """The logged columns of its run."""
        return read_rows(self.run) if self.run is not None else {"step": []}

    def told(self) -> str:
        """Its state in words, with the step that matters."""
        if self.state == "unstable":
            return f"unstable at step {self.unstable_at if self.unstable_at is not None else '?'}"
        if self.result is not None and self.state == "stopped":
            return f"stopped at step {self.result.get('step', '?')} of {self.result.get('num_steps', '?')}"
        return self.state


@dataclass(frozen=True)
class SweepData:
    """A sweep as it is in storage now."""

    name: str
    uri: str
    plan: Mapping[str, Any]
    trials: list[TrialData]

    @property
    def metric(self) -> str:
        """What trials are compared by."""
        return str(self.plan.get("metric", "value"))

    @property
    def is_grid(self) -> bool:
        """A grid has rows and seeds; a search has a space."""
        return self.plan.get("kind") == "grid" or bool(self.rows)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The lines of a grid."""
        return [row for row in listed(self.plan.get("rows")) if isinstance(row, Mapping)]

    def ranked(self) -> list[TrialData]:
        """Stable trials with a value first, the best of them at the head; then the others as planned."""
        mode = str(self.plan.get("mode"))
        return sorted(self.trials, key=lambda trial: rank(trial.state, trial.value, mode))

    def best_trial(self) -> TrialData | None:
        """The stable trial of the best value, None if none has one."""
        first = next(iter(self.ranked()), None)
        return first if first is not None and not rank(first.state, first.value, "min")[0] else None


def gather_sweep(folder: Run) -> SweepData:
    """Read a sweep. Raises StorageError if its plan is damaged."""
    plan = folder.read_json(PLAN)
    if not isinstance(plan, dict):
        raise StorageError(f"{folder.uri}/{PLAN} is damaged: not what a sweep writes; restore it")
    keys = [info.key for info in folder.list("planned/")]
    trials = [trial for key in keys if (trial := _trial(folder, key)) is not None]
    return SweepData(folder.name, folder.uri, plan, sorted(trials, key=lambda t: (_index(t.planned), t.name)))


def _trial(folder: Run, key: str) -> TrialData | None:
    planned = _tree(folder, key)
    if planned is None:
        return None
    name = key.removeprefix("planned/")
    result, crash = _tree(folder, f"trials/{name}"), _tree(folder, f"crashes/{name}")
    try:
        run = folder.store.run(str(planned.get("run")))
    except ConfigError:
        run = None
    return TrialData(planned, result, str(crash.get("reason", "")) if crash else None, run)


def _tree(folder: Run, key: str) -> dict[str, Any] | None:
    try:
        tree = folder.read_json(key)
    except EbmError:
        return None
    return tree if isinstance(tree, dict) else None


def _index(planned: Mapping[str, Any]) -> int:
    index = planned.get("index")
    return index if isinstance(index, int) else 10**9


def listed(value: Any) -> Sequence[Any]:
    """A stored list; empty for anything else."""
    return value if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """A stored finite number; None for anything else."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None
