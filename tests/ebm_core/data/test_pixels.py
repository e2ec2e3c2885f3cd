"""uint8 round trips lose nothing, however often they are made."""

import torch

from ebm_core.data.pixels import dequantize, quantize
from ebm_core.rng import stream

LEVELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def test_every_level_survives_a_round_trip_with_and_without_dither():
    assert torch.equal(quantize(dequantize(LEVELS)), LEVELS)
    for step in range(20):
        assert torch.equal(quantize(dequantize(LEVELS, stream(0, step, "dither"))), LEVELS)


def test_dither_is_uniform_within_a_level():
    many = LEVELS.expand(2000, -1, -1, -1)
    offset = dequantize(many, stream(0, 0, "dither")) * 256 - many
    assert float(offset.min()) >= 0
    assert float(offset.max()) <= 1
    assert abs(float(offset.mean()) - 0.5) < 4 * 0.2887 / offset.numel() ** 0.5 + 1e-5
    assert abs(float(offset.var()) - 1 / 12) < 1e-3


def test_the_ends_of_the_range_stay_in_range_and_nothing_wraps_around():
    x = torch.tensor([-0.1, 0.0, 1.0, 1.1]).view(1, 1, 2, 2)
    assert quantize(x).flatten().tolist() == [0, 0, 255, 255]
