"""Data sets by name: load one, see whether its files are there, get them, and turn labels into conditions."""

import http.client
import tarfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data import folders, lsun, small
from ebm_core.data.archives import filtered_archives
from ebm_core.data.dataset import Dataset, limited
from ebm_core.data.objects import OBJECT_ATTRIBUTES, OBJECT_CLASSES, objects
from ebm_core.data.prepared import is_prepared, prepared, read_manifest
from ebm_core.data.vision import torchvision
from ebm_core.errors import ConfigError, DataError, did_you_mean
from ebm_core.presets import PRESETS

DATASETS: dict[str, Callable[[DataConfig, str], Dataset]] = {
    "digits": small.digits,
    "mnist": small.mnist,
    "fashion_mnist": small.fashion_mnist,
    "cifar10": small.cifar10,
    "cifar100": small.cifar100,
    "svhn": small.svhn,
    "textures": folders.textures,
    "celeba_hq": folders.celeba_hq,
    "lsun_bedroom": lsun.lsun_bedroom,
    "image_folder": folders.image_folder,
    "objects": objects,
}
"""Name -> builder(cfg, split). `load` is the way in."""

CHECKS: dict[str, Callable[[DataConfig], Any]] = {
    "mnist": small.check_idx,
    "fashion_mnist": small.check_idx,
    "cifar10": small.check_cifar,
    "cifar100": small.check_cifar,
    "svhn": small.check_svhn,
    "textures": folders.check_textures,
    "celeba_hq": folders.check_celeba_hq,
    "lsun_bedroom": lsun.check_lsun,
    "image_folder": lambda cfg: folders.list_images(cfg, folders.require_folder(cfg)),
}
"""What looks for a set's files without reading them; a set that needs none is not here."""

NUM_CLASSES = {
    "digits": 10,
    "mnist": 10,
    "fashion_mnist": 10,
    "cifar10": 10,
    "cifar100": 100,
    "svhn": 10,
    "textures": 47,
    "celeba_hq": 0,
    "lsun_bedroom": 0,
    "objects": len(OBJECT_CLASSES),
}
"""Classes as published, known without files. An image folder's are its sub-folders."""

ATTRIBUTES = {"celeba_hq": folders.CELEBA_ATTRIBUTES, "objects": OBJECT_ATTRIBUTES}
"""Attribute names in the order of the columns, for the sets that have any."""


def load(cfg: DataConfig, split: str = "train") -> Dataset:
    """The images that `cfg` names, split `train` (cut to data.limit) or `test`. DataError for missing or damaged files,
    ConfigError for an unknown name."""
    require_dataset(cfg.name)
    if split not in ("train", "test"):
        raise ConfigError(f"split = {split!r}: must be train or test")
    num_conditions(cfg)  # refuses a condition that this set cannot give before any file is read
    try:
        dataset = (prepared if is_prepared(cfg.root) else DATASETS[cfg.name])(cfg, split)
    except OSError as error:
        raise DataError(f"{cfg.name}: cannot read {error.filename or cfg.root}: {error.strerror or error}") from error
    return limited(dataset, cfg.limit) if split == "train" and cfg.limit is not None else dataset


def require_dataset(name: str) -> None:
    """ConfigError with the known names, the nearest first, unless `name` is one."""
    if name in DATASETS:
        return
    hint = did_you_mean(name, DATASETS)
    raise ConfigError(f"data.name = {name!r}: unknown data set; known: {', '.join(DATASETS)}{hint}")


def default_config(name: str) -> DataConfig:
    """The data section of the preset called `name`; for a data set without a preset, DataConfig's defaults."""
    if name in PRESETS:
        return PRESETS[name]().data
    require_dataset(name)
    return DataConfig(name=name)


def check_files(cfg: DataConfig) -> None:
    """DataError with the folder looked in and the command to run, unless the files are there. Reads none of them."""
    require_dataset(cfg.name)
    if is_prepared(cfg.root):
        read_manifest(cfg)
    elif cfg.name in CHECKS:
        CHECKS[cfg.name](cfg)


def num_conditions(cfg: DataConfig) -> int:
    """Length of the condition vector of one image: 0, the number of classes, or of attributes.

    ConfigError if the set has no labels or no such attributes. Only an image folder, or what was prepared
    from one, is looked at to know.
    """
    require_dataset(cfg.name)
    if cfg.condition == "none":
        return 0
    if cfg.condition == "attributes":
        return len(chosen_attributes(cfg))
    number = NUM_CLASSES[cfg.name] if cfg.name in NUM_CLASSES else len(_class_names(cfg))
    if number == 0:
        where = "sort the images into one sub-folder per class" if cfg.name == "image_folder" else "this set has none"
        other = " or set data.condition=attributes" if cfg.name in ATTRIBUTES else " or set data.condition=none"
        raise ConfigError(f"data.condition = 'label': {cfg.name} has no class labels ({where}){other}")
    return number


def _class_names(cfg: DataConfig) -> tuple[str, ...]:
    return read_manifest(cfg).class_names if is_prepared(cfg.root) else folders.class_folders(cfg)


def chosen_attributes(cfg: DataConfig) -> tuple[str, ...]:
    """Names of the attributes to condition on: data.attributes, or all that the set has. ConfigError if unknown."""
    known = ATTRIBUTES.get(cfg.name, ())
    if not known:
        raise ConfigError(
            f"data.condition = 'attributes': {cfg.name} has no attributes; {' and '.join(ATTRIBUTES)} have some"
        )
    for name in cfg.attributes:
        if name not in known:
            raise ConfigError(f"data.attributes: {cfg.name} has no attribute {name!r}; known: {', '.join(known)}")
        if cfg.attributes.count(name) > 1:
            raise ConfigError(f"data.attributes: {name!r} is named twice; name it once")
    return cfg.attributes or known


def condition_table(dataset: Dataset, cfg: DataConfig) -> Float[Tensor, "n k"] | None:
    """What a conditional energy E(x, c) is told about each image (Section 3.3): one-hot labels, or the chosen
    attributes as 0 and 1; None without a condition. k is `num_conditions(cfg)`."""
    if cfg.condition == "none":
        return None
    if cfg.condition == "label":
        if dataset.labels is None:
            raise ConfigError(f"data.condition = 'label': {dataset.name} has no class labels; set data.condition=none")
        return F.one_hot(dataset.labels, num_conditions(cfg)).float()
    names = chosen_attributes(cfg)
    assert dataset.attributes is not None
    columns = [dataset.attribute_names.index(name) for name in names]
    return dataset.attributes[:, torch.tensor(columns)]


ELSEWHERE = {
    "celeba_hq": "get CelebAMask-HQ.zip from https://github.com/switchablenorms/CelebAMask-HQ and unpack it in {root}",
    "lsun_bedroom": "get bedroom_train_lmdb.zip and bedroom_val_lmdb.zip with https://github.com/fyu/lsun "
    "and unpack them in {root}",
    "image_folder": "set data.root to a folder of your own images",
}
"""Where to find what torchvision does not fetch."""


def download(name: str, root: str | Path) -> str:
    """Fetch a set's files into `root` through torchvision, which checks their sums; returns what was done in a line.

    DataError if the set must be fetched by hand (it says where), or if the network or the folder does not answer.
    """
    require_dataset(name)
    if "://" in str(root):
        raise DataError(f"{name}: downloads go to a folder, not to {root}; from there `ebm data prepare` stores it")
    if name not in CHECKS:
        return f"{name}: nothing to download, the images come with the program"
    if name in ELSEWHERE:
        raise DataError(f"{name}: not available through torchvision; {ELSEWHERE[name].format(root=root)}")
    try:
        with warnings.catch_warnings(), filtered_archives():
            warnings.simplefilter("ignore")  # torchvision's readers are older than numpy's warnings
            _fetch(name, Path(root))
    except (OSError, EOFError, RuntimeError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: download to {root} failed ({reason}); check the network and the folder") from error
    return f"{name}: files are in {root}"


def _fetch(name: str, root: Path) -> None:
    """torchvision's own data sets fetch their files and check them as they are built."""
    sets = torchvision().datasets
    if name == "svhn":
        for split in ("train", "test"):
            sets.SVHN(root, split=split, download=True)
    else:
        builders = {
            "mnist": sets.MNIST,
            "fashion_mnist": sets.FashionMNIST,
            "cifar10": sets.CIFAR10,
            "cifar100": sets.CIFAR100,
            "textures": sets.DTD,
        }
        builders[name](root, download=True)
