"""What a store of objects must do, which keys it takes, and the errors that it raises."""

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from ebm_core.errors import EbmError

MAX_KEY_LENGTH = 700
"""Characters; leaves room for a prefix within S3's 1024."""


MAX_SEGMENT_LENGTH = 200


_SEGMENT = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{MAX_SEGMENT_LENGTH - 1}}}")


class StorageError(EbmError):
    """A store could not be read or written."""


class ObjectMissing(StorageError):
    """There is no object under this key."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of an object: its key, size in bytes and time of last change (UTC)."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a killed writer left that is no object. name: for people; size: bytes (0: unknown); id: the store's."""

    name: str
    size: int
    modified: datetime
    id: str


class ObjectStore(Protocol):
    """What runs need from a store. Every method raises StorageError, for a wrong key too."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Store bytes or a file's content, replacing what was there; when it returns, the object is durable."""
        ...

    def create(self, key: str, data: bytes | Path) -> bool:
        """Store unless the key exists. Among any number of racers exactly one gets True."""
        ...

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises ObjectMissing."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Write the object's bytes to the local file `path`. Raises ObjectMissing."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix` (text, not a folder), sorted by key."""
        ...

    def folders(self, prefix: str = "") -> Iterator[str]:
        """Sorted names of what lies directly under `prefix` (empty, or ending in a slash) and has keys below it."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        ...

    def exists(self, key: str) -> bool:
        """Is there an object under this key?"""
        ...

    def size(self, key: str) -> int:
        """Size in bytes. Raises ObjectMissing."""
        ...

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        """What writers of keys that start with `prefix` (a folder, ending in a slash) have begun and not ended."""
        ...

    def discard(self, leftover: Leftover) -> None:
        """Remove one of `leftovers()` if it is there."""
        ...

    def describe(self, key: str = "") -> str:
        """The URI of the store, or of a key in it; never a secret."""
        ...


def is_key(key: object) -> bool:
    """Segments of A-Z a-z 0-9 . _ - joined by single slashes, none of them starting with a dot."""
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_LENGTH:
        return False
    return all(_SEGMENT.fullmatch(segment) for segment in key.split("/"))


def require_key(key: str) -> str:
    """Return a well-formed key; raise StorageError for any other."""
    if not is_key(key):
        raise StorageError(
            f"{key!r:.80} is not a key: use segments of A-Z a-z 0-9 . _ - joined by '/', none empty or starting with "
            f"a dot, at most {MAX_SEGMENT_LENGTH} characters each and {MAX_KEY_LENGTH} in all"
        )
    return key


def require_prefix(prefix: str) -> str:
    """Return a prefix that some key could have; raise StorageError for any other."""
    if prefix:
        require_key(prefix + "x" if prefix.endswith("/") else prefix)
    return prefix


@contextmanager
def open_source(data: bytes | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Bytes or a local file as a stream, with its size in bytes. Raises StorageError if the file cannot be read."""
    if isinstance(data, bytes):
        yield io.BytesIO(data), len(data)
        return
    try:
        file = data.open("rb")
    except OSError as error:
        raise StorageError(f"cannot read the local file {data}: {error.strerror}; nothing was stored") from None
    with file:
        yield file, os.fstat(file.fileno()).st_size


def os_reason(error: OSError) -> str:
    """Why the operating system refused, and what to do."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "the disk is full; free some space or choose another folder"
        case errno.EACCES | errno.EPERM:
            return "permission denied; check the owner and mode of the folder or choose another"
        case errno.EROFS:
            return "the file system is read-only; choose another folder"
        case errno.ENOTDIR | errno.EEXIST:
            return "a part of the path is not a directory; choose another folder"
        case errno.EISDIR | errno.ENOTEMPTY:
            return "a directory is in the way; choose another name"
    return f"{error.strerror or error}; check the disk"
