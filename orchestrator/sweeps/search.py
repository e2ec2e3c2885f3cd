"""Which trial comes next: the rows of a grid, a random search, or Optuna through Tune's searcher.

The record decides here too. A search is replayed from its seed: trials that have ended are told to the searcher instead
of being run again, so that at concurrency 1 an interrupted search goes on with exactly the trials it would have had.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from ebm_core.errors import ConfigError
from orchestrator.records.sweeps import PlannedTrial, SweepPlan, SweepRecord, TrialResult
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import override
from orchestrator.sweeps.ranges import Range, draw_random, optuna_distribution
from orchestrator.sweeps.result import conclude, score_history

REDUCTION_FACTOR = 3
"""ASHA: of the trials that reach a rung, the best third goes on."""


def trial_of_row(plan: SweepPlan, index: int) -> PlannedTrial:
    """Trial `index` of a grid: seed by seed, so that a whole table of the first seed is there early."""
    seed, row = plan.seeds[index // len(plan.rows)], plan.rows[index % len(plan.rows)]
    name = f"{row.key}-seed{seed}"
    settings = (*row.settings, f"seed={seed}")
    return PlannedTrial(trial=name, run=f"{plan.name}-{name}", index=index, settings=settings, row=row.key, seed=seed)


def trial_of_search(plan: SweepPlan, index: int, values: Mapping[str, str]) -> PlannedTrial:
    """Trial `index` of a search, with the drawn values."""
    name = f"{index:04d}"
    settings = tuple(f"{path}={value}" for path, value in values.items())
    return PlannedTrial(trial=name, run=f"{plan.name}-{name}", index=index, settings=settings)


class Suggester(Protocol):
    """Values for trial after trial of a search."""

    def ask(self, index: int) -> dict[str, str]:
        """{path: value} of trial `index`; asked in order."""
        ...

    def tell(self, planned: PlannedTrial, asked: Mapping[str, str], result: TrialResult | None) -> None:
        """How a trial ended; None: it crashed."""
        ...


class RandomSuggester:
    """Values drawn from the ranges alone."""

    def __init__(self, ranges: Mapping[str, Range], seed: int) -> None:
        self._ranges, self._seed = ranges, seed

    def ask(self, index: int) -> dict[str, str]:
        return draw_random(self._ranges, self._seed, index)

    def tell(self, planned: PlannedTrial, asked: Mapping[str, str], result: TrialResult | None) -> None: ...


class OptunaSuggester:
    """Optuna's TPE sampler, behind Tune's searcher. What is unstable counts as worse than anything that is not."""

    def __init__(self, ranges: Mapping[str, Range], seed: int, metric: str, mode: str) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._ranges, self._metric = ranges, metric
        space: Any = {path: optuna_distribution(one) for path, one in ranges.items()}
        self._inner = OptunaSearch(space, metric=metric, mode=mode, seed=seed)

    def ask(self, index: int) -> dict[str, str]:
        values = self._inner.suggest(str(index)) or {}
        return {path: repr(value) if isinstance(value, float) else str(value) for path, value in values.items()}

    def tell(self, planned: PlannedTrial, asked: Mapping[str, str], result: TrialResult | None) -> None:
        """Of a trial with other settings than were asked now (several at a time end in any order), tell those."""
        name, settings = str(planned.index), dict(s.split("=", 1) for s in planned.settings)
        value = result.value if result and result.state in ("finished", "stopped") else None
        if settings == dict(asked):
            failed = result is None or result.state == "refused"
            self._inner.on_trial_complete(name, None if value is None else {self._metric: value}, error=failed)
            return
        self._inner.on_trial_complete(name, None, error=True)
        if value is not None:
            self._inner.add_evaluated_point({p: self._typed(p, text) for p, text in settings.items()}, value)

    def _typed(self, path: str, text: str) -> Any:
        kind = self._ranges[path].kind
        return text if kind == "choice" else int(text) if kind == "randint" else float(text)


class Trials:
    """The trials that are still to run, each written down before it is given out."""

    def __init__(
        self, record: SweepRecord, plan: SweepPlan, base: JobConfig, suggester: Suggester | None, total: int
    ) -> None:
        self._record, self._plan, self._base, self._suggester = record, plan, base, suggester
        stored = record.read().trials
        self._known = {trial.planned.index: trial.planned for trial in stored}
        self._ended = {trial.planned.trial: trial.result for trial in stored if trial.result}
        self._asked: dict[int, dict[str, str]] = {}
        self._rest = self._walk(total)

    def next(self) -> tuple[PlannedTrial, JobConfig] | None:
        """The next trial and its job; None when none is left."""
        return next(self._rest, None)

    def ended(self, planned: PlannedTrial) -> None:
        """Tell the search how a trial ended that it had suggested."""
        self._tell(planned, self._record.result(planned.trial))

    def _walk(self, total: int) -> Iterator[tuple[PlannedTrial, JobConfig]]:
        for index in range(total):
            planned = self._planned(index)
            result = self._ended.get(planned.trial)
            if result is None:
                try:
                    job = override(self._base, [*planned.settings, f"name={planned.run}"])
                except ConfigError as why:  # values that are possible one by one and not together
                    result = self._refuse(planned, str(why))
                else:
                    yield planned, job
                    continue
            self._tell(planned, result)

    def _planned(self, index: int) -> PlannedTrial:
        if self._suggester is None:
            planned = trial_of_row(self._plan, index)
        else:
            self._asked[index] = self._suggester.ask(index)
            planned = self._known.get(index) or trial_of_search(self._plan, index, self._asked[index])
        if index not in self._known:
            self._record.create_planned(planned)
        return planned

    def _refuse(self, planned: PlannedTrial, reason: str) -> TrialResult:
        run = self._record.store.run(planned.run)
        result = conclude(run, self._base, self._plan, planned, "refused", reason=reason)
        self._record.create_result(result)
        return result

    def _tell(self, planned: PlannedTrial, result: TrialResult | None) -> None:
        if self._suggester is not None:
            self._suggester.tell(planned, self._asked[planned.index], result)


class PlannedSearch(Searcher):
    """Trials as Tune's searcher. Its state is the record, so Tune has nothing to save."""

    def __init__(
        self,
        trials: Trials,
        launch: Callable[[PlannedTrial, JobConfig], dict[str, Any]],
        stopped: Callable[[PlannedTrial, dict[str, Any]], None],
    ) -> None:
        """launch: what the trial's process is given, as a tree. stopped: writes the result of a trial that left none,
        from what Tune heard of it last; the search learns from results alone."""
        super().__init__()
        self._trials, self._launch, self._stopped = trials, launch, stopped
        self._running: dict[str, PlannedTrial] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        found = self._trials.next()
        if found is None:
            return Searcher.FINISHED  # pyright: ignore[reportReturnType]
        self._running[trial_id] = found[0]
        return {"launch": self._launch(*found)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        planned = self._running.pop(trial_id)
        if not error:
            self._stopped(planned, result or {})
        self._trials.ended(planned)

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def __getstate__(self) -> dict[str, Any]:
        return {}


def asha(plan: SweepPlan, record: SweepRecord, base: JobConfig) -> TrialScheduler:
    """Tune's ASHA on our own step, with the scores of earlier launches on its rungs in the order they were made."""
    scheduler = ASHAScheduler(
        time_attr="step",
        metric=plan.metric,
        mode=plan.mode,
        max_t=base.train.num_steps,
        grace_period=base.evaluation.every,
        reduction_factor=REDUCTION_FACTOR,
    )
    history = []
    for trial in record.read().trials:
        run = record.store.run(trial.planned.run)
        history += [(when, trial.planned.trial, step, value) for when, step, value in score_history(run, plan.metric)]
    added: dict[str, Any] = {}
    for _, name, step, value in sorted(history):
        if name not in added:
            added[name] = _Past(name)
            scheduler.on_trial_add(None, added[name])  # pyright: ignore[reportArgumentType]
        if step < base.train.num_steps:
            scheduler.on_trial_result(None, added[name], {"step": step, plan.metric: value})  # pyright: ignore[reportArgumentType]
    return scheduler


@dataclasses.dataclass(frozen=True)
class _Past:
    """A trial of an earlier launch, as far as ASHA looks at it."""

    trial_id: str
