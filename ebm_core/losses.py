"""The objective L_Full = L_CD + L_KL of Section 2.1, one function per equation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from ebm_core.config import LossConfig
from ebm_core.parts import part
from ebm_core.types import Energies, Energy, Samples, Scalar


@dataclass(frozen=True, slots=True)
class Loss:
    """What is minimised, the named terms that sum to it, and the energies that it was made of."""

    total: Scalar
    terms: dict[str, Scalar]
    energy_data: Energies
    energy_neg: Energies

    def plus(self, name: str, term: Scalar) -> "Loss":
        """With one more term."""
        return replace(self, total=self.total + term, terms=self.terms | {name: term})


def contrastive_divergence(
    energy_data: Energies, energy_neg: Energies, trim_fraction: float = 0.0, floor: float | None = None
) -> Scalar:
    """L_CD = E_p[E(x)] - E_q[E(x')], Eq. 4; the samples carry no gradient here (stop-gradient of q).

    trim_fraction: share of the samples, those of lowest energy, that are left out; floor: no gradient below this value.
    Both are Energy Matching's stabilisers (Balcerak et al., NeurIPS 2025), not the paper's.
    """
    if trim_fraction:
        energy_neg = energy_neg.sort().values[int(trim_fraction * len(energy_neg)) :]
    value = energy_data.mean() - energy_neg.mean()
    return value if floor is None else value.clamp_min(floor)


def frozen_energy(energy: nn.Module, x: Samples, condition: Tensor | None = None) -> Energies:
    """E with theta held constant, Eq. 5 and 6 to the letter: the gradient reaches `x` and never the parameters.

    `energies_for` gives the same to L_opt, without a pass of its own.
    """
    theta = {name: p.detach() for name, p in energy.named_parameters()}
    return functional_call(energy, theta, (x,) if condition is None else (x, condition))


def nearest_neighbor_entropy(x_neg: Samples, past: Float[Tensor, "n *shape"]) -> Scalar:
    """Entropy of the chains' samples up to a constant, Eq. 7. Larger is more diverse: maximise it.

    Mean log of the L2 distance (over all pixels) to the nearest past sample. Which one is nearest comes from a matrix
    product; its distance is then computed directly, so near-duplicates lose no digits.
    """
    rows, columns = x_neg.flatten(1), past.flatten(1)
    with torch.no_grad():
        nearest = torch.addmm(columns.square().sum(1), rows, columns.T, alpha=-2).argmin(dim=1)  # |x|^2 is constant
    distance = torch.linalg.vector_norm(rows - columns[nearest], dim=1)
    return distance.clamp_min(1e-6).log().mean()


def energy_l2(energy_data: Energies, energy_neg: Energies) -> Scalar:
    """E_p[E(x)^2] + E_q[E(x')^2]: keeps energies near 0 (Section 3.1). Its weight sets the unit of stability."""
    return energy_data.square().mean() + energy_neg.square().mean()


def improved_cd_loss(
    energy: Callable[..., Energies],
    x_data: Samples,
    x_neg: Samples,
    past: Float[Tensor, "n *shape"] | None,
    cfg: LossConfig,
    condition: Tensor | None = None,
    condition_neg: Tensor | None = None,
) -> Loss:
    """L_Full, with the stop-gradients where the paper has them.

    x_neg: end of the chains, differentiable in theta for L_opt and L_ent. past: the set B of Eq. 7, or None while the
    buffer is empty. energy: E(x) or E(x, c). A term whose weight is 0 is neither computed nor reported.
    """
    conditions = () if condition is None or condition_neg is None else (torch.cat([condition, condition_neg]),)
    x_opt = x_neg if cfg.kl_weight else x_neg.detach()
    energy_data, energy_neg, energy_opt = energies_for(lambda x: energy(x, *conditions), x_data, x_opt)
    divergence = contrastive_divergence(energy_data, energy_neg, cfg.trim_fraction, cfg.cd_floor)
    terms = {"cd": cfg.cd_weight * divergence}  # Eq. 4
    if cfg.kl_weight:
        terms["opt"] = cfg.kl_weight * energy_opt[: cfg.opt_samples].mean()  # Eq. 6
    if cfg.entropy_weight and past is not None:
        with part("L_ent"):
            terms["entropy"] = -cfg.entropy_weight * nearest_neighbor_entropy(x_neg, past)  # Eq. 7, maximised
    if cfg.l2_weight:
        terms["l2"] = cfg.l2_weight * energy_l2(energy_data, energy_neg)  # Section 3.1
    return Loss(torch.stack(list(terms.values())).sum(), terms, energy_data.detach(), energy_neg.detach())


def energies_for(energy: Energy, x_data: Samples, x_neg: Samples) -> tuple[Energies, Energies, Energies]:
    """E(x), E(stop(x')) and E_stop(theta)(x'): the gradients of the first two reach theta alone, as in Eq. 4, that of
    the third x' alone, as in Eq. 6.

    One pass there and back makes all three, since an energy never depends on the rest of its batch: for each sample the
    slope in x' is what Eq. 4 sends there anyway, divided by what it sends to that sample's energy.
    """
    factor = _Factor()
    energies = energy(torch.cat([x_data, _Rescaled.apply(x_neg, factor)]))
    energy_data, energy_neg = energies.split([len(x_data), len(x_neg)])
    if not x_neg.requires_grad:
        return energy_data, energy_neg, energy_neg.detach()
    return energy_data, *_Parted.apply(energy_neg, factor)


NEARLY_ZERO = 1e-20
"""Sent to an E(x') that would be sent 0 for theta, so that x' can have its gradient: theta's changes by no bit."""


@dataclass(slots=True)
class _Factor:
    """Per sample: the gradient of E_stop(theta)(x') over what was sent to E(x'); None: x' gets nothing."""

    value: Energies | None = None


class _Parted(torch.autograd.Function):
    """E(x') for theta and again for x'. On the way back theta's goes on, and the other one's ratio to it is kept."""

    @staticmethod
    def forward(ctx: Any, energy_neg: Tensor, factor: _Factor) -> tuple[Tensor, Tensor]:
        ctx.factor = factor
        ctx.set_materialize_grads(False)
        return energy_neg.clone(), energy_neg.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_theta: Tensor | None, to_x: Tensor | None) -> tuple[Tensor | None, None]:
        ctx.factor.value = None
        if to_x is None:
            return to_theta, None
        sent = torch.zeros_like(to_x) if to_theta is None else to_theta
        sent = sent.masked_fill(sent.abs() < NEARLY_ZERO, NEARLY_ZERO)
        ctx.factor.value = to_x / sent
        return sent, None


class _Rescaled(torch.autograd.Function):
    """x' as the energy gets it: what comes back is multiplied by `factor`, which `_Parted` has left by then."""

    @staticmethod
    def forward(ctx: Any, x_neg: Tensor, factor: _Factor) -> Tensor:
        ctx.factor = factor
        return x_neg.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, None]:
        factor = ctx.factor.value
        return None if factor is None else factor.view(-1, *[1] * (outer.ndim - 1)) * outer, None
