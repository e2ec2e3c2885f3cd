"""FID, KID, Inception score, precision and recall: those of torch-fidelity on the same features and the same images."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ebm_core.data import dequantize
from ebm_core.data.vision import torchvision
from ebm_core.errors import ConfigError, DataError
from workers.evaluator import Evaluator
from workers.features.deep import DeepFeatures
from workers.features.weights import Weights
from workers.metrics import formulas
from workers.metrics.feature_metrics import notes, printed_name
from workers.metrics.formulas import inception_score, neighborhood_scores, split_sums, subset_kernel_distance
from workers.metrics.metric import combine
from workers.metrics.reference import Shard
from workers.metrics.registry import METRICS
from workers.metrics.stats import FeatureStats, frechet_distance


@pytest.fixture(scope="module")
def fidelity():
    """torch-fidelity's own formulas."""
    torchvision()
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    class Theirs:
        @staticmethod
        def fid(x, y) -> float:
            a, b = (metric_fid.fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y))
            return metric_fid.fid_statistics_to_metric(a, b, False)["frechet_inception_distance"]

        @staticmethod
        def kid(x, y, size: int) -> tuple[float, ...]:
            x, y = torch.from_numpy(x), torch.from_numpy(y)
            return tuple(metric_kid.kid_features_to_metric(x, y, kid_subset_size=size, verbose=False).values())

        @staticmethod
        def isc(logits) -> tuple[float, ...]:
            return tuple(metric_isc.isc_features_to_metric(torch.from_numpy(logits), shuffle=False).values())

        @staticmethod
        def prc(x, y, k: int) -> dict[str, float]:
            found = metric_prc.prc_features_to_metric(
                torch.from_numpy(x), torch.from_numpy(y), prc_neighborhood=k, verbose=False, save_cpu_ram=False
            )
            return {name: found[name] for name in ("precision", "recall")}

    return Theirs


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of 400 and 300 correlated features in 24 dimensions."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(24, 24))
    return rng.normal(size=(400, 24)) @ mix, rng.normal(0.3, 1.2, size=(300, 24)) @ mix


def test_frechet_distance_is_torch_fidelitys(fidelity, features):
    ours = frechet_distance(*map(FeatureStats.from_features, features))
    assert ours == pytest.approx(fidelity.fid(*features), rel=1e-9)


def test_kernel_distance_over_subsets_is_torch_fidelitys(fidelity, features):
    x, y = (z / 10 for z in features)
    assert subset_kernel_distance(x, y, size=50) == pytest.approx(fidelity.kid(x, y, 50), rel=1e-9)
    small = subset_kernel_distance(x[:30], y, size=50)  # fewer than a subset: as many as there are
    assert small == pytest.approx(fidelity.kid(x[:30], y, 30), rel=1e-9)


@pytest.mark.parametrize("count", [10, 57, 400])
def test_inception_score_is_torch_fidelitys_for_any_cut_into_shards(fidelity, count):
    logits = np.random.default_rng(1).normal(0, 3, size=(count, 30))
    parts = np.split(logits, [3, 8, 9] if count < 20 else [7, 31, 32, 50])
    first = np.cumsum([0, *map(len, parts)])
    sums = sum(split_sums(part, start, count) for part, start in zip(parts, first[:-1], strict=True) if len(part))
    assert inception_score(sums) == pytest.approx(fidelity.isc(logits), rel=1e-9)


def test_inception_score_has_its_limits():
    sure = np.full((100, 10), -1e4)
    sure[np.arange(100), np.arange(100) % 10] = 0  # certain, and each split has all classes equally often
    assert inception_score(split_sums(sure, 0, 100)) == pytest.approx((10, 0))
    assert inception_score(split_sums(np.zeros((100, 10)), 0, 100)) == pytest.approx((1, 0))
    with pytest.raises(DataError, match="9 images: needs 10"):
        inception_score(split_sums(np.zeros((9, 10)), 0, 9))
    with pytest.raises(DataError, match="finite"):
        inception_score(split_sums(np.full((10, 10), np.nan), 0, 10))


@pytest.mark.parametrize("block", [7, 1024])
def test_precision_and_recall_are_torch_fidelitys(fidelity, features, monkeypatch, block):
    monkeypatch.setattr(formulas, "CHUNK_ROWS", block)
    x, y = features
    ours = neighborhood_scores(y, x, k=5)
    assert {name: ours[name] for name in ("precision", "recall")} == pytest.approx(fidelity.prc(x, y, 5), rel=1e-6)


@pytest.mark.parametrize("block", [7, 1024])
def test_density_and_coverage_count_the_balls_around_real_samples(monkeypatch, block):
    monkeypatch.setattr(formulas, "CHUNK_ROWS", block)
    rng = np.random.default_rng(3)
    real, generated, k = rng.normal(size=(40, 3)), rng.normal(0.5, 1, size=(30, 3)), 5
    radius = [sorted(np.linalg.norm(real - one, axis=1))[k] for one in real]
    inside = np.array([[np.linalg.norm(x - one) <= r for x in generated] for one, r in zip(real, radius, strict=True)])
    found = neighborhood_scores(real, generated, k)
    assert found["density"] == pytest.approx(inside.sum() / (k * len(generated)), rel=1e-12)
    assert found["coverage"] == pytest.approx(inside.any(axis=1).mean(), rel=1e-12)
    assert 0 < found["coverage"] < 1


def test_one_family_of_names_for_each_extractor():
    of = {name: metric.extractor for name, metric in METRICS.items() if metric.extractor}
    assert {name for name, extractor in of.items() if extractor == "inception"} == {
        "fid", "kid", "precision_recall", "inception_score"
    }  # fmt: skip
    named = {name: extractor for name, extractor in of.items() if extractor != "inception" and name != "classifier"}
    assert all(name.endswith(extractor) for name, extractor in named.items())
    assert {"fid_judge", "kid_judge", "precision_recall_judge", "fid_rotation"} <= named.keys()


@pytest.mark.parametrize(
    ("name", "count", "shown"),
    [
        ("fid", 50_000, "fid"),
        ("fid", 10_000, "fid_10k"),
        ("fid", 5000, "fid_5k"),
        ("fid", 1234, "fid (n = 1234)"),
        ("fid", 100_000, "fid (n = 100000)"),
        ("fid_small", 5000, "fid_small"),
        ("kid", 5000, "kid"),
    ],
)
def test_a_frechet_distance_is_called_by_its_number_of_images(name, count, shown):
    assert printed_name(name, count) == shown


@pytest.fixture
def make(quadratic, make_settings, digits, deep_weights, tmp_path):
    """An evaluator of a quadratic energy around the mean digit, with twelve images to a shard."""
    mean = dequantize(digits[0].fetch(torch.arange(1500))).mean(0, keepdim=True)
    cfg = make_settings(sampler={"noise_std": 0.2, "generate_steps": 5})

    def build(weights: Weights = deep_weights, **sizes: int) -> Evaluator:
        sizes = {"shard_size": 12, "batch_size": 12, "num_reference": 12} | sizes
        return Evaluator(quadratic(mean), cfg, *digits, "d" * 64, weights=weights, **sizes)

    return build


@pytest.mark.full
def test_published_scores_of_an_evaluator_are_torch_fidelitys_on_the_same_images(
    fidelity, make, digits, inception_file, deep_weights
):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    evaluator = make(shard_size=10, batch_size=10, num_reference=10)
    found = evaluator.score(["kid", "inception_score", "precision_recall"], 10, seed=1)
    theirs = FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_file)
    )
    (x, logits), (real, _) = (
        [part.numpy() for part in theirs(images.repeat(1, 3, 1, 1))]
        for images in (evaluator.grid(10, seed=1), digits[0].fetch(torch.arange(10) * 1500 // 10))
    )
    x, real = x.astype(np.float64), real.astype(np.float64)
    kid, score, precision = (found[name] for name in ("kid", "inception_score", "precision_recall"))
    assert (kid["value"], kid["subset_std"]) == pytest.approx(fidelity.kid(x, real, 10), rel=1e-9, abs=1e-15)
    assert (score["value"], score["split_std"]) == pytest.approx(fidelity.isc(logits), rel=1e-9)
    assert precision["precision"] == pytest.approx(fidelity.prc(x, real, 5)["precision"])
    np.testing.assert_array_equal(
        METRICS["fid"].score(Shard(evaluator.grid(10, 1), None, 0, 10), evaluator.reference), x
    )

    for name, result in json.loads(json.dumps(found, allow_nan=False)).items():
        assert result["extractor"]["weights_sha256"] == deep_weights.load("inception").sha256
        assert f"{name}: the extractor's weights are not the published ones, so this is no {name}" in result["notes"]
        assert any("of 10 images; published scores are mostly of 50000" in note for note in result["notes"])
        assert "paper" not in result  # digits
        assert result["protocol"].get("num_train", 10) == result["protocol"]["num_heldout"] == 10


def test_notes_say_what_a_number_cannot_be_compared_with():
    fid, medium = METRICS["fid"], METRICS["fid_medium"]
    few, less = notes("fid", fid, {"num_features": 2048}, 1000, 50_000)
    assert few.startswith("fid_1k: 1000 images are fewer than the 2048 features")
    assert less.startswith("fid_1k: of 1000 images; published scores are mostly of 50000")
    assert notes("fid", fid, {"num_features": 2048}, 50_000, 50_000) == []
    assert notes("fid", fid, {"num_features": 2048}, 50_000, 10_000) == [
        "fid: against 10000 training images, not 50000"
    ]
    assert notes("fid_medium", medium, {"num_features": 1280}, 10_000, 10_000) == []


def test_a_changed_data_set_is_not_served_from_the_cache(make, digits, deep_weights, monkeypatch):
    seen: list[int] = []
    plain = DeepFeatures.features
    monkeypatch.setattr(
        DeepFeatures, "features", lambda self, images: (seen.append(len(images)), plain(self, images))[1]
    )
    sizes = {"num_real": 24, "shard_size": 12}
    before = make(**sizes).score(["fid_medium"], 12)["fid_medium"]
    assert seen == [12] * 5  # two shards of training images, one of each other set
    assert make(**sizes).score(["fid_medium"], 12)["fid_medium"] == before
    assert seen == [12] * 6

    train = digits[0]
    changed = replace(train, read=lambda index: train.read(index) ^ (index == 0)[:, None, None, None].to(torch.uint8))
    evaluator = make(**sizes)
    evaluator.reference._train = changed  # one image in another light, under the same name, count and files
    after = evaluator.score(["fid_medium"], 12)["fid_medium"]
    assert len(seen) == 8  # the first shard of training images, and the generated ones
    assert after["value"] != before["value"]


def test_a_shard_of_deep_features_delivered_twice_and_late_changes_nothing(make):
    evaluator = make(shard_size=4, batch_size=4)
    parts = {i: evaluator.score_shard(["fid_medium", "kid_medium"], i, 10) for i in range(3)}
    for name in ("fid_medium", "kid_medium"):
        metric = METRICS[name]
        straight = combine(metric, [(i, parts[i][name]) for i in (0, 1, 2)], 3)
        crooked = combine(metric, [(i, parts[i][name]) for i in (2, 1, 2, 0, 1)], 3)
        if name == "fid_medium":
            assert (straight.mean == crooked.mean).all()
            assert (straight.moment == crooked.moment).all()
        else:
            np.testing.assert_array_equal(np.concatenate(straight), np.concatenate(crooked))


def test_too_few_images_and_missing_weights_are_refused_before_any_is_drawn(make, tmp_path, digits):
    evaluator = make()
    with pytest.raises(ConfigError, match="num_images = 9: the score inception_score needs at least 10 images"):
        evaluator.score(["fid", "inception_score"], 9)
    with pytest.raises(ConfigError, match="precision_recall_medium needs at least 6 images"):
        evaluator.score(["precision_recall_medium"], 5)
    with pytest.raises(DataError, match=r"inception.safetensors is missing.*`ebm data inception --from FILE`"):
        make(Weights(tmp_path)).score(["kid"], 12)
    few = make(num_reference=5)
    with pytest.raises(DataError, match="metric precision_recall: 5 train images; it needs at least 6"):
        few.score(["precision_recall"], 12)
    assert evaluator._drawn is None
