"""METRICS: scores by name, each as pure functions that take image shards in any order on any actor.

`score` turns a shard of generated images into a partial, `fold` joins the partials in shard order, `finish` makes the
result beside the same quantity for real images and for noise, without which a number says little.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ebm_core.errors import ConfigError
from workers.features.judge import LABEL
from workers.metrics import diversity, formulas
from workers.metrics.feature_metrics import FEATURE_METRICS, Known
from workers.metrics.metric import Accumulator, Metric, combine
from workers.metrics.reference import NUM_REAL, RealImages, Reference, Shard

__all__ = ["METRICS", "NUM_REAL", "Accumulator", "Metric", "RealImages", "Reference", "Shard", "combine", "find_metric"]


def find_metric(name: str) -> Metric:
    """The score of that name; ConfigError lists the known ones."""
    if name not in METRICS:
        raise ConfigError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name]


def _finish_gap(parts: Sequence[np.ndarray], real: Reference, known: Known) -> dict[str, Any]:
    generated = np.concatenate(parts)
    heldout, train, noise = real.heldout.energies, real.train.energies, real.noise.energies
    gap, error = formulas.energy_gap(heldout, generated)
    return {
        "value": gap,
        "standard_error": error,
        "gap_train": formulas.energy_gap(train, generated)[0],
        "energy_heldout": float(heldout.mean()),
        "energy_train": float(train.mean()),
        "energy_generated": float(generated.mean()),
        "energy_noise": float(noise.mean()),
        "auroc_heldout_over_generated": formulas.auroc(-heldout, -generated),
        "auroc_train_over_heldout": formulas.auroc(-train, -heldout),
        "num_energies_heldout": len(heldout),
        "auroc_heldout_over_noise": formulas.auroc(-heldout, -noise),
    }


def _score_nearest(shard: Shard, real: Reference) -> tuple[np.ndarray, np.ndarray]:
    distance, nearest = formulas.nearest_distance(shard.images.numpy(), real.train.images.numpy())
    return distance, real.train.index[nearest]


def _finish_nearest(parts: Sequence[tuple[np.ndarray, np.ndarray]], real: Reference, known: Known) -> dict[str, Any]:
    distance, index = (np.concatenate(column) for column in zip(*parts, strict=True))
    closest = int(distance.argmin())
    memory = formulas.memorization(distance, real.heldout_nearest)
    return {
        "value": memory["ratio"],
        "copied_fraction": memory["copied_fraction"],
        "median_distance": float(np.median(distance)),
        "heldout_median_distance": float(np.median(real.heldout_nearest)),
        "closest": {"image": closest, "train_image": int(index[closest]), "distance": float(distance[closest])},
    }


def _score_classifier(shard: Shard, real: Reference) -> Float[np.ndarray, "n k"]:
    return real.judge.probabilities(real.features(shard, "judge"))


def _finish_classifier(parts: Sequence[np.ndarray], real: Reference, known: Known) -> dict[str, Any]:
    probabilities = np.concatenate(parts)
    result = formulas.classifier_scores(probabilities)
    heldout = formulas.classifier_scores(real.class_probabilities(real.heldout.images))
    heldout["accuracy"] = real.judge.accuracy[LABEL]
    noise = formulas.classifier_scores(real.class_probabilities(real.noise.images))
    counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
    return {
        "value": result["mean_confidence"],
        **result,
        "num_classes": int(probabilities.shape[1]),
        "images_per_class": counts.tolist(),
        "share_per_class": (counts / len(probabilities)).tolist(),
        "heldout": heldout,
        "noise": noise,
    }


METRICS: dict[str, Metric] = {
    "energy_gap": Metric(
        "mean energy of held-out (and training) images minus that of generated ones",
        better=None,
        prepare=lambda real: (real.train, real.heldout, real.noise),
        score=lambda shard, real: shard.energies,
        finish=_finish_gap,
    ),
    **FEATURE_METRICS,
    "nearest_train": Metric(
        "median L2 distance of generated images to the nearest training image, over that of held-out images",
        better=None,
        prepare=lambda real: real.heldout_nearest,
        score=_score_nearest,
        finish=_finish_nearest,
    ),
    "diversity": Metric(
        "mean L2 distance between two generated images, over that between two held-out ones; equal counts",
        better=None,
        prepare=lambda real: real.heldout,
        score=diversity.score,
        finish=diversity.finish,
        least=3,
        real_sets=dict.fromkeys(("heldout", "noise"), diversity.NUM_IMAGES),
    ),
    "classifier": Metric(
        "mean confidence of a classifier trained on the labels of the training images, in generated images",
        better="more",
        prepare=lambda real: real.judge,
        score=_score_classifier,
        finish=_finish_classifier,
        extractor="judge",
    ),
}
