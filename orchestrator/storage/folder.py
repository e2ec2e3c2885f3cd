"""A store of objects in a folder. (`s3.py` has the same on an S3 server.)

A store knows nothing of runs or checkpoints. It promises three things, on which the commit protocol in `run_store.py`
builds: an object is visible completely or not at all, `create` has exactly one winner, no key reaches outside the root.
"""

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from orchestrator.storage.interface import (
    Leftover,
    ObjectInfo,
    ObjectMissing,
    StorageError,
    is_key,
    open_source,
    os_reason,
    require_key,
    require_prefix,
)

_TEMPORARY = ".tmp-"
_STALE_S = 24 * 3600.0
"""A temporary file this old belongs to a process that was killed."""


class FolderStore:
    """Objects as files below `root`, which is created by the first write.

    A write goes to a temporary file in the same directory, is synced, and takes its name by rename (or by hard link
    where only one may win); then the directory is synced. Symbolic links below the root are never followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        if self.root.exists() and not self.root.is_dir():
            raise StorageError(f"cannot use {self.root} as storage: it is not a directory; choose a folder")

    def describe(self, key: str = "") -> str:
        """Path of the root, or of a key's file."""
        return str(self.root / key) if key else str(self.root)

    def put(self, key: str, data: bytes | Path) -> None:
        """Old or new content, never a mixture, is what others and a crash see."""
        path = self._path(key)
        with self._explained("write", key), self._temporary(path, data) as temporary:
            os.replace(temporary, path)
            _sync_directory(path.parent)

    def create(self, key: str, data: bytes | Path) -> bool:
        """True for the one process that made the key exist; the content appears with the name."""
        path = self._path(key)
        with self._explained("create", key):
            if path.exists():
                return False
            with self._temporary(path, data) as temporary:
                try:
                    os.link(temporary, path)  # unlike a rename, fails when the name is taken
                except FileExistsError:
                    return False
                _sync_directory(path.parent)
            return True

    def get(self, key: str) -> bytes:
        """The file's bytes."""
        path = self._path(key)
        with self._explained("read", key), _open_regular(path) as file:
            return file.read()

    def get_file(self, key: str, path: Path) -> None:
        """Copy the file to `path`."""
        source = self._path(key)
        with self._explained("read", key), _open_regular(source) as file:
            try:
                with path.open("wb") as target:
                    shutil.copyfileobj(file, target, 2**20)
            except OSError as error:
                raise StorageError(f"cannot write the local file {path}: {os_reason(error)}") from None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Regular files with well-formed keys; temporary files and links are not objects."""
        start = self._inside(self.root.joinpath(*require_prefix(prefix).split("/")[:-1]))
        found: list[ObjectInfo] = []
        with self._explained("list", prefix.rstrip("/")):
            for directory, subdirectories, files in os.walk(start, onerror=_raise_unless_missing):
                subdirectories[:] = [name for name in subdirectories if is_key(name)]
                for name in files:
                    path = Path(directory, name)
                    key = path.relative_to(self.root).as_posix()
                    if key.startswith(prefix) and is_key(key) and (info := _describe_file(path, key)):
                        found.append(info)
        yield from sorted(found, key=lambda info: info.key)

    def folders(self, prefix: str = "") -> Iterator[str]:
        """Names of the directories under `prefix`, which is empty or ends in a slash."""
        start = self._inside(self.root.joinpath(*require_prefix(prefix).split("/")))
        with self._explained("list", prefix.rstrip("/")), suppress(FileNotFoundError):
            with os.scandir(start) as entries:
                names = [e.name for e in entries if is_key(e.name) and e.is_dir(follow_symlinks=False)]
            yield from sorted(names)

    def delete(self, key: str) -> None:
        """Remove the file, and the directories that it leaves empty."""
        path = self._path(key)
        with self._explained("delete", key):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            _sync_directory(path.parent)
            self._prune(path.parent)

    def exists(self, key: str) -> bool:
        """Is there a regular file under this key?"""
        path = self._path(key)
        with self._explained("look up", key):
            return path.is_file()

    def size(self, key: str) -> int:
        """Size of the file in bytes."""
        path = self._path(key)
        with self._explained("look up", key):
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a file")
            return status.st_size

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        """Temporary files of writers, which live on or were killed."""
        start = self._inside(self.root.joinpath(*require_prefix(prefix).split("/")))
        with self._explained("list", prefix.rstrip("/")):
            for directory, subdirectories, files in os.walk(start, onerror=_raise_unless_missing):
                subdirectories[:] = [name for name in subdirectories if is_key(name)]
                for name in sorted(files):
                    path = Path(directory, name).relative_to(self.root).as_posix()
                    if name.startswith(_TEMPORARY) and (info := _describe_file(Path(directory, name), path)):
                        yield Leftover(path, info.size, info.modified, path)

    def discard(self, leftover: Leftover) -> None:
        """Remove a temporary file, and nothing else."""
        folder, slash, name = leftover.id.rpartition("/")
        if not name.startswith(_TEMPORARY):
            raise StorageError(f"{leftover.id!r:.80} is not a temporary file; take one from leftovers()")
        path = self._inside(self.root / (require_key(folder) if slash else "") / name)
        with self._explained("delete", leftover.id):
            path.unlink(missing_ok=True)
            self._prune(path.parent)

    def _path(self, key: str) -> Path:
        return self._inside(self.root / require_key(key))

    def _inside(self, path: Path) -> Path:
        if any(os.path.islink(part) for part in (path, *path.parents) if part.is_relative_to(self.root)):
            raise StorageError(
                f"refused {path}: it passes through a symbolic link, and storage follows none below its root; "
                "replace the link by the folder itself"
            )
        return path

    @contextmanager
    def _explained(self, operation: str, key: str) -> Iterator[None]:
        """Turn what the operating system says into one line."""
        where = self.describe(key)
        try:
            yield
        except OSError as error:
            absent = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
            if absent and operation in ("read", "look up"):
                raise ObjectMissing(f"cannot {operation} {where}: there is no such file; check the name") from None
            raise StorageError(f"cannot {operation} {where}: {os_reason(error)}") from None

    @contextmanager
    def _temporary(self, path: Path, data: bytes | Path) -> Iterator[Path]:
        """A synced file with `data` beside `path`; gone afterwards, unless renamed."""
        temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
        with open_source(data) as (source, _):
            descriptor = _open_new(temporary)
            try:
                with open(descriptor, "wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
                    target.flush()
                    os.fsync(target.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def _prune(self, directory: Path) -> None:
        """Remove directories that hold no object any more, from `directory` up to the root, which stays."""
        while directory != self.root:
            try:
                for leftover in directory.glob(_TEMPORARY + "*"):
                    if time.time() - leftover.stat().st_mtime > _STALE_S:
                        leftover.unlink()
                directory.rmdir()
            except OSError:  # not empty, or another process was quicker: both leave a sound state
                return
            directory = directory.parent


def _open_new(path: Path) -> int:
    """Descriptor of a new file, its directories made and synced first; one may vanish again under a racing delete."""
    for _ in range(100):
        _make_directories(path.parent)
        with suppress(FileNotFoundError):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    raise FileNotFoundError(errno.ENOENT, "its directory cannot be made", str(path))


def _open_regular(path: Path) -> BinaryIO:
    """A file to read. A pipe, on which opening would wait for ever, counts as missing; a link that has just been put
    there is refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
    return os.fdopen(descriptor, "rb")


def _make_directories(directory: Path) -> None:
    if directory.is_dir():
        return
    _make_directories(directory.parent)
    with suppress(FileExistsError, FileNotFoundError):  # a racing writer or delete; the caller's open decides
        directory.mkdir()
        _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    """Make names in a directory survive a power cut."""
    with suppress(FileNotFoundError):  # emptied and removed meanwhile
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # what a file system says that has no such sync
                raise
        finally:
            os.close(descriptor)


def _raise_unless_missing(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        raise error


def _describe_file(path: Path, key: str) -> ObjectInfo | None:
    """Size and time of a regular file; None for anything else, and for a file that has just gone."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
