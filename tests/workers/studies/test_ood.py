"""Detection scores against brute force, scikit-learn and pytorch-ood; reports and files that can be made again."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score, roc_curve

from ebm_core.data.vision import torchvision
from ebm_core.errors import ConfigError, DataError
from workers.metrics import formulas
from workers.ood import main as scores_again
from workers.studies import ood


def two_sets(seed: int = 0, n: int = 83, m: int = 140) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, n).round(1), rng.normal(0, 1.5, m).round(1)  # rounding makes ties


@pytest.mark.parametrize("seed", range(5))
def test_fpr_is_that_of_the_highest_threshold_which_reaches_the_recall(seed):
    inside, outside = two_sets(seed)
    reached = [t for t in np.unique(inside) if (inside >= t).mean() >= 0.95]
    assert formulas.fpr_at_recall(inside, outside) == (outside >= max(reached)).mean()
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    false, true, _ = roc_curve(truth, np.concatenate([inside, outside]), drop_intermediate=False)
    assert formulas.fpr_at_recall(inside, outside) == pytest.approx(false[true >= 0.95].min())


def test_exactly_95_of_100_is_enough():
    inside = np.arange(100.0)
    assert formulas.fpr_at_recall(inside, np.array([4.0, 5.0, 6.0, 4.5])) == 0.5


def test_detection_both_ways():
    inside, outside = two_sets()
    found = formulas.detection(inside, outside)
    swapped = formulas.detection(-outside, -inside)
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


@pytest.mark.parametrize("seed", range(3))
def test_detection_agrees_with_pytorch_ood(seed):
    torchvision()  # the door by which it can be imported beside a CPU torch
    from pytorch_ood.metrics import OODMetrics

    def theirs(known: np.ndarray, other: np.ndarray) -> dict[str, float]:
        """Larger is more outlying there, and labels below 0 are outliers, the positive class."""
        oracle = OODMetrics()
        oracle.update(torch.from_numpy(-known), torch.zeros(len(known)))
        oracle.update(torch.from_numpy(-other), -torch.ones(len(other)))
        return oracle.compute()

    inside, outside = two_sets(seed, 900, 1300)
    found, oracle = formulas.detection(inside, outside), theirs(inside, outside)
    assert found["auroc"] == pytest.approx(oracle["AUROC"], abs=1e-12)
    assert found["fpr95_out"] == pytest.approx(oracle["FPR95TPR"], abs=1e-12)
    assert found["fpr95_in"] == pytest.approx(theirs(-outside, -inside)["FPR95TPR"], abs=1e-12)

    rng = np.random.default_rng(seed)  # trapezoids there, average precision here: without ties they nearly agree
    inside, outside = rng.normal(1, 1, 900), rng.normal(0, 1.5, 1300)
    found, oracle = formulas.detection(inside, outside), theirs(inside, outside)
    assert found["aupr_in"] == pytest.approx(oracle["AUPR-IN"], abs=5e-3)
    assert found["aupr_out"] == pytest.approx(oracle["AUPR-OUT"], abs=5e-3)


@pytest.mark.parametrize("seed", range(3))
def test_detection_agrees_with_scikit_learn(seed):
    inside, outside = two_sets(seed)
    found = formulas.detection(inside, outside)
    both, truth = np.concatenate([inside, outside]), np.repeat([1, 0], [len(inside), len(outside)])
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, both), abs=1e-12)
    assert found["aupr_in"] == pytest.approx(average_precision_score(truth, both), abs=1e-12)
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - truth, -both), abs=1e-12)
    for key, labels, score in (("fpr95_in", truth, both), ("fpr95_out", 1 - truth, -both)):
        false, true, _ = roc_curve(labels, score, drop_intermediate=False)
        assert found[key] == pytest.approx(false[true >= 0.95].min(), abs=1e-12)


def test_perfect_and_reversed_scores():
    good = formulas.detection(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert good == {"auroc": 1, "aupr_in": 1, "aupr_out": 1, "fpr95_in": 0, "fpr95_out": 0}
    assert formulas.detection(np.array([0.0, 1.0]), np.array([2.0, 3.0]))["fpr95_in"] == 1


@pytest.mark.parametrize("block", [2, 1024])
def test_kernel_distance_is_the_double_sum(monkeypatch, block):
    monkeypatch.setattr(formulas, "CHUNK_ROWS", block)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(1, 1, size=(5, 3))

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    expected = sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert formulas.kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(DataError, match="two samples"):
        formulas.kernel_distance(a[:1], b)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(1)
    found = [formulas.kernel_distance(rng.normal(size=(40, 2)), rng.normal(size=(40, 2))) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 200**0.5
    assert formulas.kernel_distance(rng.normal(size=(40, 2)), rng.normal(1, 1, (40, 2))) > max(found)


def test_neighborhood_scores_by_their_definitions():
    rng = np.random.default_rng(2)
    real, fake, k = rng.normal(size=(30, 2)), rng.normal(1.2, 1.0, size=(25, 2)), 3
    found = formulas.neighborhood_scores(real, fake, k)

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
        formulas.neighborhood_scores(real, fake[:3], 3)


def test_low_level_quantities_of_known_images():
    flat = torch.full((1, 1, 8, 8), 77, dtype=torch.uint8)
    stripes = flat.clone()
    stripes[..., ::2] = 77 + 64
    both = torch.cat([flat, stripes])
    assert formulas.total_variation(both).tolist() == [0, 8 * 7 * 0.25]
    assert ood.pixel_std(both).tolist() == [0, 0.125]
    noise = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert ood.png_bytes(noise).min() > 8 * 8 * 3
    assert ood.png_bytes(both)[0] < 100


def columns(values) -> dict[str, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    plain = {"image": np.arange(len(values)), "energy": values, "lowest": 0 * values, "highest": 0 * values + 0.5}
    return plain | dict.fromkeys(ood.LOW_LEVEL, -values)


FOUND = {
    "heldout": columns([0, 1, 2, 3]),
    "svhn": columns([5, 6, 7]),
    "textures_crop": columns([9, 9, 9]),
    "interpolation": columns([-2, -1]),
    "noise": columns([9, 9]),
}


def test_the_report_scores_low_energy_as_inside():
    made = ood.report(FOUND, ood.PUBLISHED)
    area = {name: row["auroc"] for name, row in made["sets"].items()}
    assert area == {"svhn": 1, "textures_crop": 1, "interpolation": 0, "noise": 1}
    assert made["value"] == 0.5  # neither noise nor a second reading of a set is counted
    assert made["value_is"] == "mean AUROC over svhn, interpolation"
    assert made["sets"]["svhn"]["published_auroc"] == 0.91
    assert made["sets"]["svhn"]["value_range"] == [0, 0.5]
    assert set(made["sets"]["svhn"]["low_level_auroc"].values()) == {1.0}
    with pytest.raises(ConfigError, match=r"ood\.sets"):
        ood.report({"heldout": columns([1])}, {})


def test_everything_can_be_made_again_from_the_file(tmp_path, capsys):
    rng = np.random.default_rng(0)
    found = {name: columns(rng.normal(i, 1, 50 + 9 * i)) for i, name in enumerate(("heldout", "svhn", "textures"))}
    made, origin = ood.report(found, ood.PUBLISHED), {"seed": 3, "published": ood.PUBLISHED}
    pq.write_table(ood.table(found, origin), tmp_path / "energies.parquet")
    scores_again([str(tmp_path / "energies.parquet")])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(origin | made))

    rows = pq.read_table(tmp_path / "energies.parquet").to_pylist()  # and without any code of ours
    energy = {name: [row["energy"] for row in rows if row["set"] == name] for name in found}
    for name in ("svhn", "textures"):
        truth = [1] * len(energy["heldout"]) + [0] * len(energy[name])
        score = -np.array(energy["heldout"] + energy[name])
        assert made["sets"][name]["auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)


def test_a_set_whose_pixels_were_never_scaled_to_8_bits_is_named():
    dark = columns([1.0, 2.0]) | {"highest": np.array([0.5, 1.5]) / 256}
    with pytest.raises(DataError, match="svhn: no pixel above level 1 of 255"):
        ood.report(FOUND | {"svhn": dark}, {})


def test_histograms_show_every_set_and_the_held_out_images_behind_it():
    rng = np.random.default_rng(0)
    found = {"heldout": columns(rng.normal(size=500)), "svhn": columns(rng.normal(3, 1, 500)), "noise": columns([4.0])}
    file = ood.histograms_png(found, "energies", {"svhn": 0.9, "noise": 1.0})
    picture = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    assert picture.shape[1] == 800
    third = len(picture) // 3
    for color, first, share in (((0x1F, 0x5F, 0xA8), 0, 0.01), ((0xC2, 0x57, 0x1A), third // 2, 0.01)):
        assert (picture[first:] == color).all(axis=2).mean() > share
    middle = picture[third : 2 * third].astype(int)
    outline = (middle[..., 2] - middle[..., 0] > 60).mean()  # bluish: its edges are smoothed
    assert 0.001 < outline < 0.03
