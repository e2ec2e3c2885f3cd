"""Small sets held in memory: digits, MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, SVHN, from their files as published."""

import gzip
import io
import math
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data.dataset import Dataset, from_pixels
from ebm_core.data.files import MD5, missing, read_checked, require_files
from ebm_core.errors import DataError

TEN = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
MAX_IDX_BYTES = 64 * 2**20
"""Of an unpacked idx file; the largest published one has 47,040,016."""
DIGITS_TEST = 297
"""Of scikit-learn's 1,797 digits; the other 1,500 are for training."""


def digits(cfg: DataConfig, split: str) -> Dataset:
    """scikit-learn's 8 x 8 handwritten digits, levels 0 to 16 as uint8 0 to 255: 1,500 train, 297 test, drawn with a
    fixed seed so that both have the same share of each class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    order = np.arange(len(bunch.target))
    train, test = train_test_split(order, test_size=DIGITS_TEST, stratify=bunch.target, random_state=0)
    chosen = train if split == "train" else test
    pixels = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(bunch.target[chosen].astype(np.int64))
    return from_pixels(torch.from_numpy(pixels).unsqueeze(1), cfg, split, labels, TEN)


def mnist(cfg: DataConfig, split: str, md5: Mapping[str, str] = MD5) -> Dataset:
    """MNIST, data.root/MNIST/raw/*-ubyte.gz or unpacked: 60,000 train, 10,000 test, 28 x 28 grey."""
    return _idx_set(cfg, split, "MNIST/raw", TEN, md5)


def fashion_mnist(cfg: DataConfig, split: str, md5: Mapping[str, str] = MD5) -> Dataset:
    """Fashion-MNIST, data.root/FashionMNIST/raw: 60,000 train, 10,000 test, 28 x 28 grey."""
    return _idx_set(cfg, split, "FashionMNIST/raw", CLOTHES, md5)


def check_idx(cfg: DataConfig) -> None:
    """MNIST's or Fashion-MNIST's files are there, packed or not."""
    folder = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw"}[cfg.name]
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            _idx_path(cfg, folder, f"{part}-{kind}-ubyte")


def _idx_set(cfg: DataConfig, split: str, folder: str, class_names: tuple[str, ...], md5: Mapping[str, str]) -> Dataset:
    part = "train" if split == "train" else "t10k"
    pixels = _read_idx(cfg, _idx_path(cfg, folder, f"{part}-images-idx3-ubyte"), 3, md5)
    labels = _read_idx(cfg, _idx_path(cfg, folder, f"{part}-labels-idx1-ubyte"), 1, md5)
    _check_labels(cfg, Path(cfg.root, folder), labels, len(pixels), len(class_names))
    return from_pixels(pixels.unsqueeze(1), cfg, split, labels.long(), class_names)


def _idx_path(cfg: DataConfig, folder: str, name: str) -> Path:
    """The packed file, whose checksum is published, before the unpacked one."""
    for path in (Path(cfg.root, folder, f"{name}.gz"), Path(cfg.root, folder, name)):
        if path.is_file():
            return path
    raise missing(cfg, Path(cfg.root, folder), f"{name}.gz")


def _read_idx(cfg: DataConfig, path: Path, num_dims: int, md5: Mapping[str, str]) -> Tensor:
    """An idx file of uint8: two zero bytes, 8, number of dimensions, the dimensions (big endian), the values.

    torchvision has a reader too, but it takes unpacked files only and meets a damaged one with a bare assertion.
    """
    content = read_checked(cfg, path, md5.get(path.relative_to(cfg.root).as_posix()))
    if path.suffix == ".gz":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(MAX_IDX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file ({error}); delete it and get it again") from error
        if len(content) > MAX_IDX_BYTES:
            raise DataError(f"{path}: unpacks to more than {MAX_IDX_BYTES} bytes; delete it and get it again")
    start = 4 + 4 * num_dims
    if content[:4] != bytes((0, 0, 8, num_dims)) or len(content) < start:
        raise DataError(f"{path}: not an idx file of uint8 in {num_dims} dimensions; delete it and get it again")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", num_dims, offset=4))
    if len(content) != start + math.prod(shape) or 0 in shape:
        raise DataError(
            f"{path}: {len(content) - start} bytes where its head promises {' x '.join(map(str, shape))}; "
            "delete it and get it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


CIFAR = {
    "cifar10": (
        "cifar-10-batches-py",
        {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"], "meta": ["batches.meta"]},
        ("labels", "label_names"),
    ),
    "cifar100": (
        "cifar-100-python",
        {"train": ["train"], "test": ["test"], "meta": ["meta"]},
        ("fine_labels", "fine_label_names"),
    ),
}
"""Folder, files per split, and the keys of labels and class names."""


def cifar10(cfg: DataConfig, split: str, md5: Mapping[str, str] = MD5) -> Dataset:
    """CIFAR-10, data.root/cifar-10-batches-py: 50,000 train, 10,000 test, 32 x 32 RGB."""
    return _cifar(cfg, split, md5, *CIFAR["cifar10"])


def cifar100(cfg: DataConfig, split: str, md5: Mapping[str, str] = MD5) -> Dataset:
    """CIFAR-100 with its fine labels, data.root/cifar-100-python: 50,000 train, 10,000 test, 32 x 32 RGB."""
    return _cifar(cfg, split, md5, *CIFAR["cifar100"])


def check_cifar(cfg: DataConfig) -> None:
    """CIFAR's files are there."""
    folder, files, _ = CIFAR[cfg.name]
    require_files(cfg, [f"{folder}/{name}" for names in files.values() for name in names])


def _cifar(
    cfg: DataConfig,
    split: str,
    md5: Mapping[str, str],
    folder: str,
    files: Mapping[str, list[str]],
    keys: tuple[str, str],
) -> Dataset:
    names = [f"{folder}/{name}" for name in (*files[split], *files["meta"])]
    paths = require_files(cfg, names)
    *batches, meta = [_unpickle(cfg, path, md5[name]) for path, name in zip(paths, names, strict=True)]
    try:
        pixels = torch.from_numpy(np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32))
        labels = torch.tensor([label for batch in batches for label in batch[keys[0]]], dtype=torch.int64)
        class_names = tuple(meta[keys[1]])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{paths[0].parent}: not {cfg.name}'s batches ({error!r}); get them again") from error
    _check_labels(cfg, paths[0].parent, labels, len(pixels), len(class_names))
    return from_pixels(pixels, cfg, split, labels, class_names)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain values; any other name in the file is refused, so nothing in it can run."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("numpy", "dtype"):
            return lambda kind, *_flags: np.dtype(kind)  # the files' integer flags draw a warning from numpy 2.4
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda _kind, _shape, _type: np.ndarray((0,), np.uint8)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of images")


def _unpickle(cfg: DataConfig, path: Path, md5: str) -> Any:
    content = read_checked(cfg, path, md5)  # before a byte of it is interpreted
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: cannot be read ({error}); delete it and get it again") from error


def svhn(cfg: DataConfig, split: str, md5: Mapping[str, str] = MD5) -> Dataset:
    """SVHN's cropped digits, data.root/{train,test}_32x32.mat: 73,257 train, 26,032 test, 32 x 32 RGB. 0 is class 0."""
    from scipy.io import loadmat

    name = f"{split}_32x32.mat"
    (path,) = require_files(cfg, [name])
    content = read_checked(cfg, path, md5[name])
    try:
        matrices = loadmat(io.BytesIO(content))
        pixels = torch.from_numpy(np.ascontiguousarray(matrices["X"].transpose(3, 2, 0, 1)))
        labels = torch.from_numpy(matrices["y"].astype(np.int64).reshape(-1) % 10)  # the file calls a zero 10
    except Exception as error:  # scipy's parser raises what it happens to meet in a damaged file
        raise DataError(f"{path}: not a MATLAB file of images X and labels y ({error}); get it again") from error
    _check_labels(cfg, path, labels, len(pixels), 10)
    return from_pixels(pixels, cfg, split, labels, TEN)


def check_svhn(cfg: DataConfig) -> None:
    """SVHN's files are there."""
    require_files(cfg, ["train_32x32.mat", "test_32x32.mat"])


def _check_labels(cfg: DataConfig, path: Path, labels: Tensor, num_images: int, num_classes: int) -> None:
    if len(labels) != num_images or num_images == 0:
        raise DataError(f"{path}: {num_images} images but {len(labels)} labels; delete the files and get them again")
    if int(labels.max()) >= num_classes or int(labels.min()) < 0:
        raise DataError(f"{path}: a label outside 0 to {num_classes - 1}; delete the files and get them again")
