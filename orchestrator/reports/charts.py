"""Charts of a report as inline SVG: drawn for a wide and for a narrow page, coloured by the page's style sheet.

A chart is an image with a name and a description for those who do not see it. Colours are classes (`c1` to `c6`, each
with a dash of its own), so that light, dark and print agree with the text around them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup, escape

from orchestrator.reports.axes import Axis, tick_text

NUM_COLORS = 6
MAX_POINTS = 400
"""Points of a curve that are drawn: of each stretch its lowest and highest value, so that no peak is lost."""
ALL_POINTS = 9000
"""Points of all curves of a drawing, shared among many of them."""
MAX_DOTS = 12
"""A curve of at most so many points, such as scores of checkpoints, shows each as a dot."""

_ids = count()


@dataclass(frozen=True)
class Series:
    """A curve y(x) with its name; a value that is None or not finite leaves a gap. `style`: classes of the page."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: str = ""
    color: int | None = None
    """1 to NUM_COLORS; None: by position."""


@dataclass(frozen=True)
class Level:
    """A horizontal line at y, with its label."""

    y: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A vertical line at x, such as a divergence or a restart."""

    x: float
    label: str
    style: str = "mark"


@dataclass(frozen=True)
class Band:
    """A shaded range of y from `low` to `high` (None: the edge of the picture)."""

    low: float | None
    high: float | None
    label: str
    style: str = "bad"


@dataclass(frozen=True)
class Chart:
    """What a chart shows, in the units of its axes."""

    title: str
    description: str
    series: Sequence[Series]
    xlabel: str
    ylabel: str
    levels: Sequence[Level] = ()
    marks: Sequence[Mark] = ()
    bands: Sequence[Band] = ()
    y_range: tuple[float, float] | None = None
    log_y: bool = False
    legend: bool = True


@dataclass(frozen=True)
class Frame:
    """Size of a drawing in pixels and the room around the plot."""

    width: float
    height: float
    left: float = 58
    right: float = 14
    top: float = 14
    bottom: float = 44


FRAMES = {"wide": Frame(760, 300), "half": Frame(520, 270), "narrow": Frame(350, 240, left=50, right=10)}
"""The drawings of a chart, of which the style sheet shows one: alone, beside another one, on a phone."""


def draw(chart: Chart) -> Markup:
    """All drawings of the chart."""
    return Markup("").join(Markup(_svg(chart, frame, name)) for name, frame in FRAMES.items())


def thin(x: Sequence[float], y: Sequence[float | None], most: int = MAX_POINTS) -> list[tuple[float, float | None]]:
    """Points of a curve, fewer than about `most`: each stretch keeps its lowest and highest value and its gaps."""
    points = [(float(a), b if b is not None and math.isfinite(b) else None) for a, b in zip(x, y, strict=True)]
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / (most / 2))
    kept: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        known = [(px, py) for px, py in stretch if py is not None]
        gaps = [(px, None) for px, py in stretch if py is None]
        ends: list[tuple[float, float | None]] = list(gaps[:1])
        if known:
            ends += {min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])}
        kept += sorted(ends, key=lambda p: p[0])
    return kept


def _range_y(chart: Chart) -> tuple[float, float]:
    if chart.y_range:
        return chart.y_range
    values = [v for s in chart.series for v in s.y if v is not None and math.isfinite(v) and (v > 0 or not chart.log_y)]
    values += [level.y for level in chart.levels]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if chart.log_y:
        return (low / 1.5, high * 1.5) if low > 0 else (0.1, 10.0)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _range_x(chart: Chart) -> tuple[float, float]:
    values = [v for s in chart.series for v in s.x] + [mark.x for mark in chart.marks]
    low, high = (float(min(values)), float(max(values))) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 1, high + 1)


def _svg(chart: Chart, frame: Frame, name: str) -> str:
    number = next(_ids)
    x = Axis(*_range_x(chart), frame.left, frame.width - frame.right)
    y = Axis(*_range_y(chart), frame.height - frame.bottom, frame.top, chart.log_y)
    ids = f"chart-{number}-title", f"chart-{number}-desc"
    clip = f"chart-{number}-clip"
    most = min(MAX_POINTS, max(40, ALL_POINTS // max(len(chart.series), 1)))
    width, height = frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom
    parts = [
        f'<svg class="{name}" viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" '
        f'aria-labelledby="{" ".join(ids)}">',
        f'<title id="{ids[0]}">{escape(chart.title)}</title><desc id="{ids[1]}">{escape(chart.description)}</desc>',
        f'<clipPath id="{clip}"><rect x="{frame.left - 4:g}" y="{frame.top - 4:g}" width="{width + 8:g}" '
        f'height="{height + 8:g}"/></clipPath>',
        *_bands(chart, frame, y),
        *_axes(chart, frame, x, y),
        *_levels(chart, frame, y),
        *_marks(chart, frame, x),
        f'<g clip-path="url(#{clip})">',
        *(_curve(s, s.color or i % NUM_COLORS + 1, x, y, most) for i, s in enumerate(chart.series)),
        "</g></svg>",
    ]
    return "".join(parts)


def _bands(chart: Chart, frame: Frame, y: Axis) -> list[str]:
    parts = []
    for band in chart.bands:
        high = frame.top if band.high is None else max(frame.top, y.at(band.high))
        low = frame.height - frame.bottom if band.low is None else min(frame.height - frame.bottom, y.at(band.low))
        width = frame.width - frame.left - frame.right
        if low <= high:
            continue
        parts.append(
            f'<rect class="band {band.style}" x="{frame.left:g}" y="{high:.1f}" width="{width:g}" '
            f'height="{low - high:.1f}"/>'
            f'<text class="note" x="{frame.width - frame.right - 6:g}" y="{low - 7:.1f}" text-anchor="end">'
            f"{escape(band.label)}</text>"
        )
    return parts


def _axes(chart: Chart, frame: Frame, x: Axis, y: Axis) -> list[str]:
    bottom, right = frame.height - frame.bottom, frame.width - frame.right
    parts = []
    for value in y.ticks(5):
        at = y.at(value)
        parts.append(
            f'<line class="grid" x1="{frame.left:g}" x2="{right:g}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{frame.left - 7:g}" y="{at + 4:.1f}" text-anchor="end">{tick_text(value)}</text>'
        )
    for value in x.ticks(8 if frame.width > 500 else 4):
        at = x.at(value)
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom:g}" y2="{bottom + 5:g}"/>'
            f'<text x="{at:.1f}" y="{bottom + 19:g}" text-anchor="middle">{tick_text(value)}</text>'
        )
    middle = (frame.left + right) / 2
    parts.append(
        f'<line class="axis" x1="{frame.left:g}" x2="{right:g}" y1="{bottom:g}" y2="{bottom:g}"/>'
        f'<text class="label" x="{middle:g}" y="{frame.height - 6:g}" text-anchor="middle">'
        f"{escape(chart.xlabel)}</text>"
    )
    return parts


def _levels(chart: Chart, frame: Frame, y: Axis) -> list[str]:
    parts = []
    for level in chart.levels:
        at, right = y.at(level.y), frame.width - frame.right
        if not frame.top <= at <= frame.height - frame.bottom:
            continue
        above = at - 6 if at > frame.top + 16 else at + 15
        parts.append(
            f'<line class="level" x1="{frame.left:g}" x2="{right:g}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="note" x="{frame.left + 6:g}" y="{above:.1f}">{escape(level.label)}</text>'
        )
    return parts


def _marks(chart: Chart, frame: Frame, x: Axis) -> list[str]:
    parts = []
    for i, mark in enumerate(chart.marks):
        at = x.at(mark.x)
        leftward = at > (frame.left + frame.width) / 2
        parts.append(
            f'<line class="{mark.style}" x1="{at:.1f}" x2="{at:.1f}" y1="{frame.top:g}" '
            f'y2="{frame.height - frame.bottom:g}">'
            f"<title>{escape(mark.label)}</title></line>"
            f'<text class="note" x="{at + (-5 if leftward else 5):.1f}" y="{frame.top + 12 + 14 * (i % 4):g}" '
            f'text-anchor="{"end" if leftward else "start"}">{escape(mark.label)}</text>'
        )
    return parts


def _curve(series: Series, color: int, x: Axis, y: Axis, most: int) -> str:
    points = thin(series.x, series.y, most)
    pen, commands = False, []
    for px, py in points:
        if py is None or not y.can_show(py):
            pen = False
            continue
        commands.append(f"{'L' if pen else 'M'}{x.at(px):.1f} {y.at(py):.1f}")
        pen = True
    dots = ""
    if len(points) <= MAX_DOTS and "many" not in series.style:
        dots = "".join(
            f'<circle cx="{x.at(px):.1f}" cy="{y.at(py):.1f}" r="3">'
            f"<title>{escape(series.name)}: {py:.4g} at {px:g}</title></circle>"
            for px, py in points
            if py is not None and y.can_show(py)
        )
    return f'<g class="c{color} {escape(series.style)}"><path d="{"".join(commands)}"/>{dots}</g>'
