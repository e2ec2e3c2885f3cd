"""Judges one checkpoint: loads it once, draws any image shard of its samples, scores them. Plain, without Ray."""

import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

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
from workers.calls import Call, Here, Runner, call
from workers.features.weights import Weights
from workers.generate import BATCH_SIZE, SHARD_SIZE, generate_images, shard_condition
from workers.metrics.feature_metrics import FIELD_IMAGES, notes
from workers.metrics.metric import Accumulator
from workers.metrics.published import PUBLISHED
from workers.metrics.reference import NUM_REAL, Reference, Shard
from workers.metrics.registry import find_metric
from workers.pictures import grid_png
from workers.scoring import Plan, RealSet, make_plan

T = TypeVar("T")

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
        batch_size: int = BATCH_SIZE,
        num_real: int = NUM_REAL,
        num_reference: int = FIELD_IMAGES,
        weights: Weights | None = None,
    ) -> None:
        """digest: names the checkpoint in every result. num_real: images of each split that scores compare with;
        num_reference: the same for Inception features. weights: of the extractors, None for this user's.

        Raises ConfigError when the data's shape is not the model's, or a size does not fit.
        """
        for dataset in (train, heldout):
            if dataset.image_shape != cfg.image_shape:
                raise ConfigError(
                    f"{dataset.name}: images of {dataset.image_shape}, but the model takes {cfg.image_shape}; "
                    "give the data settings that it was trained with"
                )
        if min(shard_size, batch_size, num_real, num_reference) < 1 or shard_size % batch_size:
            raise ConfigError(
                f"shard_size = {shard_size}, batch_size = {batch_size}, num_real = {num_real}, num_reference = "
                f"{num_reference}: all must be at least 1, and a shard a multiple of a batch"
            )
        self.cfg, self.digest, self.shard_size, self.batch_size = cfg, digest, shard_size, batch_size
        self.train, self.heldout = train, heldout
        self._num_real, self._num_reference = num_real, num_reference
        device = next(model.parameters()).device
        self.reference = Reference(train, heldout, self._real_energies, num_real, weights, device)
        self.model = model
        self._drawn: tuple[int, Pixels] | None = None
        self._kept: tuple[Hashable, Any] | None = None

    @classmethod
    def from_checkpoint(
        cls, folder: Path, data: DataConfig | None = None, *, device: str = "cpu", **options: Any
    ) -> "Evaluator":
        """The averaged (EMA) energy of a checkpoint folder, verified, and its data set's train and test splits.

        data: where the files are on this machine, if not where they were in training. device: where the
        energy and the extractors run. options: as above.
        Raises CheckpointError or DataError, and ConfigError where `data` is another data set than the checkpoint's.
        """
        model, cfg = load_energy(folder, "ema")
        data = data or cfg.data
        for setting in ("name", "condition", "attributes"):
            given, trained = getattr(data, setting), getattr(cfg.data, setting)
            if given != trained:
                raise ConfigError(f"data.{setting} = {given!r}: the checkpoint was trained with {trained!r}; use that")
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        return cls(model.to(device), cfg, load(data, "train"), load(data, "test"), digest, **options)

    def images(self, shard: int, seed: int = 0, count: int | None = None) -> Pixels:
        """The first `count` (None: all) generated images (count c h w), uint8, of one image shard."""
        return generate_images(
            self.model,
            self.cfg,
            seed=seed,
            count=self.shard_size if count is None else count,
            first_batch=shard * (self.shard_size // self.batch_size),
            batch_size=self.batch_size,
            rows=self.rows,
        )

    def grid(self, count: int = 64, seed: int = 0) -> Pixels:
        """The first `count` generated images (count c h w), uint8: those that `score` with this seed judges first."""
        if count < 1:
            raise ConfigError(f"{count} images asked for: at least 1")
        if self._drawn is not None and self._drawn[0] == seed and len(self._drawn[1]) >= count:
            return self._drawn[1][:count]
        return generate_images(self.model, self.cfg, seed=seed, count=count, batch_size=self.batch_size, rows=self.rows)

    def grid_png(self, count: int = 64, seed: int = 0) -> bytes:
        """A picture of `grid`."""
        return grid_png(self.grid(count, seed))

    def score(self, metrics: Sequence[str], num_images: int, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Each metric's result over the first `num_images` images of `seed`, ready for JSON.

        All or nothing: raises an EbmError where a metric is unknown, the data do not fit it, there are too few images,
        or an energy or a score is not finite.
        """
        return score_all(Here(self), metrics, num_images, seed)

    def make_plan(self, metrics: Sequence[str], num_images: int) -> Plan:
        """What `score_all` has to do; refuses what does not fit before the first image is drawn."""
        return make_plan(metrics, num_images, self.reference, self.shard_size, self._num_real, self._num_reference)

    def score_shard(self, metrics: Sequence[str], shard: int, num_images: int, seed: int = 0) -> dict[str, Any]:
        """Each metric's partial of one image shard of a set of `num_images`; any worker can make it."""
        first = shard * self.shard_size
        count = min(self.shard_size, num_images - first)
        if shard < 0 or count < 1:
            raise ConfigError(f"shard {shard} of {self.shard_size} images lies outside {num_images} images")
        images = self.images(shard, seed, count)
        if shard == 0:
            self._drawn = (seed, images)  # for the grid; keeping more would grow with num_images
        rows = shard_condition(self.rows, shard, self.shard_size)
        part = Shard(images, self.energies(images, None if rows is None else rows[:count]), first, num_images)
        return {name: find_metric(name).score(part, self.reference) for name in metrics}

    def score_real(self, real: RealSet, shard: int) -> dict[str, Any]:
        """Each metric's partial of one image shard of a set of real images, or of noise."""
        part = self.reference.real_shard(real.which, real.count, shard * self.shard_size, self.shard_size)
        return {name: find_metric(name).score(part, self.reference) for name in real.metrics}

    def finish(
        self, name: str, made: Any, known: Mapping[str, Any], plan: Plan, num_images: int, seed: int = 0
    ) -> dict[str, Any]:
        """The result of metric `name` from the folded partials of the generated images and of the real sets."""
        metric = find_metric(name)
        values = metric.finish(made, self.reference, known)
        if not math.isfinite(values["value"]):
            raise CheckpointError(f"metric {name} = {values['value']}: the checkpoint's samples cannot be scored")
        counts = {real.which: real.count for real in plan.real_sets if name in real.metrics}
        if not counts:  # compared by `Reference` itself
            counts = {which: min(self.reference.length(which), self._num_real) for which in ("train", "heldout")}
        return {
            "metric": name,
            **values,
            "num_images": num_images,
            "seed": seed,
            "protocol": {
                "compares": metric.compares,
                "weights": "ema",
                "shard_size": self.shard_size,
                "batch_size": self.batch_size,
                **{f"num_{which}": count for which, count in counts.items()},
                "transitions": self.cfg.augment.enabled,
                "condition": self.cfg.data.condition,
                "sampler": to_tree(self.cfg.sampler),
            },
            **self._comparison(name, values, num_images, counts.get("train", 0)),
            "checkpoint_digest": self.digest,
            "dataset": self.train.name,
            "data_fingerprint": self._fingerprint,
        }

    def _comparison(self, name: str, values: Mapping[str, Any], num_images: int, reference: int) -> dict[str, Any]:
        """Which extractor made the features, what the paper has, and what the number cannot be compared with."""
        metric = find_metric(name)
        if metric.extractor is None:
            return {}
        identity = self.reference.extractor(metric.extractor).identity()
        said = notes(name, metric, values, num_images, reference)
        if not identity.get("published", True):
            said.append(f"{name}: the extractor's weights are not the published ones, so this is no {name}")
        found = {"extractor": identity, "notes": said}
        if self.train.name == "cifar10" and self.cfg.data.condition == "none" and name in PUBLISHED:
            found["paper"] = PUBLISHED[name]
        return found

    def provenance(self, compares: str, **protocol: str) -> dict[str, Any]:
        """What every study says of where its numbers come from."""
        return {
            "protocol": {"compares": compares, "weights": "ema", "sampler": to_tree(self.cfg.sampler), **protocol},
            "checkpoint_digest": self.digest,
            "dataset": self.train.name,
            "data_fingerprint": self._fingerprint,
        }

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned for this key, until another is asked for: one thing that a study keeps between calls."""
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, make())
        return self._kept[1]

    @torch.no_grad()
    def energies(self, x: Pixels | Samples, condition: Float[Tensor, "n k"] | None = None) -> Float[np.ndarray, "n"]:
        """E(x), or E(x, c), float64, of stored images at their bins' centres, or of points anywhere between the levels.

        CheckpointError unless all are finite.
        """
        device = next(self.model.parameters()).device
        values = []
        for start in range(0, len(x), ENERGY_BATCH):
            part = x[start : start + ENERGY_BATCH].to(device)
            c = None if condition is None else condition[start : start + ENERGY_BATCH].to(device)
            values.append(self.model(part if x.is_floating_point() else dequantize(part), c).double().cpu())
        energy = torch.cat(values).numpy()
        bad = int((~np.isfinite(energy)).sum())
        if bad:
            raise CheckpointError(f"{bad} of {len(energy)} energies are not finite: use an earlier checkpoint")
        return energy

    @cached_property
    def rows(self) -> Float[Tensor, "n k"] | None:
        """Conditions to generate under: each label once, or the attribute vectors of the training images."""
        if self.cfg.data.condition == "label":
            return torch.eye(num_conditions(self.cfg.data))
        return condition_table(self.train, self.cfg.data)

    @cached_property
    def _fingerprint(self) -> str:
        return self.train.fingerprint()

    def _real_energies(self, images: Pixels, dataset: Dataset | None, index: Tensor) -> Float[np.ndarray, "n"]:
        if dataset is None:
            return self.energies(images, shard_condition(self.rows, 0, len(images)))
        table = condition_table(dataset, self.cfg.data)
        return self.energies(images, None if table is None else table[index])


def score_all(
    runner: Runner[Evaluator], metrics: Sequence[str], num_images: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Each metric's result over the first `num_images` images of `seed`; the same bits however the work is shared.

    Partials are folded as they come, so that memory does not grow with their number. Raises what the calls raise.
    """
    plan = runner.run({0: call(Evaluator.make_plan, metrics, num_images)})[0]
    known: dict[str, dict[str, Any]] = {name: {} for name in metrics}
    for real in plan.real_sets:
        shards = range(math.ceil(real.count / plan.shard_size))
        states = _folded(runner, real.metrics, [call(Evaluator.score_real, real, i) for i in shards])
        for name, state in states.items():
            known[name][real.which] = state
    shards = range(math.ceil(num_images / plan.shard_size))
    made = _folded(runner, metrics, [call(Evaluator.score_shard, metrics, i, num_images, seed) for i in shards])
    return runner.run(
        {name: call(Evaluator.finish, name, made[name], known[name], plan, num_images, seed) for name in metrics}
    )


def _folded(
    runner: Runner[Evaluator], metrics: Sequence[str], shards: Sequence[Call[Evaluator, dict[str, Any]]]
) -> dict[str, Any]:
    """{metric: its partials of all image shards, folded in their order}."""
    together = {name: Accumulator(find_metric(name), len(shards)) for name in metrics}

    def take(shard: int, partials: dict[str, Any]) -> None:
        for name, partial in partials.items():
            together[name].add(shard, partial)

    runner.run(dict(enumerate(shards)), take)
    return {name: one.result() for name, one in together.items()}
