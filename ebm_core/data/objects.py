"""Rendered shapes labelled with identity, size, position and rotation (Section 3.3, Fig. 10)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data.dataset import Dataset, remembered
from ebm_core.data.images import fit
from ebm_core.data.render import SHAPES, render
from ebm_core.rng import stream

NUM_TRAIN, NUM_TEST = 10_000, 2_000
SIZE_RANGE = (0.28, 0.52)
"""Size of the object, in half image widths: about its radius."""
POSITION_RANGE = (-0.42, 0.42)
"""x to the right, y up, in half image widths from the centre: the object is always whole."""
ROTATION_RANGE = (0.0, 180.0)
"""Where the painted side looks, in degrees about the vertical: 0 right, 90 to the viewer, 180 left."""

VERSION = 1
"""Part of the fingerprint: raise it when the images change."""

OBJECT_CLASSES = tuple(SHAPES)
OBJECT_ATTRIBUTES = (*(f"shape={name}" for name in SHAPES), "large", "left", "top", "rotated")
"""Binary factors: the identity, then the upper half of size, the lower of x, the upper of y, the upper of rotation."""


def objects(cfg: DataConfig, split: str) -> Dataset:
    """10,000 rendered images for training and 2,000 for testing, of five shapes; each is made when first fetched.

    `labels` is the identity, `attributes` the binary factors, `factors` identity, size, x, y and rotation themselves.
    """
    factors = draw_factors(split)
    shape = (cfg.channels, cfg.image_size, cfg.image_size)

    def read(index: Tensor) -> Tensor:
        chosen = {name: values[index] for name, values in factors.items()}
        return fit(render(cfg.image_size, **chosen), cfg.image_size, cfg.channels)

    return Dataset(
        cfg=cfg,
        split=split,
        num_images=len(factors["identity"]),
        read=remembered(read, len(factors["identity"]), shape),
        content=lambda num: [f"objects {VERSION}".encode(), *(v[:num].numpy().tobytes() for v in factors.values())],
        labels=factors["identity"],
        class_names=OBJECT_CLASSES,
        attributes=binary_factors(factors),
        attribute_names=OBJECT_ATTRIBUTES,
        factors=factors,
    )


def draw_factors(split: str) -> dict[str, Tensor]:
    """Independent, uniform factors of every image of a split, each (n): the same in every program that asks."""
    num_images = NUM_TRAIN if split == "train" else NUM_TEST
    draws = torch.rand(5, num_images, generator=stream(0, 0, f"objects/{split}"))

    def between(u: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * u

    return {
        "identity": (draws[0] * len(SHAPES)).long().clamp(max=len(SHAPES) - 1),
        "size": between(draws[1], *SIZE_RANGE),
        "x": between(draws[2], *POSITION_RANGE),
        "y": between(draws[3], *POSITION_RANGE),
        "rotation": between(draws[4], *ROTATION_RANGE),
    }


def binary_factors(factors: dict[str, Tensor]) -> Float[Tensor, "n k"]:
    """Columns of OBJECT_ATTRIBUTES, 0 or 1, from factors (n)."""
    identity = F.one_hot(factors["identity"], len(SHAPES)).bool()
    halves = [
        factors["size"] >= sum(SIZE_RANGE) / 2,
        factors["x"] < sum(POSITION_RANGE) / 2,
        factors["y"] >= sum(POSITION_RANGE) / 2,
        factors["rotation"] >= sum(ROTATION_RANGE) / 2,
    ]
    return torch.cat([identity, torch.stack(halves, dim=1)], dim=1).float()
