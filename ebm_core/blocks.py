"""The layers that energies are made of (Fig. 11, Appendix A.1). None mixes the samples of a batch or keeps state.

Every layer is called as `layer(x, code)`: `x` is a feature map (b c h w), `code` the embedded condition (b m), or None
for an unconditional energy. A layer computes in the precision of `x`, except for the statistics of a normalisation,
which keep that of its weights.
"""

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ebm_core.config import ModelConfig

Features = Float[Tensor, "b c h w"]
NewFeatures = Float[Tensor, "b c_out h_out w_out"]
"""Features whose width or size a layer has changed."""

Code = Float[Tensor, "b m"]
Weight = Float[Tensor, "out *fan_in"]
Reweigh = Literal["as is", "standardize", "spectral"]


def standardized(weight: Weight) -> Weight:
    """Each filter with its mean removed and scaled to unit length (weight standardisation).

    The published code scales to unit variance, sqrt(fan_in) times as much: the same energy under a normalisation, which
    takes any factor out again, but activations that grow with every layer when `norm` is none.
    """
    filters = weight.flatten(1)
    filters = filters - filters.mean(dim=1, keepdim=True)
    return F.normalize(filters, dim=1).view_as(weight)


def spectral_sigma(weight: Weight, u: Float[Tensor, "out"]) -> Float[Tensor, ""]:
    """|W^T u|: the largest singular value of W (out, fan_in) if `u` is its left singular vector (Miyato et al., 2018).

    Differentiable in W; its gradient is u v^T, that of the singular value itself.
    """
    return torch.linalg.vector_norm(weight.flatten(1).T @ u)


@torch.no_grad()
def power_iteration(weight: Weight, u: Float[Tensor, "out"]) -> Float[Tensor, "out"]:
    """A unit vector nearer to the first left singular vector of W (out, fan_in) than `u` is: W W^T u, normalised."""
    matrix = weight.flatten(1)
    return F.normalize(matrix @ F.normalize(matrix.T @ u, dim=0), dim=0)


@torch.no_grad()
def leading_vector(weight: Weight) -> Float[Tensor, "out"]:
    """The first left singular vector of W (out, fan_in), exactly: where the power iterations of training set out."""
    matrix = weight.flatten(1)
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -1]


class Conv(nn.Conv2d):
    """A convolution with zero padding whose filters may be standardised or divided by their largest singular value."""

    u: Tensor

    def __init__(self, c_in: int, c_out: int, kernel: int, reweigh: Reweigh = "as is", stride: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride=stride, padding=(kernel - 1) // 2)
        self.reweigh = reweigh
        if reweigh == "spectral":
            self.register_buffer("u", leading_vector(self.weight))

    def effective_weight(self) -> Weight:
        """The weight (out in k k) that the convolution uses."""
        if self.reweigh == "standardize":
            return standardized(self.weight)
        return self.weight / spectral_sigma(self.weight, self.u) if self.reweigh == "spectral" else self.weight

    def forward(self, x: Features) -> NewFeatures:
        weight, bias = self.effective_weight().to(x.dtype), cast(Tensor, self.bias).to(x.dtype)
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class Dense(nn.Linear):
    """An affine map whose weight may be divided by its largest singular value."""

    u: Tensor

    def __init__(self, c_in: int, c_out: int, spectral: bool) -> None:
        super().__init__(c_in, c_out)
        self.spectral = spectral
        if spectral:
            self.register_buffer("u", leading_vector(self.weight))

    def effective_weight(self) -> Weight:
        """The weight (out in) that the map uses."""
        return self.weight / spectral_sigma(self.weight, self.u) if self.spectral else self.weight

    def forward(self, x: Code) -> Float[Tensor, "b n"]:
        return F.linear(x, self.effective_weight(), self.bias)


def refresh_spectral(module: nn.Module) -> None:
    """One power iteration for every spectrally normalised layer of `module`, in place."""
    for layer in module.modules():
        if isinstance(layer, (Conv, Dense)) and "u" in layer._buffers:
            layer.u.copy_(power_iteration(layer.weight, layer.u))


def num_groups(norm: Literal["layer", "group", "instance"], width: int) -> int:
    """In how many groups of channels a map of `width` channels is normalised.

    layer: one, so the mean runs over channels, rows and columns of one sample. group: 32, or the largest divisor that
    `width` shares with 32. instance: as the published code, one per channel up to 128 channels, and as group above.
    """
    if norm == "layer":
        return 1
    return width if norm == "instance" and width <= 128 else math.gcd(32, width)


class Swish(nn.Module):
    """x sigmoid(x)."""

    def forward(self, x: Features) -> Features:
        return F.silu(x)


class NormSwish(nn.Module):
    """Per-sample normalisation with a learned gain and bias per channel, the condition's own gain and bias, swish.

    The condition turns x into (1 + gain) x + bias, both linear in the code. The published code's gain x + bias starts
    near 0 and so hides the image at first.
    """

    def __init__(self, width: int, cfg: ModelConfig, code_size: int) -> None:
        super().__init__()
        self.groups = 0 if cfg.norm == "none" else num_groups(cfg.norm, width)
        if self.groups:
            self.weight = nn.Parameter(torch.ones(width))
            self.bias = nn.Parameter(torch.zeros(width))
        self.modulation = Dense(code_size, 2 * width, cfg.spectral_norm) if code_size else None
        self.swish = Swish()

    def forward(self, x: Features, code: Code | None) -> Features:
        return self.swish(modulated_norm(self.groups, x, *self.factors(code)))

    def factors(self, code: Code | None) -> tuple[Tensor | None, ...]:
        """What `modulated_norm` takes: gain and bias per channel (c), and the condition's (b c 1 1); None: without."""
        learned = (self.weight, self.bias) if self.groups else (None, None)
        if self.modulation is None or code is None:
            return *learned, None, None
        return *learned, *self.modulation(code)[:, :, None, None].chunk(2, dim=1)


def modulated_norm(
    groups: int,
    x: Features,
    weight: Float[Tensor, "c"] | None,
    bias: Float[Tensor, "c"] | None,
    gain: Float[Tensor, "b c 1 1"] | None,
    shift: Float[Tensor, "b c 1 1"] | None,
) -> Features:
    """(1 + gain) norm(x) + shift, normalised in `groups` of channels with a learned `weight` and `bias`."""
    if weight is not None:
        # not F.group_norm: it refuses a batch of one 1 x 1 map, which is an ordinary input here
        wide = x.to(weight.dtype)  # statistics in the weights' precision, whatever that of x
        x = torch.group_norm(wide, groups, weight, bias).to(x.dtype)
    if gain is not None and shift is not None:
        x = (1 + gain.to(x.dtype)) * x + shift.to(x.dtype)
    return x


class ResBlock(nn.Module):
    """conv 3x3, norm, swish, conv 3x3, norm, swish, plus the input (Fig. 11)."""

    def __init__(self, width: int, cfg: ModelConfig, code_size: int) -> None:
        super().__init__()
        self.conv1 = Conv(width, width, 3, inner_reweigh(cfg))
        self.norm1 = NormSwish(width, cfg, code_size)
        self.conv2 = Conv(width, width, 3, inner_reweigh(cfg))
        self.norm2 = NormSwish(width, cfg, code_size)

    def forward(self, x: Features, code: Code | None) -> Features:
        inner = self.norm1(self.conv1(x), code)
        return x + self.norm2(self.conv2(inner), code)


class ResBlockDown(nn.Module):
    """A ResBlock, then conv 3x3 to the next width, 3x3 average pool of stride 2, swish: n x n becomes ceil(n / 2)."""

    def __init__(self, width: int, width_out: int, cfg: ModelConfig, code_size: int) -> None:
        super().__init__()
        self.block = ResBlock(width, cfg, code_size)
        self.conv = Conv(width, width_out, 3, outer_reweigh(cfg))
        self.swish = Swish()

    def forward(self, x: Features, code: Code | None) -> NewFeatures:
        # zeros beyond the border count in the mean, as they do for the convolutions and in the published code
        return self.swish(F.avg_pool2d(self.conv(self.block(x, code)), 3, stride=2, padding=1))


class PlainConv(nn.Module):
    """conv 3x3, norm, swish. A down: conv 4x4 of stride 2 (n to n // 2), which uses every pixel equally often."""

    def __init__(self, width: int, width_out: int, down: bool, cfg: ModelConfig, code_size: int) -> None:
        super().__init__()
        kernel, stride = (4, 2) if down else (3, 1)
        self.conv = Conv(width, width_out, kernel, inner_reweigh(cfg), stride)
        self.norm = NormSwish(width_out, cfg, code_size)

    def forward(self, x: Features, code: Code | None) -> NewFeatures:
        return self.norm(self.conv(x), code)


class SelfAttention(nn.Module):
    """x + gain * attention(x) over the pixels of a map: 1x1 query and key at an eighth of the width, gain from 0.

    Logits are q.k without 1 / sqrt(d), as in the published code: the 1x1 maps are learned and can hold the factor. The
    math kernel is the one with a second derivative, which L_opt takes through the last Langevin step (Eq. 6); with 64
    pixels it costs nothing.
    """

    def __init__(self, width: int, cfg: ModelConfig) -> None:
        super().__init__()
        reweigh = outer_reweigh(cfg)
        self.query = Conv(width, max(1, width // 8), 1, reweigh)
        self.key = Conv(width, max(1, width // 8), 1, reweigh)
        self.value = Conv(width, width, 1, reweigh)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Features, code: Code | None) -> Features:
        # (b, 1 head, pixels, channels)
        query, key, value = (conv(x).flatten(2).mT.unsqueeze(1) for conv in (self.query, self.key, self.value))
        with sdpa_kernel(SDPBackend.MATH):
            mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.gain.to(x.dtype) * mixed.squeeze(1).mT.view_as(x)


def inner_reweigh(cfg: ModelConfig) -> Reweigh:
    """How convolutions inside blocks treat their filters; spectral normalisation takes the place of standardisation."""
    if cfg.spectral_norm:
        return "spectral"
    return "standardize" if cfg.standardize_weights else "as is"


def outer_reweigh(cfg: ModelConfig) -> Reweigh:
    """The same for all other convolutions, which are never standardised."""
    return "spectral" if cfg.spectral_norm else "as is"
