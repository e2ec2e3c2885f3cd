"""Processes for test_saving.py: a job that only saves, killed at every named crash point or at random. A script.

points STORE          one save that nobody disturbs; prints the crash points that it passed, in order
crash STORE           a process per name of CRASH_POINTS dies there, after which the store is judged; prints those hit
random STORE COUNT SEED    COUNT processes save on and on and are killed after a while; prints what was seen

STORE is what `open_store` takes. What a store shows is judged after each kill by `judge`, which raises AssertionError.
"""

import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from ebm_core import checkpoint
from ebm_core.trainer import TrainState, fingerprint, init_state
from orchestrator.records.rows import Recorder
from orchestrator.settings.job import CheckpointConfig, JobConfig, core_config
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.run_store import Run, open_store
from orchestrator.training import group, worker
from tests.ebm_core.tiny import tiny_config
from tests.orchestrator.storage.storage_children import fork

PUT = ("metrics", "model", "ema", "optimizer", "state", "buffer-shard", "samples", "MANIFEST")
"""What one save puts, in this order; then it creates COMMITTED and deletes the oldest checkpoint."""
DELETED = ("COMMITTED", "MANIFEST", "buffer-shard", "ema", "model", "optimizer", "state")
FOLDER_MOMENTS = ("begin", "opened", "half-written", "synced", "named", "directory-synced")
S3_MOMENTS = ("begin", "half-sent", "answered", "confirmed")
FOLDER_DELETE, S3_DELETE = ("begin", "unlinked", "directory-synced"), ("begin", "answered")


def names(moments: tuple[str, ...], deleting: tuple[str, ...]) -> tuple[str, ...]:
    """`put model: synced`, `create COMMITTED: named`, `delete state: unlinked` and so on."""
    written = [f"put {what}: {moment}" for what in PUT for moment in moments]
    committed = [f"create COMMITTED: {moment}" for moment in moments]
    removed = [f"delete {what}: {moment}" for what in DELETED for moment in deleting]
    return (*written, *committed, *removed)


_folder = names(FOLDER_MOMENTS, FOLDER_DELETE)
_first = _folder.index("put model: opened")  # the step's folder is new then
CRASH_POINTS = {
    "folder": (*_folder[:_first], "put model: directory-made", *_folder[_first:]),
    "s3": names(S3_MOMENTS, S3_DELETE),
}
"""Every place at which a save may be cut off, by kind of store."""


class Tracer:
    """Knows which object a store is working on, and what happens at its crash points: a name is passed to `visit`."""

    def __init__(self, objects: Any, visit: Callable[[str], None]) -> None:
        self._objects, self._visit, self._doing = objects, visit, ""
        for operation in ("put", "create", "delete"):
            setattr(objects, operation, self._traced(operation, getattr(objects, operation)))
        self._watch_folder() if isinstance(objects, FolderStore) else self._watch_s3()

    def at(self, moment: str) -> None:
        """A crash point of the operation in hand; outside of one, nothing."""
        if self._doing:
            self._visit(f"{self._doing}: {moment}")

    def _traced(self, operation: str, call: Callable) -> Callable:
        def traced(key: str, *data: object) -> object:
            folder, name = key.split("/")[1], key.rpartition("/")[2]
            what = folder if folder in ("metrics", "samples") else name.partition(".")[0].rstrip("-0123456789")
            self._doing = f"{operation} {what}"
            try:
                self.at("begin")
                done = call(key, *data)
                if not isinstance(self._objects, FolderStore) and operation != "delete":
                    self.at("confirmed")
                return done
            finally:
                self._doing = ""

        return traced

    def _watch_folder(self) -> None:
        """After the system calls that a write is made of; `half-written` leaves half of the bytes."""
        directories: set[int] = set()
        written: set[str] = set()

        def after(name: str, moment_of: Callable[..., str | None]) -> None:
            call = getattr(os, name)

            def watched(*args: Any, **options: Any) -> Any:
                result = call(*args, **options)
                if moment := moment_of(result, *args):
                    self.at(moment)
                return result

            setattr(os, name, watched)

        def opened(descriptor: int, _path: object, flags: int, *_: object) -> str | None:
            (directories.discard if flags & os.O_CREAT else directories.add)(descriptor)
            if flags & os.O_CREAT:
                written.add(self._doing)
            return "opened" if flags & os.O_CREAT else None

        def synced(_: None, descriptor: int) -> str:
            made = not self._doing.startswith("delete") and self._doing not in written
            return "directory-made" if made else "directory-synced" if descriptor in directories else "synced"

        def half_written(data: Any, target: Any, length: int = 0) -> None:
            content = data.read()
            target.write(content[: len(content) // 2])
            target.flush()
            self.at("half-written")
            target.write(content[len(content) // 2 :])

        after("open", opened)
        after("fsync", synced)
        after("replace", lambda *_: "named")
        after("link", lambda *_: "named")
        after("unlink", lambda _, path: "unlinked" if self._doing.startswith("delete") else None)
        mock.patch("orchestrator.storage.folder.shutil.copyfileobj", half_written).start()

    def _watch_s3(self) -> None:
        """While a request's body is sent and when its answer is in. (A HEAD that confirms is no crash point.)"""

        class HalfBody:
            def __init__(self, body: Any, half: Callable[[], None]) -> None:
                self._data, self._place, self._half = body if isinstance(body, bytes) else body.read(), 0, half

            def read(self, _size: int = -1) -> bytes:
                half = len(self._data) // 2
                if self._place == 0:
                    self._place = half
                    return self._data[:half]
                if self._place == half:
                    self._half()
                    self._place = len(self._data)
                    return self._data[half:]
                return b""

        def sending(request: Any, **_: object) -> None:
            request.body = HalfBody(request.body, lambda: self.at("half-sent"))

        events = self._objects._client.meta.events
        events.register("before-send.s3.PutObject", sending)
        for operation in ("PutObject", "DeleteObject"):
            events.register(f"after-call.s3.{operation}", lambda **_: self.at("answered"))


def job_of(keep: int = 2) -> JobConfig:
    """A job whose checkpoints are small, and of which two stay."""
    core = tiny_config()
    sections = {name: getattr(core, name) for name in core.__dataclass_fields__}
    return JobConfig(**sections, name="saver", checkpoint=CheckpointConfig(every=1, keep=keep))


class Saver:
    """A training job reduced to its saves: `save(step)` runs the workers' own code on a state made from the step."""

    def __init__(self, where: str, visit: Callable[[str], None] | None = None) -> None:
        self.run: Run = open_store(where).run("saver")
        self._job = job_of()
        self._cfg = core_config(self._job)
        self.state: TrainState = init_state(self._cfg)
        if visit is not None:
            Tracer(self.run.store.objects, visit)

    def become(self, step: int) -> TrainState:
        """The state of a step: every number in it says which."""
        self.state.step = step
        with torch.no_grad():
            for model in (self.state.model, self.state.ema):
                for tensor in model.parameters():
                    tensor.fill_(step)
        return self.state

    def save(self, step: int) -> None:
        """What `Loop.save` does in a worker of a job, without its Ray."""
        box = SimpleNamespace(post=SimpleNamespace(remote=lambda *_: None))
        recorder = Recorder(step - 1)
        recorder.add(step, {"loss": float(step)})
        loop = worker.Loop(self.run, self._cfg, self._job, group.Group(), box, recorder)
        with (
            mock.patch.object(worker.ray, "get", lambda value: value),
            mock.patch.object(loop, "chain_grid", return_value=b"a picture"),
        ):
            loop.save(self.become(step))
            loop.finish()


def judge(reader: Saver, old: int, new: int) -> int:
    """The newest visible step, which must be `old` to `new`, whole, sound, and exactly what that step's state was."""
    visible = reader.run.checkpoints()
    with tempfile.TemporaryDirectory() as folder:
        found = reader.run.newest_sound(Path(folder), lambda text: require("never committed" in text, text))
        if found is None:
            require(old == 0 and not visible, f"nothing is found, step {old} was there")
            return 0
        step, path = found
        require(old <= step <= new and step == visible[-1], f"found {step}, expected {old} to {new}; seen: {visible}")
        checkpoint.load(reader.state, path)
        loaded = fingerprint(reader.state)
    require(loaded == fingerprint(reader.become(step)), f"step {step} came back as something else")
    for other in visible[:-1]:  # what else can be seen is whole too
        with tempfile.TemporaryDirectory() as folder:
            reader.run.fetch_checkpoint(other, Path(folder))
    return step


def require(condition: bool, why: str) -> None:
    """An assertion that no optimisation removes."""
    if not condition:
        raise AssertionError(why)


def kind_of(where: str) -> str:
    return "s3" if where.startswith("s3://") else "folder"


def points(where: str) -> list[str]:
    """The crash points of one save that has an older checkpoint to delete."""
    for step in (1, 2):
        Saver(where).save(step)
    passed: list[str] = []
    Saver(where, passed.append).save(3)
    return passed


def crash(where: str) -> dict[str, int]:
    """{crash point: the step that was visible after dying there, less the step before}; each is tried once."""
    reader, seen, newest = Saver(where), {}, 2
    for step in (1, 2):
        reader.save(step)
    for point in CRASH_POINTS[kind_of(where)]:

        def die(passed: str, point: str = point) -> None:
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)

        def work(step: int = newest + 1, die: Callable[[str], None] = die) -> int:
            Saver(where, die).save(step)  # a restarted job comes to the step that the last kill had cut off
            return 0

        status = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])
        require(status in (0, -signal.SIGKILL), f"the save of {point!r} failed by itself")
        found = judge(reader, newest, newest + 1)
        if status == -signal.SIGKILL:
            seen[point] = found - newest
        newest = found
    Saver(where).save(newest + 1)
    require(judge(reader, newest + 1, newest + 1) == newest + 1, "no save came through after all the kills")
    require(len(reader.run.checkpoints()) == 2, "retention has not caught up")
    return seen


def kill_at_random(where: str, count: int, seed: int) -> dict[str, int]:
    """Processes that save on and on, each killed during its first few; a save that had returned is never lost."""
    rng, reader, newest = random.Random(seed), Saver(where), 1
    began = time.monotonic()
    Saver(where).save(1)
    patience_s = 4 * (time.monotonic() - began)
    seen = {"kills": 0, "saves": 0, "kept_unreturned": 0}
    for number in range(count):
        end_to_read, end_to_write = os.pipe()

        def work(begin: int = newest + 1, pipe: int = end_to_write) -> int:
            saver = Saver(where)
            for step in range(begin, begin + 10_000):
                saver.save(step)
                os.write(pipe, step.to_bytes(4, "big"))
            return 1

        child = fork(work)
        os.close(end_to_write)
        if number % 2:  # every other one has saved something, however slow the machine has become meanwhile
            select.select([end_to_read], [], [], 60)
        time.sleep(rng.uniform(0, patience_s))
        os.kill(child, signal.SIGKILL)
        require(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "a saver ended by itself")
        with open(end_to_read, "rb") as pipe:
            told = pipe.read()
        returned = int.from_bytes(told[-4:], "big") if told else newest
        found = judge(reader, returned, returned + 1)
        seen["kills"] += 1
        seen["saves"] += returned - newest
        seen["kept_unreturned"] += found > returned
        newest = found
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, place, *numbers = sys.argv[1:]
    tasks: dict[str, Callable[..., Any]] = {"points": points, "crash": crash, "random": kill_at_random}
    print(json.dumps(tasks[task](place, *map(int, numbers))))
