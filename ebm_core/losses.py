"""The objective L_Full = L_CD + L_KL of Section 2.1, one function per equation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ebm_core.config import LossConfig
from ebm_core.types import Energies, Samples, Scalar


@dataclass(frozen=True, slots=True)
class Loss:
    """What is minimised, the named terms that sum to it, and the energies that it was made of."""

    total: Scalar
    terms: dict[str, Scalar]
    energy_data: Energies
    energy_neg: Energies


def contrastive_divergence(energy_data: Energies, energy_neg: Energies) -> Scalar:
    """L_CD = E_p[E(x)] - E_q[E(x')], Eq. 4; the samples carry no gradient here (stop-gradient of q)."""
    return energy_data.mean() - energy_neg.mean()


def frozen_energy(energy: nn.Module, x: Samples, condition: Tensor | None = None) -> Energies:
    """E with theta held constant, Eq. 5 and 6: the gradient reaches `x` and never the parameters."""
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
    frozen: Callable[..., Energies] | None = None,
) -> Loss:
    """L_Full, with the stop-gradients where the paper has them.

    x_neg: end of the chains, differentiable in theta for L_opt and L_ent. past: the set B of Eq. 7, or None while the
    buffer is empty. energy, frozen: E(x) or E(x, c), trained and with theta constant; without `frozen`, `energy` is the
    module itself. A term whose weight is 0 is neither computed nor reported.
    """
    conditions = None if condition is None or condition_neg is None else torch.cat([condition, condition_neg])
    stacked = torch.cat([x_data, x_neg.detach()])  # an energy never depends on the rest of its batch: one pass
    energies = energy(stacked) if conditions is None else energy(stacked, conditions)
    energy_data, energy_neg = energies.split([len(x_data), len(x_neg)])
    terms = {"cd": contrastive_divergence(energy_data, energy_neg)}  # Eq. 4
    if cfg.kl_weight:
        picked = slice(cfg.opt_samples)
        frozen = frozen or partial(frozen_energy, cast(nn.Module, energy))
        energy_opt = frozen(x_neg[picked], None if condition_neg is None else condition_neg[picked])
        terms["opt"] = cfg.kl_weight * energy_opt.mean()  # Eq. 6
    if cfg.entropy_weight and past is not None:
        terms["entropy"] = -cfg.entropy_weight * nearest_neighbor_entropy(x_neg, past)  # Eq. 7, maximised
    if cfg.l2_weight:
        terms["l2"] = cfg.l2_weight * energy_l2(energy_data, energy_neg)  # Section 3.1
    return Loss(torch.stack(list(terms.values())).sum(), terms, energy_data.detach(), energy_neg.detach())
