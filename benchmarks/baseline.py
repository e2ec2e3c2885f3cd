"""The same model and the same training step, written straight from the paper without a thought for speed.

Weights always require gradients and are standardised anew in every pass; NCHW float32; normalisation modules; separate
passes for data, negatives and L_KL, whose last Langevin step is run a second time; augmentation of one image at a time
through Pillow and torchvision; a NumPy buffer filled by a loop. Conditions and spectral normalisation are left out.
`tests/benchmarks/test_baseline.py` holds its energies, losses and gradients to those of `ebm_core`.
"""

import copy
import importlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ebm_core.blocks import num_groups
from ebm_core.config import AugmentConfig, ModelConfig, SamplerConfig, TrainConfig
from ebm_core.data.vision import torchvision
from ebm_core.errors import ConfigError
from ebm_core.models import EnergyModel, Layer, scale_layout


class PlainConv2d(nn.Conv2d):
    """A 3x3 or 1x1 convolution that standardises its filters in each forward pass if asked to."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, standardize: bool = False) -> None:
        super().__init__(c_in, c_out, kernel, stride=stride, padding=(kernel - 1) // 2)
        self.standardize = standardize

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.standardize:
            weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
            weight = weight / weight.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        return self._conv_forward(x, weight, self.bias)


def plain_norm(cfg: ModelConfig, width: int) -> nn.Module:
    """The normalisation module of torch.nn that the settings name."""
    if cfg.norm == "none":
        return nn.Identity()
    groups = num_groups(cfg.norm, width)
    return nn.InstanceNorm2d(width, affine=True) if groups == width else nn.GroupNorm(groups, width)


class PlainBlock(nn.Module):
    """Two convolutions with normalisation and swish, plus the input (Fig. 11)."""

    def __init__(self, width: int, cfg: ModelConfig) -> None:
        super().__init__()
        self.conv1 = PlainConv2d(width, width, standardize=cfg.standardize_weights)
        self.norm1 = plain_norm(cfg, width)
        self.conv2 = PlainConv2d(width, width, standardize=cfg.standardize_weights)
        self.norm2 = plain_norm(cfg, width)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.norm1(self.conv1(x)))
        return x + self.act(self.norm2(self.conv2(out)))


class PlainDown(nn.Module):
    """A block, a convolution to the next width, an average pool, swish."""

    def __init__(self, width: int, width_out: int, cfg: ModelConfig) -> None:
        super().__init__()
        self.block = PlainBlock(width, cfg)
        self.conv = PlainConv2d(width, width_out)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.pool(self.conv(self.block(x))))


class PlainStage(nn.Module):
    """Convolution (of stride 2 for a down), normalisation, swish: the layer of the plain layout."""

    def __init__(self, layer: Layer, cfg: ModelConfig) -> None:
        super().__init__()
        kernel, stride = (4, 2) if layer.kind == "down" else (3, 1)
        self.conv = PlainConv2d(layer.width, layer.width_out, kernel, stride, cfg.standardize_weights)
        self.norm = plain_norm(cfg, layer.width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class PlainAttention(nn.Module):
    """x + gain * softmax(q k) v, with the matrices written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = PlainConv2d(width, max(1, width // 8), 1)
        self.key = PlainConv2d(width, max(1, width // 8), 1)
        self.value = PlainConv2d(width, width, 1)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, columns = x.shape
        query = self.query(x).view(batch, -1, height * columns).permute(0, 2, 1)
        key = self.key(x).view(batch, -1, height * columns)
        attention = torch.softmax(torch.bmm(query, key), dim=-1)
        value = self.value(x).view(batch, width, height * columns)
        return x + self.gain * torch.bmm(value, attention.permute(0, 2, 1)).view(batch, width, height, columns)


class PlainScale(nn.Module):
    """The energy of one resolution."""

    def __init__(self, cfg: ModelConfig, layout: list[Layer], channels: int) -> None:
        super().__init__()
        self.stem = PlainConv2d(channels, layout[0].width)
        self.layers = nn.ModuleList(self._layer(layer, cfg) for layer in layout)
        self.head = nn.Linear(layout[-1].width_out, 1)

    @staticmethod
    def _layer(layer: Layer, cfg: ModelConfig) -> nn.Module:
        if layer.kind == "attention":
            return PlainAttention(layer.width)
        if cfg.kind == "plain":
            return PlainStage(layer, cfg)
        return PlainBlock(layer.width, cfg) if layer.kind == "block" else PlainDown(layer.width, layer.width_out, cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(3).mean(2)).squeeze(1)


class PlainEnergy(nn.Module):
    """E(x): (b), the sum of the scales' energies. Its parameters have the names of `EnergyModel`'s."""

    def __init__(self, cfg: ModelConfig, channels: int) -> None:
        super().__init__()
        if cfg.spectral_norm:
            raise ConfigError("model.spectral_norm = True: the baseline has none; set it to false")
        layouts = [scale_layout(cfg, scale) for scale in range(3 if cfg.multiscale else 1)]
        self.scales = nn.ModuleList(PlainScale(cfg, layout, channels) for layout in layouts)

    @classmethod
    def copy_of(cls, model: EnergyModel, cfg: ModelConfig) -> "PlainEnergy":
        """The same energy as `model`, with copies of its weights."""
        if model.num_conditions:
            raise ConfigError("data.condition: the baseline is unconditional; set data.condition=none")
        plain = cls(cfg, model.image_shape[0]).to(next(model.parameters()))
        plain.load_state_dict(model.state_dict())
        return plain

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x), dtype=x.dtype)
        for i, scale in enumerate(self.scales):
            if i:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            total = total + scale(x)
        return total


def plain_langevin_step(
    energy: nn.Module, x: Tensor, cfg: SamplerConfig, noise: Tensor, create_graph: bool = False
) -> Tensor:
    """One step from `x` with the given noise, N(0, 1); theta's graph is kept if asked for."""
    y = (x.detach() + cfg.step_noise_std * noise).requires_grad_()
    slope = torch.autograd.grad(energy(y).sum(), y, create_graph=create_graph)[0]
    y = y - cfg.step_size * slope
    y = y.clamp(0, 1) if cfg.clamp else y
    return y if create_graph else y.detach()


def plain_terms(
    energy: PlainEnergy,
    x_data: Tensor,
    x_neg: Tensor,
    before_last: Tensor,
    last_noise: Tensor,
    past: Tensor | None,
    cfg: TrainConfig,
) -> dict[str, Tensor]:
    """The terms of L_Full, each through passes of its own; the last step is run again for those of L_KL."""
    energy_data, energy_neg = energy(x_data), energy(x_neg)
    terms = {"cd": energy_data.mean() - energy_neg.mean()}
    if cfg.loss.kl_weight or cfg.loss.entropy_weight:
        end = plain_langevin_step(energy, before_last, cfg.sampler, last_noise, create_graph=True)
        if cfg.loss.kl_weight:
            frozen = copy.deepcopy(energy).requires_grad_(False)
            terms["opt"] = cfg.loss.kl_weight * frozen(end).mean()
        if cfg.loss.entropy_weight and past is not None:
            nearest = [(row - past).flatten(1).norm(dim=1).min() for row in end]
            terms["entropy"] = -cfg.loss.entropy_weight * torch.stack(nearest).clamp_min(1e-6).log().mean()
    if cfg.loss.l2_weight:
        terms["l2"] = cfg.loss.l2_weight * (energy_data.square().mean() + energy_neg.square().mean())
    return terms


class PlainAugment:
    """Section 2.3's augmentation of one image after the other, through Pillow."""

    def __init__(self, cfg: AugmentConfig, size: int) -> None:
        torchvision()  # through the one door, then the part of it
        v2 = importlib.import_module("torchvision.transforms.v2")
        strength = cfg.color_strength
        jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, min(0.4 * strength, 0.5))
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, cfg.crop_scale, cfg.crop_ratio),
                v2.RandomHorizontalFlip(cfg.flip_prob),
                v2.RandomApply([jitter], cfg.color_prob),
                v2.RandomGrayscale(cfg.grayscale_prob),
                v2.RandomApply([v2.GaussianBlur(cfg.blur_kernel, cfg.blur_sigma)], cfg.blur_prob),
            ]
        )

    def __call__(self, levels: np.ndarray) -> np.ndarray:
        """(b c h w) uint8 in and out."""
        out = np.empty_like(levels)
        for i, image in enumerate(levels):
            moved = self.transform(Image.fromarray(image.transpose(1, 2, 0).squeeze()))
            out[i] = np.asarray(moved).reshape(*levels.shape[2:], -1).transpose(2, 0, 1)
        return out


class PlainTrainer:
    """State and step of plain training on one worker."""

    def __init__(self, cfg: TrainConfig, model: EnergyModel) -> None:
        self.cfg = cfg
        self.energy = PlainEnergy.copy_of(model, cfg.model)
        self.ema = copy.deepcopy(self.energy)
        betas = cfg.optimizer.betas
        self.optimizer = torch.optim.Adam(self.energy.parameters(), lr=cfg.optimizer.lr, betas=betas, foreach=False)
        self.buffer = np.zeros((cfg.buffer.capacity, *cfg.image_shape), dtype=np.uint8)
        self.num_seen = 0
        self.random = np.random.default_rng(cfg.seed)
        self.augment = PlainAugment(cfg.augment, cfg.data.image_size) if cfg.augment.enabled else None

    def _draw(self, count: int) -> np.ndarray:
        return self.buffer[self.random.integers(min(self.num_seen, len(self.buffer)), size=count)]

    def chain_starts(self) -> Tensor:
        """Augmented past samples, a few of them replaced by noise."""
        count = self.cfg.train.batch_size
        noise = torch.rand(count, *self.cfg.image_shape)
        if self.num_seen == 0:
            return noise
        levels = self._draw(count)
        levels = levels if self.augment is None else self.augment(levels)
        x = (torch.from_numpy(levels).float() + torch.rand(levels.shape)) / 256
        restart = torch.from_numpy(self.random.random(count)) < self.cfg.buffer.restart_fraction
        x[restart] = noise[restart]
        return x

    def sample(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """End of a chain from `x`, the state before its last step, and that step's noise."""
        for _ in range(self.cfg.sampler.num_steps):
            before, noise = x, torch.randn(x.shape)
            x = plain_langevin_step(self.energy, x, self.cfg.sampler, noise)
        return x, before, noise

    def step(self, x_data: Tensor, x_init: Tensor | None = None) -> dict[str, float]:
        """One training step; chains start at `x_init` if given."""
        x_neg, before, noise = self.sample(self.chain_starts() if x_init is None else x_init)
        past = None
        if self.num_seen:
            levels = self._draw(min(self.cfg.loss.num_past, self.num_seen))
            past = (torch.from_numpy(levels).float() + 0.5) / 256
        terms = plain_terms(self.energy, x_data, x_neg, before, noise, past, self.cfg)
        self.optimizer.zero_grad()
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        if self.cfg.optimizer.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.energy.parameters(), self.cfg.optimizer.grad_clip)
        self.optimizer.step()
        decay = self.cfg.optimizer.ema_decay
        with torch.no_grad():
            for average, current in zip(self.ema.parameters(), self.energy.parameters(), strict=True):
                average.mul_(decay).add_(current, alpha=1 - decay)
        self._insert(x_neg)
        return {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}

    def _insert(self, x_neg: Tensor) -> None:
        for image in (x_neg * 256).clamp(0, 255).byte().numpy():
            self.num_seen += 1
            slot = self.num_seen - 1 if self.num_seen <= len(self.buffer) else self.random.integers(self.num_seen)
            if slot < len(self.buffer):
                self.buffer[slot] = image
