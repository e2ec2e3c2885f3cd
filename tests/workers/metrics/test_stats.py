import numpy as np
import pytest
import scipy.linalg

from ebm_core.errors import DataError
from workers.metrics.stats import FeatureStats, frechet_distance, merge_all


def features(n: int, d: int, seed: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + offset


def gaussian(mean: np.ndarray, cov: np.ndarray, n: int = 101) -> FeatureStats:
    """Statistics whose mean and unbiased covariance are exactly these."""
    return FeatureStats(n, np.asarray(mean, dtype=float), np.asarray(cov, dtype=float) * (n - 1))


def test_mean_and_covariance_are_those_of_numpy():
    x = features(50, 7, seed=0)
    stats = FeatureStats.from_features(x)
    np.testing.assert_allclose(stats.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(stats.covariance(), np.cov(x.T), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("cuts", [[1], [10, 11, 40], list(range(1, 60))])
def test_merged_splits_equal_the_whole_even_far_from_zero(cuts):
    # With a mean of 1e6 beside a spread near 1, sums of squares would keep about 4 digits of the covariance.
    x = features(60, 5, seed=1, offset=1e6)
    merged = merge_all([FeatureStats.from_features(part) for part in np.split(x, cuts)])
    assert merged.n == 60
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-12)
    exact = np.cov((x - x.mean(0)).T)
    np.testing.assert_allclose(merged.covariance(), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cuts", [[1], [10, 11, 40]])
def test_merged_splits_equal_the_whole_to_twelve_digits(cuts):
    x = features(60, 5, seed=1, offset=3.0)
    merged = merge_all([FeatureStats.from_features(part) for part in np.split(x, cuts)])
    whole = FeatureStats.from_features(x)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.moment, whole.moment, rtol=0, atol=1e-12 * np.abs(whole.moment).max())


def test_frechet_distance_of_diagonal_gaussians_has_its_closed_form():
    # |m_a - m_b|^2 + sum_i (s_i - t_i)^2 for standard deviations s and t.
    s, t, shift = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5]), np.array([0.0, 1.0, -2.0])
    a, b = gaussian(np.zeros(3), np.diag(s**2)), gaussian(shift, np.diag(t**2))
    assert frechet_distance(a, b) == pytest.approx((shift**2).sum() + ((s - t) ** 2).sum(), rel=1e-12)


def test_frechet_distance_agrees_with_the_matrix_square_root_of_scipy():
    a = FeatureStats.from_features(features(200, 6, seed=2))
    b = FeatureStats.from_features(features(150, 6, seed=3, offset=0.5))
    root = scipy.linalg.sqrtm(a.covariance() @ b.covariance()).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance() + b.covariance() - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_symmetric_and_zero_on_itself_also_for_singular_covariances():
    x, y = features(5, 12, seed=4), features(6, 12, seed=5)  # fewer samples than features: rank 4 and 5 of 12
    a, b = FeatureStats.from_features(x), FeatureStats.from_features(y)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    scale = np.trace(a.covariance())
    assert 0 <= frechet_distance(a, a) < 1e-6 * scale


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((0, 3)), "at least one"),
        (np.zeros(3), "need \\(samples, features\\)"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), "1 of 2 images are not finite"),
    ],
)
def test_features_that_are_empty_or_not_finite_are_refused(bad, message):
    with pytest.raises(DataError, match=message):
        FeatureStats.from_features(bad)


def test_too_few_samples_and_unequal_dimensions_are_refused():
    one = FeatureStats.from_features(np.ones((1, 3)))
    three, four = (FeatureStats.from_features(features(9, d, seed=6)) for d in (3, 4))
    with pytest.raises(DataError, match="at least 2"):
        frechet_distance(one, three)
    with pytest.raises(DataError, match="3 and 4 dimensions"):
        frechet_distance(three, four)
    with pytest.raises(DataError, match="3 and 4 dimensions"):
        three.merge(four)
    with pytest.raises(DataError, match="at least one shard"):
        merge_all([])


def test_a_singular_covariance_has_its_closed_form_too():
    first, second = np.array([1.0, 2.0, 0.0]), np.array([2.0, 0.5, 3.0])  # standard deviations of independent features
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    a, b = (FeatureStats(11, np.zeros(3), 10 * (turn * std**2) @ turn.T) for std in (first, second))
    flat = FeatureStats(11, np.zeros(3), 10 * np.diag(first**2))
    assert frechet_distance(a, b) == pytest.approx(((first - second) ** 2).sum(), rel=1e-6)
    straight = FeatureStats(11, np.zeros(3), 10 * np.diag(second**2))
    assert frechet_distance(flat, straight) == pytest.approx(((first - second) ** 2).sum(), rel=1e-12)
