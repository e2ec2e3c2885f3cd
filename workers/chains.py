"""Long-run chains (Fig. 5 to 8): what becomes of samples when Langevin dynamics runs on, and what keeps it moving.

A fixed pool of chains starts from the same noise in every variant; its state is looked at evenly spaced times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ebm_core.compose import conditional
from ebm_core.config import TrainConfig
from ebm_core.data.pixels import quantize
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.models import EnergyModel
from ebm_core.rng import stream, uniform
from ebm_core.sampler import chain
from ebm_core.types import Pixels, Samples
from workers.ood import total_variation

NUM_TIMES = 20
"""States of a chain that are looked at."""

STRIP_CHAINS = 8
"""Chains whose states are drawn."""

VARIANTS = ("test_time", "no_transitions", "descent")
"""test_time: as samples are drawn (Section 2.3). no_transitions: Langevin steps alone (Fig. 7). descent: these without
noise, which ends in the nearest minimum of the energy (Fig. 8)."""


@dataclass(frozen=True, slots=True)
class Study:
    """One variant's course: `times` (t) in steps, the pool's states (t n c h w) and quantities of each (t)."""

    times: tuple[int, ...]
    states: Pixels
    curves: Mapping[str, Float[np.ndarray, "t"]]


def run_variant(
    model: EnergyModel,
    cfg: TrainConfig,
    variant: str,
    *,
    num_chains: int,
    num_steps: int,
    seed: int,
    condition: Float[Tensor, "n k"] | None = None,
) -> Study:
    """Run `num_chains` chains for `num_steps` steps from U(0, 1) noise.

    Curves: mean energy; gradient_norm, mean |dE/dx|; clamped_fraction, pixels at 0 or 1; total_variation per image;
    pairwise_distance and nearest_distance, mean L2 between chains, in pixels. Raises ConfigError for an unknown
    variant, fewer than two chains or fewer than NUM_TIMES steps, CheckpointError when a chain leaves the finite
    numbers.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"unknown kind of chain {variant!r}; known: {', '.join(VARIANTS)}")
    if num_chains < 2 or num_steps < NUM_TIMES:
        raise ConfigError(
            f"{num_chains} chains of {num_steps} steps: a study takes at least 2 chains and {NUM_TIMES} steps"
        )
    sampler = cfg.sampler
    if variant == "descent":
        sampler = replace(sampler, kind="langevin", noise_std=0.0, temperature=None)
    first = next(model.parameters())
    energy = model if condition is None else conditional(model, condition.to(first))
    rng = stream(seed, 0, "chains", device=first.device)
    x = uniform((num_chains, *model.image_shape), rng, first.device, first.dtype)
    every = num_steps // NUM_TIMES
    transitions = cfg.augment if variant == "test_time" and cfg.augment.enabled else None
    _, recorded = chain(
        energy, x, sampler, rng, num_steps=num_steps, transitions=transitions, record_every=every
    )  # fmt: skip
    states = [x, *recorded]
    times = tuple(range(0, every * len(states), every))
    rows = [look_at(energy, state) for state in states]
    curves = {name: np.asarray([row[name] for row in rows]) for name in rows[0]}
    if not all(np.isfinite(values).all() for values in curves.values()):
        raise CheckpointError(f"chains of kind {variant} leave the finite numbers: use an earlier checkpoint")
    return Study(times, torch.stack([quantize(state).cpu() for state in states]), curves)


def look_at(energy: Callable[[Samples], Tensor], x: Samples) -> dict[str, float]:
    """The quantities of one state of the pool; see `run_variant`."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        values = energy(at)
        (slope,) = torch.autograd.grad(values.sum(), at)
    values = values.detach()
    flat = x.detach().flatten(1).double()
    between = torch.cdist(flat, flat)
    count = len(x)
    apart = between + torch.diag(torch.full((count,), torch.inf, dtype=torch.float64, device=x.device))
    return {
        "energy": float(values.double().mean()),
        "gradient_norm": float(slope.flatten(1).double().norm(dim=1).mean()),
        "clamped_fraction": float(((x <= 0) | (x >= 1)).double().mean()),
        "total_variation": float(total_variation(quantize(x.detach()).cpu()).mean()),
        "pairwise_distance": float(between.sum() / (count * (count - 1))),
        "nearest_distance": float(apart.min(dim=1).values.mean()),
    }


def report(found: Mapping[str, Study], frechet: Callable[[Pixels], float]) -> dict[str, Any]:
    """Curves of every variant, and of its distance to the training images (`fid_small`), ready for JSON.

    `value`: fid_small of test_time (else of the first variant) at the end, over the smallest on its way: 1 if it never
    gets worse. The few chains bias every distance upward alike.
    """
    variants = {}
    for name, study in found.items():
        small = [frechet(state) for state in study.states]
        curves = {key: values.tolist() for key, values in study.curves.items()}
        variants[name] = {"steps": list(study.times), "fid_small": small, **curves}
    main = variants.get("test_time") or next(iter(variants.values()))
    return {
        "value": main["fid_small"][-1] / min(main["fid_small"]),
        "num_chains": len(next(iter(found.values())).states[0]),
        "num_steps": main["steps"][-1],
        "variants": variants,
    }
