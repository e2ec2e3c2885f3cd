"""Other trainers of the same network on the same data, for `benchmarks.quality`: each takes a batch and makes a step.

    torchebm-cd   torchebm's PersistentContrastiveDivergence with its LangevinDynamics, by the preset's chain and buffer
    torchebm-em   torchebm's EnergyMatchingLoss: its warm-up for warmup.num_steps, then with its own contrastive term
    plain         `benchmarks.baseline`: the paper's step, written without a thought for speed

All have the preset's Adam, learning rates and averaging, and are scored by the preset's chain, as ours is.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.baseline import PlainTrainer
from ebm_core.config import TrainConfig
from ebm_core.models import EnergyModel
from ebm_core.rng import stream
from ebm_core.trainer import TrainState, init_state, train_step
from ebm_core.types import Energies, Samples
from ebm_core.warmup import optimizer_settings


class Trainer(Protocol):
    """What makes training steps and has an averaged model to be scored."""

    ema: EnergyModel

    def step(self, x_data: Samples, condition: Tensor | None) -> None:
        """One training step on real images (b c h w) in [0, 1]."""
        ...


class Ours:
    """`ebm_core.train_step`."""

    def __init__(self, cfg: TrainConfig) -> None:
        self.cfg = cfg
        self.state: TrainState = init_state(cfg)
        self.ema = self.state.ema

    def step(self, x_data: Samples, condition: Tensor | None) -> None:
        train_step(self.state, x_data, self.cfg, condition=condition)


class Plain:
    """The baseline, its average copied into a model that the evaluator knows."""

    def __init__(self, cfg: TrainConfig) -> None:
        torch.manual_seed(cfg.seed)
        self.ema = init_state(cfg).ema
        self._trainer = PlainTrainer(cfg, self.ema)

    def step(self, x_data: Samples, condition: Tensor | None) -> None:
        self._trainer.step(x_data)
        self.ema.load_state_dict(self._trainer.ema.state_dict())


class Torchebm:
    """One of torchebm's losses on our network, scaled to its units, where a slope is data - noise."""

    def __init__(self, cfg: TrainConfig, kind: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchebm import core, losses, samplers

        class Scaled(core.BaseModel):
            def __init__(self, energy: nn.Module, scale: float) -> None:
                super().__init__()
                self.energy, self.scale = energy, scale

            def forward(self, x: Samples) -> Energies:
                return self.scale * self.energy(x)

        torch.manual_seed(cfg.seed)
        self.cfg, self.num_steps = cfg, 0
        self.model = init_state(cfg).model.requires_grad_(True)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.rng = stream(cfg.seed, 0, "rival")
        chain = cfg.sampler
        self.matching = kind == "torchebm-em"
        if self.matching:
            energy = Scaled(self.model, chain.step_size * chain.generate_steps / cfg.warmup.speed)
            self.loss = losses.EnergyMatchingLoss(model=energy, lambda_cd=0.0)
        else:
            energy = Scaled(self.model, 1.0)
            scale = chain.step_noise_std / math.sqrt(2 * chain.step_size)  # its step adds sqrt(2 step_size) times this
            self.loss = losses.PersistentContrastiveDivergence(
                model=energy,
                sampler=samplers.LangevinDynamics(energy, chain.step_size, scale, clamp=(0.0, 1.0)),
                k_steps=chain.num_steps,
                buffer_size=cfg.buffer.capacity,
                new_sample_ratio=cfg.buffer.restart_fraction,
                init_steps=0,
                energy_reg_weight=cfg.loss.l2_weight,
            )
        self.optimizer = torch.optim.Adam(self.model.parameters(), betas=cfg.optimizer.betas)

    def step(self, x_data: Samples, condition: Tensor | None) -> None:
        settings = optimizer_settings(self.num_steps + 1, self.cfg)
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = settings.lr, settings.betas
        if self.matching:
            if self.num_steps == self.cfg.warmup.num_steps:
                self.loss.lambda_cd = 2.0  # its default for the second phase
            noise = torch.rand(x_data.shape, generator=self.rng)
            loss = self.loss(x_data, x0=noise)
        else:
            loss, _ = self.loss(x_data)
        self.optimizer.zero_grad()
        loss.backward()
        if self.cfg.optimizer.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optimizer.grad_clip)
        self.optimizer.step()
        with torch.no_grad():
            for average, current in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(current, 1 - settings.ema_decay)
        self.num_steps += 1


TRAINERS: dict[str, Callable[[TrainConfig], Trainer]] = {
    "ours": Ours,
    "plain": Plain,
    "torchebm-cd": lambda cfg: Torchebm(cfg, "torchebm-cd"),
    "torchebm-em": lambda cfg: Torchebm(cfg, "torchebm-em"),
}
"""How `--trainer` names them."""
