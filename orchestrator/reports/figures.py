"""The charts of a run, each a `Figure`: a picture, its legend, and its values as a table for those who read them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from orchestrator.records.rows import about_column
from orchestrator.reports.axes import tick_text
from orchestrator.reports.charts import NUM_COLORS, Band, Chart, Level, Mark, Series, draw
from orchestrator.reports.pictures import spread
from orchestrator.reports.run_data import RunData
from orchestrator.storage.commits import step_name
from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import Run

COLLAPSE = -1.0
"""Where l2_weight (E(data) - E(samples)) has its unwanted minimum (ebm_core/monitor.py)."""
TABLE_ROWS = 12
TABLE_CURVES = 12
"""A chart of more curves has no table of its own."""


@dataclass(frozen=True)
class Figure:
    """A chart as the template takes it."""

    title: str
    description: str
    ylabel: str
    xlabel: str
    svg: Markup
    legend: list[tuple[int, str, str]]
    """(colour, name, style)."""
    table: list[tuple[str, ...]]
    """A row for some positions: x, then the value of each curve there or last before."""
    columns: list[str]


def figure(chart: Chart) -> Figure:
    """The chart drawn, with legend and table."""
    named = [(s.color or i % NUM_COLORS + 1, s.name, s.style) for i, s in enumerate(chart.series)]
    readable = chart.series if len(chart.series) <= TABLE_CURVES else []
    positions = sorted({x for s in readable for x in s.x})
    chosen = [positions[i] for i in spread(range(len(positions)), TABLE_ROWS)]
    table = [(f"{x:.6g}", *(_at(s, x) for s in chart.series)) for x in chosen]
    return Figure(
        title=chart.title,
        description=chart.description,
        ylabel=chart.ylabel,
        xlabel=chart.xlabel,
        svg=draw(chart),
        legend=named if chart.legend and len(named) > 1 else [],
        table=table,
        columns=[chart.xlabel, *(s.name for s in chart.series)],
    )


def _at(series: Series, x: float) -> str:
    known = [y for px, y in zip(series.x, series.y, strict=True) if px <= x]
    return tick_text(float(f"{known[-1]:.4g}")) if known and known[-1] is not None else "-"


def marks(data: RunData) -> list[Mark]:
    """Where contrastive divergence followed the warm start, where later launches took the run up, where it diverged."""
    seam = data.setting("warmup.num_steps") or 0
    found = [Mark(seam, f"contrastive divergence from step {seam:,}", "restart")] if 0 < seam < data.step else []
    found += [Mark(step, f"resumed, step {step:,}", "restart") for step in data.resumed_at]
    if data.diverged_at is not None:
        found.append(Mark(data.diverged_at, f"diverged, step {data.diverged_at:,}"))
    return found


def gap_in_units(data: RunData) -> list[float | None]:
    """l2_weight (E(data) - E(samples)) of every row: the unit in which stability is judged."""
    unit = data.setting("loss.l2_weight") or 1.0
    return [None if gap is None else unit * gap for gap in data.rows.get("energy_gap", [])]


def gap_figures(data: RunData) -> list[Figure]:
    """The gap on the scale of collapse, and enlarged where it stays a flat line there."""
    steps, raw = data.rows["step"], gap_in_units(data)
    if not any(value is not None for value in raw):
        return []
    limit = float(data.setting("train.gap_limit") or -0.5)
    series = [Series("each logged step", steps, raw, "faint", 1)]
    if "running_gap" in data.rows:
        window = data.setting("train.gap_window")
        series.append(Series(f"running mean of {window} steps", steps, data.rows["running_gap"], "strong", 2))
    known = [v for s in series for v in s.y if v is not None and np.isfinite(v)] or [0.0]
    low, high = min(known), max(known)
    whole = Chart(
        "Energy gap and the limit of stability",
        f"a (E(data) - E(samples)), a = loss.l2_weight: 0 is balance. Training is unstable once the running mean stays "
        f"below {tick_text(limit)} for {data.setting('train.gap_patience')} steps; collapse is {tick_text(COLLAPSE)}.",
        series,
        "training step",
        "a (E(data) - E(samples)), in units of 1 / a",
        levels=[Level(0.0, ""), Level(COLLAPSE, "collapse (Fig. 9)")],
        marks=marks(data),
        bands=[Band(None, limit, "unstable"), Band(limit, None, "stable", "good")],
        y_range=(min(1.15 * COLLAPSE, low - 0.05), max(0.6, high + 0.05)),
    )
    if high - low > 0.3:
        return [figure(whole)]
    ends = (tick_text(float(f"{value:.3g}")) for value in (low, high))
    text = f"The same curves on a scale of their own, from {' to '.join(ends)}."
    closer = Chart("Energy gap, enlarged", text, series, "training step", whole.ylabel, [Level(0.0, "")], marks(data))
    return [figure(whole), figure(closer)]


def column_figure(
    data: RunData, title: str, description: str, names: Mapping[str, str], *, log_y: bool = False
) -> list[Figure]:
    """Logged columns {name: label} over training; nothing when none of them was logged."""
    series = []
    for name, label in names.items():
        pairs = [(s, v) for s, v in zip(data.rows["step"], data.rows.get(name, []), strict=False) if v is not None]
        if any(v != 0 for _, v in pairs):
            series.append(Series(label, [s for s, _ in pairs], [v for _, v in pairs]))
    if not series:
        return []
    unit = about_column(next(iter(names))).unit or "a pure number"
    scale = f"{unit}, logarithmic" if log_y else unit
    return [figure(Chart(title, description, series, "training step", scale, marks=marks(data), log_y=log_y))]


def score_figures(data: RunData, paper: Mapping[str, float]) -> list[Figure]:
    """Each score over the checkpoints, beside held-out images, noise and the paper where there are such figures."""
    found = []
    for metric in dict.fromkeys(name for documents in data.scores.values() for name in documents):
        if metric in ("ood", "chains"):
            continue
        at = {step: documents[metric] for step, documents in data.scores.items() if metric in documents}
        values = [_number(document.get("value")) for document in at.values()]
        if len(at) < 2 or not any(v is not None for v in values):
            continue
        last = at[max(at)]
        levels = [
            Level(value, f"{label} {value:.3g}")
            for label, value in (
                ("real, held out", _number(last.get("heldout"))),
                ("noise", _number(last.get("noise"))),
                ("paper (CIFAR-10)", paper.get(metric)),
            )
            if value is not None
        ]
        text = f"{metric} of generated images at {len(at)} checkpoints; dashed: the same score of other images."
        found.append(figure(Chart(metric, text, [Series(metric, list(at), values)], "training step", metric, levels)))
    return found


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
    return float(value) if good else None


def ood_figure(run: Run, step: int) -> list[Figure]:
    """Energies of every set of the study of OOD detection as outlines over one axis."""
    try:
        data = run.read_bytes(f"evaluations/{step_name(step)}/ood-energies.parquet")
        table = pq.read_table(io.BytesIO(data), columns=["set", "energy"])
    except (StorageError, OSError, ValueError, KeyError):
        return []
    names, energies = np.asarray(table["set"].to_pylist()), table["energy"].to_numpy()
    sets = {str(name): energies[names == name] for name in dict.fromkeys(names.tolist())}
    if not sets:
        return []
    low = min(float(np.quantile(values, 0.005)) for values in sets.values())
    high = max(float(np.quantile(values, 0.995)) for values in sets.values())
    edges = np.linspace(low, high if high > low else low + 1, 41)
    series = [Series(name, *_outline(values, edges)) for name, values in sets.items()]
    text = (
        "Share of each set's images by energy, in 40 bins; lower is more like the data. The outermost bins hold what "
        f"lies beyond. Mean energies: {', '.join(f'{name} {values.mean():.3g}' for name, values in sets.items())}."
    )
    return [figure(Chart("Energies in and out of distribution", text, series, "energy", "share of images"))]


def _outline(values: np.ndarray, edges: np.ndarray) -> tuple[list[float], list[float]]:
    """A histogram's staircase, its shares adding up to 1."""
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), bins=edges)
    shares = counts / max(len(values), 1)
    return np.repeat(edges, 2)[1:-1].tolist(), np.repeat(shares, 2).tolist()


def chain_figures(document: Mapping[str, Any]) -> list[Figure]:
    """How far chains that run on stray from the data, and their energy."""
    variants: Mapping[str, Any] = document.get("variants") or {}
    distance = str(document.get("distance", "fid_small"))
    labels = {distance: f"{distance} to training images", "energy": "mean energy of the chains"}
    found = []
    for key, label in labels.items():
        series: Sequence[Series] = [
            Series(name, one["steps"][1:], one[key][1:]) for name, one in variants.items() if key in one
        ]
        if series:
            text = f"{label} of {document.get('num_chains')} chains from noise, every kind with its own curve."
            found.append(figure(Chart(f"Long chains: {label}", text, series, "Langevin step", label)))
    return found
