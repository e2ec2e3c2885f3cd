"""The judge on images whose factors are plain to see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ebm_core.config import DataConfig
from ebm_core.data import Dataset
from ebm_core.data.images import fit
from ebm_core.errors import ConfigError, DataError
from workers.features import judge as judging
from workers.features.judge import LABEL, ROTATION, fit_judge
from workers.studies.recipes import Concept, recipe, score


def bars(count: int, split: str = "train", size: int = 8, seed: int = 0) -> Dataset:
    """Noise with a bright bar in one of three rows (the label), in the left or right half (the attribute)."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 60, (count, 1, size, size), dtype=torch.uint8, generator=rng)
    rows = torch.randint(0, 3, (count,), generator=rng)
    left = torch.randint(0, 2, (count,), generator=rng)
    half = size // 2
    for i in range(count):
        top, start = int(rows[i]) * size // 4, 0 if left[i] else half
        pixels[i, 0, top : top + size // 4, start : start + half] = 220
    cfg = DataConfig(name="digits", image_size=size, channels=1)
    return Dataset(
        cfg=cfg,
        split=split,
        num_images=count,
        read=lambda index: fit(pixels[index], size, 1),
        content=lambda num: [],
        labels=rows,
        attributes=torch.stack([left, torch.ones_like(left)], dim=1).float(),
        attribute_names=("left", "bright"),
    )


@pytest.fixture(scope="module")
def judge():
    return fit_judge(bars(600), bars(200, "test", seed=1), ["label", "left"])


def test_the_judge_reads_held_out_images_and_tells_how_well(judge):
    other = bars(90, seed=2)
    read = judge.read(other.fetch(torch.arange(90)))
    assert (read["label"] == other.labels.numpy()).mean() > 0.97
    assert (read["left"] == other.attributes[:, 0].numpy()).mean() > 0.97
    assert min(judge.accuracy.values()) > 0.97
    assert sum(judge.share["label"]) == pytest.approx(1)
    assert judge.share["left"][1] == pytest.approx(bars(200, seed=1).attributes[:, 0].mean().item())


def test_it_is_a_function_of_its_images(judge):
    again = fit_judge(bars(600), bars(200, "test", seed=1), ["label", "left"])
    for name, weight in judge.net.state_dict().items():
        assert torch.equal(weight, again.net.state_dict()[name])


@pytest.fixture(scope="module")
def reader(digits):
    """The judge of the digits' labels, fitted without a cache."""
    return fit_judge(*digits, [LABEL])


def test_digits_are_read_nearly_always_and_their_quarter_turns_too(digits, reader):
    assert reader.accuracy[LABEL] >= 0.96
    turned = fit_judge(*digits, [ROTATION])
    assert turned.accuracy[ROTATION] >= 0.93
    assert (turned.name, reader.name) == ("rotation", "judge")
    assert turned.share[ROTATION] == [0.25] * 4


def test_a_judge_has_the_same_bits_again_with_other_threads_and_from_the_cache(digits, reader, tmp_path):
    images = digits[1].fetch(torch.arange(40))
    before, outside = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(3)
        fresh, kept = (fit_judge(*digits, [LABEL], tmp_path) for _ in range(2))
        rows = [judge.features(images) for judge in (reader, fresh, kept)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert reader.digest == fresh.digest == kept.digest
    assert reader.identity() == kept.identity()
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert torch.equal(torch.get_rng_state(), outside)


def test_the_cache_serves_just_these_images_and_labels_and_trains_again_what_is_damaged(monkeypatch, tmp_path):
    trained: list[int] = []
    monkeypatch.setattr(judging, "LEAST_STEPS", 20)
    train = judging._train
    monkeypatch.setattr(judging, "_train", lambda net, x, truth: (trained.append(len(x)), train(net, x, truth)))
    data, heldout = bars(100), bars(50, "test", seed=1)
    first = fit_judge(data, heldout, [LABEL], tmp_path)
    assert fit_judge(data, heldout, [LABEL], tmp_path).digest == first.digest
    assert trained == [100]
    (path,) = tmp_path.glob("judges/*")
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 1
    for content in (bytes(damaged), b""):
        path.write_bytes(content)
        assert fit_judge(data, heldout, [LABEL], tmp_path).digest == first.digest
    assert trained == [100] * 3
    labels = data.labels.clone()
    labels[5] = (labels[5] + 1) % 3
    assert fit_judge(replace(data, labels=labels), heldout, [LABEL], tmp_path).digest != first.digest
    assert fit_judge(bars(100, seed=2), heldout, [LABEL], tmp_path).digest != first.digest
    assert trained == [100] * 5
    (tmp_path / "file").touch()
    assert fit_judge(data, heldout, [LABEL], tmp_path / "file").digest == first.digest


def test_features_have_a_total_variance_of_64_over_the_training_images_and_logits_follow(digits, reader):
    train = digits[0].fetch(torch.arange(1500))
    rows = reader.features(train)
    assert rows.shape == (1500, 64 + 10)
    assert rows[:, :64].var(axis=0, ddof=1).sum() == pytest.approx(64, rel=1e-9)
    assert (rows[:, :64] >= 0).all()
    odds = reader.probabilities(rows)
    np.testing.assert_allclose(odds.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(odds.argmax(axis=1), reader.read(train)[LABEL])
    linear = reader.net.heads.double()
    expected = torch.from_numpy(rows[:, :64]) * reader.scale @ linear.weight.T + linear.bias
    np.testing.assert_allclose(rows[:, 64:], expected.detach().numpy(), atol=1e-9)


def test_large_images_are_judged_at_32_pixels(monkeypatch):
    monkeypatch.setattr(judging, "LEAST_STEPS", 100)
    found = fit_judge(bars(300, size=64), bars(100, "test", size=64, seed=1), ["left"])
    assert found.accuracy["left"] > 0.97


def test_scores_count_the_images_that_are_as_asked(judge):
    other = bars(60, seed=3)
    images, rows, left = other.fetch(torch.arange(60)), other.labels.numpy(), other.attributes[:, 0].numpy()
    how = recipe("and", [Concept(0, ((1.0,),), {"label": 2}), Concept(1, ((1.0,),), {"left": 1})])
    made = score({"composed": images, "black": torch.zeros_like(images[:7])}, how, judge)
    read = judge.read(images)
    assert (read["label"] == rows).all()
    row = made["rows"]["composed"]
    assert row["factors"] == pytest.approx({"label=2": (rows == 2).mean(), "left=1": (left == 1).mean()})
    assert row["as_asked"] == pytest.approx(((rows == 2) & (left == 1)).mean())
    assert made["rows"]["black"]["num_images"] == 7
    assert made["judge"]["real_share"]["left=1"] == judge.share["left"][1]
    either = recipe("or", [Concept(0, ((1.0,),), {"label": 0}), Concept(0, ((1.0,),), {"label": 1})])
    both = score({"composed": images}, either, judge)["rows"]["composed"]
    assert both["as_asked"] == pytest.approx(np.isin(rows, [0, 1]).mean())


def test_factors_that_cannot_be_judged_are_refused(judge):
    train, heldout = bars(50), bars(50, "test")
    with pytest.raises(ConfigError, match="has no factor 'top'; it has label, left, bright"):
        fit_judge(train, heldout, ["top"])
    with pytest.raises(ConfigError, match="no factors"):
        fit_judge(train, heldout, [])
    with pytest.raises(DataError, match="have one bright"):
        fit_judge(train, heldout, ["bright"])
    with pytest.raises(DataError, match="no images"):
        judge.read(torch.zeros(0, 1, 8, 8, dtype=torch.uint8))
