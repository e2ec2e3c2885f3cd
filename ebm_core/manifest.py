"""What a checkpoint folder must contain: names, sizes and SHA-256 digests of its files, in MANIFEST.json.

The bytes are canonical, so equal content gives an equal manifest and the manifest's own digest identifies a checkpoint.
A manifest may come from a damaged or hostile store: `parse_manifest` believes nothing that it has not checked.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ebm_core.errors import CheckpointError

MANIFEST_NAME = "MANIFEST.json"
FORMAT = 1
MAX_STEP = 999_999_999
"""Steps are written with nine digits in storage, so that they sort as text."""
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILE_BYTES = 2**44
MAX_FILES = 10_000

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a checkpoint: name (no folders), size in bytes, SHA-256 in lower-case hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of the checkpoint of training step `step`, sorted by name."""

    step: int
    files: tuple[FileEntry, ...]

    @property
    def total_bytes(self) -> int:
        """Sum of the sizes, in bytes."""
        return sum(entry.size for entry in self.files)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content in lower-case hex; reads 1 MiB at a time. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def describe(folder: Path, names: Iterable[str]) -> list[FileEntry]:
    """Name, size and digest of the named files of `folder`, sorted by name. CheckpointError for a missing one."""
    entries = []
    for name in sorted(names):
        _require_name(name)
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path}: not a file, so it cannot enter a checkpoint; write it before describing it")
        entries.append(FileEntry(name, path.stat().st_size, sha256_file(path)))
    return entries


def manifest_bytes(entries: Iterable[FileEntry], step: int) -> bytes:
    """The canonical JSON of a manifest: keys and files sorted, no spaces. Raises CheckpointError for a wrong entry."""
    files = [asdict(entry) for entry in sorted(entries, key=lambda entry: entry.name)]
    tree = {"format": FORMAT, "step": step, "files": files}
    data = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode("ascii")
    parse_manifest(data)  # what is written can be read back, or it is not written
    return data


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest strictly: every key, type, name, size and digest is checked, nothing extra is allowed.

    Raises CheckpointError that says what is wrong.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise _damaged(f"{len(data)} bytes long, at most {MAX_MANIFEST_BYTES} are allowed")
    try:
        tree = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"not JSON ({type(error).__name__})") from None
    _require_keys(tree, {"format", "step", "files"}, "manifest")
    if type(tree["format"]) is not int or tree["format"] != FORMAT:
        raise CheckpointError(
            f"{MANIFEST_NAME} has format {tree['format']!r:.40}, this program reads format {FORMAT}; "
            "use the version that wrote it"
        )
    step = _bounded_int(tree["step"], MAX_STEP, "step")
    files = tree["files"]
    if not isinstance(files, list) or not 1 <= len(files) <= MAX_FILES:
        raise _damaged(f"files must be a list of 1 to {MAX_FILES} entries")
    entries = tuple(_parse_entry(entry) for entry in files)
    names = [entry.name for entry in entries]
    if names != sorted(set(names)):
        raise _damaged("file names must be sorted, each once")
    return Manifest(step, entries)


def verify(folder: Path, names: Collection[str] | None = None) -> Manifest:
    """Check every file that `folder`/MANIFEST.json names, sizes first, then digests; other files are ignored.

    names: check these of them alone. Raises CheckpointError naming the first file that is missing, of another size, or
    of another content.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)  # one too many is refused below
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; this folder is not a complete checkpoint") from None
    try:
        manifest = parse_manifest(data)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    checked = [entry for entry in manifest.files if names is None or entry.name in names]
    for entry in checked:
        verify_size(folder / entry.name, entry)
    for entry in checked:
        verify_digest(folder / entry.name, entry)
    return manifest


def verify_size(path: Path, entry: FileEntry) -> None:
    """Raise CheckpointError unless `path` is a regular file of the recorded size."""
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{path}: missing, though the manifest names it; use an older checkpoint")
    size = path.stat().st_size
    if size != entry.size:
        raise CheckpointError(f"{path}: {size} bytes, the manifest says {entry.size}; use an older checkpoint")


def verify_digest(path: Path, entry: FileEntry) -> None:
    """Raise CheckpointError unless the content of `path` has the recorded SHA-256."""
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; use an older checkpoint") from None
    if digest != entry.sha256:
        raise CheckpointError(
            f"{path}: SHA-256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…: its content has changed; "
            "use an older checkpoint"
        )


def _damaged(why: str) -> CheckpointError:
    return CheckpointError(f"{MANIFEST_NAME} is damaged: {why}; use an older checkpoint")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a key occurs twice")
    return tree


def _require_keys(tree: object, keys: set[str], what: str) -> None:
    if not isinstance(tree, dict) or set(tree) != keys:
        raise _damaged(f"{what} must have exactly the keys {', '.join(sorted(keys))}")


def _bounded_int(value: object, limit: int, what: str) -> int:
    if type(value) is not int or not 0 <= value <= limit:  # `type`, because True is an int
        raise _damaged(f"{what} must be a whole number from 0 to {limit}")
    return value


def _require_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == MANIFEST_NAME:
        raise CheckpointError(
            f"{name!r:.80} cannot name a file of a checkpoint: use 1 to 128 of A-Z a-z 0-9 . _ -, no leading dot, "
            f"and not {MANIFEST_NAME}"
        )
    return name


def _parse_entry(entry: object) -> FileEntry:
    _require_keys(entry, {"name", "size", "sha256"}, "a file's entry")
    assert isinstance(entry, dict)
    name = _require_name(entry["name"])
    size = _bounded_int(entry["size"], MAX_FILE_BYTES, f"size of {name}")
    digest = entry["sha256"]
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _damaged(f"sha256 of {name} must be 64 lower-case hex digits")
    return FileEntry(name, size, digest)
