"""Processes for test_folder.py: racers for one key, and writers that are killed. A script: its forks need one thread.

race FOLDER COUNT     COUNT processes create one key; prints the exit status of each: 1 for "I won"
crash FOLDER ACTION   a process per dangerous moment does ACTION in FOLDER/<number> and is killed there; prints how many
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from orchestrator.storage.folder import FolderStore
from orchestrator.storage.run_store import RunStore
from tests.store_contract import upload_checkpoint, write_checkpoint

CALLS = ("open", "fsync", "replace", "link", "unlink", "rmdir", "mkdir")
"""What a write is made of. A process is killed before each of them, and once more after it."""


def fork(work: Callable[[], int]) -> int:
    """Run `work` in a child whose exit status is its result; returns the child's process id."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = work()
        finally:
            os._exit(status)
    return child


def race(folder: Path, count: int) -> list[int]:
    """Children that wait for the end of one pipe, so that all start at once."""
    end_to_wait_for, starter = os.pipe()

    def racer(number: int) -> int:
        store = FolderStore(folder)
        os.close(starter)
        os.read(end_to_wait_for, 1)
        return int(store.create("deep/er/COMMITTED", b"racer %d" % number * 1000))

    children = [fork(lambda number=number: racer(number)) for number in range(count)]
    os.close(starter)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def kill_at(moment: int) -> None:
    """From now on count the calls that change a folder, and die by SIGKILL at the given one."""
    seen = 0

    def die_if_due() -> None:
        nonlocal seen
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    def watched(call: Callable) -> Callable:
        def before_and_after(*args: object, **options: object) -> object:
            die_if_due()
            result = call(*args, **options)
            die_if_due()
            return result

        return before_and_after

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))


def prepare(action: str, folder: Path) -> Callable[[], None]:
    """Bring `folder` to the state before the action, and return the action."""
    store = FolderStore(folder)
    run = RunStore(store).run("r")
    if action == "put":
        store.put("key", b"old" * 100_000)
        return lambda: store.put("key", b"new" * 100_000)
    if action == "create":
        return lambda: bool(store.create("folder/key", b"new" * 100_000)) or None
    if action == "retain":
        for step in (1, 2, 3):
            write_checkpoint(run, step)
        run.retain(3)
        return lambda: bool(run.retain(2)) or None
    assert action == "commit"
    write_checkpoint(run, 1)
    attempt, manifest = upload_checkpoint(run, 2)
    return lambda: run.commit(2, attempt, manifest)


def crash(folder: Path, action: str) -> int:
    """Kill a process at the first moment, another at the second, … until one comes through; how many were killed."""
    for moment in range(1000):
        act = prepare(action, folder / str(moment))

        def work(moment: int = moment, act: Callable[[], None] = act) -> int:
            kill_at(moment)
            act()
            return 0

        status = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])
        if status != -signal.SIGKILL:
            assert status == 0, f"the child failed with status {status}"
            return moment
    raise AssertionError("the action never ends")


if __name__ == "__main__":
    task, place, argument = sys.argv[1:]
    print(*race(Path(place), int(argument)) if task == "race" else [crash(Path(place), argument)])
