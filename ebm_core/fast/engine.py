"""Where and how the step runs: device, threads, precision, memory format, compilation. Never what it computes.

`Engine` holds the two faces of one energy that a training step calls: `energy`, which the parameters' gradients flow
through, and `frozen`, the same function with theta constant, on which the 40 steps of a chain run.
"""

import copy
import ctypes
import sys
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.func import functional_call

from ebm_core.augment import Apply, apply_params
from ebm_core.blocks import Conv, Dense, NormSwish, Swish
from ebm_core.config import EngineConfig
from ebm_core.errors import ConfigError
from ebm_core.fast import native, winograd
from ebm_core.fast.augment import load_native
from ebm_core.fast.convolution import TwiceConv, convolve
from ebm_core.fast.recompute import LeanNormSwish, LeanSwish
from ebm_core.models import EnergyModel
from ebm_core.types import Energies, Energy, Samples


def resolve_device(cfg: EngineConfig) -> torch.device:
    """The configured device; ConfigError when CUDA is asked for and absent."""
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device = 'cuda': PyTorch sees no CUDA device here; use engine.device=auto or cpu")
    if cfg.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(cfg.device)


def set_threads(cfg: EngineConfig, default: int) -> None:
    """Threads of the CPU operators in this process: `cfg.num_threads`, or `default` cores."""
    torch.set_num_threads(cfg.num_threads or default)


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed activations instead of returning them to the kernel: page faults cost up to 2 x."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
        if mallopt is not None:
            mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD, bytes: larger blocks would be mapped afresh each time
            mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD, bytes


def prepare(model: EnergyModel, cfg: EngineConfig) -> EnergyModel:
    """The model on its device, in its memory format; freed memory stays with the process."""
    keep_freed_memory()
    return model.to(resolve_device(cfg), memory_format=memory_format(cfg))  # pyright: ignore[reportCallIssue]


def memory_format(cfg: EngineConfig) -> torch.memory_format:
    """NHWC where the convolutions are fastest so: always when compiled, in bfloat16 or by Winograd."""
    nhwc = cfg.channels_last or cfg.compile or cfg.precision == "bfloat16" or cfg.winograd
    return torch.channels_last if nhwc else torch.contiguous_format


class Engine:
    """How one worker evaluates its model. It holds no state of training: every step calls `refresh`."""

    def __init__(self, model: EnergyModel, cfg: EngineConfig, *, keeps_graphs: bool = False) -> None:
        """keeps_graphs: whether anyone goes back twice through one energy, as `train.grad_norms_every` does."""
        self.model = model
        self.cfg = cfg
        if cfg.winograd:
            require_winograd(model)
        self.twin = frozen_twin(model, torch.bfloat16 if cfg.precision == "bfloat16" else None, packed=cfg.winograd)
        self.trained = trained_face(model, self.twin, compiled=cfg.compile)
        self._functions: dict[str, Callable[..., Any]] = {}
        self.transition: Apply = apply_params
        """How augmentation is applied: in C++ for a compiled engine on a CPU."""
        device = next(model.parameters()).device
        if cfg.compile:
            torch.compiler.allow_in_graph(convolve)
            # what both ways use, far apart, is rather computed again than kept
            functorch_config.ban_recompute_used_far_apart = False
        if cfg.compile and keeps_graphs:  # else the first way back may overwrite what the second one needs
            functorch_config.donated_buffer = False
        if cfg.compile and device.type == "cpu":
            require_compiler()
            self.transition = load_native()

    def refresh(self) -> None:
        """Take over the model's current weights: once per training step, before the chains start."""
        copy_effective(self.twin, self.model)

    def frozen(self, x: Samples, condition: Tensor | None = None) -> Energies:
        """E(x) with theta held constant, in the engine's precision; float32 comes out."""
        if self.cfg.compile:
            return _WithSlope.apply(x, *self._function("slope", self._frozen_slope)(x.detach(), condition))
        return self._frozen(x, condition)

    def energy(self, x: Samples, condition: Tensor | None = None) -> Energies:
        """E_theta(x) with its graph: gradients reach theta and `x`. Compiled, it has first derivatives only.

        By Winograd, convolutions have the weights of the last `refresh`.
        """
        return self._function("energy", self._energy)(x, condition)

    def chain_energies(self, condition: Tensor | None, backprop: Literal["last", "all"]) -> tuple[Energy, Energy]:
        """E as a function of x alone for a training chain: one whose slope depends on theta, and one frozen.

        Compiled, the slope of the first is differentiable in theta alone, which is what the last step needs.
        """
        theta = dict(self.trained.named_parameters())

        def differentiable(x: Samples) -> Energies:
            if self.cfg.compile and backprop == "last":
                return _WithSlope.apply(x, *self._function("last", self._slope)(theta, x.detach(), condition))
            return self._energy(x, condition)

        return differentiable, lambda x: self.frozen(x, condition)

    def _energy(self, x: Samples, condition: Tensor | None) -> Energies:
        return self.trained(self.lowered(x), condition)

    def _frozen(self, x: Samples, condition: Tensor | None) -> Energies:
        return self.twin(self.lowered(x), condition)

    def _frozen_slope(self, x: Samples, condition: Tensor | None) -> tuple[Energies, Samples]:
        return value_and_slope(lambda at: self._frozen(at, condition), x)

    def _slope(self, theta: dict[str, Tensor], x: Samples, condition: Tensor | None) -> tuple[Energies, Samples]:
        return value_and_slope(lambda at: functional_call(self.trained, theta, (self.lowered(at), condition)), x)

    def lowered(self, x: Samples) -> Samples:
        """`x` in the precision that the network computes in."""
        return x.to(torch.bfloat16) if self.cfg.precision == "bfloat16" else x

    def _function(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        """`plain`, compiled once if the settings say so."""
        if not self.cfg.compile:
            return plain
        if name not in self._functions:
            self._functions[name] = torch.compile(plain, dynamic=False)
        return self._functions[name]


def require_compiler() -> None:
    """ConfigError where torch.compile cannot work on a CPU: it writes C++ for one."""
    if native.compiler() is None:
        raise ConfigError(
            "engine.compile = True: there is no C++ compiler here; install g++ or set engine.compile=false"
        )


def require_winograd(model: EnergyModel) -> None:
    """ConfigError where convolutions by Winograd cannot be: on a GPU, or without a compiler."""
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ConfigError(f"engine.winograd = True: it is for CPUs and this run is on {device}; set it to false")
    winograd.load()


def frozen_twin(model: EnergyModel, dtype: torch.dtype | None, *, packed: bool = False) -> EnergyModel:
    """A copy of `model` without gradients that uses its effective weights as they are: see `copy_effective`.

    dtype: precision in which the convolutions' weights are kept, so that they are converted once per step. packed: keep
    those that `winograd.py` serves transformed.
    """
    twin = copy.deepcopy(model).requires_grad_(False)
    for parent in list(twin.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Dense):
                layer.spectral = False
            elif isinstance(layer, Conv) and packed and winograd.fits(layer):
                setattr(parent, name, winograd.PackedConv(layer))
            elif isinstance(layer, Conv):
                layer.reweigh = "as is"
                layer.to(dtype)
    return twin


def trained_face(model: EnergyModel, twin: EnergyModel, *, compiled: bool) -> EnergyModel:
    """`model`, with its own parameters, whose convolutions compute with `twin`'s packed weights where that has them.

    compiled: convolutions have second derivatives of ours, which uncompiled would cost more in Python than they save,
    and what is computed again on the way back is the compiler's choice; else normalisation and swish are.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for frozen, layer in zip(twin.modules(), model.modules(), strict=True):
        if isinstance(frozen, winograd.PackedConv) and isinstance(layer, Conv):
            shared[id(layer)] = winograd.TrainedConv(layer, frozen)
        elif compiled and isinstance(layer, Conv):
            shared[id(layer)] = TwiceConv(layer)
        elif not compiled and isinstance(layer, NormSwish):
            shared[id(layer)] = LeanNormSwish(layer)
        elif not compiled and isinstance(layer, Swish):
            shared[id(layer)] = LeanSwish()
    return copy.deepcopy(model, shared)


@torch.no_grad()
def copy_effective(twin: EnergyModel, model: EnergyModel) -> None:
    """Put the weights that `model`'s layers use, standardised or divided by their norm, into `twin`."""
    for frozen, layer in zip(twin.modules(), model.modules(), strict=True):
        if isinstance(frozen, winograd.PackedConv) and isinstance(layer, Conv):
            frozen.take(layer.effective_weight(), cast(Tensor, layer.bias))
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            if isinstance(layer, (Conv, Dense)) and name == "weight":
                parameter = layer.effective_weight()
            getattr(frozen, name).copy_(parameter)


def value_and_slope(energy: Energy, x: Samples) -> tuple[Energies, Samples]:
    """E(x) and dE/dx, in one function that can be compiled."""

    def total(at: Samples) -> tuple[Tensor, Energies]:
        energies = energy(at)
        return energies.sum(), energies

    slope, energies = torch.func.grad(total, has_aux=True)(x)
    return energies.detach(), slope


class _WithSlope(torch.autograd.Function):
    """E(x) for whoever differentiates it in x: dE/dx was computed with it, and may depend on theta in its turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, energies: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return energies.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return outer[0].view(-1, *[1] * (slope.ndim - 1)) * slope, None, None
