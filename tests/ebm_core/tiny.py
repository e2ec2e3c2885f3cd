"""A model small enough that a test can afford whole runs."""

import copy
import dataclasses
from collections.abc import Sequence

import torch

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
)
from ebm_core.trainer import TrainState, train_step


def tiny_config(**sections) -> TrainConfig:
    """8 x 8 grey images, four thousand parameters, chains of three steps."""
    cfg = TrainConfig(
        data=DataConfig(name="digits", image_size=8, channels=1),
        model=ModelConfig(
            kind="plain", widths=(4, 8, 8), norm="none", attention=False, multiscale=False, standardize_weights=False
        ),
        sampler=SamplerConfig(num_steps=3, step_size=1.0, noise_std=0.005, generate_steps=5, transition_every=0),
        loss=LossConfig(num_past=20),
        buffer=BufferConfig(capacity=40, num_shards=4),
        augment=AugmentConfig(crop_scale=(0.5, 1.0), blur_kernel=3),
        optimizer=OptimizerConfig(lr=1e-3),
        train=LoopConfig(num_steps=8, batch_size=8),
    )
    return dataclasses.replace(cfg, **sections)


def batch(step: int, cfg: TrainConfig) -> torch.Tensor:
    """The global batch of a step: any images will do."""
    return torch.rand((cfg.train.batch_size, *cfg.image_shape), generator=torch.Generator().manual_seed(step))


def step_together(workers: list[TrainState], x: torch.Tensor, cfg: TrainConfig) -> None:
    """A training step of several workers in this process: each has its part of the batch, gradients are averaged."""
    sent: list[list[torch.Tensor]] = []
    for worker in workers:  # a rehearsal on copies records what each would send
        train_step(
            copy.deepcopy(worker),
            x[worker.shards.span(len(x))],
            cfg,
            lambda tensors: sent.append([t.clone() for t in tensors]),
        )
    means = [sum(parts) / len(workers) for parts in zip(*sent, strict=True)]

    def average(tensors: Sequence[torch.Tensor]) -> None:
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean)

    for worker in workers:
        train_step(worker, x[worker.shards.span(len(x))], cfg, average)
