"""Out-of-distribution detection (Table 3): -E(x) as a score of being in distribution, beside what needs no training.

Every set is read with the settings of the model's own data, so that size, range and quantisation agree; energies are
taken at the centres of the pixels' bins, without dither.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data import DATASETS, Dataset, load
from ebm_core.errors import ConfigError, DataError
from ebm_core.rng import stream
from ebm_core.types import Pixels
from workers import scores

INSIDE = "heldout"
"""The set in distribution: held-out images of the data that the model was trained on."""

MADE = ("interpolation", "noise")
"""Sets made on the spot: means of two held-out images, and uniform noise."""

PUBLISHED = {"svhn": 0.91, "textures": 0.88, "interpolation": 0.65, "cifar100": 0.83}
"""AUROC of Table 3, for an unconditional model of CIFAR-10."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """A set to score: `name` in every result; `data` says where its files are, None for sets made on the spot."""

    name: str
    data: DataConfig | None = None


def image_set(text: str, trained: DataConfig) -> ImageSet:
    """The set that `NAME` or `NAME=FOLDER` means, read in the size and channels of `trained`.

    NAME: one of MADE or a data set's; FOLDER: its root, by default that of `trained`. ConfigError for an unknown name.
    """
    name, _, folder = text.partition("=")
    if name in MADE and not folder:
        return ImageSet(name)
    if name not in DATASETS or name in MADE:
        raise ConfigError(
            f"out-of-distribution set {text!r}: known are {', '.join((*MADE, *DATASETS))}, or NAME=FOLDER"
        )
    same = {"condition": "none", "attributes": (), "limit": None}
    return ImageSet(name, replace(trained, name=name, root=folder or trained.root, **same))


class SetReader:
    """Images of a set by number: `num_images` of them, (c h w) as those of the held-out split."""

    def __init__(self, which: ImageSet, heldout: Dataset, limit: int) -> None:
        """limit: a larger set is thinned evenly. DataError for missing files, an empty set or another image shape."""
        self._which = which
        self._heldout = heldout
        self._source = heldout if which.data is None else load(which.data, "test")
        if self._source.image_shape != heldout.image_shape:
            raise DataError(f"{which.name}: images of {self._source.image_shape}, not {heldout.image_shape}")
        size = len(self._source)
        if not size or (which.name == "interpolation" and size < 2):
            raise DataError(f"{which.name}: {size} images are too few to score")
        self.num_images = min(size, limit)
        self._index = torch.arange(self.num_images) * size // self.num_images
        self._partner = torch.empty(size, dtype=torch.int64)
        order = torch.randperm(size, generator=stream(0, 0, "interpolation"))
        self._partner[order] = order.roll(-1)  # one cycle: no image is its own partner

    def images(self, start: int, stop: int) -> Pixels:
        """Images start to stop - 1."""
        index = self._index[start:stop]
        if self._which.name == "noise" and self._which.data is None:
            shape = (len(index), *self._heldout.image_shape)
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, start, "noise set"))
        found = self._source.fetch(index)
        if self._which.name == "interpolation" and self._which.data is None:
            return halfway(found, self._source.fetch(self._partner[index]))
        return found


def halfway(a: UInt8[Tensor, "*shape"], b: UInt8[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """The mean of two images; halves go to the even level, so that it is neither brighter nor darker."""
    pair = a.int() + b.int()
    return ((pair + pair // 2 % 2) // 2).to(torch.uint8)


def total_variation(images: Pixels) -> Float[np.ndarray, "n"]:
    """Sum of absolute differences between neighbouring pixels, in pixels of [0, 1]."""
    x = images.numpy().astype(np.int64)
    down, across = np.abs(np.diff(x, axis=2)), np.abs(np.diff(x, axis=3))
    return (down.sum(axis=(1, 2, 3)) + across.sum(axis=(1, 2, 3))) / 256


def png_bytes(images: Pixels) -> Float[np.ndarray, "n"]:
    """Size of each image as a PNG file: how complex a compressor finds it."""
    sizes = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, format="PNG", compress_level=6)
        sizes.append(file.tell())
    return np.asarray(sizes, dtype=np.float64)


def pixel_std(images: Pixels) -> Float[np.ndarray, "n"]:
    """Standard deviation over an image's values, in pixels of [0, 1]."""
    return images.numpy().reshape(len(images), -1).std(axis=1, dtype=np.float64) / 256


LOW_LEVEL: Mapping[str, Callable[[Pixels], np.ndarray]] = {
    "total_variation": total_variation,
    "png_bytes": png_bytes,
    "pixel_std": pixel_std,
}
"""Stand-ins for -E that know nothing of the data: the richer in detail, the more in distribution. With CIFAR-10 inside,
this sign reaches much of Table 3 without training, since SVHN and mixed images are smooth."""

Columns = Mapping[str, Float[np.ndarray, "n"]]
"""`energy` and each of LOW_LEVEL of the images of one set."""


def measure(images: Pixels, energies: Float[np.ndarray, "n"]) -> Columns:
    """The columns of some images."""
    return {"energy": energies, **{name: function(images) for name, function in LOW_LEVEL.items()}}


def table(found: Mapping[str, Columns]) -> pa.Table:
    """One row per image: set, index, energy and the low-level quantities, from which every score can be made again."""
    names = np.concatenate([np.repeat(name, len(c["energy"])) for name, c in found.items()])
    index = np.concatenate([np.arange(len(c["energy"])) for c in found.values()])
    columns = {key: np.concatenate([c[key] for c in found.values()]) for key in ("energy", *LOW_LEVEL)}
    return pa.table({"set": pa.array(names.tolist()), "index": index, **columns})


def report(found: Mapping[str, Columns], published: Mapping[str, float]) -> dict[str, object]:
    """Scores of every set against INSIDE, by the energy and by each of LOW_LEVEL.

    published: AUROC of Table 3 by set, kept beside ours. `value`: mean AUROC over the sets other than noise (over all,
    if noise is the only one). Intervals: 95 % bootstrap.
    """
    outside = [name for name in found if name != INSIDE]
    if not outside:
        raise ConfigError("no out-of-distribution set given: name at least one with --ood")
    sets = {}
    for name in outside:
        inside, other = -found[INSIDE]["energy"], -found[name]["energy"]
        sets[name] = {
            **scores.detection(inside, other),
            "auroc_interval": scores.auroc_interval(inside, other, np.random.default_rng(0)),
            "num_images": len(other),
            "published_auroc": published.get(name),
            "low_level_auroc": {
                key: scores.auroc(found[INSIDE][key], found[name][key]) for key in LOW_LEVEL
            },
        }  # fmt: skip
    counted = [name for name in outside if name != "noise"] or outside
    return {
        "value": float(np.mean([sets[name]["auroc"] for name in counted])),
        "num_inside": len(found[INSIDE]["energy"]),
        "sets": sets,
    }


def histograms_png(found: Mapping[str, Columns], title: str) -> bytes:
    """Energy histograms of all sets over one range as a PNG: AUROC hides where the sets lie."""
    figure = Figure(figsize=(8, 1.2 + 1.1 * len(found)), dpi=100, layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(found), 1, sharex=True))
    edges = _edges([columns["energy"] for columns in found.values()])
    for axis, (name, columns) in zip(axes, found.items(), strict=True):
        inside = name == INSIDE
        axis.hist(columns["energy"].clip(edges[0], edges[-1]), bins=edges, color="#1f5fa8" if inside else "#c2571a")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_title(title, fontsize=13)
    axes[-1].set_xlabel("energy (lower: more like the data; outermost bins hold what lies beyond)", fontsize=11)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _edges(energies: Sequence[Float[np.ndarray, "n"]]) -> Float[np.ndarray, "m"]:
    """61 edges over the middle 99 % of every set."""
    low = min(float(np.quantile(e, 0.005)) for e in energies)
    high = max(float(np.quantile(e, 0.995)) for e in energies)
    return np.linspace(low, high if high > low else low + 1, 61)
