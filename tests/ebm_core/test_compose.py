"""Gaussians are the oracle: their products and mixtures are known in closed form."""

import math

import pytest
import torch
from torch.distributions import Normal

from ebm_core.compose import conditional, mixture, negation, product
from ebm_core.config import ModelConfig
from ebm_core.errors import ConfigError, DataError
from ebm_core.models import EnergyModel, build_energy


def gaussian(mean: float, std: float):
    """-log N(x; mean, std^2) with its normaliser: exp(-E) is a density."""
    return lambda x: -Normal(x.new_tensor(mean), x.new_tensor(std)).log_prob(x).sum(dim=1)


def points(num: int = 41) -> torch.Tensor:
    return torch.linspace(-4, 4, num, dtype=torch.float64)[:, None]


def test_a_product_of_gaussians_is_the_gaussian_with_the_precision_weighted_mean():
    weights, means, stds = (1.0, 0.5, 2.0), (-1.0, 2.0, 0.3), (0.7, 1.5, 2.0)
    energy = product([gaussian(m, s) for m, s in zip(means, stds, strict=True)], weights)
    precisions = [w / s**2 for w, s in zip(weights, stds, strict=True)]
    mean = sum(p * m for p, m in zip(precisions, means, strict=True)) / sum(precisions)
    x = torch.tensor([[mean]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(energy(x).sum(), x)[0].abs().item() < 1e-12
    offset = energy(points()) - sum(precisions) * (points()[:, 0] - mean) ** 2 / 2
    torch.testing.assert_close(offset, offset[0].expand_as(offset), rtol=0, atol=1e-12)


def test_a_product_without_weights_is_the_sum_of_energies():
    one, two = gaussian(0.0, 1.0), gaussian(1.0, 2.0)
    torch.testing.assert_close(product([one, two])(points()), one(points()) + two(points()))


def test_a_mixture_at_sharpness_1_is_the_log_of_the_sum_of_densities():
    components = [(0.0, 1.0), (2.0, 0.5), (-3.0, 0.2)]
    energy = mixture([gaussian(m, s) for m, s in components], weights=[0.2, 0.5, 0.3])
    density = sum(
        w * gaussian(m, s)(points()).neg().exp() for w, (m, s) in zip([0.2, 0.5, 0.3], components, strict=True)
    )
    torch.testing.assert_close(-energy(points()), torch.log(density), rtol=0, atol=1e-12)
    unweighted = mixture([gaussian(m, s) for m, s in components])
    density = sum(gaussian(m, s)(points()).neg().exp() for m, s in components)
    torch.testing.assert_close(-unweighted(points()), torch.log(density), rtol=0, atol=1e-12)


def test_a_sharp_mixture_tends_to_the_least_energy_within_log_n_over_sharpness():
    parts = [gaussian(-1.0, 1.0), gaussian(1.0, 1.0)]
    least = torch.minimum(parts[0](points()), parts[1](points()))
    shortfall = least - mixture(parts, sharpness=100.0)(points())
    assert shortfall.min() >= 0
    assert shortfall.max().item() == pytest.approx(math.log(2) / 100)  # at the tie in the middle


def test_a_mixture_of_far_energies_neither_overflows_nor_loses_its_slope():
    x = torch.tensor([[300.0]], requires_grad=True)
    energy = mixture([gaussian(0.0, 1.0), gaussian(1000.0, 1.0)], sharpness=100.0)
    (slope,) = torch.autograd.grad(energy(x).sum(), x)
    assert slope.item() == pytest.approx(300.0)


def test_a_negation_subtracts_a_little_of_the_other_energy():
    one, two = gaussian(0.0, 1.0), gaussian(1.0, 2.0)
    torch.testing.assert_close(negation(one, two)(points()), one(points()) - 0.001 * two(points()))
    torch.testing.assert_close(negation(one, two, 0.5)(points()), one(points()) - 0.5 * two(points()))


def conditional_model() -> EnergyModel:
    torch.manual_seed(0)
    cfg = ModelConfig(kind="plain", widths=(4, 8), norm="none", attention=False, multiscale=False)
    return build_energy(cfg, (1, 8, 8), num_conditions=3)


def test_a_conditional_energy_is_the_model_told_the_condition():
    model, x, condition = conditional_model(), torch.rand(5, 1, 8, 8), torch.eye(5, 3)
    torch.testing.assert_close(conditional(model, condition)(x), model(x, condition))
    torch.testing.assert_close(conditional(model, condition[1])(x), model(x, condition[1].expand(5, 3)))


def test_a_condition_takes_the_precision_of_the_images():
    model, x = conditional_model().double(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(conditional(model, torch.tensor([0, 1, 0]))(x), conditional(model, torch.eye(3)[1])(x))


def test_conditional_energies_compose():
    model, x, concepts = conditional_model(), torch.rand(2, 1, 8, 8), torch.eye(3)
    both = product([conditional(model, concepts[0]), conditional(model, concepts[2])])
    expected = model(x, concepts[[0, 0]]) + model(x, concepts[[2, 2]])
    torch.testing.assert_close(both(x), expected)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: product([]), "at least one"),
        (lambda: mixture([]), "at least one"),
        (lambda: product([gaussian(0, 1)], [1.0, 2.0]), "1 energies"),
        (lambda: product([gaussian(0, 1)], [math.nan]), "finite"),
        (lambda: mixture([gaussian(0, 1)], [0.0]), "positive"),
        (lambda: mixture([gaussian(0, 1)], sharpness=0.0), "sharpness = 0.0"),
        (lambda: mixture([gaussian(0, 1)], sharpness=math.inf), "sharpness"),
        (lambda: negation(gaussian(0, 1), gaussian(0, 1), math.inf), "finite"),
        (lambda: conditional(conditional_model(), torch.ones(4)), r"\(4,\)"),
        (lambda: conditional(conditional_model(), torch.ones(1, 1, 3)), r"\(1, 1, 3\)"),
        (lambda: conditional(conditional_model(), torch.tensor(1.0)), r"\(\)"),
        (lambda: conditional(unconditional_model(), torch.ones(3)), "unconditional"),
    ],
)
def test_compositions_that_make_no_sense_are_refused(build, words: str):
    with pytest.raises(ConfigError, match=words):
        build()


def unconditional_model() -> EnergyModel:
    cfg = ModelConfig(kind="plain", widths=(4, 8), norm="none", attention=False, multiscale=False)
    return build_energy(cfg, (1, 8, 8))


def test_a_condition_for_another_number_of_samples_is_refused_when_called():
    energy = conditional(conditional_model(), torch.ones(2, 3))
    with pytest.raises(DataError, match=r"\(2, 3\)"):
        energy(torch.rand(5, 1, 8, 8))
