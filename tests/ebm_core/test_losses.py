"""Each term against its closed form or a reference by another route; the stop-gradients."""

import pytest
import torch
from torch import nn

from ebm_core.config import LossConfig, SamplerConfig
from ebm_core.losses import (
    contrastive_divergence,
    energies_for,
    energy_l2,
    frozen_energy,
    improved_cd_loss,
    nearest_neighbor_entropy,
)
from ebm_core.sampler import sample_negatives


class TinyEnergy(nn.Module):
    """A smooth energy with two parameter tensors, in float64."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(torch.randn(4, 5, generator=rng, dtype=torch.float64))
        self.outer = nn.Parameter(torch.randn(5, generator=rng, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.inner) @ self.outer


def images(count, seed=0):
    return torch.rand((count, 1, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CHAIN = SamplerConfig(num_steps=3, step_size=0.05, noise_std=0.01, clamp=False)


def negatives(energy, cfg=CHAIN):
    return sample_negatives(energy, images(6, 1), cfg, torch.Generator().manual_seed(2))


def test_contrastive_divergence_lowers_data_and_raises_samples():
    energy_data, energy_neg = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([4.0, 6.0], requires_grad=True)
    value = contrastive_divergence(energy_data, energy_neg)
    value.backward()
    assert float(value.detach()) == -3.0
    assert energy_data.grad.tolist() == [0.5, 0.5]
    assert energy_neg.grad.tolist() == [-0.5, -0.5]


def test_opt_gradient_equals_a_double_backward_reference():
    # dL_opt/dtheta = sum_i dE_stop(theta)/dx' . dx'/dtheta with x' = y - s dE_theta/dy, written out by hand:
    # -s v . d/dtheta (dE/dy) for the constant vector v = dE/dx' / n.
    energy = TinyEnergy()
    x_neg = negatives(energy)
    improved_cd_loss(energy, images(6), x_neg, None, LossConfig()).terms["opt"].backward(
        inputs=list(energy.parameters())
    )

    reference = TinyEnergy()
    rng = torch.Generator().manual_seed(2)
    y = images(6, 1)
    for step in range(3):
        y = y + 0.01 * torch.randn(y.shape, generator=rng, dtype=torch.float64)
        y = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(reference(y).sum(), y, create_graph=step == 2)
        end = y - 0.05 * slope
        y = end.detach()
    x_end = end.detach().requires_grad_()
    (v,) = torch.autograd.grad(reference(x_end).mean(), x_end)
    expected = torch.autograd.grad((slope * v).sum() * -0.05, list(reference.parameters()))
    for p, g in zip(energy.parameters(), expected, strict=True):
        assert float(p.grad.abs().max()) > 0
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)


def test_opt_carries_no_gradient_where_the_paper_stops_it():
    # With samples that do not depend on theta, L_opt has no gradient at all: the energy outside is frozen.
    energy = TinyEnergy()
    value = improved_cd_loss(energy, images(6), images(6, 1), None, LossConfig()).terms["opt"]
    assert not value.requires_grad
    torch.testing.assert_close(value, energy(images(6, 1)).mean())


# What arrives at E(x') for theta: zeros among it, nothing but zeros, numbers of very unequal sizes.
ARRIVALS = {
    "usual": [-0.2, -0.1, 0.3, 0.1, -0.3, 0.2],
    "some are zero": [-0.2, 0.0, 0.3, 0.0, -0.3, 0.2],
    "all are zero": [0.0] * 6,
    "unequal": [-1e-12, 1e-30, 1e9, 1e-19, -1.0, 1e-8],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("arriving", ARRIVALS)
def test_one_pass_gives_the_gradients_of_three(arriving, dtype):
    energy, x_data = TinyEnergy().to(dtype), images(6).to(dtype)
    x_neg = negatives(TinyEnergy()).detach().to(dtype).requires_grad_()
    for_data, for_opt = torch.linspace(-1, 1, 6, dtype=dtype), torch.linspace(0, 2, 6, dtype=dtype)
    weights = (for_data, torch.tensor(ARRIVALS[arriving], dtype=dtype), for_opt)
    apart = (energy(x_data), energy(x_neg.detach()), frozen_energy(energy, x_neg))
    gradients = []
    for outputs in (energies_for(energy, x_data, x_neg), apart):
        total = torch.stack([(e * w).sum() for e, w in zip(outputs, weights, strict=True)]).sum()
        gradients.append(torch.autograd.grad(total, [x_neg, *energy.parameters()]))
    for ours, wanted, one in zip(energies_for(energy, x_data, x_neg), apart, gradients, strict=False):
        torch.testing.assert_close(ours, wanted)
        assert all(g.isfinite().all() for g in one)
    # a number that nearly cancels is as exact as the largest one of its tensor: float32 rounds that by 6e-8
    rtol, rounding = (1e-12, 1e-12) if dtype == torch.float64 else (1e-6, 1e-7)
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=rtol, atol=rounding * float(wanted.abs().max()))
    assert torch.equal(gradients[0][0][0], torch.zeros_like(x_neg[0]))  # L_opt asks nothing of the first sample


def test_the_energy_is_evaluated_once():
    energy, calls = TinyEnergy(), []

    def counted(x):
        calls.append((len(x), x.requires_grad))
        return energy(x)

    for kl_weight in (1.0, 0.0):  # without L_opt nobody asks for the slope in the samples
        cfg = LossConfig(kl_weight=kl_weight)
        improved_cd_loss(counted, images(6), negatives(energy), images(3), cfg).total.backward()
    assert calls == [(12, True), (12, False)]


def test_only_l_opt_and_l_ent_reach_the_samples():
    energy = TinyEnergy()
    x_neg = negatives(energy)
    terms = improved_cd_loss(energy, images(6), x_neg, images(3, 4), LossConfig()).terms
    for name, term in terms.items():
        (slope,) = torch.autograd.grad(term, x_neg, retain_graph=True, allow_unused=True)
        assert (slope is not None) == (name in ("opt", "entropy")), name


def test_cd_carries_no_gradient_through_the_samples():
    # L_CD's gradient must be that of constant samples, although x_neg is differentiable in theta.
    energy = TinyEnergy()
    cfg = LossConfig(kl_weight=0.0, entropy_weight=0.0, l2_weight=0.0)
    x_neg = negatives(energy)
    got = torch.autograd.grad(improved_cd_loss(energy, images(6), x_neg, None, cfg).total, list(energy.parameters()))
    constant = x_neg.detach()
    by_hand = energy(images(6)).mean() - energy(constant).mean()
    for g, e in zip(got, torch.autograd.grad(by_hand, list(energy.parameters())), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-14)


def test_entropy_is_the_mean_log_distance_to_the_nearest_past_sample():
    past = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64).view(2, 1, 1, 2)
    x = torch.tensor([[0.0, 0.25], [1.0, 0.5]], dtype=torch.float64).view(2, 1, 1, 2)
    expected = torch.tensor([0.25, 0.5], dtype=torch.float64).log().mean()
    torch.testing.assert_close(nearest_neighbor_entropy(x, past), expected)


def test_entropy_agrees_with_brute_force_even_for_near_duplicates():
    past = images(200, 3)
    x = torch.cat([images(50, 4), past[:5] + 1e-5])
    brute = torch.cdist(x.flatten(1), past.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    torch.testing.assert_close(nearest_neighbor_entropy(x, past), brute.log().mean(), rtol=1e-10, atol=0)


def test_a_step_down_the_entropy_term_moves_samples_apart():
    past = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    x = torch.full((1, 1, 2, 2), 0.1, dtype=torch.float64, requires_grad=True)
    energy = TinyEnergy()
    term = improved_cd_loss(energy, images(1), x, past, LossConfig(entropy_weight=0.7)).terms["entropy"]
    (slope,) = torch.autograd.grad(term, x)
    assert bool((slope < 0).all())  # descent increases the distance from 0
    torch.testing.assert_close(term.detach(), -0.7 * torch.tensor(0.2, dtype=torch.float64).log())


def test_a_sample_on_top_of_a_past_one_gives_a_finite_term_and_gradient():
    x = images(3).requires_grad_()
    value = nearest_neighbor_entropy(x, x.detach())
    (slope,) = torch.autograd.grad(value, x)
    assert float(value.detach()) == pytest.approx(torch.tensor(1e-6).log().item(), rel=1e-6)
    assert bool(slope.isfinite().all())


def test_collapse_value_of_the_l2_term_is_minus_one_over_its_weight():
    # L = E+ - E- + a (E+^2 + E-^2) has its minimum at E+ - E- = -1 / a (Fig. 9's -1 for a = 1).
    for a in (0.5, 1.0, 2.0):
        e_data, e_neg = (
            torch.tensor([-1 / (2 * a)], requires_grad=True),
            torch.tensor([1 / (2 * a)], requires_grad=True),
        )
        value = contrastive_divergence(e_data, e_neg) + a * energy_l2(e_data, e_neg)
        value.backward()
        assert float(e_data.grad) == 0
        assert float(e_neg.grad) == 0
        assert float((e_data - e_neg).detach()) == -1 / a


def test_the_total_is_the_sum_of_the_named_terms_and_weights_scale_them():
    energy, past = TinyEnergy(), images(10, 5)
    x_neg = negatives(energy)
    one = improved_cd_loss(energy, images(6), x_neg, past, LossConfig())
    assert set(one.terms) == {"cd", "opt", "entropy", "l2"}
    torch.testing.assert_close(one.total, sum(one.terms.values()))
    cfg = LossConfig(kl_weight=2.0, entropy_weight=3.0, l2_weight=5.0)
    scaled = improved_cd_loss(energy, images(6), x_neg, past, cfg)
    for name, factor in {"cd": 1, "opt": 2, "entropy": 3, "l2": 5}.items():
        torch.testing.assert_close(scaled.terms[name], factor * one.terms[name])


def test_terms_of_weight_zero_and_an_absent_past_are_left_out():
    energy = TinyEnergy()
    x_neg = negatives(energy)
    off = LossConfig(kl_weight=0.0, entropy_weight=0.0, l2_weight=0.0)
    assert set(improved_cd_loss(energy, images(6), x_neg, images(3), off).terms) == {"cd"}
    assert "entropy" not in improved_cd_loss(energy, images(6), x_neg, None, LossConfig()).terms


def test_opt_samples_limits_the_samples_that_carry_l_opt():
    energy = TinyEnergy()
    x_neg = negatives(energy)
    some = improved_cd_loss(energy, images(6), x_neg, None, LossConfig(opt_samples=2)).terms["opt"]
    torch.testing.assert_close(some, energy(x_neg[:2]).mean())


def test_a_trimmed_divergence_leaves_out_the_samples_of_lowest_energy():
    data, negatives = torch.tensor([1.0, 3.0, 1.0, 3.0]), torch.tensor([4.0, -9.0, 6.0, 5.0])
    assert contrastive_divergence(data, negatives, 0.25).item() == 2.0 - 5.0
    assert contrastive_divergence(data, negatives).item() == 2.0 - 1.5


def test_below_its_floor_the_divergence_pushes_no_further():
    data, negatives = torch.tensor([1.0], requires_grad=True), torch.tensor([4.0], requires_grad=True)
    value = contrastive_divergence(data, negatives, floor=-2.0)
    assert value.item() == -2.0
    assert [float(g) for g in torch.autograd.grad(value, [data, negatives])] == [0.0, 0.0]
    above = contrastive_divergence(data, negatives, floor=-4.0)
    assert [float(g) for g in torch.autograd.grad(above, [data, negatives])] == [1.0, -1.0]
