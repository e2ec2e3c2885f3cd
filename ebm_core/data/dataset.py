"""A data set: images by number, with what is known about each. Readers build it, `batches.py` draws from it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data.images import fit
from ebm_core.errors import DataError
from ebm_core.types import ImageShape, Pixels

MEMORY_BYTES = 512 * 2**20
"""Decoded images that `remembered` may hold."""


Read = Callable[[Tensor], Tensor]
"""Numbers of images (b), int64 in 0 to n - 1, to the images (b c h w), uint8."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """`num_images` images of one split, all of `image_shape`; n stands for `num_images` below."""

    cfg: DataConfig
    """The settings it was loaded with."""
    split: str
    """train or test"""
    num_images: int
    read: Read
    """What `fetch` checks and calls."""
    content: Callable[[int], Iterable[bytes]]
    """What `fingerprint` covers of the first so many images."""
    labels: Int64[Tensor, "n"] | None = None
    """Class of each image, an index into `class_names`."""
    class_names: tuple[str, ...] = ()
    attributes: Float[Tensor, "n k"] | None = None
    """1 where an image has the attribute of that column, else 0."""
    attribute_names: tuple[str, ...] = ()
    files: Sequence[Path] = ()
    """The file of each image, for sets decoded per fetch from one file each; empty for the others."""
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    """Continuous factors of rendered images by name, each (n); empty for photographs."""
    shards: tuple[int, ...] = ()
    """Numbers of images, in order, that are read together, for sets that memory does not hold; empty for the others."""
    expect: Callable[[Tensor], None] | None = None
    """Told the numbers of images that will be fetched in a while; None where nothing is gained by it."""

    @property
    def name(self) -> str:
        """The key in DATASETS."""
        return self.cfg.name

    @property
    def image_shape(self) -> ImageShape:
        """(channels, height, width) of one image."""
        return (self.cfg.channels, self.cfg.image_size, self.cfg.image_size)

    def __len__(self) -> int:
        return self.num_images

    def fetch(self, index: Int64[Tensor, "b"]) -> Pixels:
        """Images by number, uint8 (b c h w). DataError for a number out of range or a file that cannot be decoded."""
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < self.num_images):
            raise DataError(
                f"{self.name}: image {int(index.max() if index.max() >= self.num_images else index.min())} asked for; "
                f"the {self.split} split has 0 to {self.num_images - 1}"
            )
        levels = self.read(index)
        assert (levels.dtype, tuple(levels.shape)) == (torch.uint8, (len(index), *self.image_shape))
        return levels

    def fingerprint(self) -> str:
        """SHA-256 (hex) over name, split, shape, labels and attributes, and the images: their pixels for sets held in
        memory, names and sizes of the files for sets decoded per fetch, keys for LSUN, the recipe for rendered ones."""
        names = (self.class_names, self.attribute_names)
        digest = hashlib.sha256(repr((self.name, self.split, self.num_images, self.image_shape, names)).encode())
        for table in (self.labels, self.attributes):
            digest.update(b"\0" if table is None else table.numpy().tobytes())
        for part in self.content(self.num_images):
            digest.update(part)
        return digest.hexdigest()


def from_pixels(
    pixels: Pixels,
    cfg: DataConfig,
    split: str,
    labels: Int64[Tensor, "n"] | None = None,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """A data set of images held in memory at their own size; brought to `cfg`'s shape when fetched."""
    return Dataset(
        cfg=cfg,
        split=split,
        num_images=len(pixels),
        read=lambda index: fit(pixels[index], cfg.image_size, cfg.channels),
        content=lambda num: [pixels[:num].numpy().tobytes()],
        labels=labels,
        class_names=class_names,
    )


def limited(dataset: Dataset, limit: int) -> Dataset:
    """The first `limit` images."""
    num = min(limit, len(dataset))
    starts = accumulate(dataset.shards, initial=0)
    return replace(
        dataset,
        num_images=num,
        shards=tuple(
            min(size, num - start) for size, start in zip(dataset.shards, starts, strict=False) if start < num
        ),
        files=dataset.files[:num],
        labels=None if dataset.labels is None else dataset.labels[:num],
        attributes=None if dataset.attributes is None else dataset.attributes[:num],
        factors={name: values[:num] for name, values in dataset.factors.items()},
    )


def remembered(read: Read, num_images: int, image_shape: ImageShape) -> Read:
    """`read` that makes each image once, when the whole set fits in MEMORY_BYTES; otherwise `read` itself."""
    channels, height, width = image_shape
    if num_images * channels * height * width > MEMORY_BYTES:
        return read
    images = torch.empty((num_images, *image_shape), dtype=torch.uint8)  # pages are taken when they are written
    known = torch.zeros(num_images, dtype=torch.bool)

    def read_once(index: Tensor) -> Tensor:
        new = index[~known[index]].unique()
        if len(new):
            images[new] = read(new)
            known[new] = True
        return images[index]

    return read_once


def thinned(length: int, count: int) -> Int64[Tensor, "n"]:
    """At most `count` of the numbers below `length`, evenly spread: files are often sorted by class."""
    count = min(length, count)
    return torch.arange(count) * length // count
