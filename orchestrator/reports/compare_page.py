"""The page that puts runs side by side: what differs in their settings, their curves over each other, their scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.records.rows import about_column
from orchestrator.reports import figures as figures
from orchestrator.reports.charts import NUM_COLORS, Band, Chart, Level, Mark, Series
from orchestrator.reports.page import render
from orchestrator.reports.pictures import IMAGE_BUDGET, Picture, last_grid
from orchestrator.reports.run_data import NOT_COMPARED, RunData, gather
from orchestrator.reports.run_page import Tile, duration, score_table, stability_tile
from orchestrator.storage.run_store import Run

CURVES = {"loss": "Loss", "grad_norm": "Gradient norm", "steps_per_s": "Rate"}
"""Logged columns that are laid over each other, beside the energy gap, with their titles."""


@dataclass(frozen=True)
class Entry:
    """A run of the comparison."""

    data: RunData
    color: int
    stability: Tile
    took: str
    picture: Picture | None


def compare_page(runs: Sequence[Run]) -> str:
    """One page of two stored runs or more. Raises StorageError for a run without readable settings."""
    found = [gather(run) for run in runs]
    budget = IMAGE_BUDGET // len(found)
    entries = [
        Entry(d, i % NUM_COLORS + 1, stability_tile(d), duration(d.cost.train_s), last_grid(d.run, budget))
        for i, d in enumerate(found)
    ]
    return render(
        "compare.html",
        title=f"{' and '.join(d.name for d in found)} compared",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        entries=entries,
        names=[d.name for d in found],
        settings=setting_differences(found),
        scores=score_rows(found),
        gap=overlaid_gap(found),
        curves=[f for name in CURVES for f in overlaid(found, name)],
        over_steps=[f for name in scored_metrics(found) for f in overlaid_score(found, name)],
    )


def setting_differences(found: Sequence[RunData]) -> list[tuple[str, list[Any]]]:
    """(path, value in each run) of every setting that is not the same in all; what no preset decides is left out."""
    paths = dict.fromkeys(setting.path for data in found for setting in data.settings)
    rows = []
    for path in paths:
        values = [data.setting(path) for data in found]
        if path not in NOT_COMPARED and any(value != values[0] for value in values[1:]):
            rows.append((path, values))
    return rows


def scored_metrics(found: Sequence[RunData]) -> list[str]:
    """Scores that any of the runs has."""
    return list(dict.fromkeys(name for data in found for documents in data.scores.values() for name in documents))


def score_rows(found: Sequence[RunData]) -> list[tuple[str, ...]]:
    """(score, of each run's newest scored checkpoint) as text; a run without it has a dash."""
    tables = [{row[0]: row[1] for row in score_table(d.last_scores[1], d)} if d.last_scores else {} for d in found]
    names = dict.fromkeys(name for table in tables for name in table)
    steps = [("scored at step", *(str(d.last_scores[0]) if d.last_scores else "-" for d in found))]
    return steps + [(name, *(table.get(name, "-") for table in tables)) for name in names]


def overlaid_gap(found: Sequence[RunData]) -> list[figures.Figure]:
    """The running energy gaps, each in its own run's unit, with the limits of the first run."""

    def gaps(data: RunData) -> list[Any]:
        return data.rows.get("running_gap") or figures.gap_in_units(data)

    limit = float(found[0].setting("train.gap_limit") or -0.5)
    series = _series(found, gaps)
    known = [v for s in series for v in s.y if v is not None]
    if not known:
        return []
    marks = [Mark(d.diverged_at, f"{d.name} diverged") for d in found if d.diverged_at is not None]
    unit = "a (E(data) - E(samples)), in units of 1 / a"
    text = "Running mean of the energy gap; 0 is balance. Vertical lines: where a run diverged."
    bands = [Band(None, limit, "unstable"), Band(limit, None, "stable", "good")]
    levels = [Level(0.0, ""), Level(figures.COLLAPSE, "collapse (Fig. 9)")]
    whole = (min(-1.15, min(known) - 0.05), max(0.6, max(known) + 0.05))
    title = "Energy gap and the limit of stability"
    made = [figures.figure(Chart(title, text, series, "training step", unit, levels, marks, bands, whole))]
    if max(known) - min(known) < 0.3:
        text = "The same curves on a scale of their own."
        made.append(
            figures.figure(Chart("Energy gap, enlarged", text, series, "training step", unit, [Level(0.0, "")]))
        )
    return made


def overlaid(found: Sequence[RunData], name: str) -> list[figures.Figure]:
    """A logged column of every run that has it."""
    series = _series(found, lambda data: data.rows.get(name, []))
    if not series:
        return []
    metric = about_column(name)
    unit = {"": "a pure number", "1/s": "steps per second"}.get(metric.unit, metric.unit)
    text = f"{metric.help[:1].upper()}{metric.help[1:]}."
    return [figures.figure(Chart(CURVES[name], text, series, "training step", unit))]


def overlaid_score(found: Sequence[RunData], metric: str) -> list[figures.Figure]:
    """A score over the checkpoints of every run; nothing where no run has two of them."""
    series = []
    for i, data in enumerate(found):
        at = {step: documents[metric]["value"] for step, documents in data.scores.items() if metric in documents}
        if at:
            series.append(Series(data.name, list(at), list(at.values()), color=i % NUM_COLORS + 1))
    if max((len(s.x) for s in series), default=0) < 2:
        return []
    text = f"{metric} of generated images over the scored checkpoints."
    return [figures.figure(Chart(metric, text, series, "training step", metric))]


def _series(found: Sequence[RunData], column: Callable[[RunData], list[Any]]) -> list[Series]:
    """A curve of each run, which keeps its colour in every chart of the page."""
    made = []
    for i, data in enumerate(found):
        values = column(data)
        if any(v is not None for v in values):
            made.append(Series(data.name, data.rows["step"], values, color=i % NUM_COLORS + 1))
    return made
