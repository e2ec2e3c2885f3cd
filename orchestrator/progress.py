"""What a person sees while a run goes on: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.telemetry import SHOWN, Row, line, number

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
            left = (self._num_steps - self._pending["step"]) / max(self._pending["steps_per_s"], 1e-9)
            print(f"{line(self._pending, self._num_steps)}  {_duration(left)} left", file=self._out, flush=True)
            self._shown_at, self._pending = time.monotonic(), None

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        self._show()


class Bar:
    """A progress bar with step, rate and time left, and under it the energy gap and each loss term."""

    def __init__(self, num_steps: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            transient=False,
            expand=True,
        )
        self._terms = Progress(TextColumn("{task.description}"), console=console)
        self._num_steps, self._console = num_steps, console
        self._task = self._progress.add_task("training", total=num_steps, rate="starting")
        self._line = self._terms.add_task("[dim]waiting for the first step")
        from rich.console import Group
        from rich.live import Live

        self._live = Live(Group(self._progress, self._terms), console=console, refresh_per_second=4)
        self._live.start()

    def row(self, row: Row) -> None:
        rate = f"{row['steps_per_s']:.1f} steps/s"
        self._progress.update(self._task, completed=int(row["step"]), rate=rate)
        shown = (f"{name} [bold]{number(row[name]):<8}[/]" for name in SHOWN if name in row)
        self._terms.update(self._line, description="  ".join(shown))

    def note(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
