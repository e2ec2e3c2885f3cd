"""3x3 convolutions by Winograd's minimal filtering: a quarter of the multiplications (Lavin and Gray, 2015).

For float32 on CPUs, made for AVX-512; `winograd.cpp` does the work and is compiled on first use. A result is as
reproducible as a direct convolution's, and about twice as far from the exact one: 1e-6, relative.
"""

from functools import cache
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ebm_core.blocks import Conv
from ebm_core.errors import ConfigError
from ebm_core.fast import native

PANEL = 32
"""Channels in and out come in multiples of this."""

Images = Float[Tensor, "b c_in h w"]
Outputs = Float[Tensor, "b c_out h w"]
Kernel = Float[Tensor, "c_out c_in 3 3"]
Packed = Float[Tensor, "36 panels c_in 32"]
"""A transformed kernel."""


@cache
def load() -> None:
    """Make `torch.ops.confab.winograd_*` available; ConfigError where they cannot be compiled."""
    try:
        native.load("winograd")
    except native.BuildError as error:
        raise ConfigError(f"engine.winograd = True: {error}, or set it to false") from None
    for name, fake in FAKES.items():
        torch.library.register_fake(f"confab::{name}", fake)


def fits(layer: nn.Conv2d) -> bool:
    """Whether `layer` is a convolution of the kind that this module computes."""
    return (
        (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and layer.in_channels % PANEL == 0
        and layer.out_channels % PANEL == 0
    )


def applies(x: Images) -> bool:
    """Whether tiles of 4x4 suit these images: float32, and not smaller than a tile."""
    return x.dtype == torch.float32 and min(x.shape[-2:]) >= 4


def pack(weight: Kernel, *, turned: bool = False) -> Tensor:
    """The kernel transformed, G g G^T: (36 c_out/32 c_in 32).

    turned: rotated by half a turn and with channels exchanged, the kernel whose convolution is the gradient in x.
    """
    return torch.ops.confab.winograd_pack(weight, turned)


def convolve(
    x: Images,
    forward: Packed,
    backward: Float[Tensor, "36 panels_in c_out 32"],
    weight: Kernel | None,
    bias: Float[Tensor, "c_out"],
) -> Outputs:
    """conv2d(x, weight, bias, padding=1) by `pack(weight)` and `pack(weight, turned=True)`, made before.

    Differentiable in x, bias and weight, which may be None: constant. The value of `weight` is not read. A gradient in
    `weight` cannot be differentiated again: RuntimeError.
    """
    return torch.ops.confab.winograd_convolve(x, forward, backward, weight, bias)


class PackedConv(nn.Module):
    """A convolution with constant weights, transformed once by `take`."""

    forward_weight: Tensor
    backward_weight: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        for name, c_in, c_out in (
            ("forward_weight", layer.in_channels, layer.out_channels),
            ("backward_weight", layer.out_channels, layer.in_channels),
        ):
            self.register_buffer(name, torch.empty(36, c_out // PANEL, c_in, PANEL), persistent=False)
        self.register_buffer("weight", torch.empty_like(layer.weight, requires_grad=False), persistent=False)
        self.register_buffer("bias", torch.empty(layer.out_channels), persistent=False)

    def take(self, weight: Kernel, bias: Float[Tensor, "c_out"]) -> None:
        """Use these from now on."""
        self.weight.copy_(weight)
        self.forward_weight.copy_(pack(weight))
        self.backward_weight.copy_(pack(weight, turned=True))
        self.bias.copy_(bias)

    def forward(self, x: Images) -> Outputs:
        if applies(x):
            return convolve(x, self.forward_weight, self.backward_weight, None, self.bias)
        return nn.functional.conv2d(x, self.weight, self.bias, padding=1)


class TrainedConv(nn.Module):
    """A convolution that is trained, computed from what a `PackedConv` has transformed of its present weight."""

    def __init__(self, layer: Conv, packed: PackedConv) -> None:
        super().__init__()
        self.layer = layer
        self.packed = packed

    def forward(self, x: Images) -> Outputs:
        if not applies(x):
            return self.layer(x)
        forward, backward = self.packed.forward_weight, self.packed.backward_weight
        return convolve(x, forward, backward, self.layer.effective_weight(), cast(Tensor, self.layer.bias))


def _channels_last(like: Tensor, *shape: int | torch.SymInt) -> Tensor:
    return like.new_empty(shape).to(memory_format=torch.channels_last)


FAKES = {
    "winograd_convolve": lambda x, forward, backward, weight, bias, turned=False: _channels_last(
        x, x.shape[0], (backward if turned else forward).shape[1] * PANEL, *x.shape[2:]
    ),
    "winograd_weight_gradient": lambda x, g: _channels_last(x, g.shape[1], x.shape[1], 3, 3),
    "winograd_pack": lambda weight, turned=False: weight.new_empty(
        (36, weight.shape[turned] // PANEL, weight.shape[1 - turned], PANEL)
    ),
}
"""What the operators return, for the compiler. Whoever changes that renames the operator: compiled graphs lie in
PyTorch's cache under its name, and one from before the change would fail."""
