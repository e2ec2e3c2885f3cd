"""What the benchmark times against each other samples the same distribution: a mixture of two Gaussians."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest, norm
from torch import Tensor
from torchebm.core import BaseModel
from torchebm.samplers import LangevinDynamics

from ebm_core.config import SamplerConfig
from ebm_core.sampler import chain

WEIGHTS, CENTERS, STD = (0.3, 0.7), (-1.0, 1.0), 0.7
NUM_CHAINS, NUM_STEPS, STEP_SIZE = 4000, 500, 0.02


class Mixture(BaseModel):
    """Isotropic in two dimensions; the centres differ along the first."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            torch.log(torch.tensor(weight)) - ((x - torch.tensor([center, 0.0])) ** 2).sum(1) / (2 * STD**2)
            for weight, center in zip(WEIGHTS, CENTERS, strict=True)
        ]
        return -torch.stack(parts).logsumexp(0)


def ours(temperature: float = 1.0) -> np.ndarray:
    cfg = SamplerConfig(step_size=STEP_SIZE, temperature=temperature, clamp=False)
    rng = torch.Generator().manual_seed(1)
    end, _ = chain(Mixture(), torch.zeros(NUM_CHAINS, 2), cfg, rng, num_steps=NUM_STEPS)
    # our step ends with the slope, theirs with the noise
    return (end + cfg.step_noise_std * torch.randn(end.shape, generator=rng)).numpy()


def theirs() -> np.ndarray:
    torch.manual_seed(2)
    sampler = LangevinDynamics(Mixture(), step_size=STEP_SIZE, noise_scale=1.0)
    return sampler.sample(x=torch.zeros(NUM_CHAINS, 2), n_steps=NUM_STEPS).detach().numpy()


def exact(x: np.ndarray) -> np.ndarray:
    """Distribution function along the first axis."""
    return sum(weight * norm.cdf(x, center, STD) for weight, center in zip(WEIGHTS, CENTERS, strict=True))


@pytest.fixture(scope="module")
def other() -> np.ndarray:
    return theirs()


def test_both_samplers_agree_with_each_other_and_with_the_mixture(other: np.ndarray):
    mine = ours()
    for axis in (0, 1):
        assert ks_2samp(mine[:, axis], other[:, axis]).pvalue > 1e-3
    for found in (mine, other):
        assert kstest(found[:, 0], exact).statistic < 0.04
        assert kstest(found[:, 1], norm(0, STD).cdf).statistic < 0.04


def test_the_comparison_notices_another_temperature(other: np.ndarray):
    assert ks_2samp(ours(temperature=0.7)[:, 0], other[:, 0]).pvalue < 1e-6
