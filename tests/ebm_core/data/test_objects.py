"""Rendered objects: factors are independent and uniform, attributes are their halves, images are theirs."""

import torch

from ebm_core.config import DataConfig
from ebm_core.data.objects import (
    OBJECT_ATTRIBUTES,
    OBJECT_CLASSES,
    POSITION_RANGE,
    ROTATION_RANGE,
    SIZE_RANGE,
    objects,
)
from ebm_core.data.render import render

CFG = DataConfig(name="objects", image_size=16)


def test_images_are_renderings_of_their_factors():
    data = objects(CFG, "train")
    index = torch.tensor([9_999, 0, 5])
    expected = render(16, **{name: values[index] for name, values in data.factors.items()})
    assert torch.equal(data.fetch(index), expected)
    assert torch.equal(data.fetch(index.flip(0)), expected.flip(0))
    assert len(data) == 10_000


def test_loading_again_gives_the_same_images_and_the_splits_differ():
    one, two, test = objects(CFG, "train"), objects(CFG, "train"), objects(CFG, "test")
    index = torch.arange(8)
    assert torch.equal(one.fetch(index), two.fetch(index))
    assert one.fingerprint() == two.fingerprint() != test.fingerprint()
    assert len(test) == 2_000
    shared = set(one.factors["x"].tolist()) & set(test.factors["x"].tolist())
    assert len(shared) < 10, "chance meetings of 24-bit numbers alone"


def test_factors_are_uniform_in_their_ranges_and_independent():
    factors = objects(CFG, "train").factors
    for name, (low, high) in {
        "size": SIZE_RANGE,
        "x": POSITION_RANGE,
        "y": POSITION_RANGE,
        "rotation": ROTATION_RANGE,
    }.items():
        assert low <= factors[name].min() <= factors[name].max() <= high
        mean_error = (high - low) / (12 * 10_000) ** 0.5
        assert abs(factors[name].mean() - (low + high) / 2) < 4 * mean_error
    counts = torch.bincount(factors["identity"])
    assert len(counts) == len(OBJECT_CLASSES) >= 4
    assert (counts - 2_000).abs().max() < 4 * (10_000 * 0.2 * 0.8) ** 0.5
    correlation = torch.corrcoef(torch.stack([values.float() for values in factors.values()]))
    assert (correlation - torch.eye(5)).abs().max() < 4 / 10_000**0.5


def test_attributes_are_the_identity_and_halves_of_the_other_factors():
    data = objects(CFG, "train")
    assert data.attributes is not None
    assert data.labels is not None
    column = {name: data.attributes[:, i] for i, name in enumerate(OBJECT_ATTRIBUTES)}
    assert set(data.attributes.unique().tolist()) == {0.0, 1.0}
    for i, name in enumerate(OBJECT_CLASSES):
        assert torch.equal(column[f"shape={name}"].bool(), data.labels == i)
    for name, factor, sign in (("large", "size", 1), ("left", "x", -1), ("top", "y", 1), ("rotated", "rotation", 1)):
        values = sign * data.factors[factor]
        assert values[column[name] == 1].min() >= values[column[name] == 0].max()
        assert abs(column[name].mean() - 0.5) < 0.02


def test_gray_objects_have_one_channel():
    gray = objects(DataConfig(name="objects", image_size=16, channels=1), "train")
    assert gray.fetch(torch.tensor([0])).shape == (1, 1, 16, 16)
