import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from ebm_core.errors import ConfigError, DataError
from workers.metrics.metric import Accumulator, Metric, combine
from workers.metrics.reference import Reference, Shard
from workers.metrics.registry import METRICS, find_metric

HERE = [name for name, metric in METRICS.items() if metric.extractor in (None, "small")]
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
    with pytest.raises(ConfigError, match="'fit'; known: energy_gap, fid_small, kid_small"):
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
    assert found["heldout"]["accuracy"] > 0.93
    assert 0.85 < found["heldout"]["mean_confidence"] <= found["heldout"]["accuracy"]
    assert found["heldout"]["class_entropy"] == pytest.approx(math.log(10), abs=0.03)
    assert found["noise"]["mean_confidence"] < 0.65
    assert found["noise"]["class_entropy"] < 2.1
    assert found["value"] == found["mean_confidence"] > 0.85
    assert found["classes_seen"] == found["num_classes"] == 10
    assert sum(found["images_per_class"]) == 300


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


def test_classifier_refuses_data_without_labels_of_one_class_or_too_large(digits):
    train, heldout = digits
    with pytest.raises(DataError, match="has no labels"):
        find_metric("classifier").prepare(Reference(replace(train, labels=None), heldout, brightness))
    same = replace(train, labels=torch.zeros(len(train), dtype=torch.int64))
    with pytest.raises(DataError, match="one label"):
        find_metric("classifier").prepare(Reference(same, heldout, brightness))
    large = replace(train.cfg, image_size=48)
    big = [replace(d, cfg=large, read=lambda i: torch.zeros(len(i), 1, 48, 48, dtype=torch.uint8)) for d in digits]
    with pytest.raises(DataError, match="2304 values are too large"):
        find_metric("classifier").prepare(Reference(*big, brightness))


def test_empty_splits_are_refused(digits):
    train, heldout = digits
    with pytest.raises(DataError, match="test split is empty"):
        Reference(train, replace(heldout, num_images=0), brightness)
