"""Mean and covariance of features that are met shard by shard, and the Fréchet distance between two such sets.

Kept as mean and centred second moment, in float64: sums of squares would lose the covariance of features whose mean is
large beside their spread. Merging in shard order gives the same bits whichever worker computed a shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float

from ebm_core.errors import DataError


@dataclass(frozen=True, slots=True)
class FeatureStats:
    """n samples' mean (d) and centred second moment, sum_i (f_i - mean)(f_i - mean)^T (d d), in float64."""

    n: int
    mean: Float[np.ndarray, "d"]
    moment: Float[np.ndarray, "d d"]

    @classmethod
    def from_features(cls, features: Float[np.ndarray, "n d"]) -> "FeatureStats":
        """Statistics of `features` (n d), n >= 1. Raises DataError on an empty or non-finite array."""
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or 0 in features.shape:
            raise DataError(f"features of shape {features.shape}: need (samples, features), at least one of each")
        if not np.isfinite(features).all():
            bad = int((~np.isfinite(features)).any(axis=1).sum())
            raise DataError(f"features of {bad} of {len(features)} images are not finite: look at those images")
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """Statistics of both sets together (Chan, Golub and LeVeque 1979). Raises DataError where dimensions differ."""
        _require_same_features(self, other)
        n = self.n + other.n
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.n / n)
        moment = self.moment + other.moment + np.outer(shift, shift) * (self.n * other.n / n)
        return FeatureStats(n, mean, moment)

    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Unbiased covariance (d d): the moment over n - 1. Raises DataError for fewer than two samples."""
        if self.n < 2:
            raise DataError(f"covariance of {self.n} sample: needs at least 2; score more images")
        return self.moment / (self.n - 1)


def merge_all(parts: Sequence[FeatureStats]) -> FeatureStats:
    """`parts`, at least one, merged from first to last."""
    if not parts:
        raise DataError("no features to merge: score at least one shard")
    return reduce(FeatureStats.merge, parts)


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2): Wasserstein-2 distance, squared, of two Gaussians.

    In squared units of the features. Biased upward by the finite n of either set, so compare at equal n only.
    With S_a = F F^T for any F, S_a S_b has the eigenvalues of the symmetric F^T S_b F: no matrix root is needed.
    Raises DataError for fewer than two samples or unequal dimensions.
    """
    _require_same_features(a, b)
    cov_a, cov_b = a.covariance(), b.covariance()
    factor = _factor(cov_a)
    inner = factor.T @ cov_b @ factor
    eigenvalues = np.linalg.eigvalsh((inner + inner.T) / 2)
    trace_root = np.sqrt(eigenvalues.clip(min=0)).sum()  # rounding may leave a zero eigenvalue below zero
    distance = ((a.mean - b.mean) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_root
    return max(0.0, float(distance))


def _factor(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """F with F F^T = a covariance: Cholesky's, or, where the matrix is singular, from its eigenvectors."""
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        eigenvalues, vectors = np.linalg.eigh(matrix)
        return vectors * np.sqrt(eigenvalues.clip(min=0))


def _require_same_features(a: FeatureStats, b: FeatureStats) -> None:
    if a.mean.shape != b.mean.shape:
        raise DataError(f"features of {a.mean.size} and {b.mean.size} dimensions: compare sets of one extractor")
