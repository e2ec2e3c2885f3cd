"""Bootstrap intervals: they cover what they should, and one resample is the score itself."""

import numpy as np
import pytest

from ebm_core.errors import DataError
from workers.metrics import formulas
from workers.studies.bootstrap import detection_intervals


class Once(np.random.Generator):
    """A resample in which every image is drawn once."""

    def integers(self, low, size):  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.arange(size)


@pytest.mark.parametrize("seed", range(5))
def test_a_resample_with_every_image_once_would_be_the_scores_themselves(seed):
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(1, 1, 83).round(1), rng.normal(0, 1.5, 140).round(1)  # rounding makes ties
    found = detection_intervals(inside, outside, Once(np.random.PCG64()), resamples=2)
    expected = formulas.detection(inside, outside)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx((value, value), abs=1e-12), name


def test_the_bootstrap_covers_the_true_area():
    """P(X > Y) of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.7602; 95 % intervals hold it 19 times in 20."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(60):
        low, high = detection_intervals(rng.normal(1, 1, 150), rng.normal(0, 1, 150), rng, resamples=200)["auroc"]
        held += low <= 0.76025 <= high
    assert 51 <= held < 60  # fewer has a chance of 0.3 % at 95 %


def test_values_that_cannot_be_ranked_are_refused():
    for inside, outside in (([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([1.0], [np.inf])):
        with pytest.raises(DataError, match="finite ones of both kinds"):
            detection_intervals(np.array(inside), np.array(outside), np.random.default_rng(0))
