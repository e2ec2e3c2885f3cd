"""Runs in a store, and the protocol by which a checkpoint becomes visible: all of it, once, or not at all.

    <root>/<run>/config.json
    <root>/<run>/checkpoints/step-000000500/attempt-<id>/<file>, MANIFEST.json
    <root>/<run>/checkpoints/step-000000500/COMMITTED     names the attempt and its manifest's SHA-256; created once
    <root>/<run>/checkpoints/step-000000500/DAMAGED       names the COMMITTED that turned out to be unsound

Writers upload into an attempt of their own and then race to create COMMITTED; readers look at nothing that COMMITTED
does not name and check every size and SHA-256. One job at a time writes to a run; any number may read.
"""

import json
import logging
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.places import RUN_NAME_RULE, is_run_name
from orchestrator.storage.commits import StoredStep, parse_step_key, step_name
from orchestrator.storage.interface import ObjectInfo, ObjectMissing, ObjectStore, StorageError
from orchestrator.storage.stored_checkpoint import StoredCheckpoint, Warn
from orchestrator.storage.uri import open_objects

__all__ = ["ObjectMissing", "Run", "RunStore", "StorageError", "open_store", "require_run_name", "step_name"]

Steps = list[int]
_log = logging.getLogger(__name__)


def require_run_name(name: str) -> str:
    """Return a name that a run can have; raise ConfigError for any other."""
    if not is_run_name(name):
        raise ConfigError(f"name = {name!r:.80}: a run's name {RUN_NAME_RULE}; choose another")
    return name


def open_store(uri: str) -> "RunStore":
    """The runs under a folder or `s3://bucket/prefix`; see `uri.open_objects`. Contacts nothing yet."""
    return RunStore(uri)


BEFORE: tuple[tuple[str, str, Any], ...] = (("buffer", "conditions", "kept"),)
"""(section, setting, value): what older runs did before the setting was there, where it is not today's default."""


class RunStore:
    """The runs under one URI (or in one object store that the caller opened)."""

    def __init__(self, where: str | ObjectStore) -> None:
        self.objects: ObjectStore = open_objects(where) if isinstance(where, str) else where

    @property
    def uri(self) -> str:
        """Where this is, without secrets."""
        return self.objects.describe()

    def runs(self) -> list[str]:
        """Sorted names of the runs, which are the folders that hold a config.json. Reads none of them."""
        names = (name for name in self.objects.folders() if is_run_name(name))
        return [name for name in names if self.objects.exists(f"{name}/config.json")]

    def run(self, name: str) -> "Run":
        """A run, stored already or not. Raises ConfigError for a name that no run can have."""
        return Run(self, require_run_name(name))

    def check_writable(self) -> None:
        """Write, read, contest and delete a small object. Raises StorageError where a job's first checkpoint would."""
        key, content = f"probe-{secrets.token_hex(8)}", secrets.token_bytes(32)
        created = self.objects.create(key, content)
        try:
            if not created or self.objects.get(key) != content:
                raise StorageError(f"cannot use {self.uri}: what was written does not read back; check the server")
            if self.objects.create(key, b"second"):
                raise StorageError(
                    f"cannot use {self.uri}: the server ignores If-None-Match, so two jobs could commit one step; "
                    "use a server with conditional uploads"
                )
        finally:
            self.objects.delete(key)


class Run:
    """One run's objects: settings, results, and checkpoints under the commit protocol. Keys are relative to the run."""

    def __init__(self, store: RunStore, name: str) -> None:
        self.store, self.name = store, name
        self._objects = store.objects
        self._sound: set[str] = set()  # digests of the COMMITTED whose files this object has read back

    @property
    def uri(self) -> str:
        """Where the run is, without secrets."""
        return self._objects.describe(self.name)

    def exists(self) -> bool:
        """Has a config.json been written?"""
        return self._objects.exists(self._key("config.json"))

    def write_config(self, tree: dict[str, Any]) -> None:
        """Store the resolved settings as config.json; a run exists from then on."""
        self.write_json("config.json", tree)

    def read_config(self) -> dict[str, Any]:
        """The settings that the run was started with; one that did not exist then has the value that the code acted by.

        Raises ObjectMissing if there is no such run.
        """
        tree = self.read_json("config.json")
        if not isinstance(tree, dict):
            raise StorageError(f"{self._where('config.json')} is damaged: no settings in it; restore or delete the run")
        for section, setting, value in BEFORE:
            if isinstance(tree.get(section), dict):
                tree[section].setdefault(setting, value)
        return tree

    def write_json(self, key: str, tree: Any) -> None:
        """Store a JSON-able tree, readably; NaN and infinity are refused."""
        try:
            text = json.dumps(tree, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StorageError(f"cannot write {self._where(key)}: {error}; store finite numbers, text, lists") from None
        self.write_bytes(key, (text + "\n").encode())

    def read_json(self, key: str) -> Any:
        """A stored JSON tree. Raises ObjectMissing, or StorageError if it is damaged."""
        data = self.read_bytes(key)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise StorageError(f"{self._where(key)} is damaged: not JSON; restore or delete it") from None

    def write_bytes(self, key: str, data: bytes | Path) -> None:
        """Store bytes, or a local file's content."""
        self._objects.put(self._key(key), data)

    def read_bytes(self, key: str) -> bytes:
        """A stored object. Raises ObjectMissing."""
        return self._objects.get(self._key(key))

    def delete(self, key: str) -> None:
        """Remove a stored object, if it is there."""
        self._objects.delete(self._key(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects of the run whose key starts with `prefix`, sorted; their keys are relative to the run."""
        skipped = len(self.name) + 1
        for info in self._objects.list(f"{self.name}/{prefix}"):
            yield ObjectInfo(info.key[skipped:], info.size, info.modified)

    @staticmethod
    def new_attempt() -> str:
        """A fresh name for the files of one attempt to write a checkpoint; rank 0 tells it to the others."""
        return f"attempt-{secrets.token_hex(8)}"

    def put_checkpoint_file(self, step: int, attempt: str, path: Path) -> None:
        """Upload one file of a checkpoint, under its own name. Nobody sees it before `commit`."""
        self.at(step).put_file(attempt, path.name, path)

    def commit(self, step: int, attempt: str, manifest: bytes) -> None:
        """Make an attempt the checkpoint of `step`: once for ever, unless that one was set aside as damaged.

        Uploads the manifest, sees that each file it names is there with its size, then creates COMMITTED. Committing
        the same content again changes nothing. Raises StorageError if a file is missing, or other content was first.
        """
        self.at(step).commit(attempt, manifest)

    def checkpoints(self) -> Steps:
        """Steps of the committed checkpoints that were not set aside as damaged, ascending. Reads no checkpoint."""
        stored = self.stored_steps()
        return [step for step in sorted(stored) if self._is_usable(step, stored[step])]

    def fetch_checkpoint(self, step: int, into: Path, names: Collection[str] | None = None) -> Path:
        """Download a committed checkpoint into the new folder `into`/step-…, every size and SHA-256 checked.

        names: of the files wanted (None: all). Returns that folder. Raises CheckpointError naming the file that is
        missing or damaged; then the folder is gone.
        """
        folder = into / step_name(step)
        self.at(step).fetch(folder, names)
        return folder

    def newest_sound(self, into: Path, warn: Warn = _log.warning) -> tuple[int, Path] | None:
        """Fetch the newest checkpoint that is sound: (step, folder), or None if none was ever committed.

        A damaged one is set aside with a message to `warn`; nothing is deleted. Raises CheckpointError if there are
        checkpoints and all are damaged. In a job, one process calls this and the others fetch the step it found.
        """
        stored = self.stored_steps()
        committed = [step for step in sorted(stored, reverse=True) if stored[step].committed]
        self._tell_of_uncommitted(stored, max(committed, default=0), warn)
        for step in committed:
            if not self._is_usable(step, stored[step]):
                continue
            try:
                return step, self.fetch_checkpoint(step, into)
            except CheckpointError as error:
                if not self.at(step).is_committed():  # a training job has just deleted it: there are newer ones
                    return self.newest_sound(into, warn)
                self.at(step).set_aside(str(error), warn)
        if committed:
            raise CheckpointError(
                f"{self.uri} has {len(committed)} checkpoint(s) and all are damaged; see the DAMAGED file of each step "
                "for the reason; restore their files, or start a run with another name"
            )
        return None

    def _tell_of_uncommitted(self, stored: dict[int, StoredStep], newest: int, warn: Warn) -> None:
        """Whole attempts above the newest commit: a kill leaves one step of them, more mean that COMMITTED was lost."""
        whole = [step for step in sorted(stored) if step > newest and stored[step].uncommitted_whole]
        if newest == 0 and len(whole) > 1:
            raise CheckpointError(
                f"{self.uri} has {len(whole)} whole checkpoints and no COMMITTED file: all were deleted; "
                "restore these files, or start a run with another name"
            )
        for step in whole:
            warn(
                f"passed over {self.at(step).uri}: it was never committed (a job was killed just then) or its "
                "COMMITTED file was deleted"
            )

    def sound_before(self, step: int, warn: Warn = _log.warning) -> Steps:
        """The newest checkpoint from before `step` that is sound, as a list of one, or none. Damaged ones on the way
        are set aside."""
        for older in reversed([one for one in self.checkpoints() if one < step]):
            if self._reads_back(older, warn):
                return [older]
        return []

    def retain(self, keep: int, warn: Warn = _log.warning, spared: Collection[int] = ()) -> Steps:
        """Delete all but the newest `keep` sound checkpoints (at least 2) and the spared; return the deleted steps.

        Deletes nothing before the two newest have been read back and verified (once per Run object). COMMITTED goes
        first, so that what a kill leaves behind is invisible; the next call removes it. Damaged ones stay for study.
        """
        if type(keep) is not int or keep < 2:
            raise ConfigError(f"checkpoint.keep = {keep!r}: must be at least 2, so that a damaged file is no disaster")
        stored = self.stored_steps()
        usable = {step for step in stored if self._is_usable(step, stored[step])}
        if len(usable) <= keep:
            return []
        kept: Steps = []
        for step in sorted(usable, reverse=True):
            if len(kept) < keep and (len(kept) >= 2 or self._reads_back(step, warn)):
                kept.append(step)
        if len(kept) < 2:
            return []
        old = {step for step in stored if step < kept[-1] and step not in spared}
        for step in sorted(old):
            if step in usable or not stored[step].committed:
                self.at(step).delete(stored[step].keys)
        return sorted(old & usable)

    def _key(self, key: str) -> str:
        return f"{self.name}/{key}"

    def _where(self, key: str) -> str:
        return self._objects.describe(self._key(key))

    def at(self, step: int) -> StoredCheckpoint:
        """The objects of a step, whatever is there."""
        return StoredCheckpoint(self._objects, self._key(f"checkpoints/{step_name(step)}"), step)

    def stored_steps(self) -> dict[int, StoredStep]:
        """All steps with any object, by one listing."""
        steps: dict[int, StoredStep] = {}
        for info in self.list("checkpoints/"):
            if parsed := parse_step_key(info.key):
                steps.setdefault(parsed[0], StoredStep()).keys.add(parsed[1])
        return steps

    def _is_usable(self, step: int, stored: StoredStep) -> bool:
        return stored.committed and not (stored.suspect and self.at(step).is_set_aside())

    def _reads_back(self, step: int, warn: Warn) -> bool:
        """Is every file of the checkpoint sound? If not, it is set aside."""
        checkpoint = self.at(step)
        digest = checkpoint.committed_digest()
        if digest in self._sound:
            return True
        try:
            checkpoint.read_back()
        except CheckpointError as error:
            checkpoint.set_aside(str(error), warn)
            return False
        self._sound.add(digest)
        return True
