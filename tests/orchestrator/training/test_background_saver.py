import threading
from types import SimpleNamespace

import pytest

from ebm_core.manifest import FileEntry
from orchestrator.cluster import mailbox as mailbox_module
from orchestrator.cluster.mailbox import Deposits, gather
from orchestrator.storage.interface import StorageError
from orchestrator.training.saving import BackgroundSaver

PATIENCE_S = 30


def test_storing_goes_on_beside_the_caller_and_one_at_a_time():
    saver, go_on, done = BackgroundSaver(), threading.Event(), []

    def store() -> None:
        assert go_on.wait(PATIENCE_S)
        done.append(1)

    saver.start(store)
    saver.check()
    assert not done  # the caller is free while the first is being stored
    second = threading.Thread(target=saver.start, args=(lambda: done.append(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive()  # a second save waits for the first
    assert not done
    go_on.set()
    second.join(PATIENCE_S)
    saver.wait()
    assert done == [1, 2]


@pytest.mark.parametrize("call", ["check", "wait", "start"])
def test_what_went_wrong_is_raised_by_the_next_call_and_once(call):
    saver, tried = BackgroundSaver(), threading.Event()

    def store() -> None:
        try:
            raise StorageError("the disk is full")
        finally:
            tried.set()

    saver.start(store)
    assert tried.wait(PATIENCE_S)
    while saver._thread is not None and saver._thread.is_alive():
        saver._thread.join()
    with pytest.raises(StorageError, match="the disk is full"):
        getattr(saver, call)(*((lambda: None,) if call == "start" else ()))
    saver.wait()


def test_the_files_of_all_ranks_are_gathered_when_all_have_stored_theirs(monkeypatch):
    deposits, entries = Deposits(), [FileEntry(f"buffer-{rank}", 1, "0" * 64) for rank in range(3)]
    deposits.add("attempt-old", 0, entries[:1])
    deposits.add("attempt-new", 1, entries[1:2])
    assert deposits.of("attempt-old") == {}  # what an attempt before it left does not count
    asked = []

    def answer(attempt: str) -> object:
        asked.append(attempt)
        if len(asked) == 2:
            deposits.add(attempt, 2, entries[2:])
        if len(asked) == 3:
            deposits.add(attempt, 0, entries[:1])
        return deposits.of(attempt)

    monkeypatch.setattr(mailbox_module.ray, "get", lambda value: value)
    mailbox = SimpleNamespace(deposits=SimpleNamespace(remote=answer))
    assert gather(mailbox, "attempt-new", 3) == entries
    assert len(asked) == 3
