"""The one map between stored uint8 images and floats in [0, 1].

Level k stands for the bin [k/256, (k+1)/256). A float is stored as the bin it falls into and read back as a point of
that bin, so a round trip is exact however often it is made: no light is lost, nothing wraps around.
"""

import torch
from torch import Tensor

from ebm_core.rng import Rng, uniform
from ebm_core.types import Pixels, Samples


def quantize(x: Samples) -> Tensor:
    """uint8 level of each pixel of `x` in [0, 1]: the nearest bin centre; values outside the range go to its ends."""
    return (x.detach() * 256).floor().clamp(0, 255).to(torch.uint8)


def dequantize(levels: Pixels, rng: Rng | None = None) -> Samples:
    """float32 pixels in [0, 1): bin centres, or with `rng` uniform points of the bins (the published code's dither).

    levels: (b c h w) uint8. The expectation over the dither is the bin centre.
    """
    offset = 0.5 if rng is None else uniform(tuple(levels.shape), rng, levels.device)
    return (levels.to(torch.float32) + offset) / 256
