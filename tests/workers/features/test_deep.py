"""Inception-V3 and MobileNetV2 features: the libraries' own numbers, and a cache that cannot serve other images."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from ebm_core.data.vision import torchvision
from ebm_core.errors import DataError
from workers.features import deep
from workers.features.deep import DeepFeatures, open_extractor, remembered_features
from workers.features.weights import Weights


def images(count: int, channels: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=rng)


@pytest.fixture(scope="module")
def medium(deep_weights) -> DeepFeatures:
    return DeepFeatures("medium", "mobilenet", deep_weights)


def test_inception_features_are_those_of_torch_fidelity_from_its_own_reading_of_the_file(inception_file, deep_weights):
    torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_file)
    )
    x = images(3)
    extractor = open_extractor("inception", 3, deep_weights)
    found = extractor.features(x)
    expected = torch.cat(theirs(x), dim=1).numpy()
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (3, 2048 + 1008)
    assert found[:, : extractor.num_features].std(axis=0).mean() > 1e-3  # the images differ in it
    assert extractor.identity()["published"] is False  # random weights must not pass for the published ones


def test_medium_features_are_the_pooled_trunk_of_torchvisions_network(deep_weights, medium):
    net = torchvision().models.mobilenet_v2(weights=None).eval()
    net.load_state_dict(deep_weights.load("mobilenet").tensors)
    x = images(2)
    large = functional.interpolate(x / 255, (128, 128), mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = net.features((large - mean[:, None, None]) / std[:, None, None]).mean((2, 3))
    np.testing.assert_allclose(medium.features(x), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert medium.identity()["weights_sha256"] == deep_weights.load("mobilenet").sha256


def test_grey_images_are_shown_in_three_equal_channels(medium):
    grey = images(2, channels=1, size=28)
    np.testing.assert_array_equal(medium.features(grey), medium.features(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 2, 8, 8), (3, 8, 8)])
def test_unfit_images_are_refused_with_their_shape(medium, shape):
    with pytest.raises(DataError, match=str(shape)[1:-1]):
        medium.features(torch.zeros(shape, dtype=torch.uint8))


def test_features_that_are_not_finite_are_refused(deep_weights, tmp_path):
    tensors = deep_weights.load("mobilenet").tensors
    tensors["features.18.1.bias"][7] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    weights = Weights(tmp_path / "cache")
    weights.install("mobilenet", tmp_path / "nan.safetensors")
    with pytest.raises(DataError, match="features of 2 of 2 images are not finite"):
        open_extractor("medium", 3, weights).features(images(2))


class Counting:
    """An extractor that is cheap, and says how often it worked."""

    name, num_features = "counting", 3

    def __init__(self, digest: str | None) -> None:
        self.digest, self.calls = digest, 0

    def identity(self) -> dict[str, object]:
        return {"name": self.name} | ({} if self.digest is None else {"weights_sha256": self.digest})

    def features(self, x: torch.Tensor) -> np.ndarray:
        self.calls += 1
        return x.float().mean((2, 3)).numpy()


def test_kept_features_are_served_for_the_same_pixels_and_weights_alone(tmp_path):
    first, other = Counting("a"), Counting("b")
    x = images(4)
    changed = x.clone()
    changed[3, 2, 31, 31] ^= 1  # a bit of the last pixel
    kept = remembered_features(first, x, tmp_path)
    np.testing.assert_array_equal(remembered_features(first, x.clone(), tmp_path), kept)
    assert first.calls == 1
    np.testing.assert_array_equal(remembered_features(first, changed, tmp_path), first.features(changed))
    assert not np.array_equal(remembered_features(first, changed, tmp_path), kept)
    remembered_features(other, x, tmp_path)
    assert other.calls == 1
    remembered_features(first, x.reshape(4, 3, 64, 16), tmp_path)  # equal bytes of another shape
    assert first.calls == 4  # x, changed, changed by hand, reshaped


def test_a_damaged_or_unwritable_cache_costs_time_alone(tmp_path):
    extractor, x = Counting("a"), images(4)
    kept = remembered_features(extractor, x, tmp_path)
    (path,) = tmp_path.glob("features/*")
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    for content in (bytes(data), b"", b"text"):
        path.write_bytes(content)
        np.testing.assert_array_equal(remembered_features(extractor, x, tmp_path), kept)
    assert extractor.calls == 4
    (tmp_path / "file").touch()
    np.testing.assert_array_equal(remembered_features(extractor, x, tmp_path / "file"), kept)


def test_features_without_weights_of_their_own_are_not_kept(tmp_path):
    extractor = Counting(None)
    for _ in range(2):
        remembered_features(extractor, images(2), tmp_path)
    assert extractor.calls == 2
    assert list(tmp_path.iterdir()) == []


def test_the_pass_size_is_fixed_so_that_a_shard_has_the_same_bits_everywhere(monkeypatch, medium):
    sizes: list[int] = []
    whole = medium._pass
    monkeypatch.setattr(medium, "_pass", lambda x: (sizes.append(len(x)), whole(x))[1])
    monkeypatch.setattr(deep, "MEDIUM_BATCH", 2)
    medium.features(images(5, size=8))
    assert sizes == [2, 2, 1]
