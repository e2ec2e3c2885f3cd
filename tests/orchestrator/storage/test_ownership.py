"""One command at a time owns a folder, in a directory and on S3: who lives is left alone, who died blocks nobody."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from orchestrator.storage import ownership
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.interface import ObjectStore, StorageError
from orchestrator.storage.ownership import OwnedError, Owner, Ownership, is_alive, this_process
from orchestrator.storage.s3 import S3Store
from tests.faults import moto_bucket


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_bucket("owners") as endpoint:
        yield endpoint


@pytest.fixture(params=["folder", "moto"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return FolderStore(tmp_path)
    return S3Store("owners", tmp_path.name, request.getfixturevalue("moto"))


def command(objects: ObjectStore) -> Ownership:
    return Ownership(objects, "s/owners", "sweep s", beat_s=0.02)


def nobody_hears(reason: str) -> None:
    raise AssertionError(reason)


class Clock:
    """Time that passes when somebody sleeps; `meanwhile` is what others do then."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.now, self._meanwhile = 1000.0, meanwhile

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._meanwhile()


def elsewhere() -> Owner:
    return replace(this_process(), host="far", place="another machine")


def write_owner(objects: ObjectStore, number: int, owner: Owner) -> None:
    assert objects.create(f"s/owners/{number:06d}.json", json.dumps(asdict(owner)).encode())


def test_a_second_command_is_told_who_runs_it_and_the_first_goes_on(objects: ObjectStore):
    first, second = command(objects), command(objects)
    first.wait_until_free()
    first.take(nobody_hears)
    before = objects.get("s/owners/000001.json")
    with pytest.raises(OwnedError, match=rf"sweep s is being run by process {this_process().pid} on .*wait for it"):
        second.wait_until_free()
    assert objects.get("s/owners/000001.json") == before
    first.release()
    second.wait_until_free()
    second.take(nobody_hears)
    second.release()


def test_of_commands_that_start_at_once_one_wins(objects: ObjectStore):
    rivals = [command(objects) for _ in range(6)]
    for rival in rivals:
        rival.wait_until_free()
    won, lost = [], []
    start = threading.Barrier(len(rivals))

    def try_one(rival: Ownership) -> None:
        start.wait()
        try:
            rival.take(nobody_hears)
            won.append(rival)
        except OwnedError:
            lost.append(rival)

    threads = [threading.Thread(target=try_one, args=(rival,)) for rival in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)
    won[0].release()


def test_a_killed_command_of_this_machine_blocks_nobody_for_a_moment(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    code = "import os, json, dataclasses; from orchestrator.storage.ownership import this_process; "
    code += "print(json.dumps(dataclasses.asdict(this_process())), flush=True); os.kill(os.getpid(), 9)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert child.returncode == -9
    write_owner(objects, 1, Owner(**json.loads(child.stdout)))
    monkeypatch.setattr(ownership, "time", Clock(lambda: pytest.fail("waited for a process that is gone")))
    after = command(objects)
    after.wait_until_free()
    after.take(nobody_hears)
    after.release()
    assert json.loads(objects.get("s/owners/000002.json"))["pid"] == this_process().pid


def test_a_pid_that_the_kernel_gave_to_another_process_is_not_the_owner():
    me = this_process()
    assert is_alive(me) is True
    assert is_alive(replace(me, born=str(int(me.born) - 1))) is False
    assert is_alive(elsewhere()) is None


def test_a_start_is_the_kernels_own_figure_whatever_the_clock_is_set_to(monkeypatch: pytest.MonkeyPatch):
    born = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # field 22: clock ticks after boot
    assert this_process().born == born
    for ahead in (-86400.0, 0.5, 86400.0):
        boot = psutil.boot_time() + ahead
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda boot=boot: boot)
        assert this_process().born == born


def test_a_clock_that_is_set_between_two_readings_moves_no_start(monkeypatch: pytest.MonkeyPatch):
    born, boot = this_process().born, psutil.boot_time()
    readings = iter([boot, boot + 60, boot + 60])
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: next(readings, boot + 60))
    assert this_process().born == born


def test_a_process_of_which_only_the_exit_status_is_left_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(this_process(), pid=child.pid, born=ownership._born(child.pid) or "")
    assert is_alive(owner) is True
    child.kill()
    while ownership._born(child.pid) is not None:  # a zombie until we ask for its status
        pass
    assert child.returncode is None
    assert is_alive(owner) is False
    child.communicate()


@pytest.mark.full
def test_a_lost_machine_costs_one_lease_and_no_more(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    write_owner(objects, 1, elsewhere())
    objects.put("s/owners/000001.beat.json", b'{"count": 7, "released": false}')
    clock = Clock()
    monkeypatch.setattr(ownership, "time", clock)
    said: list[str] = []
    after = command(objects)
    after.wait_until_free(said.append)
    assert ownership.LEASE_S <= clock.now - 1000 < ownership.LEASE_S + 1
    assert len(said) == 1
    assert "on far since" in said[0]
    after.take(nobody_hears)
    after.release()


def test_a_sign_of_life_from_another_machine_is_enough(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    write_owner(objects, 1, elsewhere())
    beat = b'{"count": 7, "released": false}'
    objects.put("s/owners/000001.beat.json", beat)
    monkeypatch.setattr(
        ownership, "time", Clock(lambda: objects.put("s/owners/000001.beat.json", beat.replace(b"7", b"8")))
    )
    with pytest.raises(OwnedError, match=r"on far since"):
        command(objects).wait_until_free()


def test_one_that_ends_in_order_on_another_machine_is_not_waited_for(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    write_owner(objects, 1, elsewhere())
    clock = Clock(lambda: objects.put("s/owners/000001.beat.json", b'{"count": 8, "released": true}'))
    monkeypatch.setattr(ownership, "time", clock)
    after = command(objects)
    after.wait_until_free()
    assert clock.now - 1000 < ownership.LEASE_S / 2
    after.take(nobody_hears)
    after.release()


def test_who_was_given_up_for_dead_and_comes_back_hears_that_it_has_lost(objects: ObjectStore):
    heard, told = threading.Event(), []

    def hear(reason: str) -> None:
        told.append(reason)
        heard.set()

    paused = command(objects)
    paused.wait_until_free()
    paused.take(hear)
    winner = elsewhere()
    write_owner(objects, 2, winner)
    assert heard.wait(60)
    assert told == [f"sweep s was taken over by {winner.told()}"]
    paused.release()
    owners = [info.key for info in objects.list("s/owners/") if "beat" not in info.key]
    assert owners == ["s/owners/000001.json", "s/owners/000002.json"]


def test_what_is_no_owner_is_watched_like_a_far_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FolderStore(tmp_path)
    store.put("s/owners/000001.json", b"torn {")
    store.put("s/owners/000001.beat.json", b"[]")
    clock = Clock()
    monkeypatch.setattr(ownership, "time", clock)
    said: list[str] = []
    command(store).wait_until_free(said.append)
    assert clock.now - 1000 >= ownership.LEASE_S
    assert "an unknown process" in said[0]


def test_a_store_that_fails_at_a_beat_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FolderStore(tmp_path)
    owner = command(store)
    owner.wait_until_free()
    failed = threading.Event()
    whole = store.put

    def fails_once(key: str, data: bytes | Path) -> None:
        if not failed.is_set():
            failed.set()
            raise StorageError("the disk is full")
        whole(key, data)

    monkeypatch.setattr(store, "put", fails_once)
    owner.take(nobody_hears)
    assert failed.wait(60)
    while not store.exists("s/owners/000001.beat.json"):
        assert owner._thread is not None
        assert owner._thread.is_alive()
    owner.release()
    assert json.loads(store.get("s/owners/000001.beat.json"))["released"] is True
