"""Out-of-distribution detection (Table 3): -E(x) as a score of being in distribution, beside what needs no training.

`ood_sets.py` says which sets there are and how each is read; here are the quantities of an image, the scores made of
them, the file from which they can be made again (`python -m workers.ood ood-energies.parquet`) and the picture.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from PIL import Image

from ebm_core.errors import ConfigError, DataError
from ebm_core.types import Pixels, Samples
from workers.metrics import formulas
from workers.metrics.formulas import total_variation
from workers.metrics.published import TABLE_3
from workers.studies import bootstrap
from workers.studies.ood_sets import CROP, FAULT, INSIDE

PUBLISHED = TABLE_3 | {CROP: TABLE_3["textures"], FAULT: TABLE_3["cifar100"]}
"""AUROC of Table 3, for an unconditional model of CIFAR-10. The paper does not say which Textures it means."""

SEED, RESAMPLES = 0, 1000
"""Of the bootstrap."""


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

Columns = Mapping[str, np.ndarray]
"""Of the images of one set, a value each: COLUMNS."""

COLUMNS = ("image", "energy", "lowest", "highest", *LOW_LEVEL)
"""Number of the image in its data set, energy, extremes of the values that the energy saw, low-level quantities."""


def measure(images: Pixels, x: Samples, energies: Float[np.ndarray, "n"], numbers: np.ndarray) -> Columns:
    """The columns of some images: as stored, as the energy saw them, their energies and their numbers."""
    values = x.flatten(1)
    return {
        "image": numbers,
        "energy": energies,
        "lowest": values.amin(1).double().numpy(),
        "highest": values.amax(1).double().numpy(),
        **{name: function(images) for name, function in LOW_LEVEL.items()},
    }


def table(found: Mapping[str, Columns], origin: Mapping[str, Any]) -> pa.Table:
    """One row per image: set, index and COLUMNS, from which every score can be made again; origin: says whose they are,
    kept in the file's metadata under `ebm`."""
    names = np.concatenate([np.repeat(name, len(c["energy"])) for name, c in found.items()])
    index = np.concatenate([np.arange(len(c["energy"])) for c in found.values()])
    columns = {key: np.concatenate([c[key] for c in found.values()]) for key in COLUMNS}
    made = pa.table({"set": pa.array(names.tolist()), "index": index, **columns})
    return made.replace_schema_metadata({"ebm": json.dumps(origin)})


def columns_of(rows: pa.Table) -> dict[str, Columns]:
    """What `table` was made of."""
    names = np.asarray(rows["set"].to_pylist())
    columns = {key: rows[key].to_numpy() for key in COLUMNS}
    return {str(name): {key: c[names == name] for key, c in columns.items()} for name in dict.fromkeys(names)}


def report(found: Mapping[str, Columns], published: Mapping[str, float]) -> dict[str, Any]:
    """Scores of every set against INSIDE, by the energy and by each of LOW_LEVEL.

    published: AUROC of Table 3 by set, kept beside ours. `value`: mean AUROC over the sets other than noise and the
    second readings of a set (over all, if there are no others). Intervals: 95 % bootstrap.
    Raises DataError for a set that is black but for its lowest level.
    """
    outside = [name for name in found if name != INSIDE]
    if not outside:
        raise ConfigError("no out-of-distribution set given: name at least one with ood.sets")
    for name, columns in found.items():
        if columns["highest"].max() < 2 / 256:
            raise DataError(f"{name}: no pixel above level 1 of 255; were values of 0 to 1 written as 8 bits?")
    sets = {name: _against(found[INSIDE], found[name], published.get(name)) for name in outside}
    counted = [name for name in outside if name not in ("noise", CROP, FAULT)] or outside
    return {
        "value": float(np.mean([sets[name]["auroc"] for name in counted])),
        "value_is": f"mean AUROC over {', '.join(counted)}",
        "num_inside": len(found[INSIDE]["energy"]),
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "level": 0.95},
        "sets": sets,
    }


def _against(inside: Columns, other: Columns, published: float | None) -> dict[str, Any]:
    pair = -inside["energy"], -other["energy"]
    return {
        **formulas.detection(*pair),
        "intervals": bootstrap.detection_intervals(*pair, np.random.default_rng(SEED), RESAMPLES),
        "published_auroc": published,
        "num_images": len(other["energy"]),
        "value_range": [float(other["lowest"].min()), float(other["highest"].max())],
        "low_level_auroc": {key: formulas.auroc(inside[key], other[key]) for key in LOW_LEVEL},
    }


def histograms_png(found: Mapping[str, Columns], title: str, auroc: Mapping[str, float]) -> bytes:
    """Energy histograms of all sets over one range as a PNG, the held-out images outlined behind every other set, with
    its AUROC: one number hides where the sets lie."""
    from matplotlib.figure import Figure  # only here: every actor of a job loads this module

    figure = Figure(figsize=(8, 1.4 + 0.9 * len(found)), dpi=100, layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(found), 1, sharex=True))
    edges = _edges([columns["energy"] for columns in found.values()])
    inside = _shares(found[INSIDE]["energy"], edges)
    for axis, (name, columns) in zip(axes, found.items(), strict=True):
        if name == INSIDE:
            axis.stairs(inside, edges, fill=True, color="#1f5fa8")
        else:
            axis.stairs(_shares(columns["energy"], edges), edges, fill=True, color="#c2571a")
            axis.stairs(inside, edges, color="#1f5fa8", linewidth=1.2)
        said = f"{name}\n{len(columns['energy']):,} images"
        said += f"\nAUROC {auroc[name]:.3f}" if name in auroc else ""
        axis.set_ylabel(said, rotation=0, ha="right", va="center", fontsize=10)
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_title(title, fontsize=13)
    said = "energy: lower is more like the data (outline: held-out images; end bins: all beyond)"
    figure.supxlabel(said, fontsize=10)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _shares(energy: Float[np.ndarray, "n"], edges: Float[np.ndarray, "m"]) -> Float[np.ndarray, "k"]:
    """Share of the images in each bin, those beyond the ends in the outermost ones."""
    return np.histogram(energy.clip(edges[0], edges[-1]), edges)[0] / len(energy)


def _edges(energies: Sequence[Float[np.ndarray, "n"]]) -> Float[np.ndarray, "m"]:
    """61 edges over the middle 99 % of every set."""
    low = min(float(np.quantile(e, 0.005)) for e in energies)
    high = max(float(np.quantile(e, 0.995)) for e in energies)
    return np.linspace(low, high if high > low else low + 1, 61)
