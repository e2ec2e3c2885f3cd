"""The page of a sweep."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from orchestrator.reports import figures as figures
from orchestrator.reports.charts import Band, Chart, Level, Mark, Series
from orchestrator.reports.page import render
from orchestrator.reports.parallel import Line, draw_parallel
from orchestrator.reports.pictures import IMAGE_BUDGET, Picture, last_grid
from orchestrator.reports.run_page import Tile, duration
from orchestrator.reports.sweep_data import SweepData, TrialData, gather_sweep, number
from orchestrator.reports.sweep_table import PAPER, mean_and_spread, short_setting
from orchestrator.storage.run_store import Run

__all__ = ["gather_sweep", "sweep_page"]

MAX_GRIDS = 60
"""Trials whose samples are on the page: all of a grid, the best of a large search."""
MAX_MARKS = 12


@dataclass(frozen=True)
class Table:
    """Columns, and rows whose first cell names the row."""

    columns: list[str]
    rows: list[tuple[str, ...]]


def sweep_page(folder: Run, *, refresh_s: int | None = None) -> str:
    """The page of a stored sweep; with refresh_s it reloads itself so often until every trial has ended."""
    return sweep_html(gather_sweep(folder), refresh_s=refresh_s)


def sweep_html(sweep: SweepData, *, refresh_s: int | None = None) -> str:
    """The page of a sweep that was read."""
    ended = all(trial.result for trial in sweep.trials)
    return render(
        "sweep.html",
        title=f"{sweep.name}, sweep of energy-based models",
        sweep=sweep,
        heading=str(sweep.plan.get("title") or sweep.name),
        note=str(sweep.plan.get("note") or ""),
        refresh_s=None if ended else refresh_s,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=tiles(sweep),
        main_table=grid_table(sweep) if sweep.is_grid else None,
        trial_table=trial_table(sweep),
        parallel=parallel(sweep),
        gap=gap_curves(sweep),
        pictures=pictures(sweep),
        cost=cost_table(sweep),
    )


def tiles(sweep: SweepData) -> list[Tile]:
    """How many trials ended how, the best of them, and what all cost."""
    states = Counter(trial.state for trial in sweep.trials)
    text = ", ".join(f"{count} {state}" for state, count in states.most_common())
    unstable = states["unstable"]
    judged = states["finished"] + unstable
    found = [
        Tile("Trials", str(len(sweep.trials)), text or "none has started"),
        Tile(
            "Stable", f"{judged - unstable} of {judged}", "of those that ran to an end", "bad" if unstable else "good"
        ),
    ]
    best = sweep.best_trial()
    if best is not None and best.value is not None:
        found.append(Tile(f"Best {sweep.metric}", f"{best.value:.4g}", best.name))
    unit = "GPU-hours" if any(number(t.cost.get("gpus")) for t in sweep.trials) else "Core-hours"
    found.append(Tile(unit, f"{sum(t.hours for t in sweep.trials):.3g}", "of the trials that have ended"))
    return found


def grid_table(sweep: SweepData) -> Table:
    """A line for each row of the grid: mean and spread over seeds, stability, and what the paper has."""
    choices = list(dict.fromkeys(str(name) for row in sweep.rows for name in _mapping(row.get("choices"))))
    paper = [key for key in PAPER if any(key in _mapping(row.get("paper")) for row in sweep.rows)]
    columns = [
        "row",
        sweep.metric,
        f"best {sweep.metric}",
        "stable seeds",
        "trials",
        *(PAPER[k] for k in paper),
        *choices,
    ]
    rows = []
    for row in sweep.rows:
        trials = [t for t in sweep.trials if t.planned.get("row") == row.get("key")]
        has, theirs = _mapping(row.get("choices")), _mapping(row.get("paper"))
        rows.append(
            (
                str(row.get("label", row.get("key", "?"))),
                spread_text([t.value for t in trials]),
                spread_text([t.best for t in trials]),
                stability_text(trials),
                ", ".join(f"{count} {state}" for state, count in Counter(t.state for t in trials).items()) or "-",
                *(_paper_text(theirs.get(key)) for key in paper),
                *(str(has.get(name, "-")) for name in choices),
            )
        )
    return Table(columns, rows)


def trial_table(sweep: SweepData) -> Table:
    """A line for each trial, best first, with the settings that it was given."""
    paths = setting_paths(sweep)
    rows = [
        (t.name, _text(t.value), _text(t.best), t.told(), *(short_setting(t.settings.get(path, "-")) for path in paths))
        for t in sweep.ranked()
    ]
    return Table(["trial", sweep.metric, "best", "state", *paths], rows)


def setting_paths(sweep: SweepData) -> list[str]:
    """Settings that are not the same in all trials."""
    paths = dict.fromkeys(path for trial in sweep.trials for path in trial.settings)
    return [p for p in paths if len({t.settings.get(p) for t in sweep.trials}) > 1]


def stability_text(trials: Sequence[TrialData]) -> str:
    """`3 of 3`, or `1 of 3 (unstable at 210, 340)`."""
    judged = [t for t in trials if t.state in ("finished", "unstable")]
    broken = [str(t.unstable_at) for t in judged if t.state == "unstable"]
    where = f" (unstable at {', '.join(broken)})" if broken else ""
    return f"{len(judged) - len(broken)} of {len(judged)}{where}" if judged else "-"


def spread_text(values: Sequence[float | None]) -> str:
    """Mean ± sample standard deviation over the seeds that have a value."""
    known = [value for value in values if value is not None]
    if not known:
        return _text(None)
    mean, spread = mean_and_spread(known)
    return _text(mean) if spread is None else f"{mean:.3g} ± {spread:.2g}"


def parallel(sweep: SweepData) -> Markup | None:
    """Parallel coordinates over what the trials differ in and the result; None where there is nothing to see."""
    keyed = {row.get("key"): _mapping(row.get("choices")) for row in sweep.rows}
    choices = list(dict.fromkeys(str(name) for has in keyed.values() for name in has))
    axes = choices or setting_paths(sweep)
    best = sweep.best_trial()
    lines = []
    for trial in reversed(sweep.ranked()):  # the best lies on top
        has = keyed.get(trial.planned.get("row"), {}) if choices else trial.settings
        values = [str(has[name]) if name in has else None for name in axes]
        style = "best" if trial is best else "unstable" if trial.state == "unstable" else "other"
        text = f"{trial.name}: {sweep.metric} {_text(trial.value)}, {trial.told()}"
        lines.append(Line(text, [*values, None if trial.value is None else repr(trial.value)], style))
    if not axes or not lines:
        return None
    description = (
        f"A line for each of {len(lines)} trials over {', '.join(axes)} and {sweep.metric}; the table has the values."
    )
    return draw_parallel("Settings of the trials and their result", description, [*axes, sweep.metric], lines)


def gap_curves(sweep: SweepData) -> list[figures.Figure]:
    """Running energy gaps of all trials, those that diverged in the colour of trouble, with a mark where they did."""
    series = []
    for trial in sweep.trials:
        values = trial.rows.get("running_gap") or trial.rows.get("energy_gap") or []
        if any(v is not None for v in values):
            broken = trial.state == "unstable"
            series.append(
                Series(
                    trial.name,
                    trial.rows["step"],
                    values,
                    f"many solid {'broken' if broken else ''}",
                    2 if broken else 1,
                )
            )
    if not series:
        return []
    known = [v for s in series for v in s.y if v is not None and math.isfinite(v)] or [0.0]
    marks = [Mark(t.unstable_at, t.name) for t in sweep.trials if t.unstable_at is not None]
    limit = number(_mapping(_mapping(sweep.plan.get("base")).get("train")).get("gap_limit")) or -0.5
    shown = (max(-3.0, min(-1.15, min(known) - 0.05)), min(3.0, max(0.6, max(known) + 0.05)))
    text = f"Running mean of a (E(data) - E(samples)) of {len(series)} trials; orange: diverged at the vertical line."
    if len(marks) > MAX_MARKS:
        text += f" The first {MAX_MARKS} of {len(marks)} divergences are marked."
    chart = Chart(
        "Energy gap of all trials",
        text,
        series,
        "training step",
        "a (E(data) - E(samples)), in units of 1 / a",
        [Level(0.0, ""), Level(figures.COLLAPSE, "collapse (Fig. 9)")],
        marks[:MAX_MARKS],
        [Band(None, limit, "unstable"), Band(limit, None, "stable", "good")],
        shown,
        legend=False,
    )
    return [figures.figure(chart)]


def pictures(sweep: SweepData) -> list[tuple[TrialData, Picture | None]]:
    """The newest samples of every trial, as planned; of the best MAX_GRIDS where there are more."""
    shown = sweep.trials if len(sweep.trials) <= MAX_GRIDS else sweep.ranked()[:MAX_GRIDS]
    budget = IMAGE_BUDGET // 2 // max(len(shown), 1)  # tables and curves of many trials need room too
    return [(trial, last_grid(trial.run, budget) if trial.run else None) for trial in shown]


def cost_table(sweep: SweepData) -> Table:
    """What each ended trial took."""
    rows = []
    for trial in sweep.trials:
        if trial.cost:
            seconds, trained = number(trial.cost.get("seconds")), trial.train_seconds
            held = f"{_text(number(trial.cost.get('cpus')))} / {_text(number(trial.cost.get('gpus')))}"
            times = (duration(s) if s is not None else "-" for s in (seconds, trained))
            rows.append((trial.name, *times, held, str(trial.cost.get("attempts", "-")), f"{trial.hours:.3g}"))
    return Table(["trial", "last launch", "training", "CPUs / GPUs", "launches", "core- or GPU-hours"], rows)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _paper_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    known = number(value)
    return "-" if known is None else f"{known:g}"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
