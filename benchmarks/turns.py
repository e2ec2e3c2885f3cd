"""Programs that work in turns: what two of them need for a step is compared within seconds, not minutes.

A shared machine drifts by more, from one run to the next, than what is to be measured. So both programs are started
once, and then one works while the other one is stopped (SIGSTOP), with all the processes that it has.
"""

import contextlib
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil


class Window(NamedTuple):
    """A stretch of steps, the same number in every window of a program: when it began and ended, by `time.time`."""

    start: float
    end: float


class Program:
    """A command and its descendants, which work in their turns only. Used as a context, at whose end they are gone."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """log: where its output goes."""
        self.turns: list[Window] = []
        self.launched = time.time()
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        """SIGTERM for the command; its descendants and it have 120 s and then 10 s to end."""
        processes = self._processes()
        self.signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=120)
        for process in psutil.wait_procs(processes, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def await_output(self, text: str, timeout_s: float = 600) -> None:
        """Let it work until its output has `text`, then stop it; RuntimeError with the last line if it ends before."""
        until = time.monotonic() + timeout_s
        while text not in (output := self._log.read_text(errors="replace")):
            if self._process.poll() is not None or time.monotonic() > until:
                lines = output.splitlines() or ["no output"]
                raise RuntimeError(f"no {text!r} from {self._process.args}: {lines[-1]}")
            time.sleep(0.1)
        self.signal(signal.SIGSTOP)

    def work(self, seconds: float) -> None:
        """One turn."""
        self.signal(signal.SIGCONT)
        start = time.time()
        time.sleep(seconds)
        self.turns.append(Window(start, time.time()))
        self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        """Send it to every process, parents first."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []


def take_turns(rounds: int, turn_s: float, *programs: Program) -> None:
    """Each program works `rounds` + 1 times: `seconds_by_turn` does not count the first."""
    for _ in range(rounds + 1):
        for program in programs:
            program.work(turn_s)


def seconds_by_turn(turns: Sequence[Window], windows: Sequence[Window], settle_s: float) -> list[float]:
    """Mean length of the windows that lie within each turn, without its first `settle_s` seconds and the first turn.

    ValueError for a turn that has none: turns have to be longer, or windows shorter.
    """
    means = []
    for turn in turns[1:]:
        lengths = [w.end - w.start for w in windows if turn.start + settle_s <= w.start and w.end <= turn.end]
        if not lengths:
            raise ValueError(f"no whole window within a turn of {turn.end - turn.start:.1f} s")
        means.append(statistics.fmean(lengths))
    return means
