"""The paper's runs on one screen: Appendix A.2 where it has a number, a note where we chose one.

Each preset is a plain function that returns a TrainConfig; everything it does not name is a default of `config.py`.
"""

from collections.abc import Callable
from dataclasses import replace

from ebm_core.config import (
    AugmentConfig,
    BufferConfig,
    DataConfig,
    LoopConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainConfig,
    WarmupConfig,
)


def digits() -> TrainConfig:
    """scikit-learn's 8 x 8 handwritten digits: the demo on two CPU cores, by a recipe that holds (results/quality.md).

    Flow matching, then contrastive divergence of persistent chains, half of them from data, with the flow loss kept.
    """
    return TrainConfig(
        data=DataConfig(name="digits", image_size=8, channels=1),
        model=ModelConfig(
            kind="dense",
            widths=(512, 512, 512, 512),
            norm="none",
            attention=False,
            multiscale=False,
            standardize_weights=False,
            centered=True,
            output_scale=1 / 400,
        ),
        sampler=SamplerConfig(
            num_steps=10,
            step_size=8.0,
            noise_std=0.01,
            generate_steps=100,
            transition_every=0,
            transition_free_steps=0,
        ),
        loss=LossConfig(cd_weight=40.0, flow_weight=0.25, kl_weight=0.0, entropy_weight=0.0, l2_weight=0.0),
        warmup=WarmupConfig(num_steps=6000, speed=2.0),
        buffer=BufferConfig(
            kind="persistent", capacity=512, restart_fraction=0.01, restart_steps=50, data_fraction=0.5
        ),
        augment=AugmentConfig(enabled=False),
        optimizer=OptimizerConfig(lr=3e-4, betas=(0.9, 0.99), ema_decay=0.995, lr_rise_steps=50, lr_fall_steps=1500),
        train=LoopConfig(num_steps=7000, batch_size=64),
    )


def digits_paper() -> TrainConfig:
    """The paper's recipe on the 8 x 8 digits: convolutions, chains from the first step, both KL terms."""
    return TrainConfig(
        data=DataConfig(name="digits", image_size=8, channels=1),
        model=ModelConfig(
            kind="plain",
            widths=(32, 64, 128),
            norm="none",
            attention=False,
            multiscale=False,
            standardize_weights=False,
        ),
        sampler=SamplerConfig(
            num_steps=20,
            step_size=2.0,
            noise_std=0.005,
            generate_steps=200,
            transition_every=0,
            transition_free_steps=0,
        ),
        loss=LossConfig(entropy_weight=0.3),
        augment=AugmentConfig(enabled=False),
        optimizer=OptimizerConfig(lr=1e-3, ema_decay=0.99),
        train=LoopConfig(num_steps=1500, batch_size=64),
    )


def _small_convolutions(data: DataConfig, warmup_steps: int, widths: tuple[int, ...]) -> TrainConfig:
    """As `digits`, with convolutions and a head that tells places apart: images of 28 x 28 or 32 x 32 on a CPU."""
    recipe = digits()
    return replace(
        recipe,
        data=data,
        model=replace(recipe.model, kind="plain", widths=widths, head="places", output_scale=1e-4),
        sampler=replace(recipe.sampler, step_size=200.0),
        warmup=replace(recipe.warmup, num_steps=warmup_steps, ema_decay=0.998),
        buffer=replace(recipe.buffer, restart_fraction=0.05),
        optimizer=replace(recipe.optimizer, lr_fall_steps=1000),
        train=replace(recipe.train, num_steps=warmup_steps + 500),
    )


def mnist() -> TrainConfig:
    """MNIST by the recipe of `digits` on convolutions: within two core-hours of a CPU (results/quality.md)."""
    return _small_convolutions(DataConfig(name="mnist", image_size=28, channels=1), 8000, (16, 48, 96, 128))


def fashion_mnist() -> TrainConfig:
    """Fashion-MNIST, as `mnist`."""
    return _small_convolutions(DataConfig(name="fashion_mnist", image_size=28, channels=1), 8000, (16, 48, 96, 128))


def mnist_paper() -> TrainConfig:
    """MNIST with the published code's small net (Appendix A.4). Grey images have no hue, and digits do not flip."""
    return TrainConfig(
        data=DataConfig(name="mnist", image_size=28, channels=1),
        model=ModelConfig(kind="mnist", widths=(64, 128, 256, 512), attention=False, multiscale=False),
        augment=AugmentConfig(color_prob=0.0, grayscale_prob=0.0, flip_prob=0.0),
    )


def fashion_mnist_paper() -> TrainConfig:
    """Fashion-MNIST with the published code's small net, as `mnist_paper`; clothes are as likely mirrored."""
    return TrainConfig(
        data=DataConfig(name="fashion_mnist", image_size=28, channels=1),
        model=ModelConfig(kind="mnist", widths=(64, 128, 256, 512), attention=False, multiscale=False),
        augment=AugmentConfig(color_prob=0.0, grayscale_prob=0.0),
    )


def cifar10() -> TrainConfig:
    """Unconditional CIFAR-10 (A.2): 40 steps of size 100, noise 0.001, colour strength 1.0, blur of 5 pixels."""
    return TrainConfig()


def _faces_and_rooms(data: str) -> TrainConfig:
    """CelebA-HQ and LSUN at 128 x 128 (A.2): step size 1000, colour strength 0.5, blur of 11 pixels, Fig. 11 (b)."""
    return TrainConfig(
        data=DataConfig(name=data, image_size=128),
        model=ModelConfig(kind="figure11b", widths=(64, 128, 128, 128, 256, 512, 1024)),
        sampler=SamplerConfig(step_size=1000.0),
        augment=AugmentConfig(color_strength=0.5, blur_kernel=11),
        train=LoopConfig(batch_size=64),
    )


def cifar10_small() -> TrainConfig:
    """CIFAR-10 by the recipe of `digits` on convolutions of 0.9 million parameters: hours on a CPU."""
    return _small_convolutions(DataConfig(name="cifar10", image_size=32), 60_000, (32, 64, 128, 256))


def celeba_hq() -> TrainConfig:
    """Unconditional CelebA-HQ at 128 x 128 (A.2)."""
    return _faces_and_rooms("celeba_hq")


def lsun_bedroom() -> TrainConfig:
    """LSUN bedrooms at 128 x 128 (A.2)."""
    return _faces_and_rooms("lsun_bedroom")


def objects() -> TrainConfig:
    """Rendered shapes at 32 x 32 for composition (Section 3.3). Colour and pose are factors: no jitter, no flip."""
    return TrainConfig(
        data=DataConfig(name="objects", image_size=32),
        model=ModelConfig(kind="figure11a", widths=(32, 32, 64, 128, 256)),
        buffer=BufferConfig(capacity=10_000),
        augment=AugmentConfig(
            color_strength=0.0, color_prob=0.0, grayscale_prob=0.0, flip_prob=0.0, crop_scale=(0.8, 1.0)
        ),
        train=LoopConfig(batch_size=64),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "digits": digits,
    "digits_paper": digits_paper,
    "mnist": mnist,
    "mnist_paper": mnist_paper,
    "fashion_mnist": fashion_mnist,
    "fashion_mnist_paper": fashion_mnist_paper,
    "cifar10": cifar10,
    "cifar10_small": cifar10_small,
    "celeba_hq": celeba_hq,
    "lsun_bedroom": lsun_bedroom,
    "objects": objects,
}
