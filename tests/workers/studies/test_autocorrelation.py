"""Autocorrelation times against processes whose time is known."""

import numpy as np
import pytest

from ebm_core.errors import DataError
from workers.studies.autocorrelation import autocorrelation_time


def autoregressive(phi: float, length: int = 400, chains: int = 64, values: int = 1) -> np.ndarray:
    """x_t = phi x_(t-1) + w, stationary: rho(k) = phi^k, so the time is (1 + phi) / (1 - phi)."""
    rng = np.random.default_rng(0)
    x = np.empty((length, chains, values))
    x[0] = rng.normal(size=x.shape[1:]) / np.sqrt(1 - phi**2)
    for t in range(1, length):
        x[t] = phi * x[t - 1] + rng.normal(size=x.shape[1:])
    return x


@pytest.mark.parametrize("phi", [-0.3, 0.0, 0.5, 0.8, 0.9])
def test_the_time_of_an_autoregressive_process_is_the_known_one(phi: float):
    for series in (autoregressive(phi), autoregressive(phi, chains=8, values=20) + 7):
        found = autocorrelation_time(series)
        assert found is not None
        assert found.resolved
        assert found.time == pytest.approx((1 + phi) / (1 - phi), rel=0.12)


def test_numbers_weigh_by_their_variance():
    # covariances add: 1 part of white noise and 3 parts of a process of time 9 have (1 x 1 + 3 x 9) / 4
    slow, quick = autoregressive(0.8), np.random.default_rng(1).normal(size=(400, 64, 1))
    mixed = np.concatenate([quick, slow * np.sqrt(3 * (1 - 0.8**2))], axis=2)
    found = autocorrelation_time(mixed)
    assert found is not None
    assert found.time == pytest.approx(7, rel=0.12)


def test_chains_that_stay_apart_or_drift_are_not_resolved():
    apart = autoregressive(0.0, length=100) + 5 * np.arange(64)[:, None]
    drift = np.linspace(0, 100, 100)[:, None, None] + autoregressive(0.0, length=100)
    for series in (apart, drift):
        found = autocorrelation_time(series)
        assert found is not None
        assert not found.resolved
        assert found.time > 20


def test_chains_that_stand_still_have_no_time():
    assert autocorrelation_time(np.full((50, 3, 4), 0.1)) is None


@pytest.mark.parametrize("series", [np.zeros((1, 2, 3)), np.zeros((5, 2)), np.full((5, 2, 1), np.nan)])
def test_what_has_no_autocorrelation_is_refused(series: np.ndarray):
    with pytest.raises(DataError, match="autocorrelation of"):
        autocorrelation_time(series)
