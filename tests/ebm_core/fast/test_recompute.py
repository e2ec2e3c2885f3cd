"""Layers that autograd keeps less of have the values and derivatives of those that they stand in for."""

import copy

import pytest
import torch
import torch.nn.functional as F

from ebm_core.blocks import NormSwish
from ebm_core.config import EngineConfig, LossConfig, ModelConfig, SamplerConfig
from ebm_core.fast.engine import Engine
from ebm_core.fast.recompute import LeanNormSwish, LeanSwish, recomputed, swish
from ebm_core.losses import improved_cd_loss
from ebm_core.sampler import sample_negatives
from tests.ebm_core.fast.test_engine import LAYOUTS, flat_gradient, moved_model

NORMS = ["layer", "group", "instance", "none"]


def layers(norm: str, dtype: torch.dtype, code_size: int = 0) -> tuple[NormSwish, LeanNormSwish]:
    torch.manual_seed(0)
    layer = NormSwish(8, ModelConfig(norm=norm), code_size).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer, LeanNormSwish(layer)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("code_size", [0, 3])
@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_value_and_slopes_have_the_layers_bits(
    norm: str, code_size: int, low: torch.dtype, memory_format: torch.memory_format
) -> None:
    layer, lean = layers(norm, torch.float32, code_size)
    code = random(2, code_size, seed=2).float() if code_size else None
    x = random(2, 8, 3, 5).to(low).contiguous(memory_format=memory_format).requires_grad_()
    outer = random(2, 8, 3, 5, seed=3).to(low)
    inputs = [x, *layer.parameters()]
    values = [each(x, code) for each in (layer, lean)]
    assert torch.equal(*values)
    assert values[1].dtype == low
    for plain, ours in zip(*(torch.autograd.grad(v, inputs, outer) for v in values), strict=True):
        assert plain.dtype == ours.dtype
        assert torch.equal(plain, ours)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("code_size", [0, 3])
def test_second_derivatives_are_those_of_finite_differences(norm: str, code_size: int) -> None:
    _, lean = layers(norm, torch.float64, code_size)
    names = [name for name, _ in lean.named_parameters()]
    code = random(2, code_size, seed=2) if code_size else None

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(lean, dict(zip(names, parameters, strict=True)), (x, code))

    inputs = (random(2, 8, 2, 2).requires_grad_(), *lean.parameters())
    assert torch.autograd.gradgradcheck(function, inputs)


def test_swish_is_pytorchs_with_both_derivatives() -> None:
    x = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    outer, sent = torch.linspace(1, 2, 61, dtype=torch.float64).requires_grad_(), torch.linspace(3, -1, 61).double()
    found = []
    for function in (swish, F.silu):
        (slope,) = torch.autograd.grad(function(x), x, outer, create_graph=True)
        found.append([function(x), slope, *torch.autograd.grad(slope, (outer, x), sent)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)


def test_an_input_without_a_gradient_gets_none_and_the_others_theirs() -> None:
    layer, lean = layers("group", torch.float64)
    layer.requires_grad_(False)
    x = random(2, 8, 3, 5).requires_grad_()
    (slope,) = torch.autograd.grad(lean(x, None).sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad(layer(x, None).sum(), x, create_graph=True)
    seconds = [torch.autograd.grad(s.square().sum(), x)[0] for s in (slope, plain)]
    torch.testing.assert_close(*seconds, rtol=1e-10, atol=1e-12)
    layer.requires_grad_()
    lean(x.detach(), None).sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is None


def test_a_third_derivative_is_refused() -> None:
    for function in (swish, lambda x: recomputed(torch.sin, x)):
        x = random(3).requires_grad_()
        (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="two derivatives and no third"):
            torch.autograd.grad(slope.sum(), x, create_graph=True)


def test_nothing_but_the_inputs_is_kept_for_either_derivative() -> None:
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    _, lean = layers("group", torch.float64)
    x = random(2, 8, 3, 5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = lean(x, None)
        assert sorted(kept) == [8, 8, x.numel()]
        kept.clear()
        torch.autograd.grad(value, x, torch.ones_like(value), create_graph=True)
    ours = sorted(kept)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.autograd.grad(lean.layer(x, None), x, torch.ones_like(value), create_graph=True)
    # while the first derivative is made, its own inside counts as well, and is let go
    assert sum(ours) < sum(kept) / 2


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("backprop", ["last", "all"])
@pytest.mark.parametrize("num_conditions", [0, 3])
def test_every_terms_gradient_is_the_models_own(name: str, backprop: str, num_conditions: int) -> None:
    model = moved_model(LAYOUTS[name], num_conditions).double()
    engine = Engine(model, EngineConfig())
    engine.refresh()
    x_data, start, past = (random(n, 3, 16, 16, seed=seed) for seed, n in enumerate((4, 4, 20)))
    conditions = (random(4, 3), random(4, 3, seed=2)) if num_conditions else (None, None)
    sampler = SamplerConfig(num_steps=3, step_size=0.1, noise_std=0.0, backprop=backprop)
    found = []
    for trained in (engine.trained, model):
        end = sample_negatives(lambda x, e=trained: e(x, conditions[1]), start, sampler, torch.Generator())
        loss = improved_cd_loss(trained, x_data, end, past, LossConfig(), *conditions)
        found.append({term: flat_gradient(value, model) for term, value in loss.terms.items()})
    assert set(found[0]) == {"cd", "opt", "entropy", "l2"}
    for term, wanted in found[1].items():
        assert wanted.norm() > 0, term
        assert (found[0][term] - wanted).norm() <= 1e-10 * wanted.norm(), term


def test_an_engine_that_is_not_compiled_trains_lean_layers_and_shares_parameters() -> None:
    model = moved_model(LAYOUTS["standardised"])
    engine = Engine(model, EngineConfig())
    kinds = {type(layer) for layer in engine.trained.modules()}
    assert {LeanNormSwish, LeanSwish} <= kinds
    assert {id(p) for p in engine.trained.parameters()} == {id(p) for p in model.parameters()}
    copied = copy.deepcopy(engine)
    assert {id(p) for p in copied.trained.parameters()} == {id(p) for p in copied.model.parameters()}
    compiled = Engine(model, EngineConfig(compile=True)).trained
    assert not {LeanNormSwish, LeanSwish} & {type(layer) for layer in compiled.modules()}
