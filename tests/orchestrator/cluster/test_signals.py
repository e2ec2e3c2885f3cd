"""The first signal asks, the second one ends; in processes of their own, since a signal belongs to a process."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.cluster.signals import ask_once

ROOT = Path(__file__).parents[3]
CHILD = """
import os, signal, sys
from orchestrator.cluster.signals import ask_once

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background has it ignored
asked = []
def again(number):
    print("ended by", number, flush=True)
    os._exit(9)
how = {"again": again} if sys.argv[1] == "own" else {}
try:
    with ask_once(asked.append, **how):
        for name in sys.argv[2:]:
            os.kill(os.getpid(), getattr(signal, name))
            print("asked", asked, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plain"], ["True"]),
        (["plain", "SIGTERM"], ["asked [15]", "True"]),
        (["plain", "SIGINT", "SIGTERM"], ["asked [2]", "interrupted", "True"]),
        (["plain", "SIGTERM", "SIGTERM"], ["asked [15]", "interrupted", "True"]),
        (["own", "SIGINT", "SIGINT"], ["asked [2]", "ended by 2"]),
    ],
)
def test_once_asks_and_twice_ends(words: list[str], said: list[str]):
    command = [sys.executable, "-c", CHILD, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines() == said, done.stderr


def test_signals_not_named_keep_their_handler_and_other_threads_change_none():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with ask_once(print, numbers=(signal.SIGINT,)):
        assert signal.getsignal(signal.SIGTERM) is before[0]
        assert signal.getsignal(signal.SIGINT) is not before[1]
    seen = []

    def inside() -> None:
        with ask_once(print):
            seen.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
