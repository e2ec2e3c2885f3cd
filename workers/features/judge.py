"""A judge of factors: a small convolutional net that reads each factor off an image, trained on real ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ebm_core.data.dataset import Dataset
from ebm_core.data.pixels import dequantize
from ebm_core.errors import ConfigError, DataError
from ebm_core.rng import stream
from ebm_core.types import Pixels
from workers.metrics.reference import thinned

LABEL = "label"
"""Name of the factor that is a data set's class; the others are its attributes, of value 0 or 1."""

NUM_TRAIN, NUM_TEST = 10_000, 2_000
"""Images of each split that are used; a larger split is thinned evenly."""

NUM_PASSES, BATCH = 6, 64

LARGEST_SIZE = 32
"""Larger images are averaged down to this many pixels before they are judged."""


def factor_values(dataset: Dataset, factor: str) -> Int64[Tensor, "n"]:
    """The value of a factor in every image. ConfigError for a factor that the data set does not have."""
    if factor == LABEL and dataset.labels is not None:
        return dataset.labels
    if factor in dataset.attribute_names and dataset.attributes is not None:
        return dataset.attributes[:, dataset.attribute_names.index(factor)].long()
    known = [LABEL] * (dataset.labels is not None) + list(dataset.attribute_names)
    raise ConfigError(f"{dataset.name} has no factor {factor!r}; it has {', '.join(known) or 'none'}")


class _Heads(nn.Module):
    """Three convolutions, two of them of stride 2, and one linear layer per factor over all places."""

    def __init__(self, channels: int, size: int, num_values: Mapping[str, int]) -> None:
        super().__init__()
        side = ((size + 1) // 2 + 1) // 2
        self.num_values = dict(num_values)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * side * side, sum(num_values.values())),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        scores = self.trunk(2 * x - 1).split(list(self.num_values.values()), dim=1)
        return dict(zip(self.num_values, scores, strict=True))


@dataclass(frozen=True, slots=True)
class Judge:
    """Reads factors off images, and how often it is right on real held-out ones."""

    net: _Heads
    accuracy: Mapping[str, float]
    """Share of held-out images that are read correctly."""
    share: Mapping[str, Sequence[float]]
    """Share of held-out images that have each value."""

    @torch.no_grad()
    def read(self, images: Pixels) -> dict[str, Int64[np.ndarray, "n"]]:
        """The most likely value of each factor in each image (n c h w)."""
        if not len(images):
            raise DataError("no images to judge")
        parts = [self.net(prepared(part)) for part in images.split(256)]
        return {name: torch.cat([part[name] for part in parts]).argmax(1).numpy() for name in self.net.num_values}


def fit_judge(train: Dataset, heldout: Dataset, factors: Sequence[str]) -> Judge:
    """A judge of `factors`, trained on the training images: a function of the arguments (on one kind of machine).

    Raises ConfigError for no factors or an unknown one, DataError where all training images have one value.
    """
    if not factors:
        raise ConfigError("no factors to judge")
    index = thinned(len(train), NUM_TRAIN)
    images = prepared(train.fetch(index))
    truth = {name: factor_values(train, name)[index] for name in factors}
    for name, values in truth.items():
        if len(values.unique()) < 2:
            raise DataError(f"{train.name}: all training images have one {name}; a judge needs examples of others")
    num_values = {name: max(2, int(factor_values(train, name).max()) + 1) for name in factors}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _Heads(images.shape[1], images.shape[-1], num_values)
    _train(net, images, truth)
    judge = Judge(net, {}, {})
    index = thinned(len(heldout), NUM_TEST)
    found = judge.read(heldout.fetch(index))
    known = {name: factor_values(heldout, name)[index].numpy() for name in factors}
    accuracy = {name: float((found[name] == known[name]).mean()) for name in factors}
    share = {name: (np.bincount(known[name], minlength=num_values[name]) / len(index)).tolist() for name in factors}
    return Judge(net, accuracy, share)


def prepared(images: Pixels) -> Float[Tensor, "b c h w"]:
    """Pixels in [0, 1] at no more than LARGEST_SIZE."""
    x = dequantize(images)
    return F.interpolate(x, size=LARGEST_SIZE, mode="area") if x.shape[-1] > LARGEST_SIZE else x


def _train(net: _Heads, images: Float[Tensor, "n c h w"], truth: Mapping[str, Int64[Tensor, "n"]]) -> None:
    """Adam on the sum of the factors' cross-entropies, the learning rate falling to 0 over NUM_PASSES passes."""
    steps = NUM_PASSES * -(-len(images) // BATCH)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for number in range(NUM_PASSES):
        for part in torch.randperm(len(images), generator=stream(0, number, "judge")).split(BATCH):
            scores = net(images[part])
            losses = [F.cross_entropy(scores[name], values[part]) for name, values in truth.items()]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
