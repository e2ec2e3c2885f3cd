"""What a step sees depends on (seed, step) alone: not on where the loader began, nor on who computes it."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebm_core.config import DataConfig
from ebm_core.data import batch_indices, batches, labelled_batches, load, quantize
from ebm_core.data.dataset import from_pixels
from ebm_core.errors import ConfigError
from ebm_core.rng import Shards

DIGITS = DataConfig(name="digits", image_size=8, channels=1, limit=50)


@settings(deadline=None, max_examples=60)
@given(num=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**63 - 1), epochs=st.integers(1, 3))
def test_every_epoch_shows_each_image_exactly_once(num, batch_size, seed, epochs):
    steps = -(-epochs * num // batch_size)
    sequence = torch.cat([batch_indices(num, batch_size, seed, step) for step in range(steps)])
    assert len(sequence) == steps * batch_size
    for epoch in range(epochs):
        assert sequence[epoch * num : (epoch + 1) * num].sort().values.tolist() == list(range(num))


def test_a_batch_larger_than_the_data_wraps_over_epochs():
    index = batch_indices(3, 10, 0, 0)
    assert [index[i : i + 3].sort().values.tolist() for i in (0, 3, 6)] == 3 * [[0, 1, 2]]


def test_the_order_differs_between_epochs_and_seeds_and_repeats_for_the_same():
    orders = [batch_indices(100, 100, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert batch_indices(100, 100, 1, 1).tolist() == orders[3]


def test_first_places_are_uniform_over_seeds():
    # 2,000 seeds over 10 images: chi-square with 9 degrees of freedom exceeds 33.7 once in 10,000
    firsts = torch.tensor([int(batch_indices(10, 1, seed, 0)) for seed in range(2_000)])
    counts = torch.bincount(firsts, minlength=10).float()
    assert ((counts - 200) ** 2 / 200).sum() < 33.7


@pytest.mark.parametrize("arguments", [(0, 4, 0, 0), (4, 0, 0, 0), (4, 4, 0, -1)])
def test_batches_that_do_not_exist_are_refused(arguments):
    with pytest.raises(ConfigError, match="there is no such batch"):
        batch_indices(*arguments)


def test_one_pass_shows_every_image_and_then_ends():
    seen = list(batches(DIGITS, 16))
    assert [len(x) for x in seen] == 4 * [16]  # 50 images: the last batch goes on into the next epoch
    data = load(DIGITS)
    wanted = {tuple(image.flatten().tolist()) for image in data.fetch(torch.arange(50))}
    assert {tuple(image.flatten().tolist()) for image in quantize(torch.cat(seen))[:50]} == wanted


def test_dither_keeps_every_level_and_is_not_constant():
    (x,) = batches(DIGITS, 50, stop=1)
    levels = load(DIGITS).fetch(batch_indices(50, 50, 0, 0))
    assert torch.equal(quantize(x), levels)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() < 1
    offset = x * 256 - levels
    assert abs(offset.mean() - 0.5) < 4 / (12 * offset.numel()) ** 0.5


def test_without_dither_pixels_are_bin_centers():
    (x,) = batches(dataclasses.replace(DIGITS, dither=False), 50, stop=1)
    assert torch.equal(x * 256 - 0.5, load(DIGITS).fetch(batch_indices(50, 50, 0, 0)).float())


@pytest.mark.parametrize("start", [1, 3, 7])
def test_starting_at_a_step_equals_skipping_the_steps_before(start):
    data = load(DIGITS)
    whole = list(batches(data, 16, seed=5, stop=9))
    rest = list(batches(data, 16, seed=5, start=start, stop=9))
    assert len(rest) == 9 - start
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("batch_size", [16, 13])
def test_the_workers_parts_make_the_one_workers_batch_bit_for_bit(world_size, batch_size):
    cfg = dataclasses.replace(DIGITS, condition="label")
    data = load(cfg)
    whole = labelled_batches(data, batch_size, seed=2, stop=3, shards=Shards.of_rank(0, 1, 4))
    parts = [
        labelled_batches(data, batch_size, seed=2, stop=3, shards=Shards.of_rank(rank, world_size, 4))
        for rank in range(world_size)
    ]
    for (x, condition), *shares in zip(whole, *parts, strict=True):
        assert condition is not None
        assert torch.equal(torch.cat([share for share, _ in shares]), x)
        assert torch.equal(torch.cat([share for _, share in shares]), condition)
        assert len(x) == batch_size


def test_conditions_belong_to_their_images():
    cfg = dataclasses.replace(DIGITS, condition="label", limit=None)
    data = load(cfg)
    assert data.labels is not None
    for step, (x, condition) in enumerate(labelled_batches(cfg, 32, seed=9, stop=2)):
        index = batch_indices(1500, 32, 9, step)
        assert condition is not None
        assert torch.equal(quantize(x), data.fetch(index))
        assert torch.equal(condition.argmax(1), data.labels[index])


def test_without_a_condition_none_is_given():
    ((_, condition),) = labelled_batches(DIGITS, 8, stop=1)
    assert condition is None


def test_a_name_stands_for_its_presets_data():
    (x,) = batches("digits", 8, stop=1)
    assert x.shape == (8, 1, 8, 8)


def test_a_data_set_of_ones_own_can_be_drawn_from():
    pixels = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    own = from_pixels(pixels, DIGITS, "train")
    seen = quantize(torch.cat(list(batches(own, 5))))[:, 0, 0, 0]
    assert sorted(seen.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"batch_size": 8, "start": -1}, "start = -1"),
        ({"batch_size": 2, "shards": Shards(8, 0, 2)}, "batch_size = 2: leaves a worker without an image"),
    ],
)
def test_impossible_batches_are_refused_at_once(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        batches(DIGITS, **settings)
