"""Every setting that training has, and the only place where a default is written.

Defaults are the paper's CIFAR-10 run (Appendix A.2); `presets.py` holds the other runs. A section checks its own
ranges, `TrainConfig` checks what must agree between sections.
"""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ebm_core.errors import ConfigError
from ebm_core.places import parse_s3

T = TypeVar("T")


def require(condition: bool, what: str, value: object, remedy: str) -> None:
    """Stop a wrong setting at the door: one line with the path, the value and what to do."""
    if not condition:
        raise ConfigError(f"{what} = {value!r}: {remedy}")


def _require_s3(root: str) -> None:
    try:
        parse_s3(root)
    except ConfigError:  # the value is not repeated: it may hold a password
        raise ConfigError(
            "data.root: must name a folder or s3://BUCKET/PREFIX[?endpoint_url=http://HOST:PORT], without user or "
            "password; credentials come from the environment"
        ) from None


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
    """Data set to train on: a key of `ebm_core.data.DATASETS`."""
    root: str = "data"
    """Folder with the published files, in torchvision's layout; or a folder or s3://BUCKET/PREFIX that `ebm data
    prepare` wrote. A leading ~ means the home folder of whoever gives the setting, and is stored as that folder."""
    image_size: int = 32
    """Height and width in pixels; images of another size are resized (short side, antialiased) and cropped to the
    centre."""
    channels: int = 3
    """Number of colour channels: 1 (grey) or 3 (RGB); images of the other kind are converted."""
    condition: Literal["none", "label", "attributes"] = "none"
    """What a conditional energy E(x, c) is told about an image (Section 3.3): nothing, its class label, or its
    attributes."""
    attributes: tuple[str, ...] = ()
    """Names of the attributes or factors to condition on, with data.condition=attributes; empty: all."""
    limit: int | None = None
    """Number of training images to use, from the first on; null: all."""
    dither: bool = True
    """Add U(0, 1/256) to pixels that are multiples of 1/256, so that the data has a density."""

    def __post_init__(self) -> None:
        require(8 <= self.image_size <= 1024, "data.image_size", self.image_size, "must lie in 8 to 1024 pixels")
        require(self.channels in (1, 3), "data.channels", self.channels, "must be 1 (grey) or 3 (RGB)")
        require(self.limit is None or self.limit >= 1, "data.limit", self.limit, "must be at least 1, or null for all")
        require("\0" not in self.root and self.root != "", "data.root", self.root, "must name a folder")
        object.__setattr__(self, "root", os.path.expanduser(self.root))  # ~ may be another folder on another node
        if "://" in self.root:
            _require_s3(self.root)
        if self.attributes and self.condition != "attributes":
            raise ConfigError(f"data.attributes = {self.attributes!r}: needs data.condition=attributes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The energy network (Appendix A.1, Fig. 11 as built by the published code)."""

    kind: Literal["figure11a", "figure11b", "mnist", "plain", "dense"] = "figure11a"
    """Layout of the network: `figure11a` (CIFAR-10), `figure11b` (CelebA-HQ, LSUN), `mnist` (the published MNIST net),
    `plain` (convolutions), or `dense` (layers on all pixels at once, for images as small as 8 x 8)."""
    widths: tuple[int, ...] = (64, 64, 128, 256, 512)
    """Channels after the first convolution and after each down-sampling block; with model.kind=dense, units of each
    layer."""
    norm: Literal["layer", "group", "instance", "none"] = "layer"
    """Normalisation inside blocks. `layer`: the paper (Section 3.1). `instance`: the published code, one group per
    channel up to 128 channels and 32 groups above. `group`: 32 groups. `none`: no normalisation."""
    spectral_norm: bool = False
    """Divide each weight by its largest singular value (IGEBM, an earlier method, needed this: Fig. 9)."""
    standardize_weights: bool = True
    """Give the convolutions inside blocks zero-mean, unit-length filters (the published code: unit variance)."""
    attention: bool = True
    """Add a self-attention layer at a low resolution (Fig. 11)."""
    multiscale: bool = True
    """Sum energies of the full, half and quarter resolution (Section 2.4)."""
    scale_mode: Literal["code", "paper"] = "code"
    """Which stages of the network the smaller scales leave out: the last (`code`, as published) or the first (`paper`,
    Appendix A.1)."""
    centered: bool = False
    """Give the network 2 x - 1, in [-1, 1], instead of x in [0, 1]; training is faster."""
    head: Literal["mean", "places"] = "mean"
    """How the last feature map becomes one number. `mean`: average over pixels, then weight each channel (Fig. 11).
    `places`: weight each channel at each place, so that the energy knows where in the image something is."""
    output_scale: float = 1.0
    """Factor on the network's output. For chains that reach the data within sampler.generate_steps, energies must be of
    the order of 1 / (step_size generate_steps); with that factor here, the weights themselves stay near 1."""

    def __post_init__(self) -> None:
        require_finite(self, "model")
        require(self.output_scale > 0, "model.output_scale", self.output_scale, "must be positive")
        require(len(self.widths) >= 2, "model.widths", self.widths, "needs at least two widths")
        require(all(1 <= w <= 8192 for w in self.widths), "model.widths", self.widths, "each must lie in 1 to 8192")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """The chain that draws negatives (Appendix A.2) and, at test time, images (Section 2.3)."""

    kind: Literal["langevin", "hmc"] = "langevin"
    """How samples are drawn: Langevin dynamics (Eq. 2), or Hamiltonian Monte Carlo (HMC)."""
    num_steps: int = 40
    """Number of steps of a training chain."""
    step_size: float = 100.0
    """Step size, in pixels^2 per energy: the factor on the energy gradient. 100 for CIFAR-10, 1000 for CelebA-HQ and
    LSUN (Appendix A.2)."""
    noise_std: float = 0.001
    """Standard deviation of the noise in each step, in pixels. The paper sets it independently of step_size."""
    temperature: float | None = None
    """Temperature T of Langevin dynamics: noise_std is ignored, and the noise is sqrt(2 step_size T); null: noise_std
    counts."""
    clamp: bool = True
    """Keep samples in the data range [0, 1] after each step."""
    backprop: Literal["last", "all"] = "last"
    """Which steps L_opt is differentiated through: the last (Section 2.2) or all (Appendix A.4)."""
    hmc_leapfrog_steps: int = 5
    """Leapfrog steps in one HMC transition, each of length sqrt(2 step_size) at unit temperature."""
    generate_steps: int = 400
    """Number of steps of a chain that generates images from noise, after training."""
    transition_every: int = 20
    """Steps between two augmentations of a generating chain (Section 2.3); 0: no augmentation."""
    transition_free_steps: int = 200
    """Number of last steps of a generating chain that no augmentation interrupts."""

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
    """Weight of L_CD, the contrastive divergence (Eq. 4). Beside a flow term the ratio of both weights counts: with
    energies in units of 1 / (step_size generate_steps), Energy Matching has 0.001 step_size generate_steps for each 1
    of loss.flow_weight."""
    kl_weight: float = 1.0
    """Weight of L_opt, the part of the KL term that improves the sampler (Eq. 6)."""
    entropy_weight: float = 1.0
    """Weight of L_ent, the entropy of the samples, which is maximised (Eq. 7). The published code's 0.3 beside a mean
    over three scales is 0.9 beside the sum here."""
    l2_weight: float = 1.0
    """Weight a of the penalty a (E(x)^2 + E(x')^2) on the size of energies (Section 3.1). The limits of divergence are
    in units of 1 / a."""
    num_past: int = 1000
    """Number of past samples B that each sample's distance is measured to in L_ent (Eq. 7)."""
    flow_weight: float = 0.0
    """Weight of flow matching, the warm start's loss, as a term beside contrastive divergence (Energy Matching); 0: no
    such term."""
    trim_fraction: float = 0.0
    """Share of the samples, those of lowest energy, that L_CD leaves out of its mean (Energy Matching: 0.1)."""
    cd_floor: float | None = None
    """Lowest value of L_CD that is still pushed down, in units of the energy (Energy Matching: -0.02 for energies times
    generate_steps step_size); null: no floor."""
    opt_samples: int | None = None
    """Number of samples of a batch that carry L_opt, the first ones (published code: 128 or 32); null: all (the
    paper)."""

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
    """The warm start: flow matching before contrastive divergence, without chains (Energy Matching, Balcerak et al.,
    NeurIPS 2025)."""

    num_steps: int = 0
    """Number of steps of flow matching; train.num_steps includes them, and contrastive divergence does the rest. 0: no
    warm start (the paper)."""
    lr: float = 2e-3
    """Highest learning rate of the warm start: it rises over the first warmup.lr_rise_steps, then falls to 0 along a
    cosine."""
    lr_rise_steps: int = 50
    """Steps over which the learning rate of the warm start rises from 0."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates during the warm start; optimizer.betas take over after it."""
    ema_decay: float = 0.995
    """Decay of the averaged parameters during the warm start; optimizer.ema_decay takes over after it."""
    pairing: Literal["optimal", "random"] = "optimal"
    """Which noise image leads to which data image: `optimal` transport within the worker's batch (least sum of squared
    distances), or `random`."""
    well_from: float = 1.0
    """Place t on the way from noise (0) to data (1) from which the target slope falls linearly to 0 at the data, so
    that data lies in wells (Equilibrium Matching, 2025); 1: the slope is constant (Energy Matching)."""
    speed: float = 1.0
    """Factor on the target slope. At 1, sampler.generate_steps steps lead just from noise to data; at 2, half of the
    steps do, and the rest let a chain settle."""

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
    """The replay buffer: past samples, from which chains start (Section 2.5)."""

    kind: Literal["reservoir", "fifo", "persistent"] = "reservoir"
    """Which past samples are kept. `reservoir`: a uniform choice of all (Section 2.5). `fifo`: the newest.
    `persistent`: the present state of each of `capacity` chains that run for the whole training (persistent contrastive
    divergence, Tieleman, 2008)."""
    capacity: int = 10_000
    """Number of past samples kept, over all workers (Section 3.1)."""
    restart_fraction: float = 0.05
    """Share of the chains that start from U(0, 1) noise instead of a past sample (Section 3.1: 5 %)."""
    restart_steps: int = 0
    """Extra Langevin steps for a chain that starts from noise, before it joins the others. 0 (the paper): none, so the
    energy of images that are still half noise is raised too."""
    data_fraction: float = 0.0
    """Share of the chains that start from the batch's data images (Energy Matching: half). Their ends do not enter the
    buffer."""
    num_shards: int = 8
    """Number of batch shards: equal parts of each batch and of the buffer. Each worker owns whole ones, so num_shards
    must be a multiple of cluster.num_workers."""
    conditions: Literal["data", "kept"] = "data"
    """Which condition a chain from a past sample follows, in a conditional energy: that of the `data` image beside it,
    or the one `kept` with the sample. Only with `data` does the energy see samples under a condition that they were not
    made for."""

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
    """Data augmentation between chains (Section 2.3, Appendix A.2): random parameters for each sample."""

    enabled: bool = True
    """Augment past samples before chains start from them (Section 2.3)."""
    color_strength: float = 1.0
    """Strength s of the colour jitter (0.8 s, 0.8 s, 0.8 s, 0.4 s), as in SimCLR: 1.0 for CIFAR-10, 0.5 for CelebA-HQ
    and LSUN."""
    color_prob: float = 0.8
    """Probability of the colour jitter."""
    grayscale_prob: float = 0.2
    """Probability that a sample is made grey."""
    flip_prob: float = 0.5
    """Probability of a horizontal flip."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Range of the random crop's area, as a fraction of the image; (1, 1) with crop_ratio (1, 1): no crop."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Range of the random crop's width over its height."""
    blur_kernel: int = 5
    """Width of the blur's kernel in pixels, odd: 5 for CIFAR-10, 11 for CelebA-HQ and LSUN."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels."""
    blur_prob: float = 0.5
    """Probability of a blur."""

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
    """Steps of contrastive divergence over which the learning rate rises from 0, because Adam's first steps have full
    size whatever the gradient; 0: it is constant from the start."""
    lr_fall_steps: int | None = None
    """Steps of contrastive divergence after which the learning rate has fallen to 0 along a cosine; null: it does not
    fall."""
    betas: tuple[float, float] = (0.0, 0.9)
    """Adam's decay rates, of the mean and of the mean square of gradients."""
    grad_clip: float | None = None
    """Largest norm of the whole gradient (published code: 0.5); null: no clipping."""
    ema_decay: float = 0.999
    """Decay of the averaged (EMA) parameters, which generate and are scored (0.999 in Section 3.1; the published code
    has 0.99)."""

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
    """Length of training, and when a run counts as diverged."""

    num_steps: int = 20_000
    """Number of training steps, warm start included. (The author names 10,000 to 20,000 iterations; the paper, one day
    on a V100.)"""
    batch_size: int = 128
    """Images per step, over all workers."""
    log_every: int = 10
    """Steps between two logged rows; the first step is always logged."""
    grad_norms_every: int = 0
    """Steps between two logged gradient norms of each loss term (Fig. 12), each of which costs a backward pass; 0:
    none."""
    gap_limit: float = -0.5
    """Limit of the running energy gap, the mean of l2_weight (E(data) - E(samples)) over train.gap_window steps. A run
    counts as diverged after train.gap_patience steps below the limit; a collapse is at -1 (Fig. 9)."""
    gap_window: int = 100
    """Number of steps over which the running energy gap is averaged."""
    gap_patience: int = 500
    """Steps in a row below train.gap_limit before a run counts as diverged."""
    energy_limit: float = 10.0
    """Largest |mean E| of a batch's data or samples, in units of 1 / l2_weight; above it a run counts as diverged at
    once (published code: 10)."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """What happens when a run diverges. `stop`: its last state is saved, and the run ends. `rollback`: it returns to
    the newest checkpoint from before the drift, and continues with a lower learning rate."""
    rollback_lr_factor: float = 0.5
    """Factor on the learning rate at each rollback."""
    max_rollbacks: int = 3
    """Number of rollbacks in one run; the next divergence ends the run."""

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
    """How a step is computed; a faster engine computes the same step."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto: CUDA if there is a GPU, else the CPU."""
    num_threads: int | None = None
    """Threads of PyTorch's CPU operators in one worker; null: as many as the worker has CPUs."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the convolutions. With bfloat16, normalisation, the update, noise, losses and weights stay in
    float32."""
    compile: bool = False
    """Compile the network's passes (torch.compile): takes minutes once, then comes from a cache on disk; pays for large
    models only. On a CPU this also runs augmentation in C++, with bit-identical results."""
    channels_last: bool = False
    """Store images as NHWC in plain float32 passes. Compiled, bfloat16 and Winograd passes always do."""
    winograd: bool = False
    """Use Winograd's F(4x4, 3x3) for float32 3x3 convolutions on a CPU: a quarter of the multiplications. Needs g++;
    pays with engine.compile."""

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
    """Seed of all randomness: weights, data order, chains, buffer."""
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
