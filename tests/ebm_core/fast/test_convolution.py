"""Convolutions whose derivatives are convolutions, against PyTorch's: values, gradients, gradients of gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from ebm_core.blocks import Conv
from ebm_core.config import EngineConfig, ModelConfig
from ebm_core.fast.convolution import TwiceConv, convolve
from ebm_core.fast.engine import Engine, prepare
from ebm_core.models import build_energy

CASES = {  # (kernel, stride, padding, height, width)
    "3x3": (3, 1, 1, 6, 5),
    "1x1": (1, 1, 0, 6, 5),
    "a down of 4x4": (4, 2, 1, 6, 8),
    "a down whose last row is left over": (4, 2, 1, 7, 9),
}
NHWC = torch.channels_last


def tensors(kernel: int, height: int, width: int, dtype=torch.float64, batch: int = 2) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((batch, 3, height, width), (4, 3, kernel, kernel), (4,))
    return [torch.randn(shape, generator=rng).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.full
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_both_derivatives_are_those_of_finite_differences(case: tuple[int, ...]) -> None:
    kernel, stride, padding, *size = case
    given = tensors(kernel, *size)
    assert torch.equal(convolve(*given, stride, padding), F.conv2d(*given, stride, padding))
    assert torch.autograd.gradcheck(lambda *at: convolve(*at, stride, padding), given)
    assert torch.autograd.gradgradcheck(lambda *at: convolve(*at, stride, padding), given)


def third_derivatives(convolution, given: list[torch.Tensor]) -> list[torch.Tensor]:
    x, weight, bias = given
    (slope,) = torch.autograd.grad(convolution(x, weight, bias).tanh().sum(), x, create_graph=True)
    bends = torch.autograd.grad(slope.square().sum(), given, create_graph=True)
    return list(torch.autograd.grad(sum(bend.square().sum() for bend in bends), given))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_third_derivative_is_pytorchs(case: tuple[int, ...]) -> None:
    kernel, stride, padding, *size = case
    given = tensors(kernel, *size)
    ours = third_derivatives(lambda *at: convolve(*at, stride, padding), given)
    theirs = third_derivatives(lambda *at: F.conv2d(*at, stride, padding), given)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def slope(convolution, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(lambda at: F.silu(convolution(F.silu(at), weight, bias)).sum())(x)


def gradients_of_slope(convolution, given: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of a scalar of the slope in x, in x, weight and bias: what L_opt takes through the last Langevin step."""
    return torch.autograd.grad(slope(convolution, *given).square().sum(), given)


@pytest.mark.parametrize("size", [(8, 8), (9, 8)], ids=["small map", "large map"])
def test_bfloat16_is_as_near_to_float64_as_pytorchs(size: tuple[int, int]) -> None:
    given = tensors(3, *size, dtype=torch.bfloat16, batch=16)
    exact = gradients_of_slope(
        lambda *at: F.conv2d(*at, padding=1), [t.detach().double().requires_grad_() for t in given]
    )
    ours = gradients_of_slope(lambda *at: convolve(*at, 1, 1), given)
    theirs = gradients_of_slope(lambda *at: F.conv2d(*at, padding=1), given)
    for a, b, e in zip(ours, theirs, exact, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - e).norm() <= 1.2 * (b.double() - e).norm() + 1e-3 * e.norm()
        assert (a.double() - e).norm() < 0.02 * e.norm()


def kernels(convolution, given: list[torch.Tensor]) -> list[int]:
    """Widths of the kernels that PyTorch convolves with, on the way there and back."""
    graph = make_fx(lambda *at: gradients_of_slope(convolution, list(at)))(*given)
    nodes = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution.default)
    return [node.args[1].meta["val"].shape[-1] for node in nodes]


def test_no_kernel_is_as_large_as_the_map() -> None:
    given = tensors(3, 9, 9)
    assert max(kernels(lambda *at: F.conv2d(*at, padding=1), given)) == 9
    assert set(kernels(lambda *at: convolve(*at, 1, 1), given)) == {3}


def test_images_are_left_as_they_lie() -> None:
    x, weight, bias = (t.detach().float() for t in tensors(3, 9, 9))
    x = x.to(memory_format=NHWC)
    y = convolve(x, weight.to(memory_format=NHWC).requires_grad_(), bias, 1, 1)
    (g,) = torch.autograd.grad(convolve(x.requires_grad_(), weight, bias, 1, 1).square().sum(), x)
    assert y.is_contiguous(memory_format=NHWC)
    assert g.is_contiguous(memory_format=NHWC)


def test_compiled_the_gradient_of_a_slope_is_there_and_right() -> None:
    torch.compiler.allow_in_graph(convolve)
    given = tensors(3, 9, 9)
    compiled = torch.compile(lambda *at: slope(lambda *a: convolve(*a, 1, 1), *at), backend="aot_eager", fullgraph=True)
    plain = gradients_of_slope(lambda *at: F.conv2d(*at, padding=1), given)
    ours = torch.autograd.grad(compiled(*given).square().sum(), given)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_layer_computes_with_its_own_parameters_in_the_precision_of_the_image() -> None:
    layer = Conv(3, 4, 3, "standardize")
    x = torch.rand(2, 3, 9, 9, dtype=torch.bfloat16)
    y = TwiceConv(layer)(x)
    assert torch.equal(y, layer(x))
    y.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("compiled", [True, False])
def test_passes_that_are_trained_use_it_when_compiled(compiled: bool) -> None:
    model = prepare(
        build_energy(ModelConfig(kind="plain", widths=(8, 8, 8, 8)), (3, 8, 8)), EngineConfig(compile=compiled)
    )
    engine = Engine(model, EngineConfig(compile=compiled))
    assert any(isinstance(layer, TwiceConv) for layer in engine.trained.modules()) == compiled
    assert not any(isinstance(layer, TwiceConv) for layer in engine.twin.modules())
