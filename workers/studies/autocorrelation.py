"""How long chains remember: the integrated autocorrelation time, of one number or of whole images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ebm_core.errors import DataError

WINDOW = 5.0
"""The sum over lags ends at the first lag that is at least so many times the time found so far (Sokal, 1989)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Draws between independent ones. Not `resolved`: the series is too short to tell, and `time` is a lower bound."""

    time: float
    resolved: bool


def autocorrelation_time(series: Float[np.ndarray, "t n p"]) -> Memory | None:
    """Integrated autocorrelation time 1 + 2 sum_k rho(k), in draws, of n chains of t draws of p numbers each.

    rho(k) is the mean over chains and times of (x_s - m).(x_(s+k) - m), over its value at k = 0, m being the mean of
    all chains and times: chains that stay apart, or drift, count as memory. None when all draws are alike. Resolved
    when the window closes within the first half of the lags. Raises DataError for fewer than two draws or values that
    are not finite.
    """
    values = np.asarray(series, dtype=np.float64)
    if values.ndim != 3 or values.shape[0] < 2 or 0 in values.shape:
        raise DataError(f"autocorrelation of a series of shape {values.shape}: need (at least 2 draws, chains, values)")
    if not np.isfinite(values).all():
        raise DataError("autocorrelation of values that are not finite")
    length, chains, _ = values.shape
    centered = values - values.mean(axis=(0, 1))
    products = np.zeros((length, length))
    for chain in range(chains):  # one chain at a time: the products of all would not fit
        products += centered[:, chain] @ centered[:, chain].T
    covariance = np.array([np.trace(products, lag) / (length - lag) for lag in range(length)])
    if covariance[0] <= 1e-12 * max(1.0, float(np.square(values).mean())) * chains:
        return None
    times = 2 * np.cumsum(covariance / covariance[0]) - 1
    half = times[1 : max(2, length // 2)]
    closed = np.flatnonzero(np.arange(1, len(half) + 1) >= WINDOW * half)
    if len(closed):
        return Memory(float(half[closed[0]]), resolved=True)
    return Memory(float(half.max()), resolved=False)
