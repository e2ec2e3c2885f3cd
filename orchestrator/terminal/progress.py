"""What a person sees while a run goes on: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from orchestrator.records.rows import Row
from orchestrator.terminal.tables import line, shown

LINE_EVERY_S = 10.0
"""Seconds between lines where the output is no terminal."""


class Display(Protocol):
    """Where a run's rows and remarks go."""

    def row(self, row: Row) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """A line of text about every ten seconds, and the last row: for logs and pipes."""

    def __init__(self, num_steps: int, out: TextIO, every_s: float = LINE_EVERY_S) -> None:
        self._num_steps, self._out, self._every_s = num_steps, out, every_s
        self._shown_at = -every_s
        self._pending: Row | None = None

    def row(self, row: Row) -> None:
        self._pending = row
        if time.monotonic() - self._shown_at >= self._every_s or row["step"] >= self._num_steps:
            self._show()

    def _show(self) -> None:
        if self._pending is not None:
            left = time_left(self._pending, self._num_steps)
            print(f"{line(self._pending, self._num_steps)}  {left} left", file=self._out, flush=True)
            self._shown_at, self._pending = time.monotonic(), None

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        self._show()


class Bar:
    """A progress bar with step, rate and time left, and under it the energy gap and each loss term."""

    def __init__(self, num_steps: int, console: Console) -> None:
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]} left"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("training", total=num_steps, rate="", left="")
        self._num_steps = num_steps
        self._terms = Text()
        self._live = Live(get_renderable=self._view, console=console, refresh_per_second=4)

    def _view(self) -> Group:
        return Group(self._bar, self._terms)

    def row(self, row: Row) -> None:
        """Move the bar to the row's step and show its terms."""
        self._live.start()
        rate, left = f"{row['steps_per_s']:.1f} steps/s", time_left(row, self._num_steps)
        self._bar.update(self._task, completed=int(row["step"]), rate=rate, left=left)
        self._terms = Text("   ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in shown(row).items())

    def note(self, text: str) -> None:
        """A line above the bar, which comes with the first row."""
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._live.stop()


class Silent:
    """Shows nothing: for a library caller and for tests."""

    def row(self, row: Row) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


def open_display(num_steps: int) -> Display:
    """A Bar on a terminal, Lines elsewhere; both write to standard error, so that results alone go to the output."""
    if sys.stderr.isatty():
        return Bar(num_steps, Console(stderr=True))
    return Lines(num_steps, sys.stderr)


def time_left(row: Row, num_steps: int) -> str:
    """Minutes and seconds, with hours where there are any, to the last step at the row's rate."""
    minutes, seconds = divmod(int((num_steps - row["step"]) / max(row["steps_per_s"], 1e-9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
