"""Features of trained networks: Inception-V3 for FID and its kin, MobileNetV2 for `fid_medium`; and their cache.

Each needs weights that a person has installed (`workers.features.weights`); their digest stands in every result.
`medium` is no FID: it is a smaller network trained on the same photographs, quick enough for a CPU.
"""

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ebm_core.errors import DataError
from workers.features import kept
from workers.features.networks import NETWORKS
from workers.features.small import SmallFeatures
from workers.features.weights import Weights

INCEPTION_FEATURES, INCEPTION_CLASSES = 2048, 1008
INCEPTION_BATCH, MEDIUM_BATCH = 20, 50
"""Images in one pass: the first layers of Inception-V3 hold 5 MB of activations an image."""

MEDIUM_SIZE = 128
"""Pixels to which MobileNetV2 sees images resized: a third of the cost of the 224 that it was trained at."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Extractor(Protocol):
    """Turns stored images into numbers."""

    @property
    def name(self) -> str:
        """Stands in names of scores and in results."""
        ...

    @property
    def num_features(self) -> int:
        """The first columns of what `features` returns; logits follow them where a network has any."""
        ...

    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[np.ndarray, "n d"]:
        """One row per image. Raises DataError for an unfit shape, an empty set, or features that are not finite."""
        ...

    def identity(self) -> dict[str, object]:
        """What a result says of it: `name`, and digests of the weights where it has any from a file."""
        ...


class DeepFeatures:
    """A network with installed weights; grey images are shown to it as RGB of equal channels."""

    def __init__(self, name: str, network: str, weights: Weights, device: torch.device | str = "cpu") -> None:
        """network: a key of NETWORKS. Raises DataError where the weights are missing or damaged."""
        installed = weights.load(network)
        self.name = name
        self.num_features = INCEPTION_FEATURES if network == "inception" else 1280
        self.published = network != "inception" or weights.inception_sha256 == Weights.inception_sha256
        self._network, self._device = network, torch.device(device)
        self._digests = {"weights_sha256": installed.sha256, "source_sha256": installed.source_sha256}
        self._net = NETWORKS[network](installed.tensors).to(self._device)

    def identity(self) -> dict[str, object]:
        """Name, network and digests; `published` is false for Inception weights that are not those of FID."""
        return {"name": self.name, "network": self._network, **self._digests, "published": self.published}

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[np.ndarray, "n d"]:
        """float32 (n 2048 + 1008) for Inception-V3: features, then logits without bias; (n 1280) for MobileNetV2."""
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
            raise DataError(
                f"images of shape {tuple(images.shape)}: the {self.name} features need (n, 1 or 3, h, w), n at least 1"
            )
        batch = INCEPTION_BATCH if self._network == "inception" else MEDIUM_BATCH
        rows = torch.cat([self._pass(part.to(self._device)).cpu() for part in images.split(batch)]).numpy()
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        if bad:
            raise DataError(f"{self.name} features of {bad} of {len(rows)} images are not finite: look at those images")
        return rows

    def _pass(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        rgb = images.expand(-1, 3, -1, -1)
        if self._network == "inception":
            return torch.cat(self._net(rgb), dim=1)
        x = rgb.float() / 255
        x = functional.interpolate(x, (MEDIUM_SIZE, MEDIUM_SIZE), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return self._net((x - mean) / std)


EXTRACTORS = ("small", "medium", "inception")
"""Those whose weights are not trained on the images at hand, as the judges of `workers.features.judge` are."""


def open_extractor(name: str, channels: int, weights: Weights, device: torch.device | str = "cpu") -> Extractor:
    """One of EXTRACTORS, for images of so many channels. Raises DataError where it cannot be had."""
    if name == "small":
        return SmallFeatures(channels)
    return DeepFeatures(name, {"medium": "mobilenet", "inception": "inception"}[name], weights, device)


def remembered_features(
    extractor: Extractor, images: UInt8[Tensor, "n c h w"], cache: Path
) -> Float[np.ndarray, "n d"]:
    """`extractor.features(images)` of real images, kept on disk below `cache`.

    The file is named by the pixels and by the extractor's weights, so what is served can never be that of other images
    or of another network. A damaged or unwritable file costs the time to compute, nothing else. Features without
    weights of their own are quick, and are not kept.
    """
    digest = extractor.identity().get("weights_sha256")
    if digest is None:
        return extractor.features(images)
    key = hashlib.sha256(f"1 {extractor.name} {digest} {tuple(images.shape)} ".encode())
    key.update(images.contiguous().numpy().tobytes())
    path = cache / "features" / f"{key.hexdigest()}.safetensors"
    found = (kept.read(path) or {}).get("features")
    if found is None:
        found = extractor.features(images)
        kept.write(path, {"features": found})
    return found
