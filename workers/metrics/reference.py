"""What scores compare generated images with: real ones, noise, and what is derived from them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ebm_core.data.dataset import Dataset, thinned
from ebm_core.errors import DataError
from ebm_core.rng import stream
from ebm_core.types import Pixels
from workers.features.deep import Extractor, open_extractor, remembered_features
from workers.features.judge import LABEL, ROTATION, Judge, fit_judge
from workers.features.weights import Weights
from workers.metrics import formulas
from workers.metrics.stats import FeatureStats, frechet_distance

NUM_REAL = 10_000
"""Real images of a split that scores compare with; a larger split is thinned evenly."""

NUM_ENERGIES = 2000
"""Of those, the images whose energy is computed: a mean needs no more, and a large net is slow on a CPU."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Images `first` to first + n - 1 (n c h w) of a set of `total`."""

    images: Pixels
    energies: Float[np.ndarray, "n"] | None
    """float64; None for real images, whose features are kept on disk."""
    first: int
    total: int
    known: dict[str, Any] = field(default_factory=dict)
    """Features by extractor, once they are computed."""


@dataclass(frozen=True, slots=True)
class RealImages:
    """Images (n c h w) of a split, energies (m <= n) of evenly spread ones, labels and numbers in the split (n)."""

    images: Pixels
    energies: Float[np.ndarray, "m"]
    labels: Int64[np.ndarray, "n"] | None
    index: Int64[np.ndarray, "n"]


class Reference:
    """Real images and what the scores derive from them; each is computed when first asked for, then kept."""

    def __init__(
        self,
        train: Dataset,
        heldout: Dataset,
        energies: Callable[[Pixels, Dataset | None, Tensor], Float[np.ndarray, "n"]],
        num_real: int = NUM_REAL,
        weights: Weights | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """energies: of images (n c h w), given the set that they are from (None: noise) and their numbers in it.

        weights: of the extractors, None for those of this machine's user; device: where the extractors run.
        """
        for dataset in (train, heldout):
            if not len(dataset):
                raise DataError(f"{dataset.name}: the {dataset.split} split is empty; scores need real images")
        self._train, self._heldout, self._energies, self._num_real = train, heldout, energies, num_real
        self._weights, self._device = weights or Weights.default(), device
        self._extractors: dict[str, Extractor] = {}
        self._train_features: dict[str, FeatureStats] = {}

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
    def heldout_nearest(self) -> Float[np.ndarray, "n"]:
        """Distance of each held-out image to the nearest training image, in pixels."""
        return formulas.nearest_distance(self.heldout.images.numpy(), self.train.images.numpy())[0]

    @cached_property
    def judge(self) -> Judge:
        """Trained on the labels of the training images, if they have any. DataError where they teach nothing."""
        labels, instead = self._train.labels, "use the stand-ins that need none, such as fid_rotation"
        if labels is None:
            raise DataError(f"{self._train.name} has no labels to train a judge on; {instead}")
        if len(labels.unique()) < 2:
            raise DataError(
                f"all training images of {self._train.name} have one label, which teaches a judge nothing: use more "
                f"images (data.limit), or {instead}"
            )
        return fit_judge(self._train, self._heldout, [LABEL], self._weights.cache)

    def class_probabilities(self, images: Pixels) -> Float[np.ndarray, "n k"]:
        """What `judge` makes of images."""
        return self.judge.probabilities(self.judge.features(images))

    def extractor(self, name: str) -> Extractor:
        """One of EXTRACTORS, opened once. Raises DataError where its weights are missing, or labels to train it on."""
        if name == "judge":
            return self.judge
        if name not in self._extractors and name == ROTATION:
            self._extractors[name] = fit_judge(self._train, self._heldout, [ROTATION], self._weights.cache)
        if name not in self._extractors:
            channels = self._train.image_shape[0]
            self._extractors[name] = open_extractor(name, channels, self._weights, self._device)
        return self._extractors[name]

    def features(self, shard: Shard, name: str) -> Float[np.ndarray, "n d"]:
        """What extractor `name` gives for an image shard, computed once for all scores."""
        if name not in shard.known:
            extractor = self.extractor(name)
            real = shard.energies is None
            shard.known[name] = (
                remembered_features(extractor, shard.images, self._weights.cache)
                if real
                else extractor.features(shard.images)
            )
        return shard.known[name]

    def length(self, which: str) -> int:
        """Images that there are of a set: `train`, `heldout` or `noise`, which is as large as `heldout`."""
        return len(self._train if which == "train" else self._heldout)

    def real_shard(self, which: str, count: int, first: int, size: int) -> Shard:
        """Images `first` to first + size - 1 of the `count` evenly spread ones of a set, without energies."""
        size = min(size, count - first)
        if which == "noise":
            shape = (size, *self._train.image_shape)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, first, "reference noise"))
        else:
            dataset = self._train if which == "train" else self._heldout
            images = dataset.fetch(thinned(len(dataset), count)[first : first + size])
        return Shard(images, None, first, count)

    @property
    def trained(self) -> str:
        """The extractor that these images teach: `judge` by their labels, `rotation` where there are none."""
        try:
            return "judge" if self.judge else ROTATION
        except DataError:
            return ROTATION

    def frechet(self, images: Pixels, name: str = "small") -> float:
        """Fréchet distance of images to the training images, in features of extractor `name`."""
        if name not in self._train_features:
            self._train_features[name] = FeatureStats.from_features(self.extractor(name).features(self.train.images))
        return frechet_distance(
            FeatureStats.from_features(self.extractor(name).features(images)), self._train_features[name]
        )

    def _real(self, dataset: Dataset) -> RealImages:
        index = thinned(len(dataset), self._num_real)
        images = dataset.fetch(index)
        labels = None if dataset.labels is None else dataset.labels[index].numpy()
        return RealImages(images, self._some_energies(images, dataset, index), labels, index.numpy())

    def _some_energies(self, images: Pixels, dataset: Dataset | None, index: Tensor) -> Float[np.ndarray, "m"]:
        rows = thinned(len(images), NUM_ENERGIES)
        return self._energies(images[rows], dataset, index[rows])
