"""Samples of a trained energy in shards of fixed size: a shard's bits depend on its number, never on who computes it.

The whole shard is drawn even where only its first images are wanted, since the size of a batch can change the last bit
of a convolution. Bits agree between workers of the same kind of device and number of threads.
"""

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

SHARD_SIZE = 64
"""Images in a shard."""


def generate_shard(
    model: EnergyModel,
    cfg: TrainConfig,
    *,
    seed: int,
    shard: int,
    count: int = SHARD_SIZE,
    condition: Float[Tensor, "count k"] | None = None,
) -> Pixels:
    """The final states (count c h w), uint8 on the CPU, of the test-time chains that (seed, shard) names (Section 2.3).

    condition: one row per image for a conditional energy, see `shard_condition`. Raises ConfigError for a negative
    shard or no images, CheckpointError when a chain leaves the finite numbers.
    """
    if shard < 0 or count < 1:
        raise ConfigError(f"shard {shard} of {count} images: shards count from 0 and hold at least one image")
    device = next(model.parameters()).device
    x = generate(
        model,
        count=count,
        cfg=cfg.sampler,
        rng=stream(seed, shard, "generate", device=device),
        transitions=cfg.augment if cfg.augment.enabled else None,
        condition=None if condition is None else condition.to(device),
    )
    bad = int((~torch.isfinite(x)).flatten(1).any(dim=1).sum())
    if bad:
        raise CheckpointError(
            f"{bad} of {count} generated images are not finite (seed {seed}, shard {shard}): "
            "the energy has diverged; use an earlier checkpoint"
        )
    return quantize(x).cpu()


def shard_condition(
    rows: Float[Tensor, "n k"] | None, shard: int, count: int = SHARD_SIZE
) -> Float[Tensor, "count k"] | None:
    """Conditions of a shard's images: image i of all shards takes row i modulo n, so each row comes equally often.

    rows: one-hot labels, or attribute vectors; None for an unconditional energy.
    """
    if rows is None:
        return None
    return rows[torch.arange(shard * count, (shard + 1) * count) % len(rows)]
