"""Samples of a trained energy in image shards of fixed size; their bits depend on their number, not on who computes.

A shard is what one worker scores at a time. It is drawn in batches of fixed size, each from a stream of its own: a
small evaluation draws the batches that it needs, a large one fits into memory. A batch is always drawn whole, since its
size can change the last bit of a convolution. Bits agree between workers of the same kind of device and number of
threads.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ebm_core.config import TrainConfig
from ebm_core.data.pixels import quantize
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.models import EnergyModel
from ebm_core.rng import stream
from ebm_core.sampler import generate
from ebm_core.types import Pixels

SHARD_SIZE = 500
"""Images in an image shard (here: shard)."""

BATCH_SIZE = 100
"""Images drawn together; divides SHARD_SIZE."""


def generate_images(
    model: EnergyModel,
    cfg: TrainConfig,
    *,
    seed: int,
    count: int,
    first_batch: int = 0,
    batch_size: int = BATCH_SIZE,
    rows: Float[Tensor, "n k"] | None = None,
) -> Pixels:
    """The first `count` images (count c h w), uint8 on the CPU, of the batches from `first_batch` on.

    rows: see `shard_condition`. Raises what `generate_batch` raises.
    """
    batches = range(first_batch, first_batch + math.ceil(count / batch_size))
    parts = [
        generate_batch(model, cfg, seed=seed, batch=i, count=batch_size, condition=shard_condition(rows, i, batch_size))
        for i in batches
    ]
    return torch.cat(parts)[:count]


def generate_batch(
    model: EnergyModel,
    cfg: TrainConfig,
    *,
    seed: int,
    batch: int,
    count: int = BATCH_SIZE,
    condition: Float[Tensor, "count k"] | None = None,
) -> Pixels:
    """The final states (count c h w), uint8 on the CPU, of the test-time chains that (seed, batch) names (Section 2.3).

    condition: one row per image for a conditional energy, see `shard_condition`. Raises ConfigError for a negative
    batch or no images, CheckpointError when a chain leaves the finite numbers.
    """
    if batch < 0 or count < 1:
        raise ConfigError(f"batch {batch} of {count} images: batches count from 0 and hold at least one image")
    device = next(model.parameters()).device
    x = generate(
        model,
        count=count,
        cfg=cfg.sampler,
        rng=stream(seed, batch, "generate", device=device),
        transitions=cfg.augment if cfg.augment.enabled else None,
        condition=None if condition is None else condition.to(device),
    )
    bad = int((~torch.isfinite(x)).flatten(1).any(dim=1).sum())
    if bad:
        raise CheckpointError(
            f"{bad} of {count} generated images are not finite (seed {seed}, batch {batch}): "
            "the energy has diverged; use an earlier checkpoint"
        )
    return quantize(x).cpu()


def shard_condition(
    rows: Float[Tensor, "n k"] | None, batch: int, count: int = BATCH_SIZE
) -> Float[Tensor, "count k"] | None:
    """Conditions of a batch's images: image i of all batches takes row i modulo n, so each row comes equally often.

    rows: one-hot labels, or attribute vectors; None for an unconditional energy.
    """
    if rows is None:
        return None
    return rows[torch.arange(batch * count, (batch + 1) * count) % len(rows)]
