"""Formulas of the scores, as pure functions on arrays."""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from ebm_core.errors import DataError
from ebm_core.types import Pixels

CHUNK_VALUES, CHUNK_ROWS = 2**22, 1024
"""Pixel values and images in one block of all pairs: 32 MiB of pixels and 8 MiB of distances in float64."""


def energy_gap(real: Float[np.ndarray, "n"], generated: Float[np.ndarray, "m"]) -> tuple[float, float]:
    """mean E(real) - mean E(generated), and its standard error from both samples. Near 0 when training is stable.

    Energies have no unit. Raises DataError for fewer than two values on either side, or values that are not finite.
    """
    real, generated = _values(real, "energies of real images"), _values(generated, "energies of generated images")
    error = np.sqrt(real.var(ddof=1) / len(real) + generated.var(ddof=1) / len(generated))
    return float(real.mean() - generated.mean()), float(error)


def auroc(positive: Float[np.ndarray, "n"], negative: Float[np.ndarray, "m"]) -> float:
    """Chance that a random positive scores above a random negative, ties counting half: area under the ROC curve.

    On raw float64 scores: nothing is squashed or binned. Raises DataError for empty sets or values that are not finite.
    """
    from sklearn.metrics import roc_auc_score  # only here: every process of a job loads this module

    positive = _values(positive, "scores of positives", least=1)
    negative = _values(negative, "scores of negatives", least=1)
    truth = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(truth, np.concatenate([positive, negative])))


def fpr_at_recall(positive: Float[np.ndarray, "n"], negative: Float[np.ndarray, "m"], recall: float = 0.95) -> float:
    """Fraction of negatives that score at least the highest threshold which `recall` of the positives reach.

    FPR95 at the default. Raises DataError for empty sets or values that are not finite.
    """
    positive = _values(positive, "scores of positives", least=1)
    negative = _values(negative, "scores of negatives", least=1)
    needed = int(np.ceil(recall * len(positive) - 1e-9))  # 0.95 * 100 is 95, not 96
    threshold = np.sort(positive)[len(positive) - max(needed, 1)]
    return float((negative >= threshold).mean())


def detection(inside: Float[np.ndarray, "n"], outside: Float[np.ndarray, "m"]) -> dict[str, float]:
    """How well a score, larger for in-distribution images, tells `inside` from `outside` (Table 3 reports AUROC).

    `aupr_in`, `fpr95_in`: with in-distribution as the positive class; `aupr_out`, `fpr95_out`: with the other as the
    positive class and the score negated. AUPR is the average precision; its chance level is the positives' share.
    Raises DataError for empty sets or values that are not finite.
    """
    from sklearn.metrics import average_precision_score

    area = auroc(inside, outside)
    scores, truth = np.concatenate([inside, outside]), np.repeat([1, 0], [len(inside), len(outside)])
    return {
        "auroc": area,
        "aupr_in": float(average_precision_score(truth, scores)),
        "aupr_out": float(average_precision_score(1 - truth, -scores)),
        "fpr95_in": fpr_at_recall(inside, outside),
        "fpr95_out": fpr_at_recall(-np.asarray(outside), -np.asarray(inside)),
    }


def kernel_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3 (KID: Binkowski et al., 2018, over all pairs, no subsets).

    Near 0, and as often below as above it, for sets of one distribution. Raises DataError for fewer than two samples.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise DataError(f"kernel distance of features {a.shape} and {b.shape}: need two samples each, equal features")

    def total(x: np.ndarray, y: np.ndarray) -> float:
        pairs = itertools.product(_chunks(x), _chunks(y))
        return float(sum(((part @ other.T / x.shape[1] + 1) ** 3).sum() for part, other in pairs))

    def own(x: np.ndarray) -> float:
        return float((((x**2).sum(axis=1) / x.shape[1] + 1) ** 3).sum())

    n, m = len(a), len(b)
    within = (total(a, a) - own(a)) / (n * (n - 1)) + (total(b, b) - own(b)) / (m * (m - 1))
    return within - 2 * total(a, b) / (n * m)


def subset_kernel_distance(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and population std of `kernel_distance` over random subsets, as KID is published: 100 of 1,000 images.

    The subsets are those that torch-fidelity draws at its default seed. Smaller sets shrink `size` to what they hold.
    Raises DataError for fewer than two samples.
    """
    size, rng = min(size, len(a), len(b)), np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        rows = rng.choice(len(a), size, replace=False), rng.choice(len(b), size, replace=False)
        found.append(kernel_distance(a[rows[0]], b[rows[1]]))
    return float(np.mean(found)), float(np.std(found))


def split_sums(
    logits: Float[np.ndarray, "n k"], first: int, total: int, splits: int = 10
) -> Float[np.ndarray, "s k+2"]:
    """What `inception_score` needs of images `first` to first + n - 1 of `total`; sums of parts add, whatever the cut.

    Per split: number of images, sum of log-likelihoods sum_k p log p, and sum of p (k), for p = softmax(logits).
    """
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    rows = np.concatenate([np.ones((len(p), 1)), (p * log_p).sum(axis=1, keepdims=True), p], axis=1)
    edges = np.arange(splits + 1) * total // splits
    split = np.searchsorted(edges, first + np.arange(len(p)), side="right") - 1
    return np.stack([rows[split == s].sum(axis=0) for s in range(splits)])


def inception_score(sums: Float[np.ndarray, "s k+2"]) -> tuple[float, float]:
    """exp of the mean KL divergence from p(y|x) to p(y), mean and population std over splits (Salimans et al., 2016).

    From 1 to the number of classes; larger is better. Raises DataError where a split is empty or not finite.
    """
    count, entropy, p = sums[:, 0], sums[:, 1], sums[:, 2:]
    if not np.isfinite(sums).all() or (count < 1).any():
        raise DataError(
            f"Inception score of {int(count.sum())} images: needs {len(sums)} finite splits, one image each"
        )
    q = p / count[:, None]
    scores = np.exp(entropy / count - np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0).sum(axis=1))
    return float(scores.mean()), float(scores.std())


def neighborhood_scores(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"], k: int = 5
) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al., 2019), density, coverage (Naeem et al., 2020) from k-th neighbours.

    precision: generated samples within some real sample's k-neighbour ball; recall: the reverse. density: mean number
    of such balls around a generated sample, over k. coverage: real balls that hold a generated sample. Raises DataError
    unless both sets have more than k samples.
    """
    if min(len(real), len(generated)) <= k:
        raise DataError(f"{len(real)} real and {len(generated)} generated images: need more than k = {k} of each")
    real_radius, generated_radius = _neighbor_radius(real, k), _neighbor_radius(generated, k)
    balls = np.zeros(len(generated))  # real balls around each generated sample
    recalled, covered = [], []
    for part, radius in zip(_chunks(real), _chunks(real_radius), strict=True):
        between = _squared_distances(part, generated)
        inside = between <= radius[:, None]
        balls += inside.sum(axis=0)
        covered.append(inside.any(axis=1))
        recalled.append((between <= generated_radius).any(axis=1))
    return {
        "precision": float((balls > 0).mean()),
        "recall": float(np.concatenate(recalled).mean()),
        "density": float(balls.mean() / k),
        "coverage": float(np.concatenate(covered).mean()),
    }


def _neighbor_radius(x: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "n"]:
    """Squared distance from each row to its k-th nearest other one (the nearest of all is the row itself)."""
    return np.concatenate([np.partition(_squared_distances(part, x), k, axis=1)[:, k] for part in _chunks(x)])


def _chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[start : start + CHUNK_ROWS] for start in range(0, len(x), CHUNK_ROWS))


def _squared_distances(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    squared = (x**2).sum(axis=1)[:, None] - 2 * (x @ y.T) + (y**2).sum(axis=1)
    return squared.clip(min=0)


def nearest_distance(images: np.ndarray, reference: np.ndarray) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """L2 distance over all pixels from each image to the nearest reference image, and that image's index.

    images (n ...), reference (m ...): of equal shape per image; uint8 levels are taken as level / 256, so distances are
    in pixels of the [0, 1] range, and exact for uint8: an exact copy has distance 0. Ties go to the lowest index.
    Raises DataError for an empty set or unequal shapes.
    """
    if images.shape[1:] != reference.shape[1:]:
        raise DataError(f"images of shape {images.shape[1:]} against reference of {reference.shape[1:]}: must agree")
    if not len(images) or not len(reference):
        raise DataError(f"nearest of {len(images)} images among {len(reference)}: needs at least one of each")
    scale = 256.0 if images.dtype == np.uint8 else 1.0
    rows = min(CHUNK_ROWS, max(1, CHUNK_VALUES // max(1, int(np.prod(images.shape[1:])))))
    squared, index = np.full(len(images), np.inf), np.zeros(len(images), dtype=np.int64)
    for start in range(0, len(reference), rows):
        block = _flat(reference[start : start + rows])
        lengths = (block**2).sum(axis=1)
        for first in range(0, len(images), rows):
            part = slice(first, first + rows)
            x = _flat(images[part])
            between = (x**2).sum(axis=1)[:, None] - 2 * (x @ block.T) + lengths  # |x|^2 - 2 x.y + |y|^2
            nearest = between.argmin(axis=1)
            found = between[np.arange(len(x)), nearest]
            closer = found < squared[part]
            squared[part] = np.where(closer, found, squared[part])
            index[part] = np.where(closer, nearest + start, index[part])
    return np.sqrt(squared.clip(min=0)) / scale, index


def memorization(generated: Float[np.ndarray, "n"], heldout: Float[np.ndarray, "m"]) -> dict[str, float]:
    """Distances to the nearest training image: of generated images beside those of real images never trained on.

    `ratio` of medians: about 1 for new images of the right kind, well below 1 for copies, above 1 for images off the
    data. `copied_fraction`: generated images nearer to a training image than 99 % of the held-out ones are; about 0.01
    when nothing is memorized. Raises DataError for empty sets or values that are not finite.
    """
    generated = _values(generated, "distances of generated images", least=1)
    heldout = _values(heldout, "distances of held-out images", least=1)
    middle = float(np.median(heldout))
    if middle == 0:
        raise DataError("most held-out images are also training images: use a split whose images were not trained on")
    return {
        "ratio": float(np.median(generated)) / middle,
        "copied_fraction": float((generated < np.quantile(heldout, 0.01)).mean()),
    }


def classifier_scores(probabilities: Float[np.ndarray, "n k"]) -> dict[str, float | int]:
    """What a classifier of real images makes of a set of images, from its class probabilities (n k).

    `mean_confidence`: mean of the largest probability, 1/k to 1. `class_entropy`: entropy in nats of the mean
    prediction, 0 (one class) to log k (all alike). `classes_seen`: classes that at least 1 % of the images are
    taken for. Raises DataError unless each row is a distribution.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or 0 in p.shape:
        raise DataError(f"probabilities of shape {p.shape}: need (images, classes), at least one of each")
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-6)):
        raise DataError("class probabilities must be finite, not negative, and sum to 1 for each image")
    mean = p.mean(axis=0)
    share = np.bincount(p.argmax(axis=1), minlength=p.shape[1]) / len(p)
    return {
        "mean_confidence": float(p.max(axis=1).mean()),
        "class_entropy": float(-(mean[mean > 0] * np.log(mean[mean > 0])).sum()),
        "classes_seen": int((share >= 0.01).sum()),
    }


def _flat(images: np.ndarray) -> Float[np.ndarray, "n p"]:
    """One float64 row per image: holds sums of squared uint8 levels exactly."""
    return images.reshape(len(images), -1).astype(np.float64)


def _values(values: np.ndarray, what: str, least: int = 2) -> Float[np.ndarray, "n"]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < least:
        raise DataError(f"{what}: {values.size} given, need a vector of at least {least}")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise DataError(f"{what}: {bad} of {len(values)} are not finite")
    return values


def total_variation(images: Pixels) -> Float[np.ndarray, "n"]:
    """Sum of absolute differences between neighbouring pixels, in pixels of [0, 1]."""
    x = images.numpy().astype(np.int64)
    down, across = np.abs(np.diff(x, axis=2)), np.abs(np.diff(x, axis=3))
    return (down.sum(axis=(1, 2, 3)) + across.sum(axis=(1, 2, 3))) / 256
