"""Real images spoilt in known ways, each at several strengths: what every score should see.

A spoiling takes clean held-out images (n c h w), their labels (n), a strength, the training images to copy from and a
stream, and gives uint8 images; strength 0 would leave the images as they are. Fewer may come back (`few_classes`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from ebm_core.data.pixels import dequantize, quantize
from ebm_core.rng import normal
from ebm_core.types import Pixels


@dataclass(frozen=True)
class Given:
    """What a spoiling may use beside the images."""

    labels: Int64[Tensor, "n"]
    train: Pixels
    class_means: Float[Tensor, "k c h w"]
    rng: torch.Generator


@dataclass(frozen=True)
class Spoiling:
    """A way to spoil images, from the mildest strength to the worst."""

    title: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Pixels, float, Given], Pixels]


def blur(images: Pixels, strength: float, given: Given) -> Pixels:
    """Gaussian blur of a standard deviation of `strength` sixteenths of the image's side."""
    x, sigma = dequantize(images), strength * images.shape[-1] / 16
    radius = max(1, round(3 * sigma))
    at = torch.arange(-radius, radius + 1)
    row = torch.exp(-(at**2) / (2 * sigma**2))
    row = (row / row.sum()).expand(x.shape[1], 1, 1, -1)
    padded = functional.pad(x, (radius,) * 4, mode="replicate")
    across = functional.conv2d(padded, row, groups=x.shape[1])
    return quantize(functional.conv2d(across, row.transpose(2, 3), groups=x.shape[1]))


def fade(images: Pixels, strength: float, given: Given) -> Pixels:
    """Contrast about each image's mean, less by the share `strength`."""
    x = dequantize(images)
    mean = x.mean((1, 2, 3), keepdim=True)
    return quantize(mean + (1 - strength) * (x - mean))


def saturate(images: Pixels, strength: float, given: Given) -> Pixels:
    """Contrast about middle grey, `1 + strength` times as high, cut off at black and white."""
    return quantize(0.5 + (1 + strength) * (dequantize(images) - 0.5))


def add_noise(images: Pixels, strength: float, given: Given) -> Pixels:
    """Normal noise of this standard deviation, in pixels of [0, 1]."""
    x = dequantize(images)
    return quantize(x + strength * normal(tuple(x.shape), given.rng))


def grey_blur(images: Pixels, strength: float, given: Given) -> Pixels:
    """Each image mixed with the mean training image of its class; at 1, that mean alone."""
    return quantize((1 - strength) * dequantize(images) + strength * given.class_means[given.labels])


def few_classes(images: Pixels, strength: float, given: Given) -> Pixels:
    """Only the images of the first classes: the share `strength` of all classes is gone."""
    num_classes = len(given.class_means)
    return images[given.labels < max(1, round((1 - strength) * num_classes))]


def _replaced(images: Pixels, strength: float, other: Pixels) -> Pixels:
    """The first images, a share `strength` of them, exchanged for `other` ones."""
    count = round(strength * len(images))
    return torch.cat([other[:count], images[count:]])


def repeat(images: Pixels, strength: float, given: Given) -> Pixels:
    """A share `strength` of the images are copies of one of the rest."""
    count = round(strength * len(images))
    rest = len(images) - count
    return torch.cat([images[count + torch.randint(rest, (count,), generator=given.rng)], images[count:]])


def mirror(images: Pixels, strength: float, given: Given) -> Pixels:
    """A share of the images are mirrored, left to right."""
    return _replaced(images, strength, images.flip(3))


def recolour(images: Pixels, strength: float, given: Given) -> Pixels:
    """A share of the images have red, green and blue exchanged in turn."""
    return _replaced(images, strength, images.roll(1, 1))


def mix_with_noise(images: Pixels, strength: float, given: Given) -> Pixels:
    """A share of the images are uniform noise."""
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=given.rng)
    return _replaced(images, strength, noise)


def memorise(images: Pixels, strength: float, given: Given) -> Pixels:
    """A share of the images are training images."""
    chosen = torch.randperm(len(given.train), generator=given.rng)[: len(images)]
    return _replaced(images, strength, given.train[chosen])


SPOILINGS: dict[str, Spoiling] = {
    "blur": Spoiling("blur", "sixteenths of the side", (0.5, 1, 2, 4), blur),
    "grey_blur": Spoiling("mixed with the class's mean", "share of the mean", (0.25, 0.5, 0.75, 1), grey_blur),
    "fade": Spoiling("less contrast", "share lost", (0.1, 0.25, 0.5, 0.75), fade),
    "saturate": Spoiling("saturation", "contrast added", (0.25, 0.5, 1, 8), saturate),
    "noise": Spoiling("noise", "standard deviation, pixels", (0.05, 0.1, 0.2, 0.4), add_noise),
    "few_classes": Spoiling("classes missing", "share", (0.2, 0.5, 0.8, 0.9), few_classes),
    "repeat": Spoiling("repeated images", "share", (0.05, 0.2, 0.5, 0.9), repeat),
    "mirror": Spoiling("mirrored", "share", (0.1, 0.25, 0.5, 1), mirror),
    "recolour": Spoiling("wrong colours", "share", (0.1, 0.25, 0.5, 1), recolour),
    "mixture": Spoiling("mixture with uniform noise", "share", (0.02, 0.05, 0.2, 0.5), mix_with_noise),
    "memorise": Spoiling("memorised training images", "share", (0.1, 0.25, 0.5, 1), memorise),
}
