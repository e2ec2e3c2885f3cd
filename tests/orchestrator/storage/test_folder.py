"""A folder as an object store: crashes, races of processes, links, and what an operating system refuses."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ebm_core.manifest import verify
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.interface import ObjectMissing, StorageError
from orchestrator.storage.run_store import RunStore
from tests.store_contract import write_checkpoint

ROOT = Path(__file__).parents[3]


def child(task: str, folder: Path, argument: object) -> list[int]:
    """The numbers that storage_children.py prints. What killed processes leave stays below `folder`."""
    script, scratch = Path(__file__).with_name("storage_children.py"), folder / "scratch"
    scratch.mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    command = [sys.executable, script, task, folder, str(argument)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_of_twelve_processes_that_create_one_key_exactly_one_wins(tmp_path: Path):
    for game in range(3):
        won = child("race", tmp_path / str(game), 12)
        assert sorted(won) == [0] * 11 + [1]
        store = FolderStore(tmp_path / str(game))
        assert store.get("deep/er/COMMITTED") == b"racer %d" % won.index(1) * 1000
        assert sorted(p.name for p in (tmp_path / str(game) / "deep" / "er").iterdir()) == ["COMMITTED"]


def test_a_killed_put_leaves_the_old_content_or_the_new(tmp_path: Path):
    (kills,) = child("crash", tmp_path, "put")
    assert kills >= 8  # before and after: open, fsync, replace, open and fsync of the directory
    states = [FolderStore(tmp_path / str(moment)).get("key") for moment in range(kills + 1)]
    old, new = b"old" * 100_000, b"new" * 100_000
    assert states == [old] * states.count(old) + [new] * states.count(new)
    assert states[0] == old
    assert states[-1] == new
    for moment in range(kills + 1):
        store = FolderStore(tmp_path / str(moment))
        assert [info.key for info in store.list()] == ["key"]
        store.put("key", b"again")
        assert store.get("key") == b"again"


def test_a_killed_create_leaves_nothing_or_everything(tmp_path: Path):
    (kills,) = child("crash", tmp_path, "create")
    assert kills >= 8
    new, seen = b"new" * 100_000, set()
    for moment in range(kills + 1):
        store = FolderStore(tmp_path / str(moment))
        seen.add(store.exists("folder/key"))
        if store.exists("folder/key"):
            assert store.get("folder/key") == new
            assert store.create("folder/key", b"later") is False
        else:
            assert list(store.list()) == []
            assert store.create("folder/key", b"later") is True
    assert seen == {True, False}


def test_a_killed_commit_shows_the_whole_checkpoint_or_only_the_one_before(tmp_path: Path):
    (kills,) = child("crash", tmp_path, "commit")
    assert kills >= 15  # MANIFEST.json by rename, then COMMITTED by link
    seen = []
    for moment in range(kills + 1):
        run = RunStore(str(tmp_path / str(moment))).run("r")
        seen.append(run.checkpoints())
        messages: list[str] = []
        found = run.newest_sound(tmp_path / "into", messages.append)
        assert found is not None
        assert found[0] == seen[-1][-1]
        assert all("was never committed (a job was killed just then)" in text for text in messages)
        write_checkpoint(run, 2)  # the restarted job comes to the same step again
        assert run.checkpoints() == [1, 2]
    assert seen == [[1]] * seen.count([1]) + [[1, 2]] * seen.count([1, 2])
    assert seen.count([1]) >= 10
    assert seen[-1] == [1, 2]


def test_a_killed_retention_never_shows_half_a_checkpoint_and_is_completed_by_the_next(tmp_path: Path):
    (kills,) = child("crash", tmp_path, "retain")
    assert kills >= 8
    for moment in range(kills + 1):
        run = RunStore(str(tmp_path / str(moment))).run("r")
        assert run.checkpoints() in ([1, 2, 3], [2, 3])
        for step in run.checkpoints():
            assert verify(run.fetch_checkpoint(step, tmp_path / "into")).step == step
        if moment % 4:  # the rest costs a second, and one moment of four is enough for it
            continue
        write_checkpoint(run, 4)
        run.retain(2)
        assert {info.key.split("/")[1] for info in run.list("checkpoints/")} == {"step-000000003", "step-000000004"}


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """A store with one object, and a secret beside its root."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    store = FolderStore(tmp_path / "root")
    store.put("folder/key", b"x")
    return store


@pytest.mark.parametrize("target", ["../outside", "/", "folder", "loop"])
def test_no_operation_follows_a_linked_folder(store: FolderStore, target: str, tmp_path: Path):
    (store.root / "loop").symlink_to(target)
    calls = [
        lambda: store.get("loop/secret"),
        lambda: store.get_file("loop/secret", tmp_path / "copy"),
        lambda: store.put("loop/secret", b"evil"),
        lambda: store.create("loop/new", b"evil"),
        lambda: store.delete("loop/secret"),
        lambda: store.exists("loop/secret"),
        lambda: store.size("loop/key"),
        lambda: list(store.list("loop/")),
        lambda: list(store.folders("loop/")),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="passes through a symbolic link"):
            call()
    assert [info.key for info in store.list()] == ["folder/key"]
    assert list(store.folders()) == ["folder"]
    assert (tmp_path / "outside" / "secret").read_text() == "secret"
    assert [p.name for p in (tmp_path / "outside").iterdir()] == ["secret"]


def test_no_operation_follows_a_linked_file(store: FolderStore, tmp_path: Path):
    (store.root / "link").symlink_to(tmp_path / "outside" / "secret")
    (store.root / "dangling").symlink_to(tmp_path / "outside" / "new")
    for call in (store.get, store.size, store.exists, store.delete, lambda key: store.put(key, b"evil")):
        with pytest.raises(StorageError, match="symbolic link"):
            call("link")
    with pytest.raises(StorageError, match="symbolic link"):
        store.create("dangling", b"evil")
    assert [info.key for info in store.list()] == ["folder/key"]
    assert sorted(p.name for p in (tmp_path / "outside").iterdir()) == ["secret"]


def test_the_root_itself_may_be_a_link(store: FolderStore, tmp_path: Path):
    (tmp_path / "alias").symlink_to("root")
    assert FolderStore(tmp_path / "alias").get("folder/key") == b"x"


@pytest.mark.timeout(20)
def test_a_pipe_under_a_key_is_a_missing_object_and_nobody_waits_for_it(store: FolderStore, tmp_path: Path):
    os.mkfifo(store.root / "pipe")
    assert not store.exists("pipe")
    for call in (store.get, store.size, lambda key: store.get_file(key, tmp_path / "copy")):
        with pytest.raises(ObjectMissing, match="pipe"):
            call("pipe")


def test_what_lies_between_the_objects_is_not_listed(store: FolderStore):
    os.mkfifo(store.root / "pipe")
    (store.root / ".tmp-1").write_text("torn")
    (store.root / "with space").write_text("foreign")
    (store.root / ".git").mkdir()
    (store.root / ".git" / "config").write_text("foreign")
    assert [info.key for info in store.list()] == ["folder/key"]
    assert list(store.folders()) == ["folder"]
    with pytest.raises(ObjectMissing):
        store.size("pipe")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk is full; free some space"),
        (errno.EACCES, "permission denied; check the owner and mode"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, "Input/output error; check the disk"),
    ],
)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_write_that_the_system_refuses_leaves_the_old_object_alone(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=rf"cannot write {store.root}/folder/key: {words}"):
            store.put("folder/key", b"new")
    assert store.get("folder/key") == b"x"
    assert [p.name for p in (store.root / "folder").iterdir()] == ["key"], "a temporary file was left"


def test_a_root_that_cannot_be_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file as storage: it is not a directory; choose a folder"):
        FolderStore(tmp_path / "file")
    below = FolderStore(tmp_path / "file" / "below")
    with pytest.raises(StorageError, match="not a directory; choose another folder"):
        RunStore(below).check_writable()
    with pytest.raises(StorageError, match=r"cannot create /proc/nowhere/probe-"):
        RunStore("/proc/nowhere").check_writable()


def test_an_object_where_a_folder_is_and_the_reverse_are_explained(store: FolderStore):
    with pytest.raises(StorageError, match="a directory is in the way"):
        store.put("folder", b"x")
    with pytest.raises(StorageError, match="not a directory"):
        store.put("folder/key/below", b"x")
    with pytest.raises(StorageError, match="directory"):
        store.delete("folder")


def test_reading_creates_nothing(tmp_path: Path):
    store = RunStore(str(tmp_path / "runs"))
    assert store.runs() == []
    assert store.run("r").checkpoints() == []
    assert not store.run("r").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_is_swept_once_it_is_old(store: FolderStore):
    old, young = store.root / "folder" / ".tmp-old", store.root / "folder" / ".tmp-young"
    for path in (old, young):
        path.write_text("torn")
    os.utime(old, (time.time() - 10**6,) * 2)
    store.delete("folder/key")
    assert [p.name for p in (store.root / "folder").iterdir()] == [".tmp-young"]


def test_files_are_readable_as_the_umask_says(store: FolderStore):
    before = os.umask(0o027)
    try:
        store.put("shared", b"x")
    finally:
        os.umask(before)
    assert (store.root / "shared").stat().st_mode & 0o777 == 0o640
