"""Energies made of energies: conditions, products, mixtures and negations of concepts (Section 3.3).

Each function returns an `Energy`, x -> (b), that a sampler takes as it takes a model. A sum of n energies is about n
times as steep as one: the published code divides the step size by n.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ebm_core.errors import ConfigError
from ebm_core.models import EnergyModel
from ebm_core.types import Energies, Energy, Samples


def conditional(model: EnergyModel, condition: Tensor) -> Energy:
    """E(x | c) as a function of x: `model` closed over `condition`, (k) for every sample or (b k), one row per sample.

    ConfigError for an unconditional model or a condition of another length; DataError, when called, for a batch whose
    size is not that of (b k).
    """
    if model.num_conditions == 0:
        raise ConfigError("the energy is unconditional: it has no E(x | c); train it with data.condition")
    if condition.ndim not in (1, 2) or condition.shape[-1] != model.num_conditions:
        raise ConfigError(
            f"the condition has shape {tuple(condition.shape)}, this energy needs ({model.num_conditions},) "
            f"or (batch, {model.num_conditions})"
        )

    def energy(x: Samples) -> Energies:
        rows = condition.to(x)  # x's device and precision
        return model(x, rows.expand(len(x), -1) if rows.ndim == 1 else rows)

    return energy


def product(energies: Sequence[Energy], weights: Sequence[float] | None = None) -> Energy:
    """Concept AND concept: sum of weight_i E_i(x), the energy of the product of densities p_i^weight_i.

    weights: one number per energy, 1 each unless given. ConfigError for no energies or a wrong number of weights.
    """
    factors = _weights(energies, weights)

    def energy(x: Samples) -> Energies:
        return _stacked(energies, x).mul(_column(factors, x)).sum(dim=0)

    return energy


def mixture(energies: Sequence[Energy], weights: Sequence[float] | None = None, sharpness: float = 1.0) -> Energy:
    """Concept OR concept: -log(sum of weight_i exp(-sharpness E_i(x))) / sharpness.

    At sharpness 1 it is the energy of the sum of densities weight_i p_i; as sharpness grows (published code: 100) it
    tends to the least of the E_i. weights: one positive number per energy, 1 each unless given. ConfigError for no
    energies, a wrong number of weights, or weights or a sharpness that are not positive.
    """
    factors = _weights(energies, weights)
    if min(factors) <= 0:
        raise ConfigError(f"weights = {factors!r}: those of a mixture must be positive")
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ConfigError(f"sharpness = {sharpness!r}: must be positive")

    def energy(x: Samples) -> Energies:
        log_weights = _column(factors, x).log()
        return -torch.logsumexp(log_weights - sharpness * _stacked(energies, x), dim=0) / sharpness

    return energy


def negation(energy: Energy, other: Energy, weight: float = 0.001) -> Energy:
    """Concept AND NOT other: E(x) - weight E_other(x); the published code's weight is the default.

    Keep it small: a large weight leaves the energy without a lower bound. ConfigError for a weight that is not finite.
    """
    return product([energy, other], [1.0, -weight])


def _weights(energies: Sequence[Energy], weights: Sequence[float] | None) -> list[float]:
    if not energies:
        raise ConfigError("there is no energy to compose: give at least one")
    factors = [1.0] * len(energies) if weights is None else [float(w) for w in weights]
    if len(factors) != len(energies):
        raise ConfigError(f"weights = {factors!r}: {len(energies)} energies need as many weights")
    if not all(map(math.isfinite, factors)):
        raise ConfigError(f"weights = {factors!r}: must be finite numbers")
    return factors


def _stacked(energies: Sequence[Energy], x: Samples) -> Tensor:
    """(n b): each energy of each sample."""
    return torch.stack([energy(x) for energy in energies])


def _column(factors: list[float], x: Samples) -> Tensor:
    """(n 1), in the precision and on the device of the energies."""
    return torch.tensor(factors, dtype=x.dtype, device=x.device)[:, None]
