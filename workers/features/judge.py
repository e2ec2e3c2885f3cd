"""Judges: small convolutional nets that are trained on real images, when they are needed, to read something off them.

One mechanism with three uses. `fit_judge` on a set's labels gives the extractor `judge` of `fid_judge` and its kin, and
the class probabilities of `classifier`; on labels and attributes, the reader of compositions; on ROTATION, which needs
no labels, the extractor `rotation`: it tells by which quarter turn a real image was rotated.

The net is small enough for seconds on digits and a minute or two of one CPU core on 10,000 images of 32 x 32. It is
trained by one thread in float64 and rounded to float32, so a judge is the same in every bit on one kind of machine,
whatever the number of threads, and between kinds of CPU differs by little more than that rounding.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ebm_core.data.dataset import Dataset, thinned
from ebm_core.data.pixels import dequantize
from ebm_core.errors import ConfigError, DataError
from ebm_core.rng import stream
from ebm_core.types import Pixels
from workers.features import kept

LABEL = "label"
"""Name of the factor that is a data set's class; the others are its attributes, of value 0 or 1."""

ROTATION = "rotation"
"""Name of the factor that needs no labels: the number of quarter turns by which an image is shown, 0 to 3."""

NUM_TRAIN, NUM_TEST = 10_000, 2_000
"""Images of each split that are used; a larger split is thinned evenly."""

NUM_FEATURES = 64
"""Units of the last hidden layer, which are a judge's features."""

NUM_PASSES, LEAST_STEPS, BATCH = 10, 500, 64
"""Passes over the training images, but at least so many steps."""

LARGEST_SIZE, COARSE_SIZE = 32, 16
"""Larger images are averaged down to LARGEST_SIZE pixels; above COARSE_SIZE the first convolution has stride 2."""

VERSION = 1
"""Raise it when anything changes that a judge's weights depend on: it is part of the name under which one is kept."""


def factor_values(dataset: Dataset, factor: str) -> Int64[Tensor, "n"]:
    """The value of a factor in every image. ConfigError for a factor that the data set does not have."""
    if factor == LABEL and dataset.labels is not None:
        return dataset.labels
    if factor in dataset.attribute_names and dataset.attributes is not None:
        return dataset.attributes[:, dataset.attribute_names.index(factor)].long()
    known = [LABEL] * (dataset.labels is not None) + list(dataset.attribute_names)
    raise ConfigError(f"{dataset.name} has no factor {factor!r}; it has {', '.join(known) or 'none'}")


class _Net(nn.Module):
    """Three convolutions, two or three of them of stride 2, a hidden layer over all places, a linear head a factor."""

    def __init__(self, channels: int, size: int, num_values: Mapping[str, int]) -> None:
        super().__init__()
        first = 2 if size > COARSE_SIZE else 1
        side = -(-size // (4 * first))
        self.num_values = dict(num_values)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=first, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * side * side, NUM_FEATURES),
            nn.ReLU(),
        )
        self.heads = nn.Linear(NUM_FEATURES, sum(num_values.values()))

    def logits(self, features: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """Those of each factor."""
        found = self.heads(features).split(list(self.num_values.values()), dim=1)
        return dict(zip(self.num_values, found, strict=True))


@dataclass(frozen=True, slots=True)
class Judge:
    """Reads factors off images, and how often it is right on real held-out ones. An extractor of 64 features."""

    net: _Net
    scale: float
    """The net's hidden layer is divided by it; see `features`."""
    digest: str
    """SHA-256 of weights and scale: names the judge in every result."""
    accuracy: Mapping[str, float]
    """Share of held-out images that are read correctly."""
    share: Mapping[str, Sequence[float]]
    """Share of held-out images that have each value."""
    num_features: int = NUM_FEATURES

    @property
    def name(self) -> str:
        """`rotation` for the judge that needs no labels, else `judge`."""
        return ROTATION if ROTATION in self.net.num_values else "judge"

    def identity(self) -> dict[str, object]:
        """Name, digest, what it reads and how well: `accuracy` is of held-out images, by factor."""
        return {
            "name": self.name,
            "weights_sha256": self.digest,
            "num_values": dict(self.net.num_values),
            "accuracy": dict(self.accuracy),
        }

    def read(self, images: Pixels) -> dict[str, Int64[np.ndarray, "n"]]:
        """The most likely value of each factor in each image (n c h w)."""
        return {name: logits.argmax(axis=1) for name, logits in self._logits(images).items()}

    def probabilities(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Those of the first factor's values, from rows of `features`."""
        count = next(iter(self.net.num_values.values()))
        return torch.from_numpy(rows[:, NUM_FEATURES : NUM_FEATURES + count]).softmax(dim=1).numpy()

    def features(self, images: Pixels) -> Float[np.ndarray, "n d"]:
        """float64 rows: the hidden layer (64, not negative), then the logits of every factor.

        A trained net's hidden layer has no natural unit: all 64 are divided by one number, which makes their total
        variance over the training images 64, so that distances can be set beside those of other data sets. Raises
        DataError for an empty set.
        """
        rows = _hidden(self.net, images)
        with torch.no_grad(), _one_thread():
            return torch.cat([rows / self.scale, self.net.heads(rows)], dim=1).numpy()

    def _logits(self, images: Pixels) -> dict[str, Float[np.ndarray, "n k"]]:
        with torch.no_grad(), _one_thread():
            return {name: part.numpy() for name, part in self.net.logits(_hidden(self.net, images)).items()}


def fit_judge(train: Dataset, heldout: Dataset, factors: Sequence[str], cache: Path | None = None) -> Judge:
    """A judge of `factors`, trained on the training images: a function of the arguments (on one kind of machine).

    factors: LABEL and attributes, or ROTATION alone. cache: a folder below which trained judges are kept, by everything
    that they depend on; a damaged one is trained again. Raises ConfigError for no factors or an unknown one, DataError
    where all training images have one value.
    """
    if not factors:
        raise ConfigError("no factors to judge")
    images, truth = _examples(train, factors, NUM_TRAIN)
    for name, values in truth.items():
        if len(values.unique()) < 2:
            raise DataError(f"{train.name}: all training images have one {name}; a judge needs examples of others")
    num_values = {name: _num_values(train, name) for name in factors}
    net, scale, digest = _trained(images, truth, num_values, cache)
    judge = Judge(net, scale, digest, {}, {})
    shown, known = _examples(heldout, factors, NUM_TEST)
    found = judge.read(shown)
    accuracy = {name: float((found[name] == known[name].numpy()).mean()) for name in factors}
    share = {name: (torch.bincount(known[name], minlength=num_values[name]) / len(shown)).tolist() for name in factors}
    return Judge(net, scale, digest, accuracy, share)


def prepared(images: Pixels) -> Float[Tensor, "b c h w"]:
    """float64 pixels in [0, 1] at no more than LARGEST_SIZE."""
    x = dequantize(images).double()
    return F.interpolate(x, size=LARGEST_SIZE, mode="area") if x.shape[-1] > LARGEST_SIZE else x


def _examples(dataset: Dataset, factors: Sequence[str], most: int) -> tuple[Pixels, dict[str, Int64[Tensor, "n"]]]:
    """At most `most` images (n c h w) and the true value of each factor in each."""
    if list(factors) == [ROTATION]:
        images = dataset.fetch(thinned(len(dataset), most // 4))
        turned = torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])
        return turned, {ROTATION: torch.arange(4).repeat_interleave(len(images))}
    index = thinned(len(dataset), most)
    truth = {name: factor_values(dataset, name)[index] for name in factors}
    return dataset.fetch(index), truth


def _num_values(dataset: Dataset, factor: str) -> int:
    return 4 if factor == ROTATION else max(2, int(factor_values(dataset, factor).max()) + 1)


def _trained(
    images: Pixels, truth: Mapping[str, Int64[Tensor, "n"]], num_values: Mapping[str, int], cache: Path | None
) -> tuple[_Net, float, str]:
    """Net, scale and their digest: those kept for just these images and values, else trained now."""
    path = None if cache is None else cache / "judges" / f"{_key(images, truth, num_values)}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _Net(images.shape[1], min(images.shape[-1], LARGEST_SIZE), num_values).double()
    found = None if path is None else kept.read(path)
    if found is None:
        _train(net, prepared(images), truth)
        net.float().double()  # what is kept is what is used
        variance = _hidden(net, images).var(dim=0).sum()
        found = {name: weight.float().numpy() for name, weight in net.state_dict().items()}
        found["scale"] = (variance / NUM_FEATURES).sqrt().clamp_min(1e-12).numpy()
        if path is not None:
            kept.write(path, found)
    weights = {name: torch.from_numpy(value) for name, value in found.items() if name != "scale"}
    net.load_state_dict(weights)
    return net, float(found["scale"]), kept.digest(found)


def _key(images: Pixels, truth: Mapping[str, Int64[Tensor, "n"]], num_values: Mapping[str, int]) -> str:
    """Names everything that a trained judge depends on, but the kind of CPU, on which little depends."""
    said = f"{VERSION} {torch.__version__} {tuple(images.shape)} {sorted(num_values.items())} "
    key = hashlib.sha256(said.encode())
    for tensor in (images, *(truth[name] for name in sorted(truth))):
        key.update(tensor.contiguous().numpy().tobytes())
    return key.hexdigest()


def _train(net: _Net, x: Float[Tensor, "n c h w"], truth: Mapping[str, Int64[Tensor, "n"]]) -> None:
    """Adam on the sum of the factors' cross-entropies, the learning rate falling to 0."""
    num_passes = max(NUM_PASSES, -(-LEAST_STEPS // -(-len(x) // BATCH)))
    steps = num_passes * -(-len(x) // BATCH)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with torch.enable_grad(), _one_thread():
        for number in range(num_passes):
            for part in torch.randperm(len(x), generator=stream(0, number, "judge")).split(BATCH):
                logits = net.logits(net.trunk(2 * x[part] - 1))
                losses = [F.cross_entropy(logits[name], values[part]) for name, values in truth.items()]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()
                optimizer.step()
                schedule.step()


def _hidden(net: _Net, images: Pixels) -> Float[Tensor, "n d"]:
    """The hidden layer, in passes of a fixed size."""
    if not len(images):
        raise DataError("no images to judge")
    with torch.no_grad(), _one_thread():
        return torch.cat([net.trunk(2 * prepared(part.cpu()) - 1) for part in images.split(256)])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of threads outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
