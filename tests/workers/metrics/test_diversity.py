"""Diversity on points whose distances are known."""

import math

import numpy as np
import pytest

from workers.metrics import diversity
from workers.metrics.diversity import LEAST_RATIO, compare, pair_distances


def spread(count: int, seed: int = 0, num_values: int = 30) -> np.ndarray:
    """Normal points on the grid of levels, k / 256, on which squares and their sums are exact."""
    return np.random.default_rng(seed).normal(0, 256, (count, num_values)).round() / 256


def test_distances_of_a_right_triangle():
    mean, nearest = pair_distances(np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
    assert mean == pytest.approx((3 + 4 + 5) / 3)
    assert nearest.tolist() == pytest.approx([3, 3, 4])


def test_blocks_of_pairs_join_to_all_pairs():
    x = spread(600)
    between = np.linalg.norm(x[:, None] - x[None], axis=2)
    mean, nearest = pair_distances(x)
    assert mean == pytest.approx(between.sum() / (600 * 599))
    np.testing.assert_allclose(nearest, (between + np.diag([math.inf] * 600)).min(axis=1), rtol=1e-9)


def test_distances_scale_with_the_images_so_the_ratio_is_their_scale():
    real = spread(300, num_values=2)
    found = compare(real * 0.9, real)
    assert found["ratio"] == pytest.approx(0.9)
    assert found["mean_distance"] == pytest.approx(0.9 * pair_distances(real)[0])
    assert not found["collapsed"]
    assert compare(real * (LEAST_RATIO - 0.01), real)["collapsed"]


def test_images_of_the_same_kind_are_as_diverse_and_rarely_duplicates():
    found = compare(spread(800, seed=1), spread(800))
    assert found["ratio"] == pytest.approx(1, abs=0.02)
    assert found["duplicates"] < 0.03
    assert not found["collapsed"]
    itself = compare(spread(800), spread(800))
    assert (itself["ratio"], itself["duplicates"]) == (1, 0.01)


def test_repeated_images_are_counted_and_raise_the_alarm():
    x = spread(500, seed=1)
    x[:100] = np.repeat(x[:50], 2, axis=0)  # a fifth of the images come twice
    found = compare(x, spread(500))
    assert found["duplicates"] == pytest.approx(0.2, abs=0.02)
    assert found["collapsed"]


def test_real_images_that_repeat_themselves_raise_no_alarm_where_generated_ones_do_not():
    twice = np.repeat(spread(100), 2, axis=0)  # every limit is 0
    assert compare(spread(200, seed=1), twice)["duplicates"] == 0
    assert compare(twice, twice)["duplicates"] == 1


def test_the_larger_set_is_thinned_to_equal_counts():
    assert compare(spread(50), spread(500))["num_compared"] == 50
    assert compare(spread(500), spread(50))["num_compared"] == 50


def test_one_image_again_and_again_is_a_collapse_with_a_warning():
    heldout = spread(60)
    parts = [np.repeat(spread(1), 30, axis=0)] * 2
    found = diversity.finish(parts, None, {"heldout": [heldout], "noise": [spread(60, seed=2)]})  # pyright: ignore[reportArgumentType]
    assert (found["value"], found["duplicates"], found["collapsed"]) == (0, 1, True)
    (said,) = found["notes"]
    assert "0.00 of real ones', 100% are near-duplicates" in said
    assert diversity.RULE in said
    assert found["heldout"]["ratio"] == 1
    fine = diversity.finish([heldout], None, {"heldout": [heldout], "noise": [heldout]})  # pyright: ignore[reportArgumentType]
    assert (fine["notes"], fine["collapsed"]) == ([], False)
