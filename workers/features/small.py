"""A small fixed feature extractor, for Fréchet distances where no trained network is at hand.

Named `small`, and its distance `fid_small`: the numbers cannot be compared with FID, nor between image sizes. Random
filters see stroke and edge statistics, contrast, colour, and on small images the coarse layout; they do not know what
an image shows. So the distance tells noise, blur, wrong contrast and missing modes of appearance from real images, and
orders checkpoints of one run; it does not tell a well-drawn wrong digit from a right one.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ebm_core.data.pixels import dequantize
from ebm_core.errors import DataError
from ebm_core.rng import normal, stream

WIDTH = 16
"""Filters of each of the three layers."""

NUM_FEATURES = 8 * WIDTH
"""Mean and standard deviation over the image for two layers, and 2 x 2 cell means of the third."""

BATCH = 256


class SmallFeatures:
    """Three 3 x 3 convolutions with random weights (strides 1, 2, 2; He's scale; ReLU), pooled to 128 numbers.

    The weights are drawn from a stream of our own, so they are the same everywhere; no training, no file. On the CPU.
    """

    name = "small"
    num_features = NUM_FEATURES

    def __init__(self, channels: int) -> None:
        """channels: 1 (grey) or 3 (RGB), else DataError."""
        if channels not in (1, 3):
            raise DataError(f"images of {channels} channels: the small features take 1 (grey) or 3 (RGB)")
        self.channels = channels
        self.layers = [_random_layer(index, inputs) for index, inputs in enumerate((channels, WIDTH, WIDTH))]

    def identity(self) -> dict[str, object]:
        """Its name: the weights are part of this program."""
        return {"name": self.name}

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """float64 features (b 128) of images in [0, 1], h and w at least 8."""
        first = _layer(2 * x - 1, *self.layers[0], stride=1)
        second = _layer(first, *self.layers[1], stride=2)
        third = _layer(second, *self.layers[2], stride=2)
        cells = functional.adaptive_avg_pool2d(third.double(), 2).flatten(1)
        return torch.cat([*_mean_and_std(first), *_mean_and_std(second), cells], dim=1)

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[np.ndarray, "n d"]:
        """float64 features (n 128) of stored images. Raises DataError for an unfit shape or an empty set."""
        if images.ndim != 4 or images.shape[1] != self.channels or min(images.shape[2:]) < 8 or not len(images):
            raise DataError(
                f"images of shape {tuple(images.shape)}: the small features need (n, {self.channels}, h, w), "
                "h and w at least 8, n at least 1"
            )
        return torch.cat([self(dequantize(part.cpu())) for part in images.split(BATCH)]).numpy()


def _random_layer(index: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Weight (WIDTH inputs 3 3), variance 2 / fan-in, and bias (WIDTH) of one layer: a function of the arguments."""
    rng = stream(0, index, f"small features {inputs}")
    weight = normal((WIDTH, inputs, 3, 3), rng) * (2 / (9 * inputs)) ** 0.5
    return weight, normal((WIDTH,), rng) * 0.1


def _layer(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Edges are reflected: zeros would put a frame around every image."""
    return functional.relu(functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias, stride))


def _mean_and_std(maps: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
    """Over the pixels of each map, (b c) each, in float64."""
    std, mean = torch.std_mean(maps.double(), dim=(2, 3), correction=0)
    return mean, std
