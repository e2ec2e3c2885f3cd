"""What a person sees while a sweep goes on: a line for each running trial on a terminal, a line per event elsewhere."""

import sys
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestrator.records.rows import Row
from orchestrator.terminal.progress import time_left
from orchestrator.terminal.tables import number


class SweepDisplay(Protocol):
    """Where a sweep's news go."""

    def begin(self, done: int, total: int) -> None: ...
    def started(self, trial: str, num_steps: int) -> None: ...
    def row(self, trial: str, row: Row) -> None: ...
    def scored(self, trial: str, step: int, value: float | None) -> None: ...
    def ended(self, trial: str, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Quiet:
    """A line when a trial starts or ends: for logs and pipes. `out` None: nothing at all."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._done = self._total = 0

    def begin(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self.note(f"{total} trials, {done} of them have ended")

    def started(self, trial: str, num_steps: int) -> None:
        self.note(f"{trial} started")

    def row(self, trial: str, row: Row) -> None: ...
    def scored(self, trial: str, step: int, value: float | None) -> None: ...

    def ended(self, trial: str, text: str) -> None:
        self._done += 1
        self.note(f"{trial} {text} ({self._done} of {self._total})")

    def note(self, text: str) -> None:
        if self._out is not None:
            print(text, file=self._out, flush=True)

    def close(self) -> None: ...


@dataclass
class _Line:
    num_steps: int
    row: Row | None = None
    values: list[float] = field(default_factory=list)


class Lines:
    """A line for each running trial: step, rate, energy gap, best score, time left."""

    def __init__(self, console: Console, mode: str) -> None:
        self._choose = min if mode == "min" else max
        self._lines: dict[str, _Line] = {}
        self._done = self._total = 0
        self._live = Live(get_renderable=self._view, console=console, refresh_per_second=2)

    def begin(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self._live.start()

    def _view(self) -> Group:
        head = Text(f"{self._done} of {self._total} trials have ended, {len(self._lines)} running", style="bold")
        return Group(head, *(Text(self.line(trial), no_wrap=True, overflow="ellipsis") for trial in self._lines))

    def line(self, trial: str) -> str:
        """The line of a running trial."""
        one = self._lines[trial]
        if one.row is None:
            return f"{trial:<24} starting"
        best = number(self._choose(one.values)) if one.values else "-"
        rate, gap = f"{one.row['steps_per_s']:.1f} steps/s", number(one.row.get("energy_gap"))
        left = time_left(one.row, one.num_steps)
        return f"{trial:<24} {int(one.row['step'])}/{one.num_steps}  {rate}  gap {gap}  best {best}  {left} left"

    def started(self, trial: str, num_steps: int) -> None:
        self._lines[trial] = _Line(num_steps)

    def row(self, trial: str, row: Row) -> None:
        if trial in self._lines:
            self._lines[trial].row = row

    def scored(self, trial: str, step: int, value: float | None) -> None:
        if trial in self._lines and value is not None:
            self._lines[trial].values.append(value)

    def ended(self, trial: str, text: str) -> None:
        self._lines.pop(trial, None)
        self._done += 1
        self.note(f"{trial} {text}")

    def note(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._lines.clear()
        self._live.stop()


def open_sweep_display(mode: str) -> SweepDisplay:
    """Lines on a terminal, Quiet elsewhere; both write to standard error."""
    return Lines(Console(stderr=True), mode) if sys.stderr.isatty() else Quiet(sys.stderr)
