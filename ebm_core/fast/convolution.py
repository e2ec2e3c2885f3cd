"""Convolutions each of whose derivatives, of any order, is a convolution or one of a convolution's two gradients.

PyTorch's own second derivative is not: it writes the gradient in a weight as a convolution whose kernel is as large as
the map, for which image and gradient are transposed first. That costs up to twice as much.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_core.blocks import Conv, Features, NewFeatures, Weight

SMALL_MAP = 64
"""Pixels of a map up to which PyTorch's way of a weight gradient is the faster one in bfloat16 all the same."""


class TwiceConv(nn.Module):
    """`layer`, with its own parameters and values, for passes that are differentiated twice."""

    def __init__(self, layer: Conv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Features) -> NewFeatures:
        weight, bias = self.layer.effective_weight(), cast(Tensor, self.layer.bias)
        (stride, _), (padding, _) = self.layer.stride, cast(tuple[int, int], self.layer.padding)
        return convolve(x, weight.to(x.dtype), bias.to(x.dtype), stride, padding)


def convolve(x: Features, weight: Weight, bias: Tensor, stride: int, padding: int) -> NewFeatures:
    """conv2d(x, weight, bias, stride, padding), differentiable as often as one likes, by torch.func.grad too.

    Compiled, it needs `torch.compiler.allow_in_graph`: the compiler would look into it and lose an outer derivative.
    """
    return _Convolution.apply(x, weight, bias, stride, padding)


class _Bilinear(torch.autograd.Function):
    """Linear in its first two arguments, which are kept. The three below have one another as derivatives."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        first, second, _, *ctx.steps = inputs
        ctx.save_for_backward(first, second)


class _Convolution(_Bilinear):
    """y(x, w), plus a bias."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (x, weight), (g,) = ctx.saved_tensors, outer
        in_x, in_weight, in_bias, *_ = ctx.needs_input_grad
        return (
            _ImageGradient.apply(g, weight, x.shape, *ctx.steps) if in_x else None,
            _WeightGradient.apply(g, x, weight.shape, *ctx.steps) if in_weight else None,
            g.sum((0, 2, 3)) if in_bias else None,
            None,
            None,
        )


class _ImageGradient(_Bilinear):
    """The gradient of <g, y(x, w)> in x: of `shape`, linear in g and w."""

    @staticmethod
    def forward(g: Tensor, weight: Tensor, shape: tuple[int, ...], stride: int, padding: int) -> Tensor:
        return cast(Tensor, _gradients(g, _unread(shape, g), weight, stride, padding, [True, False, False])[0])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (g, weight), (v,) = ctx.saved_tensors, outer
        in_g, in_weight, *_ = ctx.needs_input_grad
        return (
            _Convolution.apply(v, weight, None, *ctx.steps) if in_g else None,
            _WeightGradient.apply(g, v, weight.shape, *ctx.steps) if in_weight else None,
            None,
            None,
            None,
        )


class _WeightGradient(_Bilinear):
    """The gradient of <g, y(x, w)> in w: of `shape`, linear in g and x."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, shape: tuple[int, ...], stride: int, padding: int) -> Tensor:
        small = x.dtype == torch.bfloat16 and math.prod(x.shape[2:]) <= SMALL_MAP
        if small and stride == 1 and g.shape[2:] == x.shape[2:]:
            return F.conv2d(x.transpose(0, 1), g.transpose(0, 1), padding=padding).transpose(0, 1)
        return cast(Tensor, _gradients(g, x, _unread(shape, g), stride, padding, [False, True, False])[1])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (g, x), (u,) = ctx.saved_tensors, outer
        in_g, in_x, *_ = ctx.needs_input_grad
        return (
            _Convolution.apply(x, u, None, *ctx.steps) if in_g else None,
            _ImageGradient.apply(g, u, x.shape, *ctx.steps) if in_x else None,
            None,
            None,
            None,
        )


def _unread(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """What stands for an argument of which only the shape counts. It lies as `like` does, so nothing is rearranged."""
    nhwc = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    layout = torch.channels_last if nhwc else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, which: list[bool]
) -> tuple[Tensor | None, ...]:
    """Those of <g, y(x, w)> in x, w and bias that `which` asks for."""
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, which
    )
