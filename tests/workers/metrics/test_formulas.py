import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from ebm_core.errors import DataError
from workers.metrics import formulas
from workers.metrics.formulas import auroc, classifier_scores, energy_gap, memorization, nearest_distance


def test_energy_gap_is_the_difference_of_means_with_both_samples_errors():
    gap, error = energy_gap(np.array([1.0, 3.0]), np.array([0.0, 1.0, 2.0]))
    assert gap == 1.0  # 2 - 1
    assert error == pytest.approx(np.sqrt(2 / 2 + 1 / 3))  # variances 2 and 1 over 2 and 3 samples


def test_standard_error_covers_the_true_gap_as_often_as_it_says():
    rng = np.random.default_rng(0)
    z = []
    for _ in range(2000):
        gap, error = energy_gap(rng.normal(0.3, 1, 50), rng.normal(0, 2, 80))
        z.append((gap - 0.3) / error)
    assert np.std(z) == pytest.approx(1, abs=4 * 1 / np.sqrt(2 * 2000) + 0.02)  # 0.02: the t tail at these sizes


def test_auroc_is_the_chance_that_a_positive_scores_higher_with_ties_half():
    assert auroc(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == (3 + 0.5) / 4
    assert auroc(np.array([5.0, 6.0]), np.array([1.0])) == 1.0
    assert auroc(np.array([1.0]), np.array([5.0, 6.0])) == 0.0


def test_auroc_sees_differences_that_a_sigmoid_or_float32_would_lose():
    # Scores near 1e6 that differ by 1e-3: a sigmoid saturates and float32 has a spacing of 0.06 there.
    positive, negative = 1e6 + 1e-3 * np.arange(1, 6), 1e6 - 1e-3 * np.arange(5)
    assert auroc(positive, negative) == 1.0


def test_auroc_agrees_with_the_mann_whitney_statistic():
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(0.5, 1, 70), rng.normal(0, 3, 90)
    expected = mannwhitneyu(positive, negative).statistic / (70 * 90)
    assert auroc(positive, negative) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("function", [energy_gap, auroc, memorization])
@pytest.mark.parametrize("bad", [np.array([1.0, np.nan, 2.0]), np.array([np.inf, 0.0]), np.array([])])
def test_values_that_are_empty_or_not_finite_are_refused_on_either_side(function, bad):
    good = np.array([1.0, 2.0, 3.0])
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(DataError, match=r"not finite|at least"):
            function(*pair)


@pytest.mark.parametrize("chunk_values", [2**24, 40, 12, 1])
def test_nearest_distance_is_that_of_all_pairs_in_any_chunking(monkeypatch, chunk_values):
    monkeypatch.setattr(formulas, "CHUNK_VALUES", chunk_values)
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (7, 3, 2, 2), dtype=np.uint8)
    reference = rng.integers(0, 256, (11, 3, 2, 2), dtype=np.uint8)
    x, y = images.reshape(7, -1) / 256, reference.reshape(11, -1) / 256
    pairs = np.linalg.norm(x[:, None] - y[None], axis=2)
    distance, index = nearest_distance(images, reference)
    np.testing.assert_allclose(distance, pairs.min(1), rtol=1e-12)
    np.testing.assert_array_equal(index, pairs.argmin(1))


def test_a_copy_is_at_distance_zero_and_one_level_is_one_256th():
    reference = np.full((4, 3, 32, 32), 255, dtype=np.uint8)  # large: float32 sums of squares would round
    reference[0] = 0
    images = reference[[1, 0]].copy()
    images[1, 0, 0, 0] = 1
    distance, index = nearest_distance(images, reference)
    assert distance.tolist() == [0.0, 1 / 256]
    assert index.tolist() == [1, 0]  # of three equal references the first


def test_nearest_distance_takes_floats_as_they_are():
    distance, index = nearest_distance(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [6.0, 8.0]]))
    assert (distance.item(), index.item()) == (5.0, 0)


def test_nearest_distance_refuses_unequal_shapes_and_empty_sets():
    image = np.zeros((1, 1, 2, 2), dtype=np.uint8)
    with pytest.raises(DataError, match="must agree"):
        nearest_distance(image, np.zeros((1, 1, 2, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="at least one of each"):
        nearest_distance(image, image[:0])
    with pytest.raises(DataError, match="at least one of each"):
        nearest_distance(image[:0], image)


def test_memorization_tells_copies_from_new_images():
    heldout = np.linspace(1, 2, 101)
    fresh = memorization(heldout, heldout)
    assert fresh["ratio"] == 1
    assert fresh["copied_fraction"] == pytest.approx(1 / 101)
    assert memorization(np.full(10, 0.0), heldout) == {"ratio": 0.0, "copied_fraction": 1.0}
    assert memorization(heldout * 3, heldout) == {"ratio": 3.0, "copied_fraction": 0.0}
    with pytest.raises(DataError, match="also training images"):
        memorization(heldout, np.zeros(5))


def test_sure_and_balanced_predictions_have_confidence_one_and_entropy_log_k():
    result = classifier_scores(np.eye(4)[np.arange(100) % 4])
    assert result == {"mean_confidence": 1.0, "class_entropy": pytest.approx(np.log(4)), "classes_seen": 4}


def test_one_class_has_entropy_zero_and_undecided_predictions_confidence_one_over_k():
    assert classifier_scores(np.eye(3)[[1] * 5]) == {"mean_confidence": 1.0, "class_entropy": 0.0, "classes_seen": 1}
    flat = classifier_scores(np.full((6, 5), 0.2))
    assert flat["mean_confidence"] == pytest.approx(0.2)
    assert flat["class_entropy"] == pytest.approx(np.log(5))


def test_a_class_counts_as_seen_from_one_percent_on():
    labels = np.array([0] * 989 + [1] * 10 + [2])  # 98.9 %, 1 %, 0.1 %
    assert classifier_scores(np.eye(3)[labels])["classes_seen"] == 2


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 3)), np.ones((2, 3)), np.array([[np.nan, 1.0]]), np.array([[1.5, -0.5]]), np.ones(3)]
)
def test_predictions_that_are_no_distributions_are_refused(bad):
    with pytest.raises(DataError):
        classifier_scores(bad)
