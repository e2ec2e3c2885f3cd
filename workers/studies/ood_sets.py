"""The sets of images that Table 3 compares, and how each is read: by the `strict` protocol or as the published code.

| | strict | paper_code |
| --- | --- | --- |
| number | all of the split | at most one for each held-out image, shuffled |
| SVHN | test split | training split |
| Textures | all 5,640: short side resized, centre crop | all, listed twice, cut from the top left |
| `textures_crop` | all 5,640, cut from the top left | as textures |
| interpolation | with a partner by one fixed permutation | with the next image of a shuffled batch of 128 |
| CIFAR-100 | test split | test split; beside it the reader that is stuck at one image |
| values | bin centres, the same for every set | dithered, differently in Textures and interpolation |

Every set has the size and channels of the model's data: grey images repeat their channel in a colour model.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data import DATASETS, Dataset, absolute_root, dequantize, load
from ebm_core.data.images import decode, fit
from ebm_core.data.prepared import is_prepared
from ebm_core.errors import ConfigError, DataError
from ebm_core.rng import stream, uniform
from ebm_core.types import Pixels, Samples

Protocol = Literal["strict", "paper_code"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)

INSIDE = "heldout"
"""The set in distribution: held-out images of the data that the model was trained on."""

MADE = ("interpolation", "noise")
"""Sets made on the spot: means of two held-out images, and uniform noise."""

CROP = "textures_crop"
"""Textures cut from the top left of the pictures as they are: the published code's reading, beside the resized one."""

FAULT = "cifar100_fault"
"""CIFAR-100 by the published reader, which returns the first image whatever is asked for."""

TABLE_3 = ("svhn", "textures", "interpolation", "cifar100")
"""The sets of Table 3, for a model of CIFAR-10."""

CODE_BATCH = 128
"""Images in a batch of the published code."""

PREPROCESSING = {
    "strict": "every set resized (short side, antialiased) and cropped to the centre, textures_crop cut from the top "
    "left; all stored as uint8 and seen at the centres of their bins",
    "paper_code": "as the published code: Textures cut from the top left; all dithered over their bins, Textures and "
    "interpolation differently from the others",
}
"""What a result says of how images reached the energy."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """A set to score: all that a worker needs to read it."""

    name: str
    """In every result and table."""
    data: DataConfig | None = None
    """Where the files are; None for the held-out images and for what is made of them."""
    protocol: Protocol = "strict"
    limit: int | None = None
    """Most images of a set; a larger one is thinned evenly (paper_code: shuffled, then cut). None: all."""
    seed: int = 0
    """Of shuffles and dither of paper_code; permutation and noise of strict are always those of seed 0."""

    @property
    def crop(self) -> bool:
        """Cut from the top left instead of resized."""
        return self.name == CROP or (self.name == "textures" and self.protocol == "paper_code")


def default_sets(trained: DataConfig, protocol: str) -> tuple[str, ...]:
    """What is scored when nobody names sets: those of Table 3 for CIFAR-10, else what needs no files."""
    if trained.name != "cifar10":
        return MADE
    return ("svhn", "textures", CROP, "interpolation", "cifar100") if protocol == "strict" else TABLE_3


def image_set(text: str, trained: DataConfig, **how: object) -> ImageSet:
    """The set that `NAME` or `NAME=FOLDER` means, read in the size and channels of `trained`; how: as in ImageSet.

    NAME: one of MADE, CROP or a data set's, whose files lie in FOLDER (by default the root of `trained`); any other
    name with a FOLDER: all images below it (of `test`, if it has folders `train` and `test`). ConfigError otherwise.
    """
    name, equals, folder = text.partition("=")
    made = name in (*MADE, INSIDE, FAULT)
    if name in MADE and not equals:
        return replace(ImageSet(name), **how)
    known = name == CROP or name in DATASETS
    if made or (equals and not folder) or not (known or (folder and _NAME.fullmatch(name))):
        raise ConfigError(
            f"out-of-distribution set {text!r}: known are {', '.join((*MADE, *DATASETS, CROP))}, the files of a set as "
            "NAME=FOLDER, or a folder of images as any other NAME=FOLDER"
        )
    root = absolute_root(folder) if folder else trained.root
    if not folder and is_prepared(root):
        if DATASETS[_dataset(name)].check is not None:
            raise ConfigError(
                f"ood.sets = {name}: not in {root}, which holds the prepared {trained.name}; say {name}=FOLDER"
            )
        root = DataConfig().root  # of no meaning to a set without files
    data = replace(trained, name=_dataset(name), root=root, condition="none", attributes=(), limit=None)
    return replace(ImageSet(name, data), **how)


def _dataset(name: str) -> str:
    """The key of DATASETS that reads the set called `name`."""
    aliases = {CROP: "textures", FAULT: "cifar100"}
    return aliases.get(name, name if name in DATASETS else "image_folder")


def stuck(which: ImageSet) -> ImageSet:
    """CIFAR-100 by the published code's faulty reader."""
    return replace(which, name=FAULT)


def open_source(which: ImageSet) -> Dataset:
    """The images that `which` draws on, without held-out ones. DataError for missing files."""
    assert which.data is not None
    root = Path(which.data.root)
    if which.data.name in ("image_folder", "textures") and is_prepared(which.data.root):
        raise DataError(f"{which.data.root} holds a prepared set; give the folder that it was made from")  # all splits
    if which.data.name == "image_folder" and not root.is_dir():
        raise DataError(f"no folder {root}; give a set's images as NAME=FOLDER")
    if which.data.name == "svhn" and which.protocol == "paper_code":
        return load(which.data, "train")
    source = load(which.data, "test")
    published_split = (root / "train").is_dir() and (root / "test").is_dir()
    if which.data.name == "textures" or (which.data.name == "image_folder" and not published_split):
        train = load(which.data, "train")
        if train.files != source.files:  # below ten images, both splits hold all of them
            source = _joined((train, source))
    return _top_left(source) if which.crop else source


def _joined(parts: Sequence[Dataset]) -> Dataset:
    """Sets of one shape, one after the other."""
    first, second = parts

    def read(index: Tensor) -> Tensor:
        images = torch.empty((len(index), *first.image_shape), dtype=torch.uint8)
        early = index < len(first)
        images[early] = first.read(index[early])
        images[~early] = second.read(index[~early] - len(first))
        return images

    return replace(
        first,
        split="all",
        num_images=len(first) + len(second),
        read=read,
        content=lambda _: chain(first.content(len(first)), second.content(len(second))),
        files=(*first.files, *second.files),
        labels=None,
        shards=(),
        expect=None,
    )


def _top_left(source: Dataset) -> Dataset:
    """The same pictures, cut from their top left corner at their own scale."""
    size, channels = source.cfg.image_size, source.cfg.channels

    def read(index: Tensor) -> Tensor:
        images = torch.empty((len(index), *source.image_shape), dtype=torch.uint8)
        for row, i in enumerate(index.tolist()):
            picture = decode(source.files[i], str(source.files[i]))[:, :size, :size]
            if picture.shape[1:] != (size, size):
                raise DataError(f"{source.files[i]}: too small to cut {size} x {size} pixels from; use whole pictures")
            images[row] = fit(picture.unsqueeze(0), size, channels)[0]
        return images

    return replace(source, read=read)


class SetReader:
    """Images of a set by number: `num_images` of them, `image_numbers` being theirs in `source`."""

    def __init__(self, which: ImageSet, heldout: Dataset) -> None:
        """DataError for missing files, a set too small to score or another image shape."""
        self._which = which
        try:
            self.source = heldout if which.data is None else open_source(which)
        except DataError as error:
            raise DataError(f"ood.sets = {which.name}: {error}") from None
        self.shape = heldout.image_shape
        if self.source.image_shape != self.shape:
            raise DataError(f"{which.name}: images of {self.source.image_shape}, not {self.shape}")
        size = len(self.source)
        if size < 2:
            raise DataError(f"ood.sets = {which.name}: {size} image(s) in it; a score needs at least 2")
        if which.protocol == "strict" or which.name == INSIDE:
            self.image_numbers, self._partners = _by_the_text(size, which.limit)
        else:
            most = min(len(heldout), len(heldout) if which.limit is None else which.limit)
            self.image_numbers, self._partners = _as_the_code(which, size, most)
        self.num_images = len(self.image_numbers)

    def images(self, start: int, stop: int) -> tuple[Pixels, Samples]:
        """Images start to stop - 1, as stored and as the energy takes them."""
        which, index, partners = self._which, self.image_numbers[start:stop], self._partners[start:stop]
        if which.name == "noise":
            shape = (len(index), *self.shape)
            levels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, start, "noise set"))
        else:
            levels = self.source.fetch(index)
        if which.name != "interpolation":
            return levels, self._values(levels, start)
        others = self.source.fetch(partners)
        middle = halfway(levels, others)
        if which.protocol == "strict":
            return middle, self._values(middle, start)
        return middle, (self._values(levels, start) + self._values(others, start, "partner's dither")) / 2

    def _values(self, levels: Pixels, start: int, purpose: str = "dither") -> Samples:
        if self._which.protocol == "strict":
            return dequantize(levels)
        rng = stream(self._which.seed, start, f"{self._which.name}: {purpose}")
        if self._which.crop:  # scaled by 255 there, by 256 in the other sets
            return levels / 255 + (uniform(tuple(levels.shape), rng) - 0.5) / 256
        return dequantize(levels, rng)


def _by_the_text(size: int, limit: int | None) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "n"]]:
    """Numbers of the images of a set, spread evenly, and of their partners in interpolation."""
    num = size if limit is None else min(size, limit)
    index = torch.arange(num) * size // num
    order = torch.randperm(size, generator=stream(0, 0, "interpolation"))
    partner = torch.empty(size, dtype=torch.int64)
    partner[order] = order.roll(-1)  # one cycle: no image is its own partner
    return index, partner[index]


def _as_the_code(which: ImageSet, size: int, most: int) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "n"]]:
    """As `_by_the_text`: a shuffled pass over the set in batches, cut where the held-out images end."""
    listed = 2 * size if which.data is not None and which.data.name == "textures" else size
    order = torch.randperm(listed, generator=stream(which.seed, 0, f"{which.name}: order")) % size
    partners = torch.cat([batch.roll(-1) for batch in order.split(CODE_BATCH)])
    if which.name == FAULT:
        order = torch.zeros_like(order)
    return order[:most], partners[:most]


def halfway(a: UInt8[Tensor, "*shape"], b: UInt8[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """The mean of two images; halves go to the even level, so that it is neither brighter nor darker."""
    pair = a.int() + b.int()
    return ((pair + pair // 2 % 2) // 2).to(torch.uint8)


def value_range(which: ImageSet) -> tuple[float, float]:
    """Lowest and highest value that a pixel of this set may have in front of the energy."""
    if which.protocol == "strict":
        return 0.5 / 256, 255.5 / 256
    return (-0.5 / 256, 1 + 0.5 / 256) if which.crop else (0.0, 1.0)


def check_alike(which: ImageSet, x: Samples, image_shape: tuple[int, ...]) -> None:
    """What makes energies of two sets comparable. DataError unless `x` is float32 of `image_shape`, in the set's range
    and, under `strict`, at the centres of the bins: another scale or a dither of its own would give a set away."""
    low, high = value_range(which)
    found = f"{which.name}: {x.dtype} images of {tuple(x.shape[1:])}"
    if x.dtype != torch.float32 or tuple(x.shape[1:]) != image_shape:
        raise DataError(f"{found}, where every set must have torch.float32 images of {image_shape}")
    if not (bool(torch.isfinite(x).all()) and float(x.min()) >= low and float(x.max()) <= high):
        raise DataError(
            f"{found} with values from {float(x.min()):.4g} to {float(x.max()):.4g}; every set must lie in "
            f"{low:.4g} to {high:.4g}"
        )
    if which.protocol == "strict" and bool(torch.frac(x * 256 - 0.5).any()):
        raise DataError(f"{found} between the levels of 8 bits, where protocol strict has bin centres for every set")
