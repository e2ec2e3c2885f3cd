"""Parallel coordinates: an axis for each setting and for the result, a line for each trial across all of them.

On a wide page the axes stand side by side; on a phone they lie under each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup, escape

from orchestrator.reports.axes import Axis, tick_text

_ids = count()
MAX_NAMES = 12
"""Values of a setting that are named on its axis."""
LETTER = 7.2
"""Room for a letter of a label in pixels, at the style sheet's 12 px."""


@dataclass(frozen=True)
class Line:
    """A trial: its value on every axis (text as it was set, or None), and how it is drawn."""

    name: str
    values: Sequence[str | None]
    style: str


class Scale:
    """Values of one axis to 0..1: numbers along it (logarithmic over two decades or more), words by the alphabet."""

    def __init__(self, name: str, values: Sequence[str | None]) -> None:
        self.name = name
        known = sorted({v for v in values if v is not None})
        numbers = [_number(v) for v in known]
        self._axis: Axis | None = None
        self._names: list[str] = []
        if known and all(n is not None for n in numbers) and len(known) > 1:
            low, high = min(n for n in numbers if n is not None), max(n for n in numbers if n is not None)
            self._axis = Axis(low, high, 0.0, 1.0, log=low > 0 and high / low >= 100)
        else:
            self._names = known

    def at(self, value: str | None) -> float | None:
        """Place of a value from 0 to 1; None if the trial has none."""
        if value is None:
            return None
        if self._axis is not None:
            number = _number(value)
            return None if number is None else self._axis.at(number)
        if value not in self._names:
            return None
        return 0.5 if len(self._names) == 1 else self._names.index(value) / (len(self._names) - 1)

    def labels(self) -> list[tuple[float, str]]:
        """(place, text) of the axis's numbers or words."""
        if self._axis is not None:
            ends = [self._axis.low, self._axis.high]
            inner = [
                v for v in self._axis.ticks(4) if all(abs(self._axis.at(v) - self._axis.at(e)) > 0.12 for e in ends)
            ]
            return [(self._axis.at(v), tick_text(float(f"{v:.3g}"))) for v in (ends[0], *inner, ends[1])]
        named = self._names if len(self._names) <= MAX_NAMES else [self._names[0], self._names[-1]]
        return [(self.at(name) or 0.0, name) for name in named]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def draw_parallel(title: str, description: str, axes: Sequence[str], lines: Sequence[Line]) -> Markup:
    """Both forms of the picture."""
    scales = [Scale(name, [line.values[i] for line in lines]) for i, name in enumerate(axes)]
    return Markup(_upright(title, description, scales, lines) + _lying(title, description, scales, lines))


def _head(kind: str, width: float, height: float, title: str, description: str) -> str:
    a, b = (f"parallel-{next(_ids)}-{word}" for word in ("title", "desc"))
    return (
        f'<svg class="{kind} parallel" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{a} {b}">'
        f'<title id="{a}">{escape(title)}</title><desc id="{b}">{escape(description)}</desc>'
    )


def _upright(title: str, description: str, scales: Sequence[Scale], lines: Sequence[Line]) -> str:
    width, top, bottom, side = 760.0, 62.0, 300.0, 60.0
    gap = (width - 2 * side) / max(len(scales) - 1, 1)
    places = [side + i * gap for i in range(len(scales))]
    room = max(8, int((gap - 14) / LETTER))  # a word that is longer would run into the next axis
    parts = [_head("wide", width, 330, title, description)]
    ends = [(scales[i].at, x) for i, x in enumerate(places)]
    parts += [
        _path(line, [(x, _pixel(at(v), bottom, top)) for (at, x), v in zip(ends, line.values, strict=True)])
        for line in lines
    ]
    for i, (scale, x) in enumerate(zip(scales, places, strict=True)):
        anchor = "end" if i == len(scales) - 1 and i else "start" if i == 0 else "middle"
        shift = side - 6 if anchor == "end" else 6 - side if anchor == "start" else 0
        words = scale.name.replace(".", ".\u200b").split("\u200b")
        for row, word in enumerate(words[-2:]):
            y = top - 32 + 15 * (row + 2 - len(words[-2:]))
            parts.append(
                f'<text class="label" x="{x + shift:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
                f"{escape(_short(word, 20))}</text>"
            )
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{bottom:g}"/>')
        for place, text in scale.labels():
            y = _pixel(place, bottom, top) or 0.0
            last = i == len(scales) - 1 and i > 0
            parts.append(
                f'<text class="note" x="{x + (-7 if last else 7):.1f}" y="{y + 4:.1f}" '
                f'text-anchor="{"end" if last else "start"}">{escape(_short(text, room))}</text>'
            )
    return "".join(parts) + "</svg>"


def _lying(title: str, description: str, scales: Sequence[Scale], lines: Sequence[Line]) -> str:
    width, left, right, top = 350.0, 18.0, 332.0, 34.0
    labels = [_in_rows(scale, left, right) for scale in scales]
    places, below = [], top
    for named in labels:
        places.append(below)
        below += 66 + 14 * max((row for *_, row in named), default=0)
    parts = [_head("narrow", width, below - 10, title, description)]
    for line in lines:
        points = [(_pixel(s.at(v), left, right), y) for s, v, y in zip(scales, line.values, places, strict=True)]
        parts.append(_path(line, points))
    for scale, named, y in zip(scales, labels, places, strict=True):
        parts.append(
            f'<text class="note" x="{left:g}" y="{y - 9:.1f}">{escape(_short(scale.name, 44))}</text>'
            f'<line class="axis" x1="{left:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts += [
            f'<text class="note" x="{x:.1f}" y="{y + 17 + 14 * row:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
            for x, anchor, text, row in named
        ]
    return "".join(parts) + "</svg>"


def _in_rows(scale: Scale, left: float, right: float) -> list[tuple[float, str, str, int]]:
    """(x, anchor, text, row) of a lying axis's labels: each in the first row where it touches no other."""
    labels = scale.labels()
    rows: list[float] = []  # where the last word of each row ends
    found = []
    for place, text in sorted(labels if len(labels) <= 5 else [labels[0], labels[-1]]):
        text = _short(text, 24)
        anchor = "start" if place < 0.15 else "end" if place > 0.85 else "middle"
        x, size = _pixel(place, left, right) or left, LETTER * len(text)
        start = x - {"start": 0.0, "middle": size / 2, "end": size}[anchor]
        row = next((i for i, end in enumerate(rows) if start > end + LETTER), len(rows))
        rows[row : row + 1] = [start + size]
        found.append((x, anchor, text, row))
    return found


def _pixel(place: float | None, start: float, end: float) -> float | None:
    return None if place is None else start + place * (end - start)


def _path(line: Line, points: Sequence[tuple[float | None, float | None]]) -> str:
    """The trial's line over the axes on which it has a value."""
    known = [(x, y) for x, y in points if x is not None and y is not None]
    d = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(known))
    return f'<g class="trial {escape(line.style)}"><path d="{d}"><title>{escape(line.name)}</title></path></g>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
