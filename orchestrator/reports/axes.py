"""Axes of a chart: numbers to pixels, and where to put the round numbers."""

import math


class Axis:
    """Numbers to pixels along one axis, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.low, self.high, self.log = low, high, log
        self._start, self._end = start, end

    def can_show(self, value: float | None) -> bool:
        """Whether a value has a pixel at all: a logarithmic axis has none for 0 and below."""
        return value is not None and (value > 0 or not self.log)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        value = math.log10(max(value, self.low)) if self.log else value
        return self._start + (value - low) / (high - low) * (self._end - self._start)

    def ticks(self, most: int) -> list[float]:
        """At most about `most` round numbers inside the range."""
        return log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high, most)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high], at most `most` of them (at least one)."""
    raw = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high]; with fewer than two of them also their doubles and fivefolds."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(tens) >= 2:
        return tens[:: max(1, math.ceil(len(tens) / 6))]
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def tick_text(value: float) -> str:
    """A number as short as an axis needs it, with a true minus sign."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        text = f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    else:
        text = f"{value:.6g}"
    return text.replace("-", "\N{MINUS SIGN}")
