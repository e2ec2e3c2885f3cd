"""LSUN's databases are read as published: key to encoded image, decoded when fetched."""

import io
from pathlib import Path

import lmdb
import pytest
import torch
from PIL import Image

from ebm_core.config import DataConfig
from ebm_core.data.lsun import check_lsun, lsun_bedroom
from ebm_core.errors import DataError


def write_database(folder: Path, images: dict[bytes, bytes]) -> None:
    with lmdb.open(str(folder), map_size=2**20) as database, database.begin(write=True) as transaction:
        for key, value in images.items():
            transaction.put(key, value)


def encoded(level: int, kind: str = "WEBP") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), (level, level, level)).save(stream, kind, quality=95)
    return stream.getvalue()


def config(root: Path, **settings) -> DataConfig:
    return DataConfig(name="lsun_bedroom", root=str(root), image_size=8, **settings)


@pytest.fixture
def root(tmp_path):
    rooms = {b"%040x" % number: encoded(40 * number, kind) for number, kind in ((3, "WEBP"), (1, "JPEG"), (2, "WEBP"))}
    write_database(tmp_path / "bedroom_train_lmdb", rooms)
    write_database(tmp_path / "bedroom_val_lmdb", {b"a": encoded(200)})
    return tmp_path


def test_rooms_come_in_the_order_of_their_keys(root):
    check_lsun(config(root))
    data = lsun_bedroom(config(root), "train")
    images = data.fetch(torch.tensor([2, 0, 1]))
    assert images.shape == (3, 3, 8, 8)
    assert (images.flatten(1).float().mean(1) - torch.tensor([120.0, 40.0, 80.0])).abs().max() <= 2


def test_the_test_split_is_the_published_validation_set(root):
    test = lsun_bedroom(config(root), "test")
    assert len(test) == 1
    assert (test.fetch(torch.tensor([0])).float() - 200).abs().max() <= 2


def test_a_database_may_be_loaded_twice_in_a_process_and_a_limit_reads_no_more_keys(root):
    whole, few = lsun_bedroom(config(root), "train"), lsun_bedroom(config(root, limit=2), "train")
    assert (len(whole), len(few)) == (3, 2)
    assert torch.equal(whole.fetch(torch.tensor([1])), few.fetch(torch.tensor([1])))
    assert whole.fingerprint() != few.fingerprint()


def test_a_missing_database_names_its_folder_and_the_command(tmp_path):
    expected = f"no data.mdb in {tmp_path}/bedroom_train_lmdb; get the files with: ebm data download lsun_bedroom"
    for look in (check_lsun, lambda cfg: lsun_bedroom(cfg, "train")):
        with pytest.raises(DataError, match=expected):
            look(config(tmp_path))


def test_damaged_databases_and_images_are_named(root, tmp_path):
    write_database(root / "bedroom_val_lmdb", {b"a": b"no image"})
    with pytest.raises(DataError, match="bedroom_val_lmdb, key a: cannot be read as an image"):
        lsun_bedroom(config(root), "test").fetch(torch.tensor([0]))
    (tmp_path / "other" / "bedroom_train_lmdb").mkdir(parents=True)
    (tmp_path / "other" / "bedroom_train_lmdb" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="bedroom_train_lmdb: not a readable LMDB database"):
        lsun_bedroom(config(tmp_path / "other"), "train")


def test_an_empty_database_is_refused(tmp_path):
    write_database(tmp_path / "bedroom_train_lmdb", {})
    with pytest.raises(DataError, match="no images in"):
        lsun_bedroom(config(tmp_path), "train")
