"""Scores that compare features of generated images with those of real ones, one family for each extractor.

`fid`, `kid`, `inception_score` and `precision_recall` are the published ones, in features of Inception-V3 with the FID
weights. What other extractors give carries their name, since its numbers compare with nothing but themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ebm_core.data.dataset import thinned
from workers.metrics import formulas
from workers.metrics.metric import Better, Metric
from workers.metrics.reference import Reference, Shard
from workers.metrics.stats import FeatureStats, frechet_distance

NUM_NEIGHBORS = 5000
"""Images of a set whose features are compared pair by pair; all pairs of more would need gigabytes."""

ALL = 10**9
"""As many real images as the reference has."""

FIELD_IMAGES = 50_000
"""Generated images behind the FID and the Inception score of most publications."""

NAMES = {
    "judge": "64 features of a classifier trained on the labels of the training images",
    "rotation": "64 features of a net trained to tell by which quarter turn training images were rotated",
    "small": "128 random-filter features",
    "medium": "1,280 MobileNetV2 features",
    "inception": "2,048 Inception-V3 features",
}

BLIND = {"small": "; blind to what an image shows: grey blur scores better than legible images with too much contrast"}
"""What the description of an extractor's Frechet distance has to add."""

Known = Mapping[str, Any]


def features_of(shard: Shard, real: Reference, extractor: str) -> Float[np.ndarray, "n d"]:
    """The columns that are features, not logits."""
    return real.features(shard, extractor)[:, : real.extractor(extractor).num_features]


def _some_features(shard: Shard, real: Reference, extractor: str) -> Float[np.ndarray, "n d"]:
    """Those of the image shard's images that are among NUM_NEIGHBORS evenly spread ones of the whole set."""
    rows = thinned(shard.total, NUM_NEIGHBORS) - shard.first
    rows = rows[(rows >= 0) & (rows < len(shard.images))].numpy()
    return features_of(shard, real, extractor)[rows]


def _fold_stats(state: FeatureStats | None, features: Float[np.ndarray, "n d"]) -> FeatureStats:
    part = FeatureStats.from_features(features)
    return part if state is None else state.merge(part)


def _finish_frechet(generated: FeatureStats, real: Reference, known: Known) -> dict[str, Any]:
    return {
        "value": frechet_distance(generated, known["train"]),
        "num_features": int(generated.mean.size),
        "reference_num_images": known["heldout"].n,  # at an equal count the bias is equal
        "heldout": frechet_distance(known["heldout"], known["train"]),
        "noise": frechet_distance(known["noise"], known["train"]),
    }


def _joined(parts: Sequence[np.ndarray]) -> Float[np.ndarray, "n d"]:
    return np.concatenate(parts).astype(np.float64)


def _finish_kernel(generated: Sequence[np.ndarray], real: Reference, known: Known) -> dict[str, Any]:
    x, sets = _joined(generated), {which: _joined(parts) for which, parts in known.items()}
    return {
        "value": formulas.kernel_distance(x, sets["train"]),
        "num_compared": {"generated": len(x), "train": len(sets["train"])},
        "heldout": formulas.kernel_distance(sets["heldout"], sets["train"]),
        "noise": formulas.kernel_distance(sets["noise"], sets["train"]),
    }


def _finish_subset_kernel(generated: Sequence[np.ndarray], real: Reference, known: Known) -> dict[str, Any]:
    x, sets = _joined(generated), {which: _joined(parts) for which, parts in known.items()}
    value, std = formulas.subset_kernel_distance(x, sets["train"])
    return {
        "value": value,
        "subset_std": std,
        "num_compared": {"generated": len(x), "train": len(sets["train"])},
        "heldout": formulas.subset_kernel_distance(sets["heldout"], sets["train"])[0],
        "noise": formulas.subset_kernel_distance(sets["noise"], sets["train"])[0],
    }


def _finish_neighbors(generated: Sequence[np.ndarray], real: Reference, known: Known) -> dict[str, Any]:
    x, sets = _joined(generated), {which: _joined(parts) for which, parts in known.items()}
    # recall and coverage depend on the number of samples: equal counts on every side
    count = min(len(x), *(len(features) for features in sets.values()))
    train = sets["train"][thinned(len(sets["train"]), count).numpy()]

    def against(features: Float[np.ndarray, "n d"]) -> dict[str, float]:
        return formulas.neighborhood_scores(train, features[thinned(len(features), count).numpy()])

    found = against(x)
    return {
        "value": found["precision"],
        **found,
        "k": 5,
        "num_compared": count,
        "heldout": against(sets["heldout"]),
        "noise": against(sets["noise"]),
    }


def _finish_inception_score(generated: Float[np.ndarray, "s k+2"], real: Reference, known: Known) -> dict[str, Any]:
    value, std = formulas.inception_score(generated)
    return {
        "value": value,
        "split_std": std,
        "num_splits": len(generated),
        "heldout": formulas.inception_score(known["heldout"])[0],
        "noise": formulas.inception_score(known["noise"])[0],
    }


def _frechet(extractor: str, compares: str) -> Metric:
    return Metric(
        compares,
        better="less",
        prepare=lambda real: real.extractor(extractor),
        score=lambda shard, real: features_of(shard, real, extractor),
        fold=_fold_stats,
        finish=_finish_frechet,
        extractor=extractor,
        real_sets={"train": ALL, "heldout": ALL, "noise": ALL},
    )


def _pairwise(extractor: str, better: Better, compares: str, finish: Any, least: int = 2) -> Metric:
    return Metric(
        compares,
        better=better,
        prepare=lambda real: real.extractor(extractor),
        score=lambda shard, real: _some_features(shard, real, extractor),
        finish=finish,
        least=least,
        extractor=extractor,
        real_sets=dict.fromkeys(("train", "heldout", "noise"), NUM_NEIGHBORS),
    )


def _stand_ins(extractor: str) -> dict[str, Metric]:
    """The scores of an extractor that is not the published one, under its name."""
    features = NAMES[extractor]
    return {
        f"fid_{extractor}": _frechet(
            extractor,
            f"Frechet distance in {features} (not FID) of generated to training images; "
            f"biased upward by few images, as the held-out row is{BLIND.get(extractor, '')}",
        ),
        f"kid_{extractor}": _pairwise(
            extractor,
            "less",
            f"unbiased squared MMD, kernel (x.y / d + 1)^3, in {features} (not KID) of generated to training images",
            _finish_kernel,
        ),
        f"precision_recall_{extractor}": _pairwise(
            extractor,
            "more",
            f"precision, recall, density, coverage in {features}, k = 5, equal counts on both sides",
            _finish_neighbors,
            least=6,
        ),
    }


FEATURE_METRICS: dict[str, Metric] = {
    **_stand_ins("judge"),
    **_stand_ins("rotation"),
    **_stand_ins("small"),
    **_stand_ins("medium"),
    "fid": _frechet(
        "inception",
        f"Frechet inception distance ({NAMES['inception']}) of generated to training images; "
        "biased upward by few images, as the held-out row is",
    ),
    "kid": _pairwise(
        "inception",
        "less",
        f"kernel inception distance ({NAMES['inception']}), mean of 100 random subsets of 1,000 images, of generated "
        "to training images",
        _finish_subset_kernel,
    ),
    "precision_recall": _pairwise(
        "inception",
        "more",
        f"precision, recall, density, coverage in {NAMES['inception']}, k = 5, equal counts on both sides",
        _finish_neighbors,
        least=6,
    ),
    "inception_score": Metric(
        "Inception score: mean over 10 splits, in the order of generation, of exp KL(p(y|x) to p(y))",
        better="more",
        prepare=lambda real: real.extractor("inception"),
        score=lambda shard, real: formulas.split_sums(
            real.features(shard, "inception")[:, real.extractor("inception").num_features :], shard.first, shard.total
        ),
        fold=lambda state, part: part if state is None else state + part,
        finish=_finish_inception_score,
        least=10,
        extractor="inception",
        real_sets={"heldout": ALL, "noise": ALL},
    ),
}


def printed_name(name: str, num_images: int) -> str:
    """What a table calls a score: `fid` of the field's 50,000 images, else fid_5k, fid_10k, or fid (n = 1234)."""
    if name != "fid" or num_images == FIELD_IMAGES:
        return name
    if num_images % 1000 == 0 and num_images < FIELD_IMAGES:
        return f"fid_{num_images // 1000}k"
    return f"fid (n = {num_images})"


def notes(name: str, metric: Metric, found: Mapping[str, Any], num_images: int, reference: int) -> list[str]:
    """What the number cannot be compared with. reference: training images behind it."""
    said, shown = [], printed_name(name, num_images)
    features = found.get("num_features", 0)
    if num_images < features:
        said.append(
            f"{shown}: {num_images} images are fewer than the {features} features, so their covariance is singular "
            f"and the distance mostly bias; compare it with its held-out value alone"
        )
    if metric.extractor != "inception":
        return said
    if num_images < FIELD_IMAGES:
        said.append(
            f"{shown}: of {num_images} images; published scores are mostly of {FIELD_IMAGES} (the paper does not say "
            f"its number), with which this cannot be compared"
        )
    if reference and reference < FIELD_IMAGES:
        said.append(f"{shown}: against {reference} training images, not {FIELD_IMAGES}")
    return said
