"""One training step's folder in a store: how its files get there, become visible, and come back checked."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ebm_core.errors import CheckpointError
from ebm_core.manifest import MANIFEST_NAME, FileEntry, Manifest, parse_manifest, sha256_file
from orchestrator.storage.commits import (
    COMMITTED,
    DAMAGED,
    Commit,
    commit_bytes,
    commit_now,
    condemns,
    damage_bytes,
    parse_commit,
    require_attempt,
)
from orchestrator.storage.interface import ObjectMissing, ObjectStore, StorageError, os_reason

Warn = Callable[[str], None]


class StoredCheckpoint:
    """The objects under `folder`, which is `<run>/checkpoints/step-…` of training step `step`."""

    def __init__(self, objects: ObjectStore, folder: str, step: int) -> None:
        self._objects, self._folder, self._step = objects, folder, step

    @property
    def name(self) -> str:
        """Its folder's key below the run."""
        return self._folder.partition("/")[2]

    @property
    def uri(self) -> str:
        """Where this is, without secrets."""
        return self._objects.describe(self._folder)

    def put_file(self, attempt: str, name: str, data: bytes | Path) -> None:
        """Upload one file of an attempt."""
        self._objects.put(self._file_key(attempt, name), data)

    def commit(self, attempt: str, manifest: bytes) -> None:
        """Upload the manifest, see that what it names is there, create COMMITTED. Raises StorageError."""
        parsed = parse_manifest(manifest)
        if parsed.step != self._step:
            raise StorageError(f"cannot commit {self.uri}: the manifest is for step {parsed.step}")
        self.put_file(attempt, MANIFEST_NAME, manifest)
        self._require_files(attempt, parsed)
        mine = commit_now(self._step, attempt, manifest)
        if self._objects.create(self._key(COMMITTED), commit_bytes(mine)):
            return
        if self.is_set_aside():
            self._objects.put(self._key(COMMITTED), commit_bytes(mine))
            return
        winner = self.read_commit()
        if winner.manifest_sha256 != mine.manifest_sha256:
            raise StorageError(
                f"cannot commit {self.uri}: {winner.attempt} was committed there at {winner.time} with other content; "
                "two jobs write this run: stop one, or give it another name"
            )

    def fetch(self, folder: Path, names: Collection[str] | None = None) -> None:
        """Download into a new `folder`, every size and SHA-256 checked. After an error the folder is gone.

        names: of the files wanted, as far as the checkpoint has them; None: all. Raises CheckpointError naming the file
        that is missing or damaged.
        """
        commit = self.read_commit()
        manifest, data = self._read_manifest(commit)
        with _local_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        try:
            for entry in manifest.files:
                if names is None or entry.name in names:
                    self._fetch_file(commit, entry, folder / entry.name)
            with _local_errors(folder):
                (folder / MANIFEST_NAME).write_bytes(data)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def read_back(self) -> None:
        """Download and check as `fetch` does, keeping one file at a time and none in the end."""
        commit = self.read_commit()
        manifest, _ = self._read_manifest(commit)
        with tempfile.TemporaryDirectory(prefix="ebm-read-back-") as folder:
            for entry in manifest.files:
                self._fetch_file(commit, entry, Path(folder, "file"))

    def examine(self) -> Iterator[tuple[str, int | None, str | None]]:
        """(name, recorded size in bytes, what is wrong or None) of COMMITTED, the manifest, and each file it names."""
        try:
            commit = self.read_commit()
        except CheckpointError as error:
            yield COMMITTED, None, str(error)
            return
        yield COMMITTED, None, None
        try:
            manifest, data = self._read_manifest(commit)
        except CheckpointError as error:
            yield MANIFEST_NAME, None, str(error)
            return
        yield MANIFEST_NAME, len(data), None
        for entry in manifest.files:
            problem = None
            with tempfile.TemporaryDirectory(prefix="ebm-verify-") as folder:
                try:
                    self._fetch_file(commit, entry, Path(folder, "file"))
                except CheckpointError as error:
                    problem = str(error)
            yield entry.name, entry.size, problem

    def read_commit(self) -> Commit:
        """What COMMITTED says. Raises CheckpointError if there is none, or it is damaged."""
        try:
            data = self._objects.get(self._key(COMMITTED))
        except ObjectMissing:
            raise CheckpointError(f"there is no committed checkpoint at {self.uri}; choose another step") from None
        return parse_commit(data, self._step, self._objects.describe(self._key(COMMITTED)))

    def is_committed(self) -> bool:
        """Did an attempt win this step?"""
        return self._objects.exists(self._key(COMMITTED))

    def committed_digest(self) -> str:
        """SHA-256 of COMMITTED: stands for this content of the step. Raises ObjectMissing."""
        return hashlib.sha256(self._objects.get(self._key(COMMITTED))).hexdigest()

    def set_aside(self, reason: str, warn: Warn) -> None:
        """Write DAMAGED beside the COMMITTED that it condemns (a later commit of the step is not condemned by it).

        Somebody who may only read gets the message, and the use of an older checkpoint, all the same.
        """
        message = f"set checkpoint {self.uri} aside: {reason}"
        try:
            committed = self._objects.get(self._key(COMMITTED))
            self._objects.put(self._key(DAMAGED), damage_bytes(committed, reason))
        except StorageError as error:
            message = f"passed over checkpoint {self.uri}: {reason} (the next reader will not know: {error})"
        warn(message)

    def is_set_aside(self) -> bool:
        """Does DAMAGED condemn the present COMMITTED?"""
        try:
            damaged = self._objects.get(self._key(DAMAGED))
            return condemns(damaged, self._objects.get(self._key(COMMITTED)))
        except ObjectMissing:
            return False

    def delete(self, keys: set[str]) -> None:
        """Remove the given keys, COMMITTED first: what a kill leaves behind is then invisible."""
        for key in sorted(keys, key=lambda key: (key != COMMITTED, key)):
            self._objects.delete(self._key(key))

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _file_key(self, attempt: str, name: str) -> str:
        return self._key(f"{require_attempt(attempt)}/{name}")

    def _require_files(self, attempt: str, manifest: Manifest) -> None:
        prefix = self._file_key(attempt, "")
        sizes = {info.key.removeprefix(prefix): info.size for info in self._objects.list(prefix)}
        for entry in manifest.files:
            if sizes.get(entry.name) != entry.size:
                state = f"has {sizes[entry.name]} bytes" if entry.name in sizes else "is missing"
                raise StorageError(
                    f"cannot commit {self.uri}: {attempt}/{entry.name} {state}, the manifest says {entry.size} bytes; "
                    "upload it again"
                )

    def _read_manifest(self, commit: Commit) -> tuple[Manifest, bytes]:
        """The manifest that COMMITTED vouches for, and its bytes."""
        key = self._file_key(commit.attempt, MANIFEST_NAME)
        where = self._objects.describe(key)
        try:
            data = self._objects.get(key)
        except ObjectMissing:
            raise CheckpointError(f"{where} is missing; use an older checkpoint") from None
        if hashlib.sha256(data).hexdigest() != commit.manifest_sha256:
            raise CheckpointError(f"{where} is damaged: not the manifest that COMMITTED names; use an older checkpoint")
        manifest = parse_manifest(data)
        if manifest.step != commit.step:
            raise CheckpointError(f"{where} is for step {manifest.step}; use an older checkpoint")
        return manifest, data

    def _fetch_file(self, commit: Commit, entry: FileEntry, path: Path) -> None:
        """Download one file and check it; a wrong digest is given a second download, lest the network was at fault."""
        key = self._file_key(commit.attempt, entry.name)
        where = self._objects.describe(key)
        try:
            size = self._objects.size(key)
            if size != entry.size:
                raise CheckpointError(f"{where} has {size} bytes, not {entry.size}; use an older checkpoint")
            for _ in range(2):
                self._objects.get_file(key, path)
                with _local_errors(path):
                    if sha256_file(path) == entry.sha256:
                        return
        except ObjectMissing:
            raise CheckpointError(f"{where} is missing; use an older checkpoint") from None
        raise CheckpointError(f"{where} is damaged: its SHA-256 is not the manifest's; use an older checkpoint")


@contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    """A download that the local disk refuses is not a damaged checkpoint."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot use the local path {path}: {os_reason(error)}") from None
