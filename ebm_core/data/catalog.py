"""Data sets by name: load one, see whether its files are there, get them, and turn labels into conditions."""

import http.client
import tarfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: how it is read, and what is known of it without reading."""

    build: Callable[[DataConfig, str], Dataset]
    """Reads the split `train` or `test`."""
    check: Callable[[DataConfig], Any] | None = None
    """Looks for its files without reading them; None: it needs none."""
    num_classes: int | None = None
    """Classes as published; None: known from the files alone."""
    attributes: tuple[str, ...] = ()
    """Names of its attributes, in the order of the columns."""
    torchvision: str | None = None
    """The class that fetches its files."""
    splits: tuple[str, ...] = ()
    """Splits that torchvision fetches one by one; empty: all at once."""
    elsewhere: str = ""
    """Where to find what torchvision does not fetch, with {root} for the folder to unpack it in."""


_BY_HAND = "and unpack them in {root}"

DATASETS: dict[str, Source] = {
    "digits": Source(build=small.digits, num_classes=10),
    "mnist": Source(build=small.mnist, check=small.check_idx, num_classes=10, torchvision="MNIST"),
    "fashion_mnist": Source(
        build=small.fashion_mnist, check=small.check_idx, num_classes=10, torchvision="FashionMNIST"
    ),
    "cifar10": Source(build=small.cifar10, check=small.check_cifar, num_classes=10, torchvision="CIFAR10"),
    "cifar100": Source(build=small.cifar100, check=small.check_cifar, num_classes=100, torchvision="CIFAR100"),
    "svhn": Source(
        build=small.svhn, check=small.check_svhn, num_classes=10, torchvision="SVHN", splits=("train", "test")
    ),
    "textures": Source(build=folders.textures, check=folders.check_textures, num_classes=47, torchvision="DTD"),
    "celeba_hq": Source(
        build=folders.celeba_hq,
        check=folders.check_celeba_hq,
        num_classes=0,
        attributes=folders.CELEBA_ATTRIBUTES,
        elsewhere="get CelebAMask-HQ.zip from https://github.com/switchablenorms/CelebAMask-HQ and unpack it in {root}",
    ),
    "lsun_bedroom": Source(
        build=lsun.lsun_bedroom,
        check=lsun.check_lsun,
        num_classes=0,
        elsewhere=f"get bedroom_train_lmdb.zip and bedroom_val_lmdb.zip with https://github.com/fyu/lsun {_BY_HAND}",
    ),
    "image_folder": Source(
        build=folders.image_folder,
        check=lambda cfg: folders.list_images(cfg, folders.require_folder(cfg)),
        elsewhere="set data.root to a folder of your own images",
    ),
    "objects": Source(build=objects, num_classes=len(OBJECT_CLASSES), attributes=OBJECT_ATTRIBUTES),
}
"""Data sets by name. `load` is the way in."""


def load(cfg: DataConfig, split: str = "train") -> Dataset:
    """The images that `cfg` names, split `train` (cut to data.limit) or `test`. DataError for missing or damaged files,
    ConfigError for an unknown name."""
    require_dataset(cfg.name)
    if split not in ("train", "test"):
        raise ConfigError(f"split = {split!r}: must be train or test")
    num_conditions(cfg)  # refuses a condition that this set cannot give before any file is read
    try:
        dataset = (prepared if is_prepared(cfg.root) else DATASETS[cfg.name].build)(cfg, split)
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
    elif (check := DATASETS[cfg.name].check) is not None:
        check(cfg)


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
    source = DATASETS[cfg.name]
    number = len(_class_names(cfg)) if source.num_classes is None else source.num_classes
    if number == 0:
        where = "sort the images into one sub-folder per class" if cfg.name == "image_folder" else "this set has none"
        other = " or set data.condition=attributes" if source.attributes else " or set data.condition=none"
        raise ConfigError(f"data.condition = 'label': {cfg.name} has no class labels ({where}){other}")
    return number


def _class_names(cfg: DataConfig) -> tuple[str, ...]:
    return read_manifest(cfg).class_names if is_prepared(cfg.root) else folders.class_folders(cfg)


def chosen_attributes(cfg: DataConfig) -> tuple[str, ...]:
    """Names of the attributes to condition on: data.attributes, or all that the set has. ConfigError if unknown."""
    known = DATASETS[cfg.name].attributes
    if not known:
        some = " and ".join(name for name, source in DATASETS.items() if source.attributes)
        raise ConfigError(f"data.condition = 'attributes': {cfg.name} has no attributes; {some} have some")
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


def download(name: str, root: str | Path) -> str:
    """Fetch a set's files into `root` through torchvision, which checks their sums; returns what was done in a line.

    DataError if the set must be fetched by hand (it says where), or if the network or the folder does not answer.
    """
    require_dataset(name)
    if "://" in str(root):
        raise DataError(f"{name}: downloads go to a folder, not to {root}; from there `ebm data prepare` stores it")
    source = DATASETS[name]
    if source.check is None:
        return f"{name}: nothing to download, the images come with the program"
    if source.torchvision is None:
        raise DataError(f"{name}: not available through torchvision; {source.elsewhere.format(root=root)}")
    try:
        with warnings.catch_warnings(), filtered_archives():
            warnings.simplefilter("ignore")  # torchvision's readers are older than numpy's warnings
            _fetch(source, Path(root))
    except (OSError, EOFError, RuntimeError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: download to {root} failed ({reason}); check the network and the folder") from error
    return f"{name}: files are in {root}"


def _fetch(source: Source, root: Path) -> None:
    """torchvision's own data sets fetch their files and check them as they are built."""
    build = getattr(torchvision().datasets, str(source.torchvision))
    for split in source.splits:
        build(root, split=split, download=True)
    if not source.splits:
        build(root, download=True)
