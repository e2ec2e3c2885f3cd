"""The calibration's own rules: a spoiling does what its name says, and what counts as seen."""

import pytest
import torch

from benchmarks.judges import Series, table
from benchmarks.spoilt import SPOILINGS, Given
from ebm_core.rng import stream


@pytest.fixture
def clean() -> tuple[torch.Tensor, Given]:
    """40 colour images of 8 x 8 in four classes, and what spoilings may use."""
    rng = torch.Generator().manual_seed(0)
    images, train = (torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=rng) for count in (40, 100))
    means = torch.rand(4, 3, 8, 8, generator=rng)
    return images, Given(torch.arange(40) % 4, train, means, stream(0, 0, "test"))


def apply(name: str, strength: float, clean: tuple[torch.Tensor, Given]) -> torch.Tensor:
    images, given = clean
    return SPOILINGS[name].apply(images, strength, given)


@pytest.mark.parametrize("name", SPOILINGS)
def test_strengths_grow_and_give_stored_images(name, clean):
    spoiling = SPOILINGS[name]
    assert list(spoiling.strengths) == sorted(spoiling.strengths)
    for strength in spoiling.strengths:
        found = spoiling.apply(clean[0], strength, clean[1])
        assert found.dtype == torch.uint8
        assert found.shape[1:] == clean[0].shape[1:]


def test_spoilings_by_share_touch_just_that_share(clean):
    images, given = clean
    assert torch.equal(apply("mirror", 0.25, clean), torch.cat([images[:10].flip(3), images[10:]]))
    swapped = apply("recolour", 1, clean)
    assert torch.equal(swapped[:, 1], images[:, 0])
    copies = apply("memorise", 0.5, clean)
    assert all((given.train == one).all((1, 2, 3)).any() for one in copies[:20])
    assert torch.equal(copies[20:], images[20:])
    repeated = apply("repeat", 0.9, clean)
    assert len(repeated.flatten(1).unique(dim=0)) <= 4
    assert torch.equal(apply("mixture", 0.5, clean)[20:], images[20:])
    assert torch.equal(apply("few_classes", 0.5, clean), images[given.labels < 2])


def test_a_flat_image_stays_flat_under_blur_and_the_mean_of_the_class_replaces_all(clean):
    flat = torch.full((4, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(SPOILINGS["blur"].apply(flat, 2, clean[1]), flat)
    assert torch.equal(SPOILINGS["fade"].apply(flat, 0.5, clean[1]), flat)
    means = SPOILINGS["grey_blur"].apply(clean[0], 1, clean[1])
    assert len(means.flatten(1).unique(dim=0)) == 4
    assert set(SPOILINGS["saturate"].apply(clean[0], 1e6, clean[1]).unique().tolist()) == {0, 255}


def test_seen_means_three_deviations_worse_from_there_on_and_fooled_as_much_better():
    def series(values, better):
        return Series([10.0] * len(values), [1.0] * len(values), list(values), better)

    assert series([10, 12, 14, 20], "less").seen() == 2
    assert series([10, 14, 12, 20], "less").seen() == 3  # lost again in between
    assert series([10, 14, 12, 12], "less").seen() is None
    assert series([10, 8, 6, 0], "more").seen() == 2
    assert series([10, 8, 6, 0], "less").seen() is None
    assert series([10, 8, 6, 0], "less").fooled()
    assert series([0, 0, 0, 20], None).seen() == 0
    assert not series([0, 0, 0, 20], None).monotone()
    assert series([11, 9, 14, 20], "less").monotone()  # a step back within the spread
    assert not series([20, 10, 14, 20], "less").monotone()
    rows = {"blur": {name: series([10, 12, 14, 20], "less") for name in _numbers()}}
    assert table(rows)[2] == "| fid_judge | 2 |"  # the third strength of blur


def _numbers() -> list[str]:
    from benchmarks.judges import directions

    return list(directions())
