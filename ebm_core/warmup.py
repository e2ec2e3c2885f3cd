"""The warm start: flow matching in the sampler's own units. No chains run.

The energy learns that K Langevin steps of size eta lead from noise to data along straight lines: the first phase of
Energy Matching (Balcerak et al., NeurIPS 2025), whose potential is our K eta E. Contrastive divergence then starts from
an energy that generates already, and gives the data wells, which straight lines alone leave out.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ebm_core.config import OptimizerConfig, TrainConfig, WarmupConfig
from ebm_core.types import Energy, Samples, Scalar

Times = Float[Tensor, "b"]
"""Places on the way from noise (0) to data (1), no unit."""


def flow_matching_loss(
    energy: Energy, x_noise: Samples, x_data: Samples, t: Times, travel: float, cfg: WarmupConfig
) -> Scalar:
    """Mean over samples and pixels of |travel dE/dx(x_t) + c(t) (x1 - x0)|^2 at x_t = (1 - t) x0 + t x1.

    travel: K eta, the number of steps times their size; then K steps of -eta dE/dx add up to x1 - x0.
    x_noise, x_data: x0 and x1, paired. In pixels^2. Differentiable in theta, twice through the energy.
    """
    place = t.view(-1, *[1] * (x_data.ndim - 1))
    x = ((1 - place) * x_noise + place * x_data).detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        wanted = pull(t, cfg).view_as(place) * (x_data - x_noise)
        return (travel * slope + wanted).square().mean()


def pull(t: Times, cfg: WarmupConfig) -> Times:
    """c(t): `speed` up to `well_from`, then falling linearly to 0 at the data (Equilibrium Matching, 2025)."""
    if cfg.well_from == 1:
        return torch.full_like(t, cfg.speed)
    return cfg.speed * ((1 - t) / (1 - cfg.well_from)).clamp(max=1)


def paired_noise(x_noise: Samples, x_data: Samples, cfg: WarmupConfig) -> Samples:
    """The noise images in the order in which they lead to `x_data`: the data keeps its place, and so its condition.

    optimal: the permutation with the least sum of squared distances (optimal transport between the two batches).
    """
    if cfg.pairing == "random":
        return x_noise
    from scipy.optimize import linear_sum_assignment  # only here: half a second that a job without it does not pay

    distance = torch.cdist(x_data.flatten(1), x_noise.flatten(1)).square()
    _, columns = linear_sum_assignment(distance.cpu().numpy())
    return x_noise[torch.from_numpy(columns).to(x_noise.device)]


def slower(cfg: TrainConfig, lr: float) -> TrainConfig:
    """The same settings with `optimizer.lr` = `lr`, and `warmup.lr` in proportion: what a rollback leaves."""
    warmup = replace(cfg.warmup, lr=cfg.warmup.lr * (lr / cfg.optimizer.lr))
    return replace(cfg, optimizer=replace(cfg.optimizer, lr=lr), warmup=warmup)


def optimizer_settings(step: int, cfg: TrainConfig) -> OptimizerConfig:
    """Adam's settings at a step, counted from 1: those of the warm start, or those of contrastive divergence after it.

    A function of the step alone, so that a resumed run has the same ones. Each phase has its own rise and fall.
    """
    warm, own = cfg.warmup, cfg.optimizer
    if step <= warm.num_steps:
        own = replace(own, lr=warm.lr, betas=warm.betas, ema_decay=warm.ema_decay)
        return replace(own, lr=_risen_and_fallen(step, warm.lr, warm.lr_rise_steps, warm.num_steps))
    if not own.lr_rise_steps and own.lr_fall_steps is None:
        return own
    lr = _risen_and_fallen(step - warm.num_steps, own.lr, own.lr_rise_steps, own.lr_fall_steps)
    return replace(own, lr=lr)


def _risen_and_fallen(step: int, lr: float, rise_steps: int, fall_steps: int | None) -> float:
    """The learning rate at a step of a phase, counted from 1: a linear rise times a falling cosine; never quite 0."""
    rise = min(1.0, step / max(1, rise_steps))
    fall = 1.0 if fall_steps is None else (1 + math.cos(math.pi * min(1.0, (step - 1) / fall_steps))) / 2
    return max(lr * rise * fall, 1e-12)
