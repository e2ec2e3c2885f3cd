import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.turns import Program, Window, seconds_by_turn, take_turns

STEPS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", *sys.argv[2:]]) if len(sys.argv) > 2 else None
print("ready", flush=True)
while True:
    start = time.time()
    time.sleep(float(sys.argv[1]))
    print("window", start, time.time(), flush=True)
"""
GRANDCHILD = """
import sys, time
file = open(sys.argv[1], "w", buffering=1)
while True:
    print("grandchild", time.time(), file=file)
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second, not ten, for descendants that outlive the command."""
    wait = psutil.wait_procs
    monkeypatch.setattr(psutil, "wait_procs", lambda processes, timeout: wait(processes, 0.5))


def lines(log: Path, word: str) -> list[list[float]]:
    found = [line.split() for line in log.read_text().splitlines()]
    return [[float(number) for number in line[1:]] for line in found if line and line[0] == word]


def ended(process: psutil.Process) -> bool:
    """Whether it has ended within 5 s, reaped or not."""
    for _ in range(50):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.full
def test_two_programs_work_in_turns_and_what_their_steps_take_is_what_they_sleep(tmp_path: Path) -> None:
    logs, grandchild = (tmp_path / "a.log", tmp_path / "b.log"), tmp_path / "grandchild.log"
    with Program([sys.executable, "-c", STEPS, "0.05", GRANDCHILD, str(grandchild)], logs[0]) as a:
        a.await_output("ready")
        with Program([sys.executable, "-c", STEPS, "0.1"], logs[1]) as b:
            b.await_output("ready")
            tree = psutil.Process(a._process.pid).children(recursive=True)
            take_turns(3, 1.0, a, b)
    assert len(tree) == 1
    assert ended(tree[0])
    assert [len(program.turns) for program in (a, b)] == [4, 4]
    of_a, of_b = (
        seconds_by_turn(program.turns, [Window(*window) for window in lines(log, "window")], 0.1)
        for program, log in zip((a, b), logs, strict=True)
    )
    assert len(of_a) == len(of_b) == 3
    assert all(0.049 < seconds < 0.5 for seconds in of_a)  # with a stop in it a window would be longer than a turn
    assert all(0.099 < seconds < 0.5 for seconds in of_b)
    written = [moment for (moment,) in lines(grandchild, "grandchild")]
    for turn in a.turns:
        assert sum(turn.start < moment < turn.end for moment in written) > 5
    for turn in b.turns:
        assert not any(turn.start + 0.05 < moment < turn.end - 0.05 for moment in written)


def test_a_turn_counts_its_whole_windows_after_it_has_settled_and_the_first_turn_none() -> None:
    turns = [Window(0, 10), Window(20, 30), Window(40, 50)]
    windows = [Window(0, 9), Window(20, 22), Window(22, 25), Window(25, 29), Window(29, 41), Window(43, 45)]
    assert seconds_by_turn(turns, windows, 2) == [3.5, 2]
    with pytest.raises(ValueError, match="no whole window within a turn of 10"):
        seconds_by_turn(turns, windows[:-1], 2)


def test_a_program_that_ends_before_its_first_step_is_an_error_with_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such preset')"]
    with Program(command, tmp_path / "log") as program, pytest.raises(RuntimeError, match=r"no 'step' from .*no such"):
        program.await_output("step")


def test_a_program_that_does_not_heed_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(99)"
    )
    wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", lambda self, timeout=None: wait(self, timeout and 0.5))
    with Program([sys.executable, "-c", deaf], tmp_path / "log") as program:
        program.await_output("deaf")
    assert program._process.returncode == -signal.SIGKILL
