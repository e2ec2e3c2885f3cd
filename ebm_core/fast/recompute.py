"""Normalisation and swish of which autograd keeps the inputs alone, and computes the rest again on the way back.

As activation checkpointing does (Chen et al., 2016), but for two derivatives: L_opt differentiates the last Langevin
step, which is a derivative itself (Eq. 6). There PyTorch makes those of a normalisation and of swish from operators
that keep their own intermediates in turn, together more than half of what the step would hold.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_core.blocks import Code, Features, NormSwish, modulated_norm


class LeanNormSwish(nn.Module):
    """`layer`, with its own parameters and the same bits, in less memory."""

    def __init__(self, layer: NormSwish) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Features, code: Code | None) -> Features:
        def function(*inputs: Any) -> Features:
            return swish(modulated_norm(self.layer.groups, *inputs))

        return recomputed(function, x, *self.layer.factors(code))


class LeanSwish(nn.Module):
    """`Swish` with the same bits, in less memory."""

    def forward(self, x: Features) -> Features:
        return swish(x)


def recomputed(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """function(*inputs), twice differentiable. `function` is called again for each derivative, so it must be pure."""
    return _Value.apply(function, *inputs)


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x), twice differentiable; both derivatives are formulas of `x`."""
    return _Swish.apply(x)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, *_Slopes.apply(ctx.function, outer[0], *ctx.saved_tensors)


class _Slopes(torch.autograd.Function):
    """The slope of `function` in each input, times `outer`; None for an input that needs none."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], outer: Tensor, *inputs: Tensor | None) -> Any:
        ctx.function = function
        ctx.save_for_backward(outer, *inputs)
        ctx.set_materialize_grads(False)
        with torch.enable_grad():
            at = _copies(inputs, ctx.needs_input_grad[2:])
            return _slopes(function(*at), at, outer)

    @staticmethod
    def backward(ctx: Any, *sent: Tensor | None) -> Any:
        _refuse_third()
        with torch.enable_grad():
            outer, *at = _copies(ctx.saved_tensors, ctx.needs_input_grad[1:])
            slopes = _slopes(ctx.function(*at), at, outer, create_graph=True)
        pairs = [(slope, o) for slope, o in zip(slopes, sent, strict=True) if slope is not None and o is not None]
        return None, *_slopes([slope for slope, _ in pairs], [outer, *at], [o for _, o in pairs])


def _refuse_third() -> None:
    """RuntimeError where a second derivative shall be differentiated: once_differentiable can lose that unnoticed."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "two derivatives and no third: call the model itself, or leave create_graph out of the second"
        )


def _copies(inputs: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """Leaves with the values of `inputs`, of which the `needed` ones require a gradient."""
    pairs = zip(inputs, needed, strict=True)
    return [None if tensor is None else tensor.detach().requires_grad_(need) for tensor, need in pairs]


def _slopes(
    values: Any, at: list[Tensor | None], outer: Any, *, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` in those of `at` that require a gradient; None for the others."""
    asked = [tensor for tensor in at if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(values, asked, outer, create_graph=create_graph, allow_unused=True))
    return tuple(next(found) if tensor is not None and tensor.requires_grad else None for tensor in at)


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return _SwishSlope.apply(outer[0], *ctx.saved_tensors)


class _SwishSlope(torch.autograd.Function):
    """outer s (1 + x (1 - s)) with s = sigmoid(x)."""

    @staticmethod
    def forward(ctx: Any, outer: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(outer, x)
        return torch.ops.aten.silu_backward(outer, x)

    @staticmethod
    def backward(ctx: Any, *sent: Tensor) -> Any:
        _refuse_third()
        outer, x = ctx.saved_tensors
        s = x.sigmoid()
        bend = torch.ops.aten.sigmoid_backward(outer, s)  # times 2 + x - 2 x s: the slope of what is above, in x
        return torch.ops.aten.silu_backward(sent[0], x), bend.mul_((x + 2).addcmul_(x, s, value=-2)).mul_(sent[0])
