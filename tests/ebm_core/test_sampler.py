"""Chains on energies whose distribution is known."""

import math

import pytest
import torch

from ebm_core.config import AugmentConfig, SamplerConfig
from ebm_core.errors import ConfigError
from ebm_core.rng import stream
from ebm_core.sampler import chain, hmc_step, langevin_step, sample_negatives


def quadratic(x):
    return x.square().flatten(1).sum(1) / 2


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_chain_on_a_quadratic_energy_contracts_geometrically():
    # E(x) = |x|^2 / 2 has slope x, so a noiseless step multiplies x by (1 - step_size).
    cfg = SamplerConfig(num_steps=10, step_size=0.1, noise_std=0.0)
    x_init = torch.ones(4, 1, 2, 2)
    x_neg = sample_negatives(quadratic, x_init, cfg, rng())
    torch.testing.assert_close(x_neg, x_init * 0.9**10)


def test_noise_enters_before_the_gradient():
    # On E = |x|^2 / 2 a step maps x to (1 - s)(x + noise): noise added after the gradient would not be shrunk.
    cfg = SamplerConfig(num_steps=1, step_size=0.75, noise_std=0.5, clamp=False)
    x = torch.zeros(1, 1, 100, 100, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=rng(), dtype=torch.float64)
    torch.testing.assert_close(langevin_step(quadratic, x, cfg, rng()), 0.25 * 0.5 * noise)


def test_stationary_variance_of_an_unclamped_chain_matches_its_closed_form():
    # x' = (1 - a)(x + s w) has variance s^2 (1 - a)^2 / (1 - (1 - a)^2); 40,000 independent chains.
    a, s = 0.3, 0.5
    cfg = SamplerConfig(num_steps=60, step_size=a, noise_std=s, clamp=False)
    x_init = torch.zeros(40_000, 1, 1, 1, dtype=torch.float64)
    x = sample_negatives(quadratic, x_init, cfg, rng(), differentiable=False)
    expected = s**2 * (1 - a) ** 2 / (1 - (1 - a) ** 2)
    assert abs(float(x.var()) - expected) < 4 * expected * math.sqrt(2 / len(x))
    assert abs(float(x.mean())) < 4 * math.sqrt(expected / len(x))


def test_temperature_gives_the_gibbs_variance_as_the_step_goes_to_zero():
    # Langevin at temperature T on curvature 1 has variance T, up to O(step_size).
    cfg = SamplerConfig(num_steps=400, step_size=0.02, temperature=0.25, clamp=False)
    x = sample_negatives(quadratic, torch.zeros(20_000, 1, 1, 1), cfg, rng(), differentiable=False)
    assert abs(float(x.var()) - 0.25) < 0.25 * (0.02 + 4 * math.sqrt(2 / 20_000))


def test_clamping_keeps_samples_in_the_data_range_and_is_optional():
    cfg = SamplerConfig(num_steps=3, noise_std=2.0, step_size=1e-6)
    x_init = torch.full((8, 1, 4, 4), 0.5)
    clamped = sample_negatives(quadratic, x_init, cfg, rng(), differentiable=False)
    assert float(clamped.min()) == 0
    assert float(clamped.max()) == 1
    cfg = SamplerConfig(num_steps=3, noise_std=2.0, clamp=False)
    free = sample_negatives(quadratic, x_init, cfg, rng(), differentiable=False)
    assert float(free.abs().max()) > 1


class Bowl(torch.nn.Module):
    """E(x) = theta |x|^2 / 2 with one parameter: every derivative is known."""

    def __init__(self, theta=0.5):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x):
        return self.theta * quadratic(x)


@pytest.mark.parametrize(("backprop", "power"), [("last", 1), ("all", 5)])
def test_only_the_chosen_steps_carry_a_gradient(backprop, power):
    # x_t = (1 - s theta)^t x_0: d/dtheta through the last step is -s x_{t-1}, through all -s t (1 - s theta)^(t-1) x_0.
    cfg = SamplerConfig(num_steps=5, step_size=0.2, noise_std=0.0, backprop=backprop)
    energy, x_init = Bowl(), torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64)
    x_neg = sample_negatives(energy, x_init, cfg, rng())
    (slope,) = torch.autograd.grad(x_neg.sum(), energy.theta)
    expected = -0.2 * power * (1 - 0.2 * 0.5) ** 4 * 0.8
    torch.testing.assert_close(slope, torch.tensor(expected, dtype=torch.float64))


def test_a_chain_that_is_not_differentiable_carries_no_graph():
    x_neg = sample_negatives(
        Bowl(), torch.zeros(2, 1, 2, 2).double(), SamplerConfig(num_steps=2), rng(), differentiable=False
    )
    assert not x_neg.requires_grad


def test_a_chain_runs_under_no_grad_and_in_inference_of_frozen_weights():
    energy = Bowl().requires_grad_(False)
    cfg = SamplerConfig(num_steps=10, step_size=0.2, noise_std=0.0)
    with torch.no_grad():
        x = sample_negatives(energy, torch.ones(1, 1, 1, 1).double(), cfg, rng(), differentiable=False)
    torch.testing.assert_close(x, torch.full_like(x, 0.9**10))


def test_hmc_leaves_a_gaussian_invariant_and_mixes_to_it():
    # Temperature 0.25 on curvature 1: variance 0.25, whatever the leapfrog error, because of the accept step.
    cfg = SamplerConfig(
        kind="hmc", step_size=0.5, temperature=0.25, clamp=False, hmc_leapfrog_steps=2
    )  # 3 would be half a period: x -> -x
    x, generator = torch.full((20_000, 1, 1, 1), 2.0, dtype=torch.float64), rng()
    for _ in range(40):
        x = hmc_step(quadratic, x, cfg, generator)
    assert abs(float(x.var()) - 0.25) < 4 * 0.25 * math.sqrt(2 / len(x))
    assert abs(float(x.mean())) < 4 * math.sqrt(0.25 / len(x))


def test_hmc_in_a_box_samples_the_truncated_density():
    # E(x) = 4 x on [0, 1]: density 4 exp(-4 x) / (1 - exp(-4)), mean 1/4 - exp(-4) / (1 - exp(-4)).
    cfg = SamplerConfig(kind="hmc", step_size=0.02, temperature=1.0, hmc_leapfrog_steps=4)
    x, generator = torch.rand((20_000, 1, 1, 1), generator=rng(1), dtype=torch.float64), rng(2)
    for _ in range(60):
        x = hmc_step(lambda y: 4 * y.flatten(1).sum(1), x, cfg, generator)
    mean = 0.25 - math.exp(-4) / (1 - math.exp(-4))
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert abs(float(x.mean()) - mean) < 4 * float(x.std()) / math.sqrt(len(x))


def test_hmc_accepts_proposals_of_lower_energy():
    # Published code had this sign reversed: from far out on a bowl, nearly every proposal must be taken.
    cfg = SamplerConfig(kind="hmc", step_size=0.005, temperature=1.0, clamp=False)
    x = torch.full((500, 1, 1, 1), 20.0)
    moved = hmc_step(quadratic, x, cfg, rng()) != x
    assert float(moved.double().mean()) > 0.97


def test_hmc_without_temperature_is_refused():
    with pytest.raises(ConfigError, match=r"noise_std = 0: HMC needs a positive temperature"):
        hmc_step(quadratic, torch.zeros(1, 1, 1, 1), SamplerConfig(kind="hmc", noise_std=0.0), rng())


def test_a_chain_records_every_kth_state():
    cfg = SamplerConfig(step_size=0.1, noise_std=0.0, clamp=False)
    end, states = chain(quadratic, torch.ones(1, 1, 1, 1), cfg, rng(), num_steps=10, record_every=3)
    assert [round(float(s), 6) for s in states] == [round(0.9**k, 6) for k in (3, 6, 9)]
    torch.testing.assert_close(end, torch.full_like(end, 0.9**10))


def test_transitions_come_every_n_steps_and_never_among_the_last(monkeypatch):
    calls, energy_calls = [], []

    def counting(x):
        energy_calls.append(1)
        return quadratic(x)

    def mark(x, cfg, generator):
        calls.append(len(energy_calls))
        return x

    monkeypatch.setattr("ebm_core.sampler.augment", mark)
    cfg = SamplerConfig(step_size=0.1, noise_std=0.0, transition_every=20, transition_free_steps=30)
    chain(counting, torch.ones(1, 1, 1, 1), cfg, rng(), num_steps=100, transitions=AugmentConfig())
    assert calls == [20, 40, 60]


def test_a_chain_in_parts_is_the_chain(monkeypatch):
    # one stream goes on through the parts, and transitions keep their places in the whole
    monkeypatch.setattr("ebm_core.sampler.augment", lambda x, cfg, generator: x + 1)
    cfg = SamplerConfig(step_size=0.1, noise_std=0.1, clamp=False, transition_every=20, transition_free_steps=30)
    x = torch.ones(2, 1, 3, 3)
    whole, seen = chain(quadratic, x, cfg, rng(), num_steps=100, transitions=AugmentConfig(), record_every=10)
    generator, parts = rng(), []
    for start, stop in ((0, 40), (40, 50), (50, None)):
        x, recorded = chain(
            quadratic,
            x,
            cfg,
            generator,
            num_steps=100,
            transitions=AugmentConfig(),
            record_every=10,
            start=start,
            stop=stop,
        )
        parts += recorded
    assert torch.equal(x, whole)
    assert torch.equal(torch.stack(parts), torch.stack(seen))


def test_the_same_stream_gives_the_same_chain():
    cfg = SamplerConfig(num_steps=4, step_size=0.1, noise_std=0.1)
    x_init = torch.full((3, 1, 4, 4), 0.5)
    first = sample_negatives(quadratic, x_init, cfg, stream(1, 2, "chain"))
    assert torch.equal(first, sample_negatives(quadratic, x_init, cfg, stream(1, 2, "chain")))
    assert not torch.equal(first, sample_negatives(quadratic, x_init, cfg, stream(1, 3, "chain")))
