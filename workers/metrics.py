"""METRICS: scores by name, each as pure functions that take shards in any order and on any worker.

`score` turns a shard of generated images into a partial, `merge` joins the partials in shard order, `finish` makes the
result beside the same quantity for real images and for noise, without which a number says little.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ebm_core.data.dataset import Dataset
from ebm_core.data.pixels import dequantize
from ebm_core.errors import ConfigError, DataError
from ebm_core.rng import stream
from ebm_core.types import Pixels
from workers import scores
from workers.features import SmallFeatures
from workers.stats import FeatureStats, frechet_distance, merge_all

NUM_REAL = 10_000
"""Real images of a split that scores compare with; a larger split is thinned evenly."""

NUM_ENERGIES = 2000
"""Of those, the images whose energy is computed: a mean needs no more, and a large net is slow on a CPU."""

NUM_NEIGHBORS = 5000
"""Images of a set whose features are compared pair by pair; all pairs of more would need gigabytes."""

CLASSIFIER_VALUES = 1024
"""Values per image up to which a logistic regression on pixels is a fair judge, and quick to train."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Generated images (n c h w) and their energies (n) in float64."""

    images: Pixels
    energies: Float[np.ndarray, "n"]


@dataclass(frozen=True, slots=True)
class RealImages:
    """Images (n c h w) of a split, energies (m <= n) of evenly spread ones, labels and numbers in the split (n)."""

    images: Pixels
    energies: Float[np.ndarray, "m"]
    labels: Int64[np.ndarray, "n"] | None
    index: Int64[np.ndarray, "n"]


class Reference:
    """Real images and what the metrics derive from them; each is computed when first asked for, then kept."""

    def __init__(
        self,
        train: Dataset,
        heldout: Dataset,
        energies: Callable[[Pixels, Dataset | None, Tensor], Float[np.ndarray, "n"]],
        num_real: int = NUM_REAL,
    ) -> None:
        """energies: of images (n c h w), given the set that they are from (None: noise) and their numbers in it."""
        for dataset in (train, heldout):
            if not len(dataset):
                raise DataError(f"{dataset.name}: the {dataset.split} split is empty; scores need real images")
        self._train, self._heldout, self._energies, self._num_real = train, heldout, energies, num_real

    @cached_property
    def train(self) -> RealImages:
        return self._real(self._train)

    @cached_property
    def heldout(self) -> RealImages:
        return self._real(self._heldout)

    @cached_property
    def noise(self) -> RealImages:
        """Uniform noise, as many images as `heldout` has."""
        images = torch.randint(
            0, 256, self.heldout.images.shape, dtype=torch.uint8, generator=stream(0, 0, "reference noise")
        )
        index = torch.arange(len(images))
        return RealImages(images, self._some_energies(images, None, index), None, index.numpy())

    @cached_property
    def extractor(self) -> SmallFeatures:
        return SmallFeatures(self.train.images.shape[1])

    @cached_property
    def train_features(self) -> FeatureStats:
        return FeatureStats.from_features(self.extractor.features(self.train.images))

    @cached_property
    def some_features(self) -> dict[str, Float[np.ndarray, "n d"]]:
        """Small features of at most NUM_NEIGHBORS images of `train`, `heldout` and `noise`."""
        sets = {"train": self.train, "heldout": self.heldout, "noise": self.noise}
        return {
            name: self.extractor.features(real.images[_thinned(len(real.images), NUM_NEIGHBORS)])
            for name, real in sets.items()
        }

    @cached_property
    def heldout_nearest(self) -> Float[np.ndarray, "n"]:
        """Distance of each held-out image to the nearest training image, in pixels."""
        return scores.nearest_distance(self.heldout.images.numpy(), self.train.images.numpy())[0]

    @cached_property
    def classifier(self) -> LogisticRegression:
        """Logistic regression on the pixels of the real training images."""
        labels, values = self.train.labels, self.train.images[0].numel()
        if labels is None:
            raise DataError(f"metric classifier: {self._train.name} has no labels; leave it out of the metrics")
        if values > CLASSIFIER_VALUES:
            raise DataError(
                f"metric classifier: images of {values} values are too large for a logistic regression on pixels "
                f"(at most {CLASSIFIER_VALUES}); leave it out of the metrics"
            )
        if len(np.unique(labels)) < 2:
            raise DataError("metric classifier: all training images have one label; use more images (data.limit)")
        return LogisticRegression(max_iter=2000).fit(_pixels(self.train.images), labels)

    def class_probabilities(self, images: Pixels) -> Float[np.ndarray, "n k"]:
        """What `classifier` makes of images."""
        return self.classifier.predict_proba(_pixels(images))

    def frechet(self, images: Pixels) -> float:
        """Fréchet distance of images to the training images, in small features."""
        return frechet_distance(FeatureStats.from_features(self.extractor.features(images)), self.train_features)

    def _real(self, dataset: Dataset) -> RealImages:
        index = _thinned(len(dataset), self._num_real)
        images = dataset.fetch(index)
        labels = None if dataset.labels is None else dataset.labels[index].numpy()
        return RealImages(images, self._some_energies(images, dataset, index), labels, index.numpy())

    def _some_energies(self, images: Pixels, dataset: Dataset | None, index: Tensor) -> Float[np.ndarray, "m"]:
        rows = _thinned(len(images), NUM_ENERGIES)
        return self._energies(images[rows], dataset, index[rows])


@dataclass(frozen=True, slots=True)
class Metric:
    """A score. `Partial` stands for what `score` returns: plain arrays, which travel between processes."""

    compares: str
    """What with what, for the protocol in the result."""
    prepare: Callable[[Reference], object]
    """Refuses unfit data before the first image is drawn."""
    score: Callable[[Shard, Reference], Any]
    merge: Callable[[Sequence[Any]], Any]
    """Partials in shard order to the partial of all."""
    finish: Callable[[Any, Reference], dict[str, Any]]
    """`value`, the number to watch, and the further ones that explain it."""


def find_metric(name: str) -> Metric:
    """The metric of that name; ConfigError lists the known ones."""
    if name not in METRICS:
        raise ConfigError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name]


def combine(metric: Metric, deliveries: Iterable[tuple[int, Any]], num_shards: int) -> Any:
    """The merged partial of shards 0 to num_shards - 1, delivered as (shard, partial) in any order.

    A shard delivered twice counts once. Raises DataError when a shard is missing or unknown.
    """
    by_shard = dict(deliveries)
    odd = sorted(by_shard.keys() ^ set(range(num_shards)))
    if odd or not num_shards:
        raise DataError(f"scores of shards {odd} are missing or not asked for; {num_shards} shards make the set")
    return metric.merge([by_shard[shard] for shard in range(num_shards)])


def _finish_gap(generated: Float[np.ndarray, "n"], real: Reference) -> dict[str, Any]:
    heldout, train, noise = real.heldout.energies, real.train.energies, real.noise.energies
    gap, error = scores.energy_gap(heldout, generated)
    return {
        "value": gap,
        "standard_error": error,
        "gap_train": scores.energy_gap(train, generated)[0],
        "energy_heldout": float(heldout.mean()),
        "energy_train": float(train.mean()),
        "energy_generated": float(generated.mean()),
        "energy_noise": float(noise.mean()),
        "auroc_heldout_over_generated": scores.auroc(-heldout, -generated),
        "auroc_train_over_heldout": scores.auroc(-train, -heldout),
        "num_energies_heldout": len(heldout),
        "auroc_heldout_over_noise": scores.auroc(-heldout, -noise),
    }


def _finish_fid_small(generated: FeatureStats, real: Reference) -> dict[str, Any]:
    rows = _thinned(len(real.heldout.images), generated.n)  # at an equal count the bias is equal
    return {
        "value": frechet_distance(generated, real.train_features),
        "num_features": int(generated.mean.size),
        "reference_num_images": len(rows),
        "heldout": real.frechet(real.heldout.images[rows]),
        "noise": real.frechet(real.noise.images[rows]),
    }


def _finish_kid_small(generated: Float[np.ndarray, "n d"], real: Reference) -> dict[str, Any]:
    kept, known = generated[_thinned(len(generated), NUM_NEIGHBORS)], real.some_features
    return {
        "value": scores.kernel_distance(kept, known["train"]),
        "num_compared": {"generated": len(kept), "train": len(known["train"])},
        "heldout": scores.kernel_distance(known["heldout"], known["train"]),
        "noise": scores.kernel_distance(known["noise"], known["train"]),
    }


def _finish_precision_recall(generated: Float[np.ndarray, "n d"], real: Reference) -> dict[str, Any]:
    known = real.some_features
    # recall and coverage depend on the number of samples: equal counts on every side
    count = min(len(generated), NUM_NEIGHBORS, *(len(features) for features in known.values()))
    train = known["train"][_thinned(len(known["train"]), count)]

    def against(features: Float[np.ndarray, "n d"]) -> dict[str, float]:
        return scores.neighborhood_scores(train, features[_thinned(len(features), count)])

    found = against(generated)
    return {
        "value": found["precision"],
        **found,
        "k": 5,
        "num_compared": count,
        "heldout": against(known["heldout"]),
        "noise": against(known["noise"]),
    }


def _score_nearest(shard: Shard, real: Reference) -> tuple[np.ndarray, np.ndarray]:
    distance, nearest = scores.nearest_distance(shard.images.numpy(), real.train.images.numpy())
    return distance, real.train.index[nearest]


def _merge_nearest(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _finish_nearest(found: tuple[np.ndarray, np.ndarray], real: Reference) -> dict[str, Any]:
    distance, index = found
    closest = int(distance.argmin())
    memory = scores.memorization(distance, real.heldout_nearest)
    return {
        "value": memory["ratio"],
        "copied_fraction": memory["copied_fraction"],
        "median_distance": float(np.median(distance)),
        "heldout_median_distance": float(np.median(real.heldout_nearest)),
        "closest": {"image": closest, "train_image": int(index[closest]), "distance": float(distance[closest])},
    }


def _score_classifier(shard: Shard, real: Reference) -> Float[np.ndarray, "n k"]:
    return real.class_probabilities(shard.images)


def _finish_classifier(probabilities: Float[np.ndarray, "n k"], real: Reference) -> dict[str, Any]:
    result = scores.classifier_scores(probabilities)
    heldout = scores.classifier_scores(real.class_probabilities(real.heldout.images))
    if real.heldout.labels is not None:
        heldout["accuracy"] = float(real.classifier.score(_pixels(real.heldout.images), real.heldout.labels))
    noise = scores.classifier_scores(real.class_probabilities(real.noise.images))
    counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
    return {
        "value": result["mean_confidence"],
        **result,
        "num_classes": int(probabilities.shape[1]),
        "images_per_class": counts.tolist(),
        "heldout": heldout,
        "noise": noise,
    }


def _thinned(length: int, count: int) -> Int64[Tensor, "n"]:
    """At most `count` of the numbers below `length`, evenly spread: files are often sorted by class."""
    count = min(length, count)
    return torch.arange(count) * length // count


def _pixels(images: Pixels) -> Float[np.ndarray, "n p"]:
    """One row of pixels in [0, 1] per image, float64."""
    return dequantize(images).flatten(1).double().numpy()


METRICS: dict[str, Metric] = {
    "energy_gap": Metric(
        "mean energy of held-out (and training) images minus that of generated ones",
        prepare=lambda real: (real.train, real.heldout, real.noise),
        score=lambda shard, real: shard.energies,
        merge=np.concatenate,
        finish=_finish_gap,
    ),
    "fid_small": Metric(
        "Frechet distance in 128 random-filter features (not FID) of generated to training images; "
        "biased upward by few images, as the held-out row is",
        prepare=lambda real: real.train_features,
        score=lambda shard, real: FeatureStats.from_features(real.extractor.features(shard.images)),
        merge=merge_all,
        finish=_finish_fid_small,
    ),
    "kid_small": Metric(
        "unbiased squared MMD, kernel (x.y / d + 1)^3, in 128 random-filter features (not KID) of generated to "
        "training images",
        prepare=lambda real: real.some_features,
        score=lambda shard, real: real.extractor.features(shard.images),
        merge=np.concatenate,
        finish=_finish_kid_small,
    ),
    "precision_recall_small": Metric(
        "precision, recall, density, coverage in 128 random-filter features, k = 5, equal counts on both sides",
        prepare=lambda real: real.some_features,
        score=lambda shard, real: real.extractor.features(shard.images),
        merge=np.concatenate,
        finish=_finish_precision_recall,
    ),
    "nearest_train": Metric(
        "median L2 distance of generated images to the nearest training image, over that of held-out images",
        prepare=lambda real: real.heldout_nearest,
        score=_score_nearest,
        merge=_merge_nearest,
        finish=_finish_nearest,
    ),
    "classifier": Metric(
        "mean confidence of a logistic regression trained on the real training images, in generated images",
        prepare=lambda real: real.classifier,
        score=_score_classifier,
        merge=np.concatenate,
        finish=_finish_classifier,
    ),
}
