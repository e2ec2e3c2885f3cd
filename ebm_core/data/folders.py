"""Sets of image files, decoded when they are fetched: any folder, DTD's textures, CelebA-HQ with its attributes."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data.dataset import Dataset, remembered
from ebm_core.data.files import missing
from ebm_core.data.images import SUFFIXES, decode, fit
from ebm_core.errors import DataError

HELD_OUT = 10
"""Where nobody published a split, every tenth image in the order of names is for testing."""

CELEBA_ATTRIBUTES = (
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose"),
    *("Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses"),
    *("Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
    *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks"),
    *("Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick"),
    *("Wearing_Necklace", "Wearing_Necktie", "Young"),
)
"""The 40 columns of the published table, in its order."""

ATTRIBUTE_FILE = "CelebAMask-HQ-attribute-anno.txt"


def image_folder(cfg: DataConfig, split: str) -> Dataset:
    """Any images below data.root. Sub-folders, if every image lies in one, are the classes. Folders `train` and `test`,
    if there are both, are the splits; otherwise every tenth image is held out (below ten images: all are in both)."""
    root = require_folder(cfg)
    splits = (root / "train").is_dir() and (root / "test").is_dir()
    folder = root / split if splits else root
    paths = list_images(cfg, folder)
    class_names = class_folders(cfg)
    labels = None
    if class_names:
        numbers = {name: number for number, name in enumerate(class_names)}
        tops = [path.relative_to(folder).parts[0] for path in paths]
        unknown = sorted(set(tops) - set(numbers))
        if unknown:
            raise DataError(f"image_folder: {folder} has the class {unknown[0]!r}, which {root / 'train'} lacks")
        labels = torch.tensor([numbers[top] for top in tops], dtype=torch.int64)
    keep = torch.arange(len(paths)) if splits else held_out(len(paths), split)
    return _of_files(cfg, split, folder, paths, keep, labels=labels, class_names=class_names)


def require_folder(cfg: DataConfig) -> Path:
    """data.root as a folder that exists."""
    root = Path(cfg.root)
    if not root.is_dir():
        raise DataError(f"{cfg.name}: no folder {root}; set data.root to a folder of images")
    return root


def class_folders(cfg: DataConfig) -> tuple[str, ...]:
    """Names of the sub-folders that are classes of an image folder; none if an image lies outside of them."""
    root = require_folder(cfg)
    folder = root / "train" if (root / "train").is_dir() and (root / "test").is_dir() else root
    parts = [path.relative_to(folder).parts for path in list_images(cfg, folder)]
    return tuple(sorted({part[0] for part in parts})) if all(len(part) > 1 for part in parts) else ()


def list_images(cfg: DataConfig, folder: Path) -> list[Path]:
    """Image files anywhere below `folder`, without hidden ones, in the order of their names (numbers by value)."""
    found: list[Path] = []
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(base, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise DataError(f"{cfg.name}: no images ({kinds}) in {folder}; set data.root to a folder that has some")
    return sorted(found, key=_natural)


def _natural(path: Path) -> tuple:
    """Sorts 2.jpg before 10.jpg."""
    stem = path.stem
    return (path.parent.as_posix(), not stem.isdecimal(), int(stem) if stem.isdecimal() else 0, path.name)


def held_out(num_images: int, split: str) -> Int64[Tensor, "m"]:
    """Numbers of the images of a split: every tenth is for testing. Fewer than ten images are all in both splits."""
    index = torch.arange(num_images)
    if num_images < HELD_OUT:
        return index
    last = index % HELD_OUT == HELD_OUT - 1
    return index[last if split == "test" else ~last]


def textures(cfg: DataConfig, split: str) -> Dataset:
    """Describable Textures (DTD), data.root/dtd/dtd as torchvision unpacks it or data.root/dtd: 47 classes; train is
    the first published partition's train and val (3,760), test its test (1,880), together all 5,640."""
    folder = check_textures(cfg)
    lines: list[str] = []
    for name in ("train1.txt", "val1.txt") if split == "train" else ("test1.txt",):
        path = folder / "labels" / name
        if not path.is_file():
            raise missing(cfg, path.parent, name)
        lines += path.read_text().split()
    class_names = tuple(sorted(path.name for path in (folder / "images").iterdir() if path.is_dir()))
    numbers = {name: number for number, name in enumerate(class_names)}
    paths = [folder / "images" / line for line in lines]
    for path in paths:
        if path.parent.name not in numbers or not path.is_file():
            raise missing(cfg, path.parent, path.name)
    labels = torch.tensor([numbers[path.parent.name] for path in paths], dtype=torch.int64)
    keep = torch.arange(len(paths))
    return _of_files(cfg, split, folder, paths, keep, labels=labels, class_names=class_names)


def check_textures(cfg: DataConfig) -> Path:
    """The folder that holds DTD's `images` and `labels`."""
    for folder in (Path(cfg.root, "dtd", "dtd"), Path(cfg.root, "dtd")):
        if (folder / "images").is_dir() and (folder / "labels").is_dir():
            return folder
    raise missing(cfg, Path(cfg.root, "dtd", "dtd"), "folders images and labels")


def celeba_hq(cfg: DataConfig, split: str) -> Dataset:
    """CelebA-HQ with 40 attributes: data.root/celeba_hq (images and the table of attributes) or data.root/CelebAMask-HQ
    as published (images in CelebA-HQ-img). Every tenth image is for testing: 27,000 and 3,000 of the published."""
    folder, table = check_celeba_hq(cfg)
    paths = list_images(cfg, folder)
    attributes = _read_attributes(table, [path.name for path in paths])
    keep = held_out(len(paths), split)
    return _of_files(cfg, split, folder, paths, keep, attributes=attributes, attribute_names=CELEBA_ATTRIBUTES)


def check_celeba_hq(cfg: DataConfig) -> tuple[Path, Path]:
    """The folder of CelebA-HQ's images and the path of its table of attributes."""
    for folder, images in (("celeba_hq", ""), ("CelebAMask-HQ", "CelebA-HQ-img")):
        table = Path(cfg.root, folder, ATTRIBUTE_FILE)
        if Path(cfg.root, folder, images).is_dir() and table.is_file():
            return Path(cfg.root, folder, images), table
    raise missing(cfg, Path(cfg.root, "celeba_hq"), f"images with {ATTRIBUTE_FILE}")


def _read_attributes(table: Path, names: Sequence[str]) -> Float[Tensor, "n k"]:
    """1 for yes and 0 for no, a row per image of `names`. The file: a count; the names; rows `file 1 -1 ...`."""
    try:
        lines = table.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read as text ({error})") from error
    if len(lines) < 2 or tuple(lines[1].split()) != CELEBA_ATTRIBUTES:
        raise DataError(f"{table}: line 2 must name CelebA's 40 attributes as published; get the file again")
    rows: dict[str, list[str]] = {}
    for number, line in enumerate(lines[2:], start=3):
        if not line.strip():
            continue
        name, *values = line.split()
        if len(values) != len(CELEBA_ATTRIBUTES) or not set(values) <= {"1", "-1"}:
            raise DataError(f"{table}: line {number} must be a file and {len(CELEBA_ATTRIBUTES)} values 1 or -1")
        rows[name] = values
    if lines[0].strip() != str(len(rows)):
        raise DataError(f"{table}: {len(rows)} rows where line 1 promises {lines[0].strip()}; the file is cut off")
    absent = [name for name in names if name not in rows]
    if absent:
        raise DataError(f"{table}: no row for the image {absent[0]} ({len(absent)} of {len(names)} lack one)")
    return torch.tensor([[float(value == "1") for value in rows[name]] for name in names])


def _of_files(
    cfg: DataConfig,
    split: str,
    folder: Path,
    paths: Sequence[Path],
    keep: Int64[Tensor, "m"],
    *,
    labels: Int64[Tensor, "n"] | None = None,
    class_names: tuple[str, ...] = (),
    attributes: Float[Tensor, "n k"] | None = None,
    attribute_names: tuple[str, ...] = (),
) -> Dataset:
    """The files of `paths` that `keep` names, in that order; labels and attributes are of all `paths`."""
    kept = [paths[i] for i in keep.tolist()]
    shape = (cfg.channels, cfg.image_size, cfg.image_size)

    def read(index: Tensor) -> Tensor:
        images = torch.empty((len(index), *shape), dtype=torch.uint8)
        for row, i in enumerate(index.tolist()):
            images[row] = fit(decode(kept[i], str(kept[i])).unsqueeze(0), cfg.image_size, cfg.channels)[0]
        return images

    def content(num_images: int) -> Iterable[bytes]:
        for path in kept[:num_images]:
            yield f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\n".encode()

    return Dataset(
        cfg=cfg,
        split=split,
        num_images=len(kept),
        read=remembered(read, len(kept), shape),
        content=content,
        files=tuple(kept),
        labels=None if labels is None else labels[keep],
        class_names=class_names,
        attributes=None if attributes is None else attributes[keep],
        attribute_names=attribute_names,
    )
