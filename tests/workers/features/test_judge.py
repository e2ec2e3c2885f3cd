"""The judge on images whose factors are plain to see."""

import numpy as np
import pytest
import torch

from ebm_core.config import DataConfig
from ebm_core.data import Dataset
from ebm_core.data.images import fit
from ebm_core.errors import ConfigError, DataError
from workers.features.judge import fit_judge
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


def test_large_images_are_judged_at_32_pixels():
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
