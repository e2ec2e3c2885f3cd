"""Bootstrap intervals of the detection scores: how far they would move with other images of the same kinds."""

import numpy as np
from jaxtyping import Float, Int

from ebm_core.errors import DataError


def detection_intervals(
    inside: Float[np.ndarray, "n"], outside: Float[np.ndarray, "m"], rng: np.random.Generator, resamples: int = 1000
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap of each score of `scores.detection`, both sets drawn anew with replacement.

    Raises DataError for empty sets or values that are not finite.
    """
    both = np.concatenate([inside, outside]).astype(np.float64)
    if not len(inside) or not len(outside) or not np.isfinite(both).all():
        raise DataError(f"intervals of {len(inside)} and {len(outside)} scores: need finite ones of both kinds")
    rank = np.unique(both, return_inverse=True)[1]
    bins = int(rank.max()) + 1
    ranks = rank[: len(inside)], rank[len(inside) :]
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        counts = (np.bincount(r[rng.integers(len(r), size=len(r))], minlength=bins) for r in ranks)
        for name, value in detection_of_counts(*counts).items():
            found.setdefault(name, []).append(value)
    quantiles = {name: np.quantile(values, [0.025, 0.975]) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in quantiles.items()}


def detection_of_counts(inside: Int[np.ndarray, "v"], outside: Int[np.ndarray, "v"]) -> dict[str, float]:
    """`scores.detection` of the images that have each value, values ascending."""
    n, m = inside.sum(), outside.sum()
    below = np.cumsum(outside)  # images up to each value
    top, other = np.cumsum(inside[::-1]), np.cumsum(outside[::-1])  # images from each value up, highest value first
    bottom = np.cumsum(inside)
    return {
        "auroc": float((inside * (below - outside / 2)).sum() / (n * m)),
        "aupr_in": float((inside[::-1] * top / np.maximum(top + other, 1)).sum() / n),
        "aupr_out": float((outside * below / np.maximum(below + bottom, 1)).sum() / m),
        "fpr95_in": float(other[np.searchsorted(top, _needed(n))] / m),
        "fpr95_out": float(bottom[np.searchsorted(below, _needed(m))] / n),
    }


def _needed(count: int) -> int:
    """Images that make a recall of 95 %; 0.95 * 100 is 95, not 96."""
    return max(1, int(np.ceil(0.95 * count - 1e-9)))
