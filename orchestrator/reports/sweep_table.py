"""The table at the end of a sweep: ours beside the paper's, mean and spread over seeds."""

import math
from collections.abc import Sequence

from orchestrator.records.sweeps import Row, StoredSweep, Trial
from workers.tables import Table

PAPER = {"inception_score": "IS (paper)", "fid": "FID (paper)", "stable": "stable (paper)"}
STATES = ("finished", "unstable", "stopped", "refused", "crashed", "unfinished")


def sweep_table(stored: StoredSweep) -> Table:
    """The table of a grid: a line per row; of a search: a line per trial, best first."""
    return _grid_table(stored) if stored.plan.kind == "grid" else _search_table(stored)


def _grid_table(stored: StoredSweep) -> Table:
    plan = stored.plan
    columns = list(dict.fromkeys(name for row in plan.rows for name in row.choices))
    paper = [key for key in PAPER if any(key in row.paper for row in plan.rows)]
    head = (*columns, plan.metric, "best", "stable", "trials", *(PAPER[key] for key in paper))
    rows = []
    for row in plan.rows:
        trials = [trial for trial in stored.trials if trial.planned.row == row.key]
        ours = (_spread([t.result.value for t in trials if t.result]), _spread(_bests(trials)))
        theirs = (_paper(row, key) for key in paper)
        rows.append((*(row.choices.get(c, "-") for c in columns), *ours, _stability(trials), _states(trials), *theirs))
    seeds = f"{len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}"
    note = (
        f"{plan.metric} of the last sound checkpoint, and of the best one: mean ± standard deviation over the seeds "
        f"that have one. stable: seeds without divergence, and where it came. {plan.note}"
    )
    return Table(f"{plan.title} ({plan.preset}, {seeds})", head, rows, note.strip())


def _search_table(stored: StoredSweep) -> Table:
    plan = stored.plan
    rows = []
    for trial in sorted(stored.trials, key=lambda t: rank(t.state, t.result.value if t.result else None, plan.mode)):
        settings = dict(setting.split("=", 1) for setting in trial.planned.settings)
        values = (short_setting(settings.get(path, "-")) for path in plan.space)
        result = trial.result
        step = f"{result.step}/{result.num_steps}" if result else "-"
        rows.append((trial.planned.trial, _number(result.value if result else None), trial_state(trial), step, *values))
    head = ("trial", plan.metric, "state", "step", *plan.space)
    return Table(f"{plan.title}: {plan.metric}, {plan.mode}", head, rows, plan.note)


def rank(state: str, value: float | None, mode: str) -> tuple[bool, float]:
    """Where a trial stands in a list that has the best first: those that are stable and have a value come before."""
    good = state in ("finished", "stopped") and value is not None
    return not good, math.inf if value is None else -value if mode == "max" else value


def trial_state(trial: Trial) -> str:
    """How it ended; of an unstable one, where."""
    if trial.result and trial.result.state == "unstable":
        return f"unstable at step {trial.result.unstable_at}"
    return trial.state


def links(stored: StoredSweep, root: str) -> list[str]:
    """A line for each trial that has a sample grid: where that is."""
    return [
        f"{trial.planned.trial}: {root}/{trial.planned.run}/{trial.result.grid}"
        for trial in stored.trials
        if trial.result and trial.result.grid
    ]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the sample standard deviation where there are two values or more."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, spread = mean_and_spread(known)
    return _number(mean) if spread is None else f"{mean:.3g} ± {spread:.2g}"


def _bests(trials: Sequence[Trial]) -> list[float]:
    return [t.result.best["value"] for t in trials if t.result and t.result.best]


def _stability(trials: Sequence[Trial]) -> str:
    """`3 of 3`, or `1 of 3 (not: 210, 340)` with the steps of divergence."""
    ended = [t.result for t in trials if t.result and t.result.state in ("finished", "unstable")]
    if not ended:
        return "-"
    broken = [str(result.unstable_at) for result in ended if result.state == "unstable"]
    where = f" (not: {', '.join(broken)})" if broken else ""
    return f"{len(ended) - len(broken)} of {len(ended)}{where}"


def _states(trials: Sequence[Trial]) -> str:
    counts = {state: sum(trial.state == state for trial in trials) for state in STATES}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "-"


def _paper(row: Row, key: str) -> str:
    value = row.paper.get(key)
    return "-" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:g}"


def short_setting(text: str) -> str:
    """A setting as text; a number with four digits, as a search draws more than anyone reads."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
