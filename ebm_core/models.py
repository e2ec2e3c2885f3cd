"""E_theta(x), or E_theta(x, c): convolutional energies of images at one or three resolutions (Fig. 11, Section 2.4).

A layout is a list of layers: "block", "down" and "attention". Parameter counts of the presets (unconditional), with the
layouts of the published code: cifar10 6,564,196 (full 4,859,234; half 1,295,809; quarter 409,153), celeba_hq and
lsun_bedroom 27,053,700, mnist and fashion_mnist 3,101,313, objects 1,645,748, digits 210,657 in five convolutions.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ebm_core.blocks import (
    Code,
    Conv,
    Dense,
    Features,
    NewFeatures,
    PlainConv,
    ResBlock,
    ResBlockDown,
    SelfAttention,
    Swish,
    outer_reweigh,
    refresh_spectral,
)
from ebm_core.config import ModelConfig, check_layout
from ebm_core.errors import ConfigError, DataError
from ebm_core.types import Energies, ImageShape, Samples


@dataclass(frozen=True, slots=True)
class Layer:
    """One entry of a layout: `width` channels come in, `width_out` leave."""

    kind: Literal["block", "down", "attention"]
    width: int
    width_out: int


def full_layout(cfg: ModelConfig, widths: tuple[int, ...]) -> list[Layer]:
    """The layers between the stem and the mean pool at full resolution; one down per width after the first.

    figure11a, plain: a block before every down, attention after the second down. figure11b: a block before the last two
    downs, attention after the last but one. mnist: downs alone, attention (if asked for) after the second.
    """
    num_downs = len(widths) - 1
    blocks_before = {"figure11b": range(num_downs - 2, num_downs), "mnist": range(0)}.get(cfg.kind, range(num_downs))
    attention_after = num_downs - 2 if cfg.kind == "figure11b" else 1
    layers = []
    for i in range(num_downs):
        if i in blocks_before:
            layers.append(Layer("block", widths[i], widths[i]))
        layers.append(Layer("down", widths[i], widths[i + 1]))
        if cfg.attention and i == attention_after:
            layers.append(Layer("attention", widths[i + 1], widths[i + 1]))
    return layers


def scale_layout(cfg: ModelConfig, scale: int) -> list[Layer]:
    """The layers of scale 0 (full), 1 (half) or 2 (quarter resolution).

    paper: everything up to and including the first `scale` downs is removed (Appendix A.1); attention stays. code: the
    last `scale` downs are removed with their blocks, and attention; in figure11b the smaller scales' stems have the
    second width already, since only the full scale works at 128 x 128.
    """
    if scale == 0:
        return full_layout(cfg, cfg.widths)
    if cfg.scale_mode == "paper":
        layers = full_layout(cfg, cfg.widths)
        downs = [i for i, layer in enumerate(layers) if layer.kind == "down"]
        return layers[downs[scale - 1] + 1 :]
    first = cfg.widths[1] if cfg.kind == "figure11b" else cfg.widths[0]
    layers = [layer for layer in full_layout(cfg, (first, *cfg.widths[1:])) if layer.kind != "attention"]
    downs = [i for i, layer in enumerate(layers) if layer.kind == "down"]
    return layers[: downs[-1 - scale] + 1]


class ImageEnergy(nn.Module):
    """One scale's energy: conv 3x3, swish, the layers of a layout, mean over pixels, dense to one number (Fig. 11).

    With `cfg.head` = places the last layer sees every place of the last map instead of their mean.
    """

    def __init__(self, cfg: ModelConfig, layout: list[Layer], image_shape: ImageShape, code_size: int) -> None:
        super().__init__()
        channels = image_shape[0]
        self.stem = Conv(channels, layout[0].width, 3, outer_reweigh(cfg))
        self.swish = Swish()
        self.layers = nn.ModuleList(make_layer(layer, cfg, code_size) for layer in layout)
        self.pooled = cfg.head == "mean"
        places = 1 if self.pooled else math.prod(last_map(cfg, layout, image_shape))
        self.head = Dense(places * layout[-1].width_out, 1, cfg.spectral_norm)

    def forward(self, x: Samples, code: Code | None) -> Energies:
        features = self.swish(self.stem(x))
        for layer in self.layers:
            features = layer(features, code)
        dtype = self.head.weight.dtype
        seen = features.mean(dim=(2, 3), dtype=dtype) if self.pooled else features.flatten(1).to(dtype)
        return self.head(seen).squeeze(1)


def last_map(cfg: ModelConfig, layout: list[Layer], image_shape: ImageShape) -> tuple[int, int]:
    """Height and width after the layers: a down halves them, rounding down in plain nets and up in the others."""
    height, width = image_shape[1:]
    for _ in (layer for layer in layout if layer.kind == "down"):
        height, width = ((n + (cfg.kind != "plain")) // 2 for n in (height, width))
    return height, width


class DenseEnergy(nn.Module):
    """The energy of a small image as one vector of pixels: dense layers with swish, each of a width, one number.

    For 8 x 8 digits it costs a fifth of convolutions and models them better (docs/results/experiments.md). A condition
    gives each layer its own gain and bias, as in `NormSwish`. It computes in its weights' precision.
    """

    def __init__(self, cfg: ModelConfig, num_values: int, code_size: int) -> None:
        super().__init__()
        inputs = (num_values, *cfg.widths[:-1])
        self.layers = nn.ModuleList(Dense(a, b, cfg.spectral_norm) for a, b in zip(inputs, cfg.widths, strict=True))
        self.modulations = nn.ModuleList(Dense(code_size, 2 * w, cfg.spectral_norm) for w in cfg.widths if code_size)
        self.head = Dense(cfg.widths[-1], 1, cfg.spectral_norm)

    def forward(self, x: Samples, code: Code | None) -> Energies:
        features = x.flatten(1).to(self.head.weight.dtype)
        for i, layer in enumerate(self.layers):
            features = layer(features)
            if code is not None:
                gain, shift = self.modulations[i](code).chunk(2, dim=1)
                features = (1 + gain) * features + shift
            features = F.silu(features)
        return self.head(features).squeeze(1)


def make_layer(layer: Layer, cfg: ModelConfig, code_size: int) -> nn.Module:
    """The module of one entry of a layout. code_size: length of the embedded condition; 0: unconditional."""
    if layer.kind == "attention":
        return SelfAttention(layer.width, cfg)
    if cfg.kind == "plain":
        return PlainConv(layer.width, layer.width_out, layer.kind == "down", cfg, code_size)
    if layer.kind == "block":
        return ResBlock(layer.width, cfg, code_size)
    return ResBlockDown(layer.width, layer.width_out, cfg, code_size)


class EnergyModel(nn.Module):
    """The energy of a batch of images: the sum of its scales' energies (Section 2.4).

    `build_energy` makes it. A sample's energy never depends on the other samples of its batch, and no call changes the
    model's state except `refresh`.
    """

    def __init__(self, cfg: ModelConfig, image_shape: ImageShape, num_conditions: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.num_conditions = num_conditions
        code_size = 4 * cfg.widths[0] if num_conditions else 0
        self.embedding = None
        if num_conditions:
            self.embedding = nn.Sequential(
                Dense(num_conditions, code_size, cfg.spectral_norm),
                nn.SiLU(),
                Dense(code_size, code_size, cfg.spectral_norm),
            )
        self.output_scale, self.centered = cfg.output_scale, cfg.centered
        if cfg.kind == "dense":
            self.scales = nn.ModuleList([DenseEnergy(cfg, math.prod(image_shape), code_size)])
            return
        layouts = [scale_layout(cfg, scale) for scale in range(3 if cfg.multiscale else 1)]
        channels, height, width = image_shape
        self.scales = nn.ModuleList(  # a scale sees ceil(n / 2^scale) pixels of n
            ImageEnergy(cfg, layout, (channels, -(-height // 2**scale), -(-width // 2**scale)), code_size)
            for scale, layout in enumerate(layouts)
        )

    def parts(self, x: Tensor, condition: Tensor | None = None) -> Float[Tensor, "b scales"]:
        """Energies (b, scales) of images `x` (b c h w) at full, half and quarter resolution; `condition` (b k) if any.

        DataError for images or conditions of another shape or type, ConfigError for a condition where none belongs or
        none where one does.
        """
        self._check(x, condition)
        code = None if self.embedding is None or condition is None else self.embedding(condition)
        x = 2 * x - 1 if self.centered else x
        energies = []
        for scale, energy in enumerate(self.scales):
            x = half_resolution(x) if scale else x
            energies.append(energy(x, code))
        together = torch.stack(energies, dim=1)
        return together if self.output_scale == 1 else self.output_scale * together

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Energies:
        """E(x), or E(x, c): (b), the sum of `parts`. Arguments and errors as there."""
        return self.parts(x, condition).sum(dim=1)

    def refresh(self) -> None:
        """One power iteration for each spectrally normalised weight; nothing without `spectral_norm`.

        Call it once per training step, before the first forward pass: never between a forward and its backward pass.
        """
        refresh_spectral(self)

    def _check(self, x: Tensor, condition: Tensor | None) -> None:
        dtype = next(self.parameters()).dtype
        if tuple(x.shape[1:]) != self.image_shape:
            channels, height, width = self.image_shape
            raise DataError(
                f"images have shape {tuple(x.shape)}, this energy takes (batch, {channels}, {height}, {width}): "
                "check data.image_size and data.channels"
            )
        check_dtype("images", x, dtype)
        if condition is None and self.num_conditions == 0:
            return
        if condition is None:
            raise ConfigError(f"no condition given: this energy is conditional, pass a (batch, {self.num_conditions})")
        if self.num_conditions == 0:
            raise ConfigError("a condition was given to an unconditional energy: drop it, or train with data.condition")
        if tuple(condition.shape) != (len(x), self.num_conditions):
            raise DataError(
                f"the condition has shape {tuple(condition.shape)}, this batch needs ({len(x)}, {self.num_conditions})"
            )
        check_dtype("conditions", condition, dtype)


def check_dtype(what: str, values: Tensor, dtype: torch.dtype) -> None:
    """Refuse integers (images as stored, labels as numbers) and another precision than the model's, or bfloat16."""
    if not values.is_floating_point():
        raise DataError(f"{what} have type {values.dtype}: pass pixels as floats in [0, 1], labels as one-hot floats")
    narrower = values.dtype == torch.bfloat16 and dtype == torch.float32
    if values.dtype != dtype and not narrower and not torch.is_autocast_enabled(values.device.type):
        raise DataError(f"{what} have type {values.dtype}, this energy computes in {dtype}: convert with .to({dtype})")


def half_resolution(x: Features) -> NewFeatures:
    """3x3 mean at every second pixel, n x n to ceil(n / 2) (Section 2.4).

    Pixels beyond the border are left out of the mean, so that a constant image stays itself; the published code counts
    them as black.
    """
    return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)


def build_energy(cfg: ModelConfig, image_shape: ImageShape, num_conditions: int = 0) -> EnergyModel:
    """A new energy for images of `image_shape` (c, h, w), conditional on `num_conditions` numbers if not 0.

    Weights come from torch's global stream (PyTorch's own initialisation). ConfigError when the layout does not fit.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ConfigError(f"image_shape = {image_shape!r}: must be three positive numbers (channels, height, width)")
    if num_conditions < 0:
        raise ConfigError(f"num_conditions = {num_conditions}: must not be negative")
    check_layout(cfg, image_shape[1], image_shape[2])
    return EnergyModel(cfg, image_shape, num_conditions)
