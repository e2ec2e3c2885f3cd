"""Markov chains on an energy: the negatives of training and the images of test time.

A chain turns gradients on for itself, so it also works under `torch.no_grad()`. Randomness is an argument: a
`torch.Generator`, or one stream per shard (`rng.py`).
"""

import torch
from torch import Tensor

from ebm_core import rng as streams
from ebm_core.augment import augment
from ebm_core.compose import conditional
from ebm_core.config import AugmentConfig, SamplerConfig
from ebm_core.errors import ConfigError
from ebm_core.models import EnergyModel
from ebm_core.rng import Rng
from ebm_core.types import Energy, Samples


def langevin_step(energy: Energy, x: Samples, cfg: SamplerConfig, rng: Rng, *, keep_graph: bool = False) -> Samples:
    """One step: y = x + noise_std w, then y - step_size dE/dy, with w ~ N(0, I) (the argument of E in Eq. 6).

    The noise comes before the gradient, as in the published code. With `keep_graph` the result is differentiable in
    theta, and in `x` if `x` requires a gradient; otherwise it is detached.
    """
    noise = streams.normal(x.shape, rng, x.device, x.dtype)
    with torch.enable_grad():
        y = x + cfg.step_noise_std * noise
        if not (keep_graph and y.requires_grad):
            y = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(energy(y).sum(), y, create_graph=keep_graph)
        end = y - cfg.step_size * slope
        end = end.clamp(0, 1) if cfg.clamp else end
    return end if keep_graph else end.detach()


def hmc_step(energy: Energy, x: Samples, cfg: SamplerConfig, rng: Rng) -> Samples:
    """One Hamiltonian Monte Carlo transition (Neal, 2011) that leaves exp(-E / T) invariant.

    T and the leapfrog length are those that Langevin's constants imply: T = noise_std^2 / (2 step_size), or
    `cfg.temperature`, and a length of noise_std. With `cfg.clamp` a trajectory is reflected at 0 and 1, which keeps the
    distribution on [0, 1] exact. Always detached: the accept step has no gradient.
    """
    length = cfg.step_noise_std
    temperature = length**2 / (2 * cfg.step_size)
    if temperature <= 0:
        raise ConfigError("sampler.noise_std = 0: HMC needs a positive temperature; set sampler.temperature")
    momentum = streams.normal(x.shape, rng, x.device, x.dtype)
    start_energy, slope = _energy_and_slope(energy, x)
    y, p = x.detach(), momentum - 0.5 * length / temperature * slope
    for i in range(cfg.hmc_leapfrog_steps):
        y = y + length * p
        if cfg.clamp:
            y, p = _reflected(y, p)
        end_energy, slope = _energy_and_slope(energy, y)
        p = p - (1.0 if i < cfg.hmc_leapfrog_steps - 1 else 0.5) * length / temperature * slope
    kinetic = (p.square() - momentum.square()).flatten(1).sum(1) / 2
    log_odds = -(end_energy - start_energy) / temperature - kinetic
    accepted = streams.uniform((len(x),), rng, x.device, x.dtype).log() < log_odds
    return torch.where(accepted.view(-1, *[1] * (x.ndim - 1)), y, x.detach())


def _energy_and_slope(energy: Energy, x: Samples) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        values = energy(x)
        (slope,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), slope


def _reflected(y: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a position into [0, 1]; the momentum turns around with every odd number of reflections."""
    folds = y.floor()
    odd = folds.remainder(2) == 1
    inside = torch.where(odd, 1 - (y - folds), y - folds)
    return inside, torch.where(odd, -p, p)


def transition(energy: Energy, x: Samples, cfg: SamplerConfig, rng: Rng) -> Samples:
    """One detached step of the configured kernel."""
    return (hmc_step if cfg.kind == "hmc" else langevin_step)(energy, x, cfg, rng)


def sample_negatives(
    energy: Energy,
    x_init: Samples,
    cfg: SamplerConfig,
    rng: Rng,
    *,
    differentiable: bool = True,
    frozen: Energy | None = None,
) -> Samples:
    """End of a chain of `cfg.num_steps`, x' ~ q_theta(x).

    Differentiable in theta through its last step (Section 2.2; no worse, Appendix A.4) or, with
    `cfg.backprop = "all"`, through all of them. HMC chains end with one Langevin step for that purpose.
    frozen: the same energy with theta constant, for the steps that carry no gradient; it is cheaper.
    """
    x, frozen = x_init.detach(), frozen or energy
    all_steps = differentiable and cfg.backprop == "all"
    for _ in range(cfg.num_steps - 1):
        x = langevin_step(energy, x, cfg, rng, keep_graph=True) if all_steps else transition(frozen, x, cfg, rng)
    return langevin_step(energy, x, cfg, rng, keep_graph=True) if differentiable else transition(frozen, x, cfg, rng)


def chain(
    energy: Energy,
    x_init: Samples,
    cfg: SamplerConfig,
    rng: Rng,
    *,
    num_steps: int,
    transitions: AugmentConfig | None = None,
    record_every: int = 0,
    start: int = 0,
    stop: int | None = None,
) -> tuple[Samples, list[Samples]]:
    """A test-time chain and its every `record_every`-th state (Section 2.3; Fig. 5).

    After every `cfg.transition_every` steps an augmentation moves the chain, always accepted, except among the last
    `cfg.transition_free_steps`. Returns the final state and the recorded ones (empty if `record_every` is 0).
    start, stop: the part of the chain from its state `x_init` after `start` steps to that after `stop` (None: the end).
    """
    x, recorded = x_init.detach(), []
    last_transition = num_steps - max(cfg.transition_free_steps, 1)
    for step in range(start + 1, (num_steps if stop is None else stop) + 1):
        x = transition(energy, x, cfg, rng)
        if record_every and step % record_every == 0:
            recorded.append(x)
        if (
            transitions is not None
            and cfg.transition_every
            and step % cfg.transition_every == 0
            and step <= last_transition
        ):
            x = augment(x, transitions, rng)
    return x, recorded


def generate(
    model: EnergyModel,
    *,
    count: int,
    cfg: SamplerConfig,
    rng: Rng,
    transitions: AugmentConfig | None = None,
    condition: Tensor | None = None,
    x_init: Samples | None = None,
) -> Samples:
    """`count` samples (count c h w) in [0, 1] by `cfg.generate_steps` steps from U(0, 1) noise or from `x_init`.

    `transitions`: the augmentation of Section 2.3, by default none.
    `condition`: (k) or (count k), for a conditional energy.
    """
    if count < 1:
        raise ConfigError(f"count = {count}: ask for at least one sample")
    first = next(model.parameters())
    if x_init is None:
        x_init = streams.uniform((count, *model.image_shape), rng, first.device, first.dtype)
    energy = model if condition is None else conditional(model, condition)
    x, _ = chain(energy, x_init, cfg, rng, num_steps=cfg.generate_steps, transitions=transitions)
    return x
