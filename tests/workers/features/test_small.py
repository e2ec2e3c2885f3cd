import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from ebm_core.errors import DataError
from workers.features.small import NUM_FEATURES, SmallFeatures, _random_layer
from workers.metrics.stats import FeatureStats, frechet_distance


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Real digits as uint8, 1500 to compare with and 297 held out."""
    images = torch.tensor(load_digits().images * 15.9).to(torch.uint8)[:, None]
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return images[:1500], images[1500:]


def distance(images: Tensor, reference: Tensor) -> float:
    small = SmallFeatures(images.shape[1])
    return frechet_distance(*(FeatureStats.from_features(small.features(x)) for x in (images, reference)))


def with_noise(images: Tensor, fraction: float) -> Tensor:
    """`fraction` of the pixels replaced by uniform levels."""
    rng = torch.Generator().manual_seed(1)
    chosen = torch.rand(images.shape, generator=rng) < fraction
    return torch.where(chosen, torch.randint(0, 256, images.shape, generator=rng, dtype=torch.uint8), images)


def blurred(images: Tensor, sigma: float) -> Tensor:
    taps = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2))
    kernel = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    padded = functional.pad(images.float(), (3, 3, 3, 3), mode="reflect")
    return functional.conv2d(padded, kernel).round().to(torch.uint8)


def test_held_out_digits_are_near_the_training_digits_and_noise_is_far(digits):
    train, heldout = digits
    real, half, noise = (distance(with_noise(heldout, fraction), train) for fraction in (0.0, 0.5, 1.0))
    assert 10 * real < half < noise / 2


def test_distance_grows_with_noise_and_with_blur(digits):
    train, heldout = digits
    noisy = [distance(with_noise(heldout, fraction), train) for fraction in (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)]
    blurry = [distance(blurred(heldout, sigma), train) for sigma in (0.4, 0.5, 0.7, 1.0, 1.5, 3.0)]
    assert noisy == sorted(noisy)
    assert blurry == sorted(blurry)


def test_distance_sees_missing_modes_mirror_images_and_lost_light(digits):
    train, heldout = digits
    real = distance(heldout, train)
    labels = load_digits().target[torch.randperm(1797, generator=torch.Generator().manual_seed(0)).numpy()]
    assert distance(train[torch.from_numpy(labels[:1500] == 3)], train) > 5 * real
    assert distance(heldout.flip(3), train) > 3 * real
    assert distance((heldout * 0.9).to(torch.uint8), train) > 1.5 * real


def test_features_do_not_depend_on_the_batch_or_on_the_global_generator(digits):
    train, _ = digits
    whole = SmallFeatures(1).features(train[:300])
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    parts = [SmallFeatures(1).features(part) for part in train[:300].split(77)]
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-6)


def test_weights_have_the_scale_that_keeps_activations_near_one():
    weight, bias = _random_layer(1, 16)
    assert weight.shape == (16, 16, 3, 3)
    assert float(weight.var()) == pytest.approx(2 / (9 * 16), rel=4 * (2 / weight.numel()) ** 0.5)
    assert float(bias.abs().max()) < 0.5


def test_features_of_a_fixed_image_are_the_recorded_ones():
    # The extractor is a yardstick: a change of weights or layout would silently change every recorded score.
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).reshape(1, 1, 8, 8)
    features = SmallFeatures(1).features(ramp)[0]
    np.testing.assert_allclose(features[[0, 20, 40, 60, 100, 127]], RECORDED, rtol=1e-5)


RECORDED = [0.05792237, 0.33679121, 0.73224925, 0.2416676, 1.07578695, 0.33132836]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 12), (28, 28), (33, 65)])
def test_any_size_from_eight_pixels_on_gives_128_finite_float64_features(channels, size):
    images = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = SmallFeatures(channels).features(images)
    assert features.shape == (2, NUM_FEATURES)
    assert features.dtype == np.float64
    assert np.isfinite(features).all()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 7, 8), (0, 1, 8, 8), (1, 8, 8)])
def test_unfit_images_are_refused_with_their_shape(shape):
    with pytest.raises(DataError, match=str(shape)[1:-1]):
        SmallFeatures(1).features(torch.zeros(shape, dtype=torch.uint8))


def test_other_channel_counts_are_refused():
    with pytest.raises(DataError, match="2 channels"):
        SmallFeatures(2)
