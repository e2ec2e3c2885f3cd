"""Draws from compositions of trained energies and has them judged. A plain class, without Ray."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ebm_core.checkpoint import MANIFEST, load_energy
from ebm_core.config import DataConfig, TrainConfig, to_tree
from ebm_core.data import load
from ebm_core.data.dataset import Dataset
from ebm_core.models import EnergyModel
from ebm_core.rng import stream
from ebm_core.types import Pixels
from workers.features.judge import factor_values, fit_judge
from workers.studies.recipes import SHARD_SIZE, Recipe, asked_values, check_together, draw_shard, score

COMPOSED, AT_ONCE, NOISE = "composed", "told all at once", "noise"
"""Names of sets of images."""


class Composer:
    """Several energies of one data set, and its images."""

    def __init__(
        self,
        models: Sequence[EnergyModel],
        configs: Sequence[TrainConfig],
        train: Dataset,
        heldout: Dataset,
        digests: Sequence[str] = (),
    ) -> None:
        """digests: name the checkpoints in the result. ConfigError unless all are of one data set and image shape."""
        check_together(configs, [f"energy {i + 1}" for i in range(len(configs))])
        self.models, self.configs, self.digests = models, configs, tuple(digests)
        self.train, self.heldout = train, heldout

    @classmethod
    def from_checkpoints(cls, folders: Sequence[Path], data: DataConfig | None = None) -> "Composer":
        """The averaged (EMA) energies of checkpoint folders, verified, and the images of the first one's data set.

        data: where the files are on this machine, if not where they were in training.
        """
        loaded = [load_energy(folder, "ema") for folder in folders]
        data = data or loaded[0][1].data
        digests = [hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() for folder in folders]
        models, configs = [model for model, _ in loaded], [cfg for _, cfg in loaded]
        return cls(models, configs, load(data, "train"), load(data, "test"), digests)

    def prepare(self, how: Recipe) -> None:
        """Refuse factors that the data set cannot teach a judge, before the first image is drawn."""
        for name, _ in asked_values(how):
            factor_values(self.train, name)

    def draw(self, how: Recipe, shard: int, seed: int, num_steps: int | None = None) -> Pixels:
        """SHARD_SIZE images of a shard, by the sampler of the first energy. num_steps: of a chain, if not its own."""
        sampler = self.configs[how.concepts[0].member].sampler
        if num_steps is not None:
            sampler = replace(sampler, generate_steps=num_steps)
        return draw_shard(self.models, how, sampler, seed=seed, shard=shard, count=SHARD_SIZE)

    def report(self, how: Recipe, images: Mapping[str, Pixels], num_steps: int | None = None) -> dict[str, Any]:
        """What a judge reads off sets of images, and of uniform noise, ready for JSON; no scores where the recipe fixes
        no factor."""
        factors = list(dict.fromkeys(name for name, _ in asked_values(how)))
        scores = {}
        if factors:
            judge = fit_judge(self.train, self.heldout, factors)
            size = next(iter(images.values())).shape
            noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=stream(0, 0, "composition noise"))
            scores = score({**images, NOISE: noise}, how, judge)
        sampler = self.configs[how.concepts[0].member].sampler
        return {
            "operation": how.operation,
            "weights": list(how.weights),
            "sharpness": how.sharpness,
            "step_fraction": how.step_fraction,
            **scores,
            "num_steps": num_steps or sampler.generate_steps,
            "protocol": {
                "compares": "factors that a small convolutional net, trained on real training images, reads off images",
                "weights": "ema",
                "shard_size": SHARD_SIZE,
                "transitions": False,
                "sampler": to_tree(sampler),
            },
            "checkpoint_digests": list(self.digests),
            "dataset": self.train.name,
            "data_fingerprint": self.train.fingerprint(),
        }
