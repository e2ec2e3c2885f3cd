"""The average has a closed form for a fixed and for a linearly moving model."""

import copy

import pytest
import torch
from torch import nn

from ebm_core.config import ModelConfig
from ebm_core.ema import ema_update
from ebm_core.errors import ConfigError
from ebm_core.models import build_energy


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double()


def test_the_distance_to_a_fixed_model_shrinks_by_the_decay_each_step():
    average, model = net(0), net(1)
    start, goal = copy.deepcopy(average), copy.deepcopy(model)
    for _ in range(50):
        ema_update(average, model, 0.9)
    for a, a0, m in zip(average.parameters(), start.parameters(), goal.parameters(), strict=True):
        torch.testing.assert_close(a, m + 0.9**50 * (a0 - m), rtol=0, atol=1e-14)
    for m, m0 in zip(model.parameters(), goal.parameters(), strict=True):
        assert torch.equal(m, m0)


def test_after_n_steps_the_average_is_the_geometric_sum_over_the_models_it_met():
    average, model, decay, n = net(0), net(1), 0.8, 12
    first = [p.detach().clone() for p in average.parameters()]
    history = []
    for step in range(n):
        for p in model.parameters():
            p.data.add_(0.1 * step)
        history.append([p.detach().clone() for p in model.parameters()])
        ema_update(average, model, decay)
    for i, a in enumerate(average.parameters()):
        expected = decay**n * first[i] + sum((1 - decay) * decay ** (n - 1 - k) * history[k][i] for k in range(n))
        torch.testing.assert_close(a, expected, rtol=0, atol=1e-13)


def test_it_happens_in_place_and_leaves_no_graph():
    average, model = net(0), net(1)
    addresses = [p.data_ptr() for p in average.parameters()]
    ema_update(average, model, 0.5)
    assert [p.data_ptr() for p in average.parameters()] == addresses
    assert all(p.requires_grad and p.grad_fn is None for p in average.parameters())


def test_decay_0_copies_and_decay_1_keeps():
    average, model = net(0), net(1)
    kept = copy.deepcopy(average.state_dict())
    ema_update(average, model, 1.0)
    assert all(torch.equal(kept[name], value) for name, value in average.state_dict().items())
    ema_update(average, model, 0.0)
    assert all(torch.equal(a, m) for a, m in zip(average.parameters(), model.parameters(), strict=True))


def test_buffers_are_copied_not_averaged():
    cfg = ModelConfig(kind="plain", widths=(4, 8), attention=False, multiscale=False, spectral_norm=True)
    torch.manual_seed(0)
    average, model = build_energy(cfg, (1, 8, 8)), build_energy(cfg, (1, 8, 8))
    ema_update(average, model, 0.999)
    pairs = list(zip(average.buffers(), model.buffers(), strict=True))
    assert len(pairs) == 4  # one singular vector for each of three convolutions and the dense layer
    assert all(torch.equal(a, m) and a is not m for a, m in pairs)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_outside_0_to_1_is_refused(decay: float):
    with pytest.raises(ConfigError, match="ema_decay"):
        ema_update(net(), net(), decay)
