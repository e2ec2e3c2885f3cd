"""Judges one checkpoint: loads it once, draws any shard of its samples, scores them. A plain class, without Ray."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ebm_core.checkpoint import MANIFEST, load_energy
from ebm_core.config import DataConfig, TrainConfig, to_tree
from ebm_core.data import condition_table, load, num_conditions
from ebm_core.data.dataset import Dataset
from ebm_core.data.pixels import dequantize
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.models import EnergyModel
from ebm_core.types import Pixels, Samples
from workers import chains, ood, ood_sets
from workers.generate import SHARD_SIZE, generate_shard, shard_condition
from workers.metrics import NUM_REAL, Reference, Shard, combine, find_metric

ENERGY_BATCH = 256


class Evaluator:
    """A trained energy beside the real images that it should resemble."""

    def __init__(
        self,
        model: EnergyModel,
        cfg: TrainConfig,
        train: Dataset,
        heldout: Dataset,
        digest: str,
        *,
        shard_size: int = SHARD_SIZE,
        num_real: int = NUM_REAL,
    ) -> None:
        """digest: names the checkpoint in every result. num_real: images of each split that scores compare with.

        Raises ConfigError when the data's shape is not the model's, or shard_size or num_real is below 1.
        """
        for dataset in (train, heldout):
            if dataset.image_shape != cfg.image_shape:
                raise ConfigError(
                    f"{dataset.name}: images of {dataset.image_shape}, but the model takes {cfg.image_shape}; "
                    "give the data settings that it was trained with"
                )
        if shard_size < 1 or num_real < 1:
            raise ConfigError(f"shard_size = {shard_size}, num_real = {num_real}: both must be at least 1")
        self.cfg, self.digest, self.shard_size = cfg, digest, shard_size
        self.train, self.heldout = train, heldout
        self.reference = Reference(train, heldout, self._real_energies, num_real)
        self._model = model
        self._drawn: dict[tuple[int, int], Pixels] = {}
        self._readers: dict[ood_sets.ImageSet, ood_sets.SetReader] = {}

    @classmethod
    def from_checkpoint(cls, folder: Path, data: DataConfig | None = None, **sizes: int) -> "Evaluator":
        """The averaged (EMA) energy of a checkpoint folder, verified, and its data set's train and test splits.

        data: where the files are on this machine, if not where they were in training. sizes: `shard_size`, `num_real`.
        Raises CheckpointError or DataError, and ConfigError where `data` is another data set than the checkpoint's.
        """
        model, cfg = load_energy(folder, "ema")
        data = data or cfg.data
        for setting in ("name", "condition", "attributes"):
            given, trained = getattr(data, setting), getattr(cfg.data, setting)
            if given != trained:
                raise ConfigError(f"data.{setting} = {given!r}: the checkpoint was trained with {trained!r}; use that")
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        return cls(model, cfg, load(data, "train"), load(data, "test"), digest, **sizes)

    def images(self, shard: int, seed: int = 0) -> Pixels:
        """Generated images (shard_size c h w), uint8, of one shard; drawn once, then kept."""
        key = (seed, shard)
        if key not in self._drawn:
            condition = shard_condition(self._rows, shard, self.shard_size)
            self._drawn[key] = generate_shard(
                self._model, self.cfg, seed=seed, shard=shard, count=self.shard_size, condition=condition
            )
        return self._drawn[key]

    def grid(self, count: int = 64, seed: int = 0) -> Pixels:
        """The first `count` generated images (count c h w), uint8: those that `score` with this seed judges first."""
        shards = self._shards(count)
        return torch.cat([self.images(shard, seed) for shard in range(shards)])[:count]

    def score(self, metrics: Sequence[str], num_images: int, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Each metric's result over the first `num_images` images of `seed`, ready for JSON.

        All or nothing: raises an EbmError where a metric is unknown, the data do not fit it, num_images is below 2, or
        an energy or a score is not finite.
        """
        shards = self._shards(num_images)
        if num_images < 2:
            raise ConfigError(f"num_images = {num_images}: a score needs at least 2 images")
        self.prepare(metrics)
        partials = {shard: self.score_shard(metrics, shard, num_images, seed) for shard in range(shards)}
        return {
            name: self.finish(name, ((shard, found[name]) for shard, found in partials.items()), num_images, seed)
            for name in metrics
        }

    def prepare(self, metrics: Sequence[str]) -> None:
        """Refuse unknown metrics and data that do not fit them, before the first image is drawn."""
        for name in metrics:
            find_metric(name).prepare(self.reference)

    def score_shard(self, metrics: Sequence[str], shard: int, num_images: int, seed: int = 0) -> dict[str, Any]:
        """Each metric's partial of one shard of a set of `num_images`; any worker can make it, `finish` takes it."""
        count = min(self.shard_size, num_images - shard * self.shard_size)
        if shard < 0 or count < 1:
            raise ConfigError(f"shard {shard} of {self.shard_size} images lies outside {num_images} images")
        images = self.images(shard, seed)[:count]
        condition = shard_condition(self._rows, shard, self.shard_size)
        energies = self.energies(images, None if condition is None else condition[:count])
        part = Shard(images, energies)
        return {name: find_metric(name).score(part, self.reference) for name in metrics}

    def finish(
        self, name: str, deliveries: Iterable[tuple[int, Any]], num_images: int, seed: int = 0
    ) -> dict[str, Any]:
        """The result of metric `name` from (shard, partial) in any order, a repeated shard counting once."""
        metric = find_metric(name)
        values = metric.finish(combine(metric, deliveries, self._shards(num_images)), self.reference)
        if not math.isfinite(values["value"]):
            raise CheckpointError(f"metric {name} = {values['value']}: the checkpoint's samples cannot be scored")
        return {
            "metric": name,
            **values,
            "num_images": num_images,
            "seed": seed,
            "protocol": {
                "compares": metric.compares,
                "weights": "ema",
                "shard_size": self.shard_size,
                "num_train": len(self.reference.train.index),
                "num_heldout": len(self.reference.heldout.index),
                "transitions": self.cfg.augment.enabled,
                "condition": self.cfg.data.condition,
                "sampler": to_tree(self.cfg.sampler),
            },
            "checkpoint_digest": self.digest,
            "dataset": self.train.name,
            "data_fingerprint": self._fingerprint,
        }

    def describe_set(self, which: ood_sets.ImageSet) -> dict[str, Any]:
        """Size and origin of a set. ConfigError for a conditional energy, DataError for missing files."""
        if self._model.num_conditions:
            raise ConfigError("metric ood: the energy is conditional; it needs one that is not (Table 3)")
        reader = self._reader(which)
        return {
            "num_images": reader.num_images,
            "num_found": len(reader.source),
            "dataset": reader.source.name,
            "split": reader.source.split,
            "data_fingerprint": reader.source.fingerprint(),
        }

    def measure_set(self, which: ood_sets.ImageSet, start: int, stop: int) -> ood.Columns:
        """Energies and low-level quantities of images start to stop - 1 of a set."""
        reader = self._reader(which)
        images, x = reader.images(start, stop)
        ood_sets.check_alike(which, x, self.cfg.image_shape)
        return ood.measure(images, x, self._energies(x), reader.image_numbers[start:stop].numpy())

    def report_ood(
        self, found: Mapping[str, ood.Columns], described: Mapping[str, Mapping[str, Any]], protocol: str, seed: int
    ) -> dict[str, Any]:
        """The result of metric ood over whole sets, ready for JSON; described: as `describe_set` has it."""
        made = ood.report(found, self.published_ood)
        for name, one in made["sets"].items():
            one["source"] = described[name]
        return {
            "metric": "ood" if protocol == "strict" else f"ood_{protocol}",
            **made,
            "inside": described[ood_sets.INSIDE],
            "seed": seed,
            **self._provenance(
                "-E(x) of held-out images with that of each other set",
                preprocessing=ood_sets.PREPROCESSING[protocol],
                name=protocol,
            ),
        }

    @property
    def published_ood(self) -> Mapping[str, float]:
        """Table 3, where it is about this data."""
        return ood.PUBLISHED if self.train.name == "cifar10" else {}

    def run_chains(self, variant: str, num_chains: int, num_steps: int, seed: int = 0) -> chains.Study:
        """A pool of long chains from noise, of one of `chains.VARIANTS`."""
        condition = shard_condition(self._rows, 0, num_chains)
        return chains.run_variant(
            self._model,
            self.cfg,
            variant,
            num_chains=num_chains,
            num_steps=num_steps,
            seed=seed,
            condition=condition,
        )

    def report_chains(self, found: Mapping[str, chains.Study], seed: int = 0) -> dict[str, Any]:
        """The result of metric chains, ready for JSON."""
        compares = "a pool of chains from noise, run on: as at test time, without transitions, without noise"
        return {
            "metric": "chains",
            **chains.report(found, self.reference.frechet),
            "seed": seed,
            **self._provenance(compares),
        }

    def _provenance(self, compares: str, **protocol: str) -> dict[str, Any]:
        """What every study says of where its numbers come from."""
        return {
            "protocol": {"compares": compares, "weights": "ema", "sampler": to_tree(self.cfg.sampler), **protocol},
            "checkpoint_digest": self.digest,
            "dataset": self.train.name,
            "data_fingerprint": self._fingerprint,
        }

    def _reader(self, which: ood_sets.ImageSet) -> ood_sets.SetReader:
        if which not in self._readers:
            self._readers = {which: ood_sets.SetReader(which, self.heldout)}  # one set at a time
        return self._readers[which]

    def energies(self, images: Pixels, condition: Float[Tensor, "n k"] | None = None) -> Float[np.ndarray, "n"]:
        """E(x), or E(x, c), of stored images at their bins' centres, float64. CheckpointError unless all are finite."""
        return self._energies(images, condition)

    @torch.no_grad()
    def _energies(self, x: Pixels | Samples, condition: Float[Tensor, "n k"] | None = None) -> Float[np.ndarray, "n"]:
        """As `energies`; of points between the levels too."""
        device = next(self._model.parameters()).device
        values = []
        for start in range(0, len(x), ENERGY_BATCH):
            part = x[start : start + ENERGY_BATCH].to(device)
            c = None if condition is None else condition[start : start + ENERGY_BATCH].to(device)
            values.append(self._model(part if x.is_floating_point() else dequantize(part), c).double().cpu())
        energy = torch.cat(values).numpy()
        bad = int((~np.isfinite(energy)).sum())
        if bad:
            raise CheckpointError(f"{bad} of {len(energy)} energies are not finite: use an earlier checkpoint")
        return energy

    @cached_property
    def _rows(self) -> Float[Tensor, "n k"] | None:
        """Conditions to generate under: each label once, or the attribute vectors of the training images."""
        if self.cfg.data.condition == "label":
            return torch.eye(num_conditions(self.cfg.data))
        return condition_table(self.train, self.cfg.data)

    @cached_property
    def _fingerprint(self) -> str:
        return self.train.fingerprint()

    def _real_energies(self, images: Pixels, dataset: Dataset | None, index: Tensor) -> Float[np.ndarray, "n"]:
        if dataset is None:
            return self.energies(images, shard_condition(self._rows, 0, len(images)))
        table = condition_table(dataset, self.cfg.data)
        return self.energies(images, None if table is None else table[index])

    def _shards(self, num_images: int) -> int:
        if num_images < 1:
            raise ConfigError(f"{num_images} images asked for: at least 1")
        return math.ceil(num_images / self.shard_size)
