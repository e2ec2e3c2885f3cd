"""Every setting that training has, and the only place where a default is written.

Defaults are the paper's CIFAR-10 run (Appendix A.2); `presets.py` holds the other runs. A section checks its own
ranges, `TrainConfig` checks what must agree between sections.
"""

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ebm_core.errors import ConfigError

T = TypeVar("T")

S3_PLACE = re.compile(
    r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])(/(?P<prefix>[A-Za-z0-9_-][A-Za-z0-9._/-]*?))?/?"
    r"(\?endpoint_url=(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?)/?)?"
)
"""What a prepared set on an S3 server is called."""


def require(condition: bool, what: str, value: object, remedy: str) -> None:
    """Stop a wrong setting at the door: one line with the path, the value and what to do."""
    if not condition:
        raise ConfigError(f"{what} = {value!r}: {remedy}")


def require_finite(section: object, prefix: str) -> None:
    """NaN passes every comparison below as False or True by accident; refuse it first."""
    for f in dataclasses.fields(typing.cast(Any, section)):
        value = getattr(section, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{prefix}.{f.name} = {number!r}: must be a finite number")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, and in what shape the model sees them."""

    name: str = "cifar10"
    """A key of `ebm_core.data.DATASETS`."""
    root: str = "data"
    """Folder with the files as published (torchvision's layout), or a folder or s3://BUCKET/PREFIX with what
    `ebm data prepare` made of them. A leading ~ is the home folder of whoever says so, and is stored as that folder."""
    image_size: int = 32
    """Height and width in pixels; other sizes are resized (short side, antialiased) and cropped to the centre."""
    channels: int = 3
    """Colours: 1 (grey) or 3 (RGB); images of the other kind are converted."""
    condition: Literal["none", "label", "attributes"] = "none"
    """What a conditional energy E(x, c) is told about an image (Section 3.3)."""
    attributes: tuple[str, ...] = ()
    """Names of the attributes or factors to condition on, when condition is `attributes`; empty: all of them."""
    limit: int | None = None
    """Use the first `limit` training images only."""
    dither: bool = True
    """Add U(0, 1/256) to pixels that are multiples of 1/256, so that the data has a density."""

    def __post_init__(self) -> None:
        require(8 <= self.image_size <= 1024, "data.image_size", self.image_size, "must lie in 8 to 1024 pixels")
        require(self.channels in (1, 3), "data.channels", self.channels, "must be 1 (grey) or 3 (RGB)")
        require(self.limit is None or self.limit >= 1, "data.limit", self.limit, "must be at least 1, or null for all")
        require("\0" not in self.root and self.root != "", "data.root", self.root, "must name a folder")
        object.__setattr__(self, "root", os.path.expanduser(self.root))  # ~ may be another folder on another node
        if "://" in self.root and not S3_PLACE.fullmatch(self.root):  # not repeated: it may hold a password
            raise ConfigError(
                "data.root: must name a folder or s3://BUCKET/PREFIX[?endpoint_url=http://HOST:PORT], without user or "
                "password; credentials come from the environment"
            )
        if self.attributes and self.condition != "attributes":
            raise ConfigError(f"data.attributes = {self.attributes!r}: needs data.condition=attributes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The energy network (Appendix A.1, Fig. 11 as built by the published code)."""

    kind: Literal["figure11a", "figure11b", "mnist", "plain", "dense"] = "figure11a"
    """Layout: (a) CIFAR-10, (b) CelebA-HQ and LSUN, the published MNIST net, plain convolutions, or dense layers on all
    pixels at once for images as small as 8 x 8."""
    widths: tuple[int, ...] = (64, 64, 128, 256, 512)
    """Channels after the first convolution and after each down-sampling block; of `dense`, units of each layer."""
    norm: Literal["layer", "group", "instance", "none"] = "layer"
    """Normalisation inside blocks (Section 3.1: layer; the published code: instance, affine, group above 128)."""
    spectral_norm: bool = False
    """Divide each weight by its largest singular value (what IGEBM needed, Fig. 9)."""
    standardize_weights: bool = True
    """Give the convolutions inside blocks zero-mean, unit-length filters (the published code: unit variance)."""
    attention: bool = True
    """Self-attention at a low resolution (Fig. 11)."""
    multiscale: bool = True
    """Sum energies of the full, half and quarter resolution (Section 2.4)."""
    scale_mode: Literal["code", "paper"] = "code"
    """Smaller scales drop the last stages (published code) or the first (Appendix A.1)."""
    centered: bool = False
    """Give the network 2 x - 1, in [-1, 1], instead of x in [0, 1]: it learns faster."""
    head: Literal["mean", "places"] = "mean"
    """How the last map becomes one number: a weight for each channel of its mean over pixels (Fig. 11), or a weight for
    each channel at each place, which tells an energy where in the image something is."""
    output_scale: float = 1.0
    """Multiplies the network's output. A slope that leads from noise to data within generate_steps steps belongs to
    energies of the order of 1 / (step_size generate_steps): with such a scale the weights themselves stay near 1."""

    def __post_init__(self) -> None:
        require_finite(self, "model")
        require(self.output_scale > 0, "model.output_scale", self.output_scale, "must be positive")
        require(len(self.widths) >= 2, "model.widths", self.widths, "needs at least two widths")
        require(all(1 <= w <= 8192 for w in self.widths), "model.widths", self.widths, "each must lie in 1 to 8192")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """The chain that draws negatives (Appendix A.2) and, at test time, images (Section 2.3)."""

    kind: Literal["langevin", "hmc"] = "langevin"
    """Langevin dynamics (Eq. 2), or Hamiltonian Monte Carlo."""
    num_steps: int = 40
    """Steps of a training chain."""
    step_size: float = 100.0
    """Multiplies the energy gradient: 100 for CIFAR-10, 1000 for CelebA-HQ and LSUN (A.2). Pixels^2 per energy."""
    noise_std: float = 0.001
    """Noise per step, in pixels. The paper sets it apart from step_size; so do we."""
    temperature: float | None = None
    """If given, noise_std is ignored and the noise is sqrt(2 step_size temperature): Langevin at that temperature."""
    clamp: bool = True
    """Keep samples in the data range [0, 1] after each step."""
    backprop: Literal["last", "all"] = "last"
    """Which steps L_opt differentiates through: the last (Section 2.2) or all (Appendix A.4)."""
    hmc_leapfrog_steps: int = 5
    """Leapfrog steps of one HMC transition; their length is sqrt(2 step_size) at unit temperature."""
    generate_steps: int = 400
    """Steps of a test-time chain."""
    transition_every: int = 20
    """At test time an augmentation follows every so many steps (Section 2.3); 0: never."""
    transition_free_steps: int = 200
    """The last steps of a test-time chain, which no transition disturbs."""

    def __post_init__(self) -> None:
        require_finite(self, "sampler")
        require(1 <= self.num_steps <= 100_000, "sampler.num_steps", self.num_steps, "must lie in 1 to 100000")
        require(self.step_size > 0, "sampler.step_size", self.step_size, "must be positive")
        require(self.noise_std >= 0, "sampler.noise_std", self.noise_std, "must not be negative")
        if self.temperature is not None:
            require(self.temperature >= 0, "sampler.temperature", self.temperature, "must not be negative")
        require(
            self.hmc_leapfrog_steps >= 1, "sampler.hmc_leapfrog_steps", self.hmc_leapfrog_steps, "must be at least 1"
        )
        require(self.generate_steps >= 1, "sampler.generate_steps", self.generate_steps, "must be at least 1")
        require(self.transition_every >= 0, "sampler.transition_every", self.transition_every, "must not be negative")
        require(
            self.transition_free_steps >= 0,
            "sampler.transition_free_steps",
            self.transition_free_steps,
            "must not be negative",
        )
        if self.kind == "hmc" and self.backprop == "all":
            raise ConfigError("sampler.backprop = 'all': HMC's accept step has no gradient; use sampler.kind=langevin")

    @property
    def step_noise_std(self) -> float:
        """Standard deviation of one step's noise, in pixels."""
        if self.temperature is None:
            return self.noise_std
        return math.sqrt(2 * self.step_size * self.temperature)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights of the terms of L_Full = L_CD + L_KL (Section 2.1)."""

    cd_weight: float = 1.0
    """L_CD, Eq. 4. Beside a flow term their ratio counts: with energies in units of 1 / (step_size generate_steps),
    Energy Matching has 0.001 step_size generate_steps for each 1 of loss.flow_weight."""
    kl_weight: float = 1.0
    """L_opt, Eq. 6."""
    entropy_weight: float = 1.0
    """L_ent, Eq. 7 (maximised). The published code's 0.3 beside a mean over three scales is 0.9 beside our sum."""
    l2_weight: float = 1.0
    """a in a (E(x)^2 + E(x')^2), Section 3.1; it sets the unit in which stability is judged."""
    num_past: int = 1000
    """Past samples B that Eq. 7 measures against."""
    flow_weight: float = 0.0
    """Flow matching, the warm start's loss, kept as a term beside contrastive divergence (Energy Matching); 0: not."""
    trim_fraction: float = 0.0
    """Share of the samples, those of lowest energy, that L_CD leaves out of its mean (Energy Matching: 0.1)."""
    cd_floor: float | None = None
    """Below this value L_CD pushes no further (Energy Matching: -0.02 for energies times generate_steps step_size);
    null: no floor. In units of the energy."""
    opt_samples: int | None = None
    """Only the first so many samples carry L_opt (published code: 128 or 32); null: all (the paper)."""

    def __post_init__(self) -> None:
        require_finite(self, "loss")
        require(self.cd_weight > 0, "loss.cd_weight", self.cd_weight, "must be positive")
        require(self.kl_weight >= 0, "loss.kl_weight", self.kl_weight, "must not be negative")
        require(self.entropy_weight >= 0, "loss.entropy_weight", self.entropy_weight, "must not be negative")
        require(self.l2_weight >= 0, "loss.l2_weight", self.l2_weight, "must not be negative")
        require(self.flow_weight >= 0, "loss.flow_weight", self.flow_weight, "must not be negative")
        trim = self.trim_fraction
        require(0 <= trim < 1, "loss.trim_fraction", trim, "must lie in 0 to 1 (excluded)")
        floor = self.cd_floor
        require(floor is None or floor < 0, "loss.cd_floor", floor, "must be negative, or null for no floor")
        require(self.num_past >= 1, "loss.num_past", self.num_past, "must be at least 1")
        require(
            self.opt_samples is None or self.opt_samples >= 1,
            "loss.opt_samples",
            self.opt_samples,
            "must be at least 1, or null for all",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupConfig:
    """Flow matching before contrastive divergence (Energy Matching, Balcerak et al., NeurIPS 2025): no chains run."""

    num_steps: int = 0
    """Steps of flow matching, the first of train.num_steps; contrastive divergence follows. 0: the paper as it is."""
    lr: float = 2e-3
    """Highest learning rate of these steps: it rises over the first lr_rise_steps, then falls to 0 along a cosine."""
    lr_rise_steps: int = 50
    """Steps over which the learning rate of the warm start rises from 0."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates during the warm start; optimizer.betas take over after it."""
    ema_decay: float = 0.995
    """Decay of the averaged parameters during the warm start; optimizer.ema_decay takes over after it."""
    pairing: Literal["optimal", "random"] = "optimal"
    """Which noise image leads to which data image: optimal transport within the worker's batch (least sum of squared
    distances), or the order in which they come."""
    well_from: float = 1.0
    """Place t on the way from noise (0) to data (1) from which the wanted slope falls linearly to 0 at the data, so
    that data lies in wells (Equilibrium Matching, 2025); 1: the slope stays constant (Energy Matching)."""
    speed: float = 1.0
    """Multiplies the wanted slope. At 1, sampler.generate_steps steps lead just from noise to data; at 2 half of them
    do, and the rest let a chain settle."""

    def __post_init__(self) -> None:
        require_finite(self, "warmup")
        require(self.num_steps >= 0, "warmup.num_steps", self.num_steps, "must not be negative (0: no warm start)")
        require(0 < self.lr <= 1, "warmup.lr", self.lr, "must lie in 0 (excluded) to 1")
        require(self.lr_rise_steps >= 0, "warmup.lr_rise_steps", self.lr_rise_steps, "must not be negative")
        require(all(0 <= b < 1 for b in self.betas), "warmup.betas", self.betas, "each must lie in 0 to 1 (excluded)")
        require(0 <= self.ema_decay < 1, "warmup.ema_decay", self.ema_decay, "must lie in 0 to 1 (excluded)")
        require(0 <= self.well_from <= 1, "warmup.well_from", self.well_from, "must lie in 0 to 1")
        require(self.speed > 0, "warmup.speed", self.speed, "must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferConfig:
    """The store of past samples that chains start from (Section 2.5)."""

    kind: Literal["reservoir", "fifo", "persistent"] = "reservoir"
    """Which past samples are kept: a uniform choice of all of them (Section 2.5), the newest, or the present state of
    each of `capacity` chains that go on for the whole training (persistent contrastive divergence, Tieleman, 2008)."""
    capacity: int = 10_000
    """Samples over all shards (Section 3.1)."""
    restart_fraction: float = 0.05
    """Chains that start from U(0, 1) noise instead (Section 3.1: 5 %)."""
    restart_steps: int = 0
    """Langevin steps that a restarted chain takes before it joins the others. 0 (the paper): it joins as noise, and the
    energy of what it is after sampler.num_steps, still half noise, is raised with the others'."""
    data_fraction: float = 0.0
    """Share of the chains that start from the data images of the batch, every one of which ends here: only the other
    chains enter the buffer and go on (Energy Matching: half of them)."""
    num_shards: int = 8
    """Virtual shards: each worker owns whole shards, so num_shards must be a multiple of cluster.num_workers."""
    conditions: Literal["data", "kept"] = "data"
    """Of a conditional energy: a chain that starts from a past sample follows the condition of the data image beside
    it, or the one that the sample was made for. Only the former shows the energy images under another condition."""

    def __post_init__(self) -> None:
        require_finite(self, "buffer")
        # A checkpoint has a file for each, and at most manifest.MAX_FILES.
        require(1 <= self.num_shards <= 8192, "buffer.num_shards", self.num_shards, "must lie in 1 to 8192")
        require(
            self.capacity >= self.num_shards,
            "buffer.capacity",
            self.capacity,
            f"must be at least buffer.num_shards ({self.num_shards})",
        )
        restart, data = self.restart_fraction, self.data_fraction
        require(0 <= restart <= 1, "buffer.restart_fraction", restart, "must lie in 0 to 1")
        require(self.restart_steps >= 0, "buffer.restart_steps", self.restart_steps, "must not be negative")
        require(0 <= data < 1, "buffer.data_fraction", data, "must lie in 0 to 1 (excluded)")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Data augmentation transitions (Section 2.3, Appendix A.2), one random parameter set per sample."""

    enabled: bool = True
    """Augment past samples before chains go on from them (Section 2.3)."""
    color_strength: float = 1.0
    """Colour jitter (0.8, 0.8, 0.8, 0.4) x strength, as in SimCLR: 1.0 for CIFAR-10, 0.5 for CelebA-HQ and LSUN."""
    color_prob: float = 0.8
    """Chance that a sample gets the colour jitter."""
    grayscale_prob: float = 0.2
    """Chance that a sample loses its colour."""
    flip_prob: float = 0.5
    """Chance of a mirror image."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Area of the random resized crop, as a fraction of the image; (1, 1) with ratio (1, 1) leaves it alone."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Width over height of the crop."""
    blur_kernel: int = 5
    """Pixels: 5 for CIFAR-10, 11 for CelebA-HQ and LSUN."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the Gaussian's width in pixels."""
    blur_prob: float = 0.5
    """Chance of a blur."""

    def __post_init__(self) -> None:
        require_finite(self, "augment")
        require(
            0 <= self.color_strength <= 1.25, "augment.color_strength", self.color_strength, "must lie in 0 to 1.25"
        )
        for name in ("color_prob", "grayscale_prob", "flip_prob", "blur_prob"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "must lie in 0 to 1")
        low, high = self.crop_scale
        require(0 < low <= high <= 1, "augment.crop_scale", self.crop_scale, "needs 0 < low <= high <= 1")
        low, high = self.crop_ratio
        require(0 < low <= high, "augment.crop_ratio", self.crop_ratio, "needs 0 < low <= high")
        low, high = self.blur_sigma
        require(0 < low <= high, "augment.blur_sigma", self.blur_sigma, "needs 0 < low <= high")
        odd = self.blur_kernel % 2 == 1 and self.blur_kernel >= 1
        require(odd, "augment.blur_kernel", self.blur_kernel, "must be an odd number of pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Adam (Section 3.1) with the published code's betas, and the EMA of the parameters."""

    lr: float = 2e-4
    """Learning rate of Adam."""
    lr_rise_steps: int = 0
    """Steps of contrastive divergence over which the learning rate rises from 0, so that Adam's first steps, which are
    of full size whatever the gradient, do no harm; 0: none."""
    lr_fall_steps: int | None = None
    """Steps of contrastive divergence after which the learning rate has fallen to 0 along a cosine; null: it stays."""
    betas: tuple[float, float] = (0.0, 0.9)
    """Adam's decay rates of the mean and of the mean square of gradients."""
    grad_clip: float | None = None
    """Largest norm of the whole gradient (published code: 0.5); null: no clipping."""
    ema_decay: float = 0.999
    """Section 3.1. The published code has 0.99."""

    def __post_init__(self) -> None:
        require_finite(self, "optimizer")
        require(0 < self.lr <= 1, "optimizer.lr", self.lr, "must lie in 0 (excluded) to 1")
        require(self.lr_rise_steps >= 0, "optimizer.lr_rise_steps", self.lr_rise_steps, "must not be negative")
        fall = self.lr_fall_steps
        require(
            fall is None or fall >= 1, "optimizer.lr_fall_steps", fall, "must be at least 1, or null for a constant"
        )
        require(
            all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "each must lie in 0 to 1 (excluded)"
        )
        if self.grad_clip is not None:
            require(self.grad_clip > 0, "optimizer.grad_clip", self.grad_clip, "must be positive, or null for none")
        require(0 <= self.ema_decay < 1, "optimizer.ema_decay", self.ema_decay, "must lie in 0 to 1 (excluded)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Length of training, and when it counts as diverged."""

    num_steps: int = 20_000
    """The author speaks of 10,000 to 20,000 iterations; the paper, of one day on a V100."""
    batch_size: int = 128
    """Images per step over all workers."""
    log_every: int = 10
    """Steps between two rows of metrics; the first step is always logged."""
    grad_norms_every: int = 0
    """Log the gradient norm of each loss term every so many steps (Fig. 12); 0: never. Costs a backward pass a term."""
    gap_limit: float = -0.5
    """Diverged when the running mean of l2_weight (E(data) - E(samples)) is below this (collapse is -1, Fig. 9), ..."""
    gap_window: int = 100
    """... where the mean runs over so many steps ..."""
    gap_patience: int = 500
    """... for so many steps in a row."""
    energy_limit: float = 10.0
    """Diverged when a batch's mean |E|, in units of 1 / l2_weight, exceeds this (published code: 10)."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """stop: end the run. rollback: return to the newest sound checkpoint from before the drift, and go on slower."""
    rollback_lr_factor: float = 0.5
    """Multiplies the learning rate at each rollback."""
    max_rollbacks: int = 3
    """Rollbacks of one run; the next divergence ends it."""

    def __post_init__(self) -> None:
        require_finite(self, "train")
        require(self.num_steps >= 1, "train.num_steps", self.num_steps, "must be at least 1")
        require(1 <= self.batch_size <= 65_536, "train.batch_size", self.batch_size, "must lie in 1 to 65536")
        require(self.log_every >= 1, "train.log_every", self.log_every, "must be at least 1")
        require(self.grad_norms_every >= 0, "train.grad_norms_every", self.grad_norms_every, "must not be negative")
        require(self.gap_limit < 0, "train.gap_limit", self.gap_limit, "must be negative (collapse is at -1)")
        require(self.gap_window >= 1, "train.gap_window", self.gap_window, "must be at least 1")
        require(self.gap_patience >= 1, "train.gap_patience", self.gap_patience, "must be at least 1")
        require(self.energy_limit > 0, "train.energy_limit", self.energy_limit, "must be positive")
        factor = self.rollback_lr_factor
        require(0 < factor < 1, "train.rollback_lr_factor", factor, "must lie between 0 and 1, both excluded")
        require(1 <= self.max_rollbacks <= 100, "train.max_rollbacks", self.max_rollbacks, "must lie in 1 to 100")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How the step is executed; never what it computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is one."""
    num_threads: int | None = None
    """Threads of PyTorch's CPU operators in one worker; null: the cores that the worker was given."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: convolutions in it; normalisation, the update, noise, losses and weights stay in float32."""
    compile: bool = False
    """Compile the network passes (torch.compile): minutes once, then cached on disk. Pays for large models only.
    On a CPU augmentation is in C++ then, with the same bits."""
    channels_last: bool = False
    """NHWC memory format for passes that are not compiled, not in bfloat16 and not by Winograd; those always use it."""
    winograd: bool = False
    """float32 3x3 convolutions by Winograd, F(4x4, 3x3): a quarter of the products. Needs g++; pays with `compile`."""

    def __post_init__(self) -> None:
        require(
            not self.winograd or (self.precision == "float32" and self.device != "cuda"),
            "engine.winograd",
            self.winograd,
            f"computes in float32 on a CPU, not with engine.precision={self.precision} and engine.device={self.device}",
        )
        if self.num_threads is not None:
            require(1 <= self.num_threads <= 1024, "engine.num_threads", self.num_threads, "must lie in 1 to 1024")


def check_layout(model: ModelConfig, height: int, width: int) -> None:
    """Refuse a network whose layers do not fit images of height x width pixels."""
    if model.kind == "dense":
        for name, value in {"attention": model.attention, "multiscale": model.multiscale}.items():
            require(not value, f"model.{name}", value, f"model.kind=dense has no convolutions; set model.{name}=false")
        require(model.norm == "none", "model.norm", model.norm, "model.kind=dense has no maps to normalise; set none")
        return
    num_downs = len(model.widths) - 1
    if model.multiscale and num_downs < 3:
        raise ConfigError(
            f"model.widths = {model.widths!r}: three scales need 4 widths or more; "
            "add some or set model.multiscale=false"
        )
    if model.attention and num_downs < 2:
        raise ConfigError(
            f"model.widths = {model.widths!r}: attention needs 3 widths or more; add one or set model.attention=false"
        )
    if min(height, width) >> num_downs < 1:
        raise ConfigError(
            f"model.widths = {model.widths!r}: {num_downs} down-sampling layers do not fit images of "
            f"{height} x {width}; give fewer widths"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """All that training needs and no cluster: what `init_state` and `train_step` take."""

    seed: int = 0
    """Of everything random: weights, data order, chains, buffer."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "must lie in 0 to 2^63 - 1")
        check_layout(self.model, self.data.image_size, self.data.image_size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return (self.data.channels, self.data.image_size, self.data.image_size)


def to_tree(cfg: object) -> dict[str, Any]:
    """A config as plain dicts, lists and scalars: what JSON can hold and `from_tree` reads back."""
    tree: dict[str, Any] = {}
    for f in dataclasses.fields(typing.cast(Any, cfg)):
        value = getattr(cfg, f.name)
        if dataclasses.is_dataclass(value):
            tree[f.name] = to_tree(value)
        else:
            tree[f.name] = list(value) if isinstance(value, tuple) else value
    return tree


def from_tree(cls: type[T], tree: Any, path: str = "") -> T:
    """The config that `to_tree` wrote. Unknown names and wrong types raise ConfigError; absent ones get the default."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path or 'config'} = {tree!r}: must be a section of settings")
    hints = get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    for name in tree:
        if name not in names:
            raise ConfigError(f"unknown setting {_join(path, str(name))!r}; known here: {', '.join(sorted(names))}")
    values = {name: _typed(hints[name], value, _join(path, name)) for name, value in tree.items()}
    return cls(**values)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _typed(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_tree(typing.cast(type, hint), value, path)
    origin = get_origin(hint)
    if origin is Literal:
        if value in get_args(hint) and isinstance(value, str):
            return value
        raise ConfigError(f"{path} = {value!r}: must be one of {', '.join(map(str, get_args(hint)))}")
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _typed(next(a for a in get_args(hint) if a is not type(None)), value, path)
    if origin is tuple:
        items = get_args(hint)
        if not isinstance(value, (list, tuple)) or (items[-1] is not Ellipsis and len(value) != len(items)):
            raise ConfigError(f"{path} = {value!r}: must be a list of {len(items)} values")
        kinds = [items[0]] * len(value) if items[-1] is Ellipsis else items
        return tuple(_typed(kind, item, path) for kind, item in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f"{path} = {value!r}: must be of type {getattr(hint, '__name__', hint)}")
