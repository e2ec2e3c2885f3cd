"""Diversity: do generated images differ from each other as real ones do? On pixels, without any judge."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ebm_core.data.dataset import thinned
from workers.metrics.reference import Reference, Shard

NUM_IMAGES = 2000
"""Images of a set that are compared pair by pair; a larger set is thinned evenly."""

LEAST_RATIO, MOST_DUPLICATES = 0.8, 0.1
"""Below the one or above the other, generated images count as collapsed."""

RULE = f"ratio below {LEAST_RATIO:g}, or more than {MOST_DUPLICATES:.0%} near-duplicates"


def pair_distances(images: Float[np.ndarray, "n p"]) -> tuple[float, Float[np.ndarray, "n"]]:
    """Mean L2 distance over all pairs of different images (n >= 2), and each image's distance to the nearest other."""
    lengths, total, nearest = (images**2).sum(axis=1), 0.0, np.empty(len(images))
    for start in range(0, len(images), 256):
        rows = np.arange(start, min(start + 256, len(images)))
        squared = lengths[rows, None] - 2 * images[rows] @ images.T + lengths
        distance = np.sqrt(squared.clip(min=0))
        distance[np.arange(len(rows)), rows] = 0
        total += float(distance.sum())
        distance[np.arange(len(rows)), rows] = np.inf
        nearest[rows] = distance.min(axis=1)
    return total / (len(images) * (len(images) - 1)), nearest


def compare(generated: Float[np.ndarray, "n p"], real: Float[np.ndarray, "m p"]) -> dict[str, Any]:
    """Pair distances of generated images beside those of real ones, of as many images of each.

    `mean_distance`: between two generated images, in pixels of the [0, 1] range; `ratio`: over that between two real
    ones, 1 when they are as diverse. `duplicates`: share of images that are nearer to some other one than 99 % of the
    real images are to theirs; about 0.01 for real ones. `collapsed`: by RULE.
    """
    count = min(len(generated), len(real))
    generated, real = (x[thinned(len(x), count).numpy()] for x in (generated, real))
    (mean, nearest), (real_mean, real_nearest) = pair_distances(generated), pair_distances(real)
    limit = float(np.quantile(real_nearest, 0.01))
    # at limit 0 real images repeat themselves exactly, and only exact copies can count
    duplicates = float((nearest < limit).mean() if limit > 0 else (nearest <= 0).mean())
    ratio = mean / real_mean if real_mean > 0 else 1.0
    return {
        "ratio": ratio,
        "mean_distance": mean,
        "duplicates": duplicates,
        "collapsed": bool(ratio < LEAST_RATIO or duplicates > MOST_DUPLICATES),
        "num_compared": count,
    }


def score(shard: Shard, real: Reference) -> Float[np.ndarray, "n p"]:
    """Pixels (level / 256) of those images of the shard that are among NUM_IMAGES evenly spread ones of its set."""
    rows = thinned(shard.total, NUM_IMAGES) - shard.first
    rows = rows[(rows >= 0) & (rows < len(shard.images))]
    return shard.images[rows].flatten(1).double().numpy() / 256


def finish(parts: Sequence[np.ndarray], real: Reference, known: Mapping[str, Any]) -> dict[str, Any]:
    """The result: `value` is the ratio; a warning in `notes` where the images have collapsed."""
    heldout, noise = (np.concatenate(known[which]) for which in ("heldout", "noise"))
    found = compare(np.concatenate(parts), heldout)
    kinds = ("ratio", "mean_distance", "duplicates")
    rows = {name: compare(images, heldout) for name, images in (("heldout", heldout), ("noise", noise))}
    said = (
        f"diversity: the generated images are less diverse than real ones: distances between two of them are "
        f"{found['ratio']:.2f} of real ones', {found['duplicates']:.0%} are near-duplicates of another ({RULE})"
    )
    return {
        "value": found["ratio"],
        **found,
        "rule": RULE,
        **{name: {kind: row[kind] for kind in kinds} for name, row in rows.items()},
        "notes": [said] if found["collapsed"] else [],
    }
