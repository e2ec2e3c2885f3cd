"""Detection scores against brute force and scikit-learn; sets whose images are known."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score, roc_curve

from ebm_core.errors import ConfigError, DataError
from workers import ood, scores


def two_sets(seed: int = 0, n: int = 83, m: int = 140) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, n).round(1), rng.normal(0, 1.5, m).round(1)  # rounding makes ties


@pytest.mark.parametrize("seed", range(5))
def test_fpr_is_that_of_the_highest_threshold_which_reaches_the_recall(seed):
    inside, outside = two_sets(seed)
    reached = [t for t in np.unique(inside) if (inside >= t).mean() >= 0.95]
    assert scores.fpr_at_recall(inside, outside) == (outside >= max(reached)).mean()
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    false, true, _ = roc_curve(truth, np.concatenate([inside, outside]), drop_intermediate=False)
    assert scores.fpr_at_recall(inside, outside) == pytest.approx(false[true >= 0.95].min())


def test_exactly_95_of_100_is_enough():
    inside = np.arange(100.0)
    assert scores.fpr_at_recall(inside, np.array([4.0, 5.0, 6.0, 4.5])) == 0.5


def test_detection_both_ways():
    inside, outside = two_sets()
    found = scores.detection(inside, outside)
    swapped = scores.detection(-outside, -inside)
    assert found["auroc"] == pytest.approx(np.mean(inside[:, None] > outside) + np.mean(inside[:, None] == outside) / 2)
    assert found["auroc"] == pytest.approx(swapped["auroc"])
    assert found["aupr_out"] == pytest.approx(swapped["aupr_in"])
    assert found["fpr95_out"] == swapped["fpr95_in"]
    both, truth = np.concatenate([inside, outside]), np.repeat([1, 0], [len(inside), len(outside)])
    area, recall_before = 0.0, 0.0
    for threshold in np.unique(both)[::-1]:  # average precision, term by term
        precision, recall, _, _ = precision_recall_fscore_support(truth, both >= threshold, average="binary")
        area, recall_before = area + (recall - recall_before) * precision, recall
    assert found["aupr_in"] == pytest.approx(area)


def test_perfect_and_reversed_scores():
    good = scores.detection(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert good == {"auroc": 1, "aupr_in": 1, "aupr_out": 1, "fpr95_in": 0, "fpr95_out": 0}
    assert scores.detection(np.array([0.0, 1.0]), np.array([2.0, 3.0]))["fpr95_in"] == 1


def test_the_bootstrap_covers_the_true_area():
    """P(X > Y) of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.7602; 95 % intervals hold it 19 times in 20."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(60):
        low, high = scores.auroc_interval(rng.normal(1, 1, 150), rng.normal(0, 1, 150), rng, resamples=200)
        held += low <= 0.76025 <= high
    assert held >= 51  # fewer has a chance of 0.3 % at 95 %


def test_a_resample_with_every_image_once_would_be_the_area_itself():
    class Once(np.random.Generator):
        def integers(self, low, size):  # pyright: ignore[reportIncompatibleMethodOverride]
            return np.arange(size)

    inside, outside = two_sets()
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    area = roc_auc_score(truth, np.concatenate([inside, outside]))
    assert scores.auroc_interval(inside, outside, Once(np.random.PCG64()), resamples=2) == pytest.approx((area, area))


def test_kernel_distance_is_the_double_sum():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(1, 1, size=(5, 3))

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    expected = sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert scores.kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(DataError, match="two samples"):
        scores.kernel_distance(a[:1], b)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(1)
    found = [scores.kernel_distance(rng.normal(size=(40, 2)), rng.normal(size=(40, 2))) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 200**0.5
    assert scores.kernel_distance(rng.normal(size=(40, 2)), rng.normal(1, 1, (40, 2))) > max(found)


def test_neighborhood_scores_by_their_definitions():
    rng = np.random.default_rng(2)
    real, fake, k = rng.normal(size=(30, 2)), rng.normal(1.2, 1.0, size=(25, 2)), 3
    found = scores.neighborhood_scores(real, fake, k)

    def radius(x, i):
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    in_real = [[np.linalg.norm(f - r) <= radius(real, i) for i, r in enumerate(real)] for f in fake]
    in_fake = [[np.linalg.norm(r - f) <= radius(fake, i) for i, f in enumerate(fake)] for r in real]
    assert found == pytest.approx(
        {
            "precision": np.mean([any(row) for row in in_real]),
            "recall": np.mean([any(row) for row in in_fake]),
            "density": np.sum(in_real) / k / len(fake),
            "coverage": np.any(in_real, axis=0).mean(),
        }
    )
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1
    with pytest.raises(DataError, match="more than k"):
        scores.neighborhood_scores(real, fake[:3], 3)


def test_low_level_quantities_of_known_images():
    flat = torch.full((1, 1, 8, 8), 77, dtype=torch.uint8)
    stripes = flat.clone()
    stripes[..., ::2] = 77 + 64
    both = torch.cat([flat, stripes])
    assert ood.total_variation(both).tolist() == [0, 8 * 7 * 0.25]
    assert ood.pixel_std(both).tolist() == [0, 0.125]
    noise = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert ood.png_bytes(noise).min() > 8 * 8 * 3
    assert ood.png_bytes(both)[0] < 100


def test_sets_have_one_shape_and_do_not_depend_on_the_cut(digits):
    _, heldout = digits
    for text in ("interpolation", "noise", "digits", "objects"):
        reader = ood.SetReader(ood.image_set(text, heldout.cfg), heldout, 50)
        images = reader.images(0, 50)
        assert images.shape == (50, *heldout.image_shape)
        assert images.dtype == torch.uint8
        if text != "noise":  # drawn per shard of fixed size
            assert torch.equal(images, torch.cat([reader.images(0, 20), reader.images(20, 50)]))


def test_interpolations_lie_between_two_different_images(digits):
    _, heldout = digits
    reader = ood.SetReader(ood.ImageSet("interpolation"), heldout, 10**6)
    assert reader.num_images == len(heldout)
    real, mixed = heldout.fetch(torch.arange(len(heldout))).double(), reader.images(0, len(heldout)).double()
    partner = real[reader._partner]
    assert not torch.any(reader._partner == torch.arange(len(heldout)))
    assert (mixed - (real + partner) / 2).abs().max() <= 0.5


def test_halves_go_to_the_even_level():
    a, b = torch.cartesian_prod(torch.arange(256), torch.arange(256)).to(torch.uint8).T
    assert np.array_equal(ood.halfway(a, b).numpy(), np.rint((a.numpy().astype(float) + b.numpy()) / 2))


@pytest.mark.parametrize("text", ["cifar11", "noise=here", "=x", ""])
def test_an_unknown_set_lists_the_known_ones(text, digits):
    with pytest.raises(ConfigError, match="known are interpolation, noise, digits"):
        ood.image_set(text, digits[1].cfg)


def test_missing_files_are_named(digits, tmp_path):
    _, heldout = digits
    cfg = replace(heldout.cfg, channels=3, image_size=32)
    with pytest.raises(DataError, match=str(tmp_path)):
        ood.SetReader(ood.image_set(f"svhn={tmp_path}", cfg), heldout, 10)


def columns(values) -> dict[str, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    return {"energy": values, **dict.fromkeys(ood.LOW_LEVEL, -values)}


def test_the_report_scores_low_energy_as_inside_and_can_be_made_again_from_its_table():
    found = {
        "heldout": columns([0, 1, 2, 3]),
        "svhn": columns([5, 6, 7]),
        "interpolation": columns([-2, -1]),
        "noise": columns([9, 9]),
    }
    made = ood.report(found, ood.PUBLISHED)
    assert {name: row["auroc"] for name, row in made["sets"].items()} == {"svhn": 1, "interpolation": 0, "noise": 1}
    assert made["value"] == 0.5  # noise is not counted
    assert made["sets"]["svhn"]["published_auroc"] == 0.91
    assert set(made["sets"]["svhn"]["low_level_auroc"].values()) == {1.0}
    rows = ood.table(found).to_pylist()
    again = {name: columns([row["energy"] for row in rows if row["set"] == name]) for name in found}
    assert ood.report(again, ood.PUBLISHED) == made
    with pytest.raises(ConfigError, match="--ood"):
        ood.report({"heldout": columns([1])}, {})


def test_histograms_show_every_set():
    rng = np.random.default_rng(0)
    found = {"heldout": columns(rng.normal(size=500)), "svhn": columns(rng.normal(3, 1, 500)), "noise": columns([4.0])}
    picture = np.asarray(Image.open(io.BytesIO(ood.histograms_png(found, "energies"))).convert("RGB"))
    assert picture.shape[1] == 800
    for color, share in (((0x1F, 0x5F, 0xA8), 0.01), ((0xC2, 0x57, 0x1A), 0.01)):
        assert (picture == color).all(axis=2).mean() > share
