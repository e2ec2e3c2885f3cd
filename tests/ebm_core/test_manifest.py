"""The manifest accepts exactly what it wrote, and notices every change of a file."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ebm_core import manifest as m
from ebm_core.errors import CheckpointError

ZEROS = "0" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of three files: ordinary, empty, and longer than one read."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "long.bin").write_bytes(bytes(range(256)) * 5000)
    entries = m.describe(tmp_path, ["model.safetensors", "empty", "long.bin"])
    (tmp_path / m.MANIFEST_NAME).write_bytes(m.manifest_bytes(entries, 500))
    return tmp_path


def test_description_has_the_sizes_and_digests_of_hashlib_sorted_by_name(folder: Path):
    entries = m.describe(folder, ["model.safetensors", "long.bin", "empty"])
    assert [e.name for e in entries] == ["empty", "long.bin", "model.safetensors"]
    for entry in entries:
        content = (folder / entry.name).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_bytes_are_canonical_and_read_back_exactly():
    a, b = m.FileEntry("a", 1, ZEROS), m.FileEntry("b", 2, "f" * 64)
    data = m.manifest_bytes([b, a], 7)
    assert data == m.manifest_bytes([a, b], 7)
    assert (
        data
        == (
            f'{{"files":[{{"name":"a","sha256":"{ZEROS}","size":1}},'
            f'{{"name":"b","sha256":"{"f" * 64}","size":2}}],"format":1,"step":7}}'
        ).encode()
    )
    assert m.parse_manifest(data) == m.Manifest(7, (a, b))
    assert m.parse_manifest(data).total_bytes == 3


def test_a_sound_folder_passes_and_files_beside_it_do_not_matter(folder: Path):
    (folder / "stray.txt").write_text("not named")
    assert m.verify(folder).step == 500


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink, replace_by_link])
@pytest.mark.parametrize("name", ["model.safetensors", "long.bin"])
def test_damage_to_any_file_is_noticed_by_name(folder: Path, name: str, damage):
    damage(folder / name)
    with pytest.raises(CheckpointError, match=name):
        m.verify(folder)


def test_every_flipped_bit_of_a_manifest_is_refused_or_contradicts_the_files(folder: Path):
    path = folder / m.MANIFEST_NAME
    sound = path.read_bytes()
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            manifest = m.verify(folder)
        except CheckpointError:
            continue
        assert manifest.step != 500  # the one number that no file contradicts; whoever asked for step 500 compares it


def test_a_missing_manifest_and_a_missing_folder_are_one_clear_line(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"MANIFEST\.json: No such file.*not a complete checkpoint"):
            m.verify(folder)


def test_only_regular_files_can_be_described(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to("target")
    for name in ("folder", "link", "absent"):
        with pytest.raises(CheckpointError, match=name):
            m.describe(tmp_path, [name])


def tree(**changes: object) -> dict:
    return {"format": 1, "step": 3, "files": [{"name": "a", "size": 1, "sha256": ZEROS}]} | changes


def with_entry(**changes: object) -> dict:
    return tree(files=[{"name": "a", "size": 1, "sha256": ZEROS} | changes])


A, B = {"name": "a", "size": 1, "sha256": ZEROS}, {"name": "b", "size": 1, "sha256": ZEROS}


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        None,
        {},
        tree(extra=1),
        tree(format=2),
        tree(format=True),
        tree(format="1"),
        tree(step=-1),
        tree(step=1.0),
        tree(step=True),
        tree(step="3"),
        tree(step=10**9),
        tree(files={}),
        tree(files=[]),
        tree(files=["a"]),
        tree(files=[A, A]),
        tree(files=[B, A]),
        with_entry(extra=1),
        with_entry(name=1),
        with_entry(name=""),
        with_entry(name="."),
        with_entry(name=".."),
        with_entry(name=".hidden"),
        with_entry(name="../a"),
        with_entry(name="/etc/passwd"),
        with_entry(name="a/b"),
        with_entry(name="a\\b"),
        with_entry(name="a\0"),
        with_entry(name="a\n"),
        with_entry(name="ａ"),
        with_entry(name="a" * 129),
        with_entry(name="MANIFEST.json"),
        with_entry(size=-1),
        with_entry(size=1.5),
        with_entry(size=True),
        with_entry(size=2**45),
        with_entry(sha256="0" * 63),
        with_entry(sha256="0" * 64 + "\n"),
        with_entry(sha256="A" * 64),
        with_entry(sha256=0),
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_a_wrong_manifest_is_refused(wrong: object):
    with pytest.raises(CheckpointError):
        m.parse_manifest(json.dumps(wrong).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format":1,"step":' + b"9" * 5000 + b',"files":[]}',
        b'{"format":1,"format":1,"step":1,"files":[]}',
        b'{"format":1,"step":NaN,"files":[]}',
        b" " * (m.MAX_MANIFEST_BYTES + 1),
    ],
    ids=["empty", "torn", "not utf-8", "deep", "long number", "key twice", "nan", "huge"],
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes):
    with pytest.raises(CheckpointError, match="damaged"):
        m.parse_manifest(data)


def test_a_wrong_entry_is_not_written():
    with pytest.raises(CheckpointError):
        m.manifest_bytes([m.FileEntry("../a", 1, ZEROS)], 1)
    with pytest.raises(CheckpointError):
        m.manifest_bytes([m.FileEntry("a", 1, ZEROS)], -1)
