"""Achieved against ceiling, per group of equal layers of the CIFAR-10 model: one thread, in seconds of processor time.

Processor time of one thread depends little on what else runs. Convolutions and attention are held to the operations per
second of a matrix product or a single convolution, whichever is faster; normalisation with swish to the bytes per
second of an addition in memory.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ebm_core.blocks import Conv, NormSwish, SelfAttention
from ebm_core.fast.engine import frozen_twin
from ebm_core.models import EnergyModel


@dataclass
class Group:
    """Layers of one kind and shape: how many there are, and one's forward pass with its input gradient."""

    name: str
    count: int
    seconds: float
    flops: int
    """Of convolutions and matrix products; 0 for a group that is held to the memory's rate."""
    num_bytes: int
    """Input and output, each read or written once forwards and once backwards."""

    @property
    def rate(self) -> float:
        return (self.flops or self.num_bytes) / self.seconds


def processor_seconds(function: Callable[[], object], rounds: int) -> float:
    """Least seconds of this thread's processor time that a call takes; the first call is not counted."""
    times = []
    for _ in range(rounds + 1):
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return min(times[1:])


def ceilings(rounds: int) -> tuple[float, float]:
    """float32 operations per second, the better of a matrix product's and a single 3x3 convolution's (64 channels,
    16 images of 32 x 32, NCHW or NHWC); bytes per second of an addition that reads 32 MiB and writes as many.
    """
    a, b = torch.randn(2, 1024, 1024)
    rates = [2 * 1024**3 / processor_seconds(lambda: a @ b, rounds)]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x, weight = (torch.randn(n, 64, m, m).to(memory_format=memory_format) for n, m in ((16, 32), (64, 3)))
        seconds = processor_seconds(lambda x=x, weight=weight: F.conv2d(x, weight, padding=1), rounds)
        rates.append(2 * 16 * 32 * 32 * 9 * 64 * 64 / seconds)
    x = torch.randn(2**23)
    out = torch.empty_like(x)
    return max(rates), 2 * 4 * 2**23 / processor_seconds(lambda: torch.add(x, 1, out=out), rounds)


def layer_groups(model: EnergyModel, x: Tensor, rounds: int) -> list[Group]:
    """Every group of `model`'s frozen energy on the batch `x`, the dearest first."""
    calls: dict[str, tuple[int, Callable[[Tensor], Tensor], Tensor]] = {}

    def record(layer: nn.Module, inputs: tuple, out: Tensor) -> None:
        at = inputs[0].detach()
        width, size = at.shape[1], at.shape[-1]
        if isinstance(layer, Conv):
            name, function = f"conv {layer.kernel_size[0]}x{layer.kernel_size[0]}, {width} to {out.shape[1]}", layer
        elif isinstance(layer, NormSwish):
            name, function = f"norm, swish, {width}", lambda x, layer=layer: layer(x, None)
        else:
            name, function = f"attention, {width}", lambda x, layer=layer: layer(x, None)
        name += f" at {size} x {size}"
        calls[name] = (calls[name][0] + 1 if name in calls else 1, function, at)

    twin = frozen_twin(model, None)
    for layer in twin.modules():
        if isinstance(layer, (Conv, NormSwish, SelfAttention)) and getattr(layer, "kernel_size", (3, 3)) != (1, 1):
            layer.register_forward_hook(record)
    with torch.no_grad():
        twin(x)
    for layer in twin.modules():
        layer._forward_hooks.clear()
    groups = [measure(name, *call, rounds) for name, call in calls.items()]
    return sorted(groups, key=lambda group: -group.count * group.seconds)


def measure(name: str, count: int, function: Callable[[Tensor], Tensor], x: Tensor, rounds: int) -> Group:
    """Time and count `function` and its input gradient at `x`."""
    x = x.clone().requires_grad_()
    outer = torch.ones_like(function(x))

    def passes() -> None:
        torch.autograd.grad(function(x.view_as(x)), x, outer)

    with FlopCounterMode(display=False) as counter:
        passes()
    num_bytes = 2 * 4 * (x.numel() + outer.numel())
    return Group(name, count, processor_seconds(passes, rounds), counter.get_total_flops(), num_bytes)


def draw(groups: list[Group], flops_ceiling: float, bytes_ceiling: float, path: Path) -> None:
    """Bars of the reached rates beside the ceilings; each bar says what share of the passes' time its group takes."""
    total = sum(group.count * group.seconds for group in groups)
    figure = Figure(figsize=(11, 5), layout="constrained")
    kinds = [
        ("GFLOP/s", flops_ceiling, "a product's or single convolution's", [g for g in groups if g.flops]),
        ("GB/s", bytes_ceiling, "an addition's in memory", [g for g in groups if not g.flops]),
    ]
    for axes, (unit, ceiling, what, members) in zip(figure.subplots(1, 2), kinds, strict=True):
        shares = [f"{g.count} x {g.name} ({g.count * g.seconds / total:.1%})" for g in members]
        axes.barh(shares, [g.rate / 1e9 for g in members], color="#586888")
        axes.axvline(ceiling / 1e9, color="#c04040")
        axes.set_title(f"{unit}; line: {what}, {ceiling / 1e9:.0f}", fontsize=10)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
    figure.suptitle("Forward pass and input gradient, float32, 1 thread (share of the time)", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
