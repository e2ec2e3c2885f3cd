"""The small sets are read from files in their published formats; damaged files are refused by name."""

import gzip
import hashlib
import io
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from sklearn.datasets import load_digits

from ebm_core.config import DataConfig
from ebm_core.data import small
from ebm_core.data.files import MD5
from ebm_core.data.vision import torchvision
from ebm_core.errors import DataError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)


def md5_of(root: Path) -> dict[str, str]:
    """Checksums of the files that a test made, in place of the published ones."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


# --- digits


def test_digits_are_scikit_learns_images_with_levels_spread_from_0_to_255():
    cfg = DataConfig(name="digits", image_size=8, channels=1)
    train, test = small.digits(cfg, "train"), small.digits(cfg, "test")
    assert (len(train), len(test)) == (1500, 297)
    images = torch.cat([data.fetch(torch.arange(len(data))) for data in (train, test)])
    assert sorted(images.unique().tolist()) == [round(k * 255 / 16) for k in range(17)]
    # both splits together are the whole set, each image once and with its own label
    found = sorted(
        (*image.flatten().tolist(), label) for image, label in zip(images, labels_of(train, test), strict=True)
    )
    bunch = load_digits()
    levels = np.rint(bunch.images * 255 / 16).astype(int).reshape(1797, 64)
    assert found == sorted((*image.tolist(), int(label)) for image, label in zip(levels, bunch.target, strict=True))


def labels_of(*parts) -> list[int]:
    return [label for data in parts for label in data.labels.tolist()]


def test_both_splits_of_digits_have_each_class_in_proportion():
    cfg = DataConfig(name="digits", image_size=8, channels=1)
    train, test = (np.bincount(labels_of(small.digits(cfg, split))) for split in ("train", "test"))
    assert np.abs(train / 1500 - test / 297).max() < 0.005


def test_the_split_of_digits_is_the_same_everywhere():
    cfg = DataConfig(name="digits", image_size=8, channels=1)
    assert small.digits(cfg, "test").fingerprint().startswith("089d5cf44e81f069")
    assert small.digits(cfg, "train").fingerprint().startswith("4569f7038c34cd58")


# --- MNIST and Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_set(root: Path, folder: str, pack: Callable[[bytes], bytes] | None = gzip.compress) -> dict:
    """Twelve training and six test images with labels; returns the arrays by file name."""
    made = {}
    (root / folder / "raw").mkdir(parents=True)
    for part, num in (("train", 12), ("t10k", 6)):
        made[f"{part}-images-idx3-ubyte"] = noise(num, 28, 28)
        made[f"{part}-labels-idx1-ubyte"] = (np.arange(num) % 10).astype(np.uint8)
    for name, array in made.items():
        content = idx(array)
        path = root / folder / "raw" / (f"{name}.gz" if pack else name)
        path.write_bytes(pack(content) if pack else content)
    return made


@pytest.mark.parametrize(("folder", "name"), [("MNIST", "mnist"), ("FashionMNIST", "fashion_mnist")])
@pytest.mark.parametrize("pack", [gzip.compress, None])
def test_idx_files_are_read_packed_or_not(tmp_path, folder, name, pack):
    made = write_idx_set(tmp_path, folder, pack)
    cfg = DataConfig(name=name, root=str(tmp_path), image_size=28, channels=1)
    for split, part, num in (("train", "train", 12), ("test", "t10k", 6)):
        data = getattr(small, name)(cfg, split, md5_of(tmp_path))
        assert np.array_equal(data.fetch(torch.arange(num))[:, 0], made[f"{part}-images-idx3-ubyte"])
        assert data.labels.tolist() == made[f"{part}-labels-idx1-ubyte"].tolist()
        assert len(data.class_names) == 10


def test_unpacked_idx_files_read_as_torchvision_reads_them(tmp_path):
    write_idx_set(tmp_path, "MNIST", None)
    theirs = torchvision().datasets.MNIST(tmp_path, train=True)
    data = small.mnist(DataConfig(name="mnist", root=str(tmp_path), image_size=28, channels=1), "train")
    assert torch.equal(data.fetch(torch.arange(12))[:, 0], theirs.data)
    assert torch.equal(data.labels, theirs.targets)


def test_the_published_checksum_is_what_mnist_checks_by_default(tmp_path):
    write_idx_set(tmp_path, "MNIST")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: MD5 sum .* not the published f68b3c2dcbeaaa9f"):
        small.mnist(DataConfig(name="mnist", root=str(tmp_path), image_size=28, channels=1), "train")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda content: content[:-1], "9407 bytes where its head promises 12 x 28 x 28"),
        (lambda content: b"", "not an idx file"),
        (lambda content: content[:9], "not an idx file"),
        (lambda content: b"\0\0\x09\x03" + content[4:], "not an idx file"),
        (lambda content: idx(noise(11, 28, 28)), "11 images but 12 labels"),
        (lambda content: idx(np.zeros((0, 28, 28), np.uint8)), "promises 0 x 28 x 28"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, damage, complaint):
    write_idx_set(tmp_path, "MNIST", None)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=complaint):
        small.mnist(DataConfig(name="mnist", root=str(tmp_path), image_size=28, channels=1), "train")


def test_a_gzip_file_that_breaks_off_is_refused_by_name(tmp_path):
    write_idx_set(tmp_path, "MNIST", lambda content: gzip.compress(content)[:-20])
    cfg = DataConfig(name="mnist", root=str(tmp_path), image_size=28, channels=1)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: damaged gzip file"):
        small.mnist(cfg, "train", md5_of(tmp_path))


def test_a_small_gzip_file_that_unpacks_to_a_huge_one_is_refused_without_unpacking_it_all(tmp_path):
    write_idx_set(tmp_path, "MNIST", gzip.compress)
    head = struct.pack(">HBBIII", 0, 8, 3, 2**20, 28, 28)
    bomb = gzip.compress(head + bytes(small.MAX_IDX_BYTES), 1)
    assert len(bomb) < small.MAX_IDX_BYTES / 100
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz").write_bytes(bomb + gzip.compress(bytes(2**20)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: unpacks to more than 67108864 bytes"):
        small.mnist(DataConfig(name="mnist", root=str(tmp_path), image_size=28, channels=1), "train", md5_of(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 3 * small.MAX_IDX_BYTES
    tracemalloc.stop()


def test_a_label_that_is_no_digit_is_refused(tmp_path):
    write_idx_set(tmp_path, "MNIST", None)
    (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(np.full(12, 10, np.uint8)))
    with pytest.raises(DataError, match="a label outside 0 to 9"):
        small.mnist(DataConfig(name="mnist", root=str(tmp_path), image_size=28, channels=1), "train")


# --- CIFAR


def write_cifar(root: Path, name: str) -> dict[str, np.ndarray]:
    folder, files, (label_key, names_key) = small.CIFAR[name]
    (root / folder).mkdir()
    made = {}
    for split in ("train", "test"):
        made[split] = noise(2 * len(files[split]), 3072)
        for number, file in enumerate(files[split]):
            labels = [2 * number % 7, (2 * number + 1) % 7]
            batch = {"data": made[split][2 * number : 2 * number + 2], label_key: labels}
            (root / folder / file).write_bytes(pickle.dumps(batch, protocol=4))
    meta = {names_key: [f"class {i}" for i in range(7)]}
    (root / folder / files["meta"][0]).write_bytes(pickle.dumps(meta, protocol=4))
    return made


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_in_the_files_order(tmp_path, name):
    made = write_cifar(tmp_path, name)
    for split in ("train", "test"):
        data = getattr(small, name)(DataConfig(name=name, root=str(tmp_path)), split, md5_of(tmp_path))
        num = len(made[split])
        assert np.array_equal(data.fetch(torch.arange(num)).reshape(num, 3072), made[split])
        assert data.labels.tolist() == [i % 7 for i in range(num)]
        assert data.class_names == tuple(f"class {i}" for i in range(7))


def test_pickles_written_by_python_2_are_read():
    # by hand, the opcodes of the published files: strings as U, the array by numpy.core.multiarray._reconstruct
    head = b"\x80\x02}(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    state = b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
    content = head + state + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb" + b"\x89U\x06\x01\x02\xfd\xfe\xff\x00tbu."
    found = small._ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    assert found["data"].tolist() == [[1, 2, 253], [254, 255, 0]]


def test_an_altered_cifar_file_is_refused_before_it_is_interpreted(tmp_path):
    write_cifar(tmp_path, "cifar10")
    with pytest.raises(DataError, match=r"data_batch_1: MD5 sum .* not the published c99cafc152244af753f735de768cd75f"):
        small.cifar10(DataConfig(root=str(tmp_path)), "train")


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trap-was-sprung"),))


def test_code_inside_a_pickle_does_not_run_even_with_a_matching_checksum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"data": Trap()}))
    with pytest.raises(DataError, match=r"test_batch: cannot be read .* has no place in a file of images"):
        small.cifar10(DataConfig(root=str(tmp_path)), "test", md5_of(tmp_path))
    assert not Path("trap-was-sprung").exists()


@pytest.mark.parametrize("batch", [{}, {"data": np.zeros((2, 10), np.uint8), "labels": [0, 1]}, [1]])
def test_a_pickle_of_something_else_is_refused(tmp_path, batch):
    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match="not cifar10's batches"):
        small.cifar10(DataConfig(root=str(tmp_path)), "test", md5_of(tmp_path))


# --- SVHN


def write_svhn(root: Path) -> np.ndarray:
    pixels = noise(32, 32, 3, 10)
    for split in ("train", "test"):
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": np.arange(1, 11, dtype=np.uint8)[:, None]})
    return pixels


def test_svhn_is_read_with_its_zeros_as_class_0(tmp_path):
    pixels = write_svhn(tmp_path)
    data = small.svhn(DataConfig(name="svhn", root=str(tmp_path)), "test", md5_of(tmp_path))
    images = data.fetch(torch.arange(10))
    assert all(np.array_equal(images[i].permute(1, 2, 0), pixels[..., i]) for i in range(10))
    assert data.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_a_file_that_is_not_svhns_is_refused(tmp_path):
    write_svhn(tmp_path)
    cfg = DataConfig(name="svhn", root=str(tmp_path))
    with pytest.raises(DataError, match="not the published e26dedcc434d2e4c54c9b2d4a06d8373"):
        small.svhn(cfg, "train")
    for content in (b"MATLAB", b"", None):
        if content is None:
            savemat(tmp_path / "train_32x32.mat", {"Z": np.zeros(3)})
        else:
            (tmp_path / "train_32x32.mat").write_bytes(content)
        with pytest.raises(DataError, match=r"train_32x32\.mat: not a MATLAB file"):
            small.svhn(cfg, "train", md5_of(tmp_path))


def test_every_checked_name_has_a_published_sum():
    for folder, files, _ in small.CIFAR.values():
        assert {f"{folder}/{name}" for names in files.values() for name in names} <= set(MD5)
