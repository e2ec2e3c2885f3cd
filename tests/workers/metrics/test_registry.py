import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from ebm_core.data.dataset import limited
from ebm_core.errors import ConfigError, DataError
from workers.features import judge
from workers.metrics.metric import Accumulator, Metric, combine
from workers.metrics.reference import Reference, Shard
from workers.metrics.registry import METRICS, find_metric

HERE = [name for name, metric in METRICS.items() if metric.extractor not in ("medium", "inception")]
"""Metrics that need no file of weights."""


def brightness(images, dataset, index) -> np.ndarray:
    """A stand-in energy: mean level, larger for brighter images."""
    return images.double().mean(dim=(1, 2, 3)).numpy() / 256


@pytest.fixture(scope="module")
def real(digits) -> Reference:
    return Reference(*digits, brightness)


def shards_of(images, size: int) -> list[Shard]:
    parts = images.split(size)
    first = [sum(map(len, parts[:i])) for i in range(len(parts))]
    return [
        Shard(part, brightness(part, None, torch.arange(len(part))), start, len(images))
        for part, start in zip(parts, first, strict=True)
    ]


def known_sets(metric: Metric, real: Reference, num_images: int) -> dict:
    """What the metric makes of the real sets, in shards of 50."""
    found = {}
    for which, needed in metric.real_sets.items():
        count = min(real.length(which), needed, needed if which == "train" else num_images)
        parts = [metric.score(real.real_shard(which, count, i, 50), real) for i in range(0, count, 50)]
        found[which] = combine(metric, enumerate(parts), len(parts))
    return found


def result(name: str, images, real: Reference, size: int = 50, order=reversed) -> dict:
    """The whole path: shards, scored, pickled, delivered in some order, folded, finished, written as JSON."""
    metric = find_metric(name)
    metric.prepare(real)
    parts = [pickle.loads(pickle.dumps(metric.score(shard, real))) for shard in shards_of(images, size)]
    state = combine(metric, order(list(enumerate(parts))), len(parts))
    values = metric.finish(pickle.loads(pickle.dumps(state)), real, known_sets(metric, real, len(images)))
    return json.loads(json.dumps(values, allow_nan=False))


@pytest.mark.parametrize("name", HERE)
def test_order_and_repetition_of_shards_do_not_change_a_result(name, real):
    images = real.noise.images[:90]
    in_order = result(name, images, real, 25, order=list)
    shuffled = result(name, images, real, 25, order=lambda parts: [parts[i] for i in (2, 0, 3, 2, 1, 0)])
    assert json.dumps(in_order) == json.dumps(shuffled)


@pytest.mark.parametrize("name", HERE)
def test_any_cut_into_shards_gives_the_score_of_the_whole(name, real):
    images = real.heldout.images[:90]
    whole, cut = (result(name, images, real, size)["value"] for size in (90, 7))
    assert cut == pytest.approx(whole, rel=1e-5, abs=1e-9)  # float32 convolutions differ by batch


def test_partials_are_folded_as_they_come_so_that_few_are_held_at_a_time():
    folded = []
    metric = replace(METRICS["energy_gap"], fold=lambda state, part: [*(state or []), part])
    together = Accumulator(metric, 4)
    for shard in (1, 0, 0, 3, 1, 2):
        together.add(shard, shard * 10)
        folded.append((together._state, sorted(together._early)))
    assert folded[:3] == [(None, [1]), ([0, 10], []), ([0, 10], [])]
    assert together.result() == [0, 10, 20, 30]


@pytest.mark.parametrize("shards", [[0, 2], [0, 1, 2, 3], []])
def test_missing_and_unknown_shards_are_refused(shards):
    with pytest.raises(DataError, match="missing or not asked for"):
        combine(METRICS["energy_gap"], [(shard, np.zeros(2)) for shard in shards], 3)


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'fit'; known: energy_gap, fid_judge, kid_judge"):
        find_metric("fit")


def test_energy_gap_is_heldout_minus_generated_with_its_rows(real):
    images = real.train.images[:400]
    found = result("energy_gap", images, real)
    generated, heldout = brightness(images, None, None), real.heldout.energies
    assert found["value"] == pytest.approx(heldout.mean() - generated.mean(), rel=1e-12)
    assert abs(found["value"]) < 4 * found["standard_error"]  # both are real digits
    assert found["energy_noise"] == pytest.approx(0.5, abs=0.01)
    assert found["auroc_heldout_over_noise"] > 0.99  # digits are darker than noise, so they have less of this energy
    assert found["auroc_heldout_over_generated"] == pytest.approx(0.5, abs=0.1)


def test_fid_small_is_zero_on_the_training_images_and_its_rows_are_at_equal_counts(real):
    assert result("fid_small", real.train.images, real)["value"] < 1e-6
    found = result("fid_small", real.heldout.images[torch.arange(200) * 297 // 200], real)
    assert found["value"] == pytest.approx(found["heldout"], rel=1e-5)
    assert found["reference_num_images"] == 200
    assert found["noise"] > 20 * found["heldout"]


def test_copies_of_training_images_are_found_and_named(real):
    copied = result("nearest_train", real.train.images[100:150], real)
    assert (copied["value"], copied["copied_fraction"], copied["median_distance"]) == (0, 1, 0)
    assert copied["closest"] == {"image": 0, "train_image": 100, "distance": 0.0}
    fresh = result("nearest_train", real.heldout.images, real)
    assert fresh["value"] == 1
    assert fresh["copied_fraction"] <= 0.02
    assert result("nearest_train", real.noise.images, real)["value"] > 2


def test_the_classifier_knows_real_digits_and_doubts_noise(real):
    # The ten digits come equally often, so the entropy of real ones is log 10; noise is taken for a few classes.
    found = result("classifier", real.train.images[:300], real)
    assert found["heldout"]["accuracy"] > 0.95
    assert found["heldout"]["mean_confidence"] > 0.95
    assert found["heldout"]["class_entropy"] == pytest.approx(math.log(10), abs=0.03)
    assert found["noise"]["class_entropy"] < found["heldout"]["class_entropy"] - 0.05
    assert found["noise"]["mean_confidence"] < found["heldout"]["mean_confidence"] - 0.1
    assert found["value"] == found["mean_confidence"] > 0.95
    assert found["classes_seen"] == found["num_classes"] == 10
    assert sum(found["images_per_class"]) == 300
    assert found["share_per_class"] == pytest.approx([count / 300 for count in found["images_per_class"]])


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Means over 3 x 3 pixels, the edges repeated."""
    return functional.avg_pool2d(functional.pad(images.float(), (1, 1, 1, 1), mode="replicate"), 3, 1).to(torch.uint8)


@pytest.mark.parametrize("extractor", ["judge", "rotation"])
def test_to_a_judge_held_out_digits_are_nearer_than_blurred_ones_and_those_than_noise(real, extractor):
    known = real.heldout.images
    near, blur = (result(f"fid_{extractor}", images, real) for images in (known, blurred(known)))
    assert near["value"] == pytest.approx(near["heldout"], rel=1e-6)
    assert 10 * near["value"] < blur["value"] < near["noise"]
    kernel = result(f"kid_{extractor}", blurred(known), real)
    assert abs(kernel["heldout"]) < kernel["value"] / 10


def test_one_class_alone_loses_recall_coverage_and_classes_and_is_far_off(real):
    only = real.heldout.images[torch.from_numpy(real.heldout.labels == 3)]
    spread = result("precision_recall_judge", only, real)
    assert spread["coverage"] < 0.5 * spread["heldout"]["coverage"]
    assert spread["recall"] < 0.5 * spread["heldout"]["recall"]
    assert spread["precision"] > 0.5  # what is there is good
    assert result("classifier", only, real)["classes_seen"] <= 3
    distance = result("fid_judge", only, real)
    assert distance["value"] > 5 * distance["heldout"]


def test_a_large_split_is_thinned_evenly_and_energies_are_those_of_the_images_taken(digits):
    train, heldout = digits
    real = Reference(train, heldout, lambda images, dataset, index: index.double().numpy(), num_real=100)
    assert real.train.index.tolist() == list(range(0, 1500, 15))
    assert torch.equal(real.train.images, train.fetch(torch.arange(0, 1500, 15)))
    assert real.train.labels.tolist() == train.labels[::15].tolist()
    assert real.train.energies.tolist() == real.train.index.tolist()
    assert len(real.heldout.images) == 100


def test_the_named_training_image_is_numbered_in_the_whole_split(digits):
    train, heldout = digits
    real = Reference(train, heldout, brightness, num_real=100)
    found = result("nearest_train", train.fetch(torch.tensor([30])), real)
    assert found["closest"]["train_image"] == 30


@pytest.mark.parametrize("name", ["classifier", "fid_judge", "kid_judge", "precision_recall_judge"])
def test_scores_by_labels_refuse_data_without_labels_or_of_one_class_and_name_the_remedy(digits, name):
    train, heldout = digits
    with pytest.raises(DataError, match=r"^digits has no labels .* use the stand-ins that need none, such as fid_rot"):
        find_metric(name).prepare(Reference(replace(train, labels=None), heldout, brightness))
    same = replace(train, labels=torch.zeros(len(train), dtype=torch.int64))
    with pytest.raises(DataError, match=r"^all training images of digits have one label, .* such as fid_rotation$"):
        find_metric(name).prepare(Reference(same, heldout, brightness))


def test_the_stand_in_without_labels_takes_data_that_has_none(digits):
    train, heldout = (replace(split, labels=None) for split in digits)
    real = Reference(train, heldout, brightness)
    found = result("fid_rotation", real.train.images, real)
    assert found["value"] < 1e-6 < found["heldout"] < found["noise"] / 10


def test_large_images_have_judges_too(digits, monkeypatch):
    monkeypatch.setattr(judge, "LEAST_STEPS", 100)
    large = replace(digits[0].cfg, image_size=48)
    train, heldout = (
        replace(
            split, cfg=large, read=lambda i, read=split.read: read(i).repeat_interleave(6, 2).repeat_interleave(6, 3)
        )
        for split in digits
    )
    few = Reference(limited(train, 300), limited(heldout, 100), brightness)
    assert result("classifier", few.train.images[:40], few)["heldout"]["accuracy"] > 0.8


def test_empty_splits_are_refused(digits):
    train, heldout = digits
    with pytest.raises(DataError, match="test split is empty"):
        Reference(train, replace(heldout, num_images=0), brightness)


def test_a_data_set_teaches_the_judge_of_its_labels_or_the_one_of_rotations(digits):
    train, heldout = (limited(part, 200) for part in digits)
    named = Reference(train, heldout, brightness)
    assert named.trained == "judge"
    for name in ("judge", "small"):
        assert named.frechet(named.train.images, name) == pytest.approx(0, abs=1e-6)
        assert 0 < named.frechet(named.heldout.images, name) < named.frechet(named.noise.images, name)
    assert Reference(replace(train, labels=None), heldout, brightness).trained == "rotation"
    assert Reference(replace(train, labels=torch.zeros(200).long()), heldout, brightness).trained == "rotation"
