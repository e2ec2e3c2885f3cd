import colorsys
import importlib
import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

from ebm_core.augment import (
    BRIGHTNESS,
    CONTRAST,
    CROP_TRIES,
    HUE,
    JITTER,
    SATURATION,
    AugmentParams,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    apply_params,
    augment,
    color_jitter,
    crop_and_flip,
    crop_boxes,
    draw_params,
    gaussian_blur,
    grayscale,
    jitter_factors,
)
from ebm_core.config import AugmentConfig
from ebm_core.data.vision import torchvision
from ebm_core.errors import ConfigError, DataError
from ebm_core.fast import native
from ebm_core.fast.augment import apply_natively, load_native
from ebm_core.rng import Shards, streams

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 9, 7), (1, 8, 8)]
OFF = AugmentConfig(
    color_prob=0.0, grayscale_prob=0.0, flip_prob=0.0, blur_prob=0.0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)
)


@pytest.fixture(scope="module")
def reference():
    """torchvision's functional transforms, applied to one image at a time."""
    torchvision()
    return importlib.import_module("torchvision.transforms.v2.functional")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(b: int, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Noise in [0, 1] of very different contrast and light, with ties between channels, black and white pixels."""
    c, h, w = shape
    x = torch.rand(b, c, h, w, generator=seeded(1), dtype=dtype)
    x[::3] = (x[::3] * 4).round() / 4
    x[1::3] = 0.9 + 0.1 * x[1::3]
    return x


def one_by_one(change, x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
    return torch.stack([change(x[i], *(v[i].item() for v in values)) for i in range(len(x))])


def assert_within(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def resized(reference, image: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    top, left, height, width = box.tolist()
    return reference.resized_crop(image, top, left, height, width, size=list(image.shape[1:]), antialias=True)


def turned(image: torch.Tensor, shift: float) -> torch.Tensor:
    """The hue of each pixel of a float64 image turned in the standard library's HSV (torchvision has float32 only)."""
    if len(image) == 1:
        return image
    pixels = (colorsys.rgb_to_hsv(*pixel) for pixel in image.flatten(1).T.tolist())
    colors = [colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value) for hue, saturation, value in pixels]
    return torch.tensor(colors, dtype=torch.float64).T.reshape(image.shape)


def expected_pipeline(reference, x: torch.Tensor, p: AugmentParams, kernel: int) -> torch.Tensor:
    """What torchvision makes of each image with the parameters of `p`, in SimCLR's order."""
    change = {
        BRIGHTNESS: reference.adjust_brightness,
        CONTRAST: reference.adjust_contrast,
        SATURATION: reference.adjust_saturation,
        HUE: turned if x.dtype == torch.float64 else reference.adjust_hue,
    }
    results = []
    for i, image in enumerate(x):
        image = resized(reference, image, p.boxes[i])
        if p.flip[i]:
            image = reference.horizontal_flip(image)
        for kind in p.order[i].tolist() if p.jitter[i] else ():
            image = change[kind](image, p.factors[i, kind].item())
        if p.gray[i]:
            image = reference.rgb_to_grayscale(image, num_output_channels=image.shape[0])
        if p.blur[i]:
            image = reference.gaussian_blur(image, [kernel, kernel], [p.sigma[i].item()] * 2)
        results.append(image)
    return torch.stack(results)


# Against torchvision, one image at a time


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_transition_is_torchvisions_chain_of_single_transforms(reference, shape, dtype, tolerance):
    cfg = AugmentConfig()
    x = pictures(120, shape, dtype)
    params = draw_params(120, x.shape[2], x.shape[3], cfg, seeded(2))
    expected = expected_pipeline(reference, x, params, cfg.blur_kernel)
    assert_within(augment(x, cfg, seeded(2)), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (adjust_brightness, "adjust_brightness"),
        (adjust_contrast, "adjust_contrast"),
        (adjust_saturation, "adjust_saturation"),
    ],
)
def test_each_blend_is_torchvisions(reference, ours, name, shape, dtype, tolerance):
    x = pictures(24, shape, dtype)
    factor = torch.linspace(0.0, 2.0, 24, dtype=torch.float64)
    assert_within(ours(x, factor), one_by_one(getattr(reference, name), x, factor), tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_hue_is_torchvisions_in_float32_and_the_standard_librarys_in_float64(reference, shape):
    shift = torch.linspace(-0.5, 0.5, 24, dtype=torch.float64)
    x = pictures(24, shape)
    assert_within(adjust_hue(x, shift), one_by_one(reference.adjust_hue, x, shift), 1e-5)
    x = pictures(24, shape, torch.float64)
    assert_within(adjust_hue(x, shift), one_by_one(turned, x, shift), 1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_jitter_meets_the_four_changes_in_every_order(reference, dtype, tolerance):
    orders = torch.tensor([list(p) for p in itertools.permutations(range(4))])
    factors = jitter_factors(torch.rand(24, 4, generator=seeded(3)).double(), 1.25)
    x = pictures(24, (3, 6, 6), dtype)
    everything = torch.ones(24, dtype=torch.bool)
    params = replace(draw_params(24, 6, 6, OFF, seeded()), jitter=everything, factors=factors, order=orders)
    assert_within(color_jitter(x, factors, orders), expected_pipeline(reference, x, params, 1), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_and_flip_are_torchvisions_resized_crop_and_mirror(reference, shape, dtype, tolerance):
    _, h, w = shape
    x = pictures(40, shape, dtype)
    sides = torch.stack([torch.randint(1, n + 1, (40,), generator=seeded(n)) for n in (h, w)], dim=1)
    sides[0], sides[1] = torch.tensor([h, w]), torch.tensor([1, 1])
    corner = (torch.rand(40, 2, generator=seeded(4)) * (torch.tensor([h, w]) - sides + 1)).long()
    boxes = torch.cat([corner, sides], dim=1)
    flip = torch.arange(40) % 2 == 1
    expected = [resized(reference, x[i], boxes[i]) for i in range(40)]
    expected = [reference.horizontal_flip(e) if f else e for e, f in zip(expected, flip, strict=True)]
    assert_within(crop_and_flip(x, boxes, flip), torch.stack(expected), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("kernel", [1, 3, 5, 11])
def test_blur_is_torchvisions_at_each_samples_own_width(reference, kernel, dtype, tolerance):
    x = pictures(12, (3, 16, 9), dtype)
    sigma = torch.linspace(0.1, 4.0, 12, dtype=torch.float64)
    expected = [reference.gaussian_blur(x[i], [kernel, kernel], [sigma[i].item()] * 2) for i in range(12)]
    assert_within(gaussian_blur(x, kernel, sigma), torch.stack(expected), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_greyscale_is_torchvisions(reference, dtype, tolerance):
    x = pictures(12, (3, 8, 8), dtype)
    assert_within(grayscale(x), reference.rgb_to_grayscale(x, num_output_channels=3), tolerance)


# What a transition leaves alone


def test_switched_off_it_returns_the_very_tensor():
    x = pictures(4, (3, 8, 8))
    assert augment(x, AugmentConfig(enabled=False), seeded()) is x


def test_probabilities_of_zero_and_a_crop_of_everything_change_no_bit():
    x = pictures(8, (3, 9, 9))
    assert torch.equal(augment(x, OFF, seeded()), x)


def test_strength_zero_changes_no_colour_bit():
    x = pictures(8, (3, 9, 9))
    assert torch.equal(augment(x, replace(OFF, color_prob=1.0, color_strength=0.0), seeded()), x)


def test_two_mirrorings_give_the_image_back():
    x = pictures(6, (3, 9, 7))
    whole = torch.tensor([[0, 0, 9, 7]]).expand(6, 4)
    flip = torch.ones(6, dtype=torch.bool)
    assert torch.equal(crop_and_flip(x, whole, flip), x.flip(3))
    assert torch.equal(crop_and_flip(crop_and_flip(x, whole, flip), whole, flip), x)


def test_constant_images_keep_their_light_to_the_last_bit_under_crop_and_flip():
    level = torch.rand(200, 3, 1, 1, generator=seeded(6))
    x = level.expand(200, 3, 13, 17).contiguous()
    cfg = replace(OFF, flip_prob=0.5, crop_scale=(0.1, 1.0), crop_ratio=(0.5, 2.0))
    assert torch.equal(augment(x, cfg, seeded()), x)


def test_grey_images_know_no_hue_saturation_or_greyscale():
    x = pictures(16, (1, 8, 8))
    half = torch.linspace(-0.5, 0.5, 16)
    assert torch.equal(adjust_hue(x, half), x)
    assert torch.equal(adjust_saturation(x, 1 + half), x)
    assert torch.equal(grayscale(x), x)
    factors = torch.stack([torch.ones(16), torch.ones(16), 1 + half, half], dim=1)
    assert torch.equal(color_jitter(x, factors, torch.rand(16, 4, generator=seeded()).argsort(1)), x)


def test_grey_pixels_of_a_colour_image_keep_their_grey_when_the_hue_turns():
    x = torch.rand(16, 1, 8, 8, generator=seeded(7)).expand(16, 3, 8, 8).contiguous()
    assert torch.equal(adjust_hue(x, torch.linspace(-0.5, 0.5, 16)), x)


def test_input_and_its_graph_are_left_alone():
    x = pictures(16, (3, 8, 8)).requires_grad_()
    before = x.detach().clone()
    out = augment(x, AugmentConfig(), seeded())
    assert not out.requires_grad
    assert torch.equal(x.detach(), before)
    assert out.data_ptr() != x.data_ptr()


# Range


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_result_lies_in_0_to_1(dtype):
    cfg = AugmentConfig(
        color_strength=1.25, color_prob=1.0, blur_prob=0.7, crop_scale=(0.01, 1.0), blur_sigma=(0.01, 9.0)
    )
    out = augment(pictures(600, (3, 8, 8), dtype), cfg, seeded(8))
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert 0 <= out.min() <= out.max() <= 1


def test_pure_colours_give_no_nan_and_black_stays_black():
    corners = torch.tensor([[(i >> k) & 1 for k in range(3)] for i in range(8)], dtype=torch.float32)  # black to white
    x = corners.repeat(50, 1)[:, :, None, None].expand(400, 3, 8, 8).contiguous()
    out = augment(x, AugmentConfig(color_strength=1.25, color_prob=1.0), seeded(9))
    assert out.isfinite().all()
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.count_nonzero(out[::8]) == 0


def test_a_nan_stays_in_its_own_image_and_is_not_hidden():
    x = pictures(64, (3, 8, 8))
    x[5] = math.nan
    broken = augment(x, AugmentConfig(), seeded()).isnan().flatten(1)
    assert broken[5].all()
    assert not torch.cat([broken[:5], broken[6:]]).any()


def test_an_empty_batch_stays_empty():
    assert augment(torch.empty(0, 3, 8, 8), AugmentConfig(), seeded()).shape == (0, 3, 8, 8)


# Randomness


def test_same_stream_same_bits_and_another_stream_another_result():
    x = pictures(8, (3, 16, 16))
    once, again, other = (augment(x, AugmentConfig(), seeded(s)) for s in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_copies_of_one_image_become_different_images():
    x = pictures(1, (3, 16, 16)).expand(32, 3, 16, 16)
    out = augment(x, AugmentConfig(), seeded()).flatten(1)
    distance = torch.cdist(out, out) + torch.eye(32) * 9
    assert distance.min() > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_workers", [2, 4, 16])
def test_a_samples_fate_is_the_same_to_the_last_bit_for_any_number_of_workers(shape, num_workers):
    x, cfg = pictures(50, shape), AugmentConfig()

    def part(rank, world_size):
        shards = Shards.of_rank(rank, world_size, 16)
        return augment(x[shards.span(50)], cfg, streams(0, 7, "augment", shards, 50))

    assert torch.equal(torch.cat([part(rank, num_workers) for rank in range(num_workers)]), part(0, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_number_of_threads_changes_no_bit(shape):
    x = pictures(97, shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(augment(x, AugmentConfig(), seeded()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_frequencies_are_the_probabilities_within_their_standard_error():
    n, cfg = 20_000, AugmentConfig(flip_prob=0.3)
    params = draw_params(n, 32, 32, cfg, seeded(10))
    for chosen, p in (
        (params.flip, cfg.flip_prob),
        (params.jitter, cfg.color_prob),
        (params.gray, cfg.grayscale_prob),
        (params.blur, cfg.blur_prob),
    ):
        assert abs(chosen.double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_factors_and_blur_widths_are_uniform_over_simclrs_ranges():
    cfg = AugmentConfig(color_strength=0.5)
    params = draw_params(5000, 32, 32, cfg, seeded(11))
    for kind, center in ((BRIGHTNESS, 1), (CONTRAST, 1), (SATURATION, 1), (HUE, 0)):
        half = 0.5 * JITTER[kind]
        assert stats.kstest(params.factors[:, kind], stats.uniform(center - half, 2 * half).cdf).pvalue > 1e-4
    assert stats.kstest(params.sigma, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4


def test_factors_stop_at_0_and_hue_at_half_a_turn():
    ends = jitter_factors(torch.tensor([[0.0] * 4, [1.0] * 4]), 2.0)
    torch.testing.assert_close(ends, torch.tensor([[0, 0, 0, -0.5], [2.6, 2.6, 2.6, 0.5]]))


def test_all_24_orders_of_the_colour_changes_are_equally_likely():
    order = draw_params(12_000, 8, 8, AugmentConfig(), seeded(12)).order
    assert torch.equal(order.sort(dim=1).values, torch.arange(4).expand(12_000, 4))
    counts = torch.unique((order * torch.tensor([64, 16, 4, 1])).sum(1), return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-4


def test_draws_of_one_setting_do_not_move_when_another_is_switched_off():
    full, calm = (draw_params(50, 32, 32, c, seeded(13)) for c in (AugmentConfig(), replace(OFF, flip_prob=0.5)))
    assert torch.equal(full.flip, calm.flip)
    assert torch.equal(full.order, calm.order)


def test_crops_that_always_fit_have_uniform_area_log_uniform_ratio_and_uniform_place():
    u = torch.rand(5000, 2 * CROP_TRIES + 2, generator=seeded(14))
    top, left, height, width = crop_boxes(u, 4000, 4000, (0.1, 0.5), (0.75, 4 / 3)).double().unbind(1)
    for value, low, high in (
        (height * width / 4000**2, 0.1, 0.5),
        ((width / height).log(), math.log(0.75), math.log(4 / 3)),
        ((top + 0.5) / (4001 - height), 0, 1),
        ((left + 0.5) / (4001 - width), 0, 1),
    ):
        assert stats.kstest(value, stats.uniform(low, high - low).cdf).pvalue > 1e-4


@pytest.mark.parametrize("image", [(32, 32), (9, 7), (60, 100)])
def test_each_crop_is_the_first_of_its_own_ten_tries_that_fits(image):
    height, width = image
    scale, ratio = (0.3, 1.0), (0.5, 2.0)
    u = torch.rand(300, 2 * CROP_TRIES + 2, generator=seeded(20)).double()

    def first_that_fits(row):
        for area, aspect in zip(row[:CROP_TRIES], row[CROP_TRIES:-2], strict=True):
            area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
            aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * aspect)
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return [int(row[-2] * (height - h + 1)), int(row[-1] * (width - w + 1)), h, w]
        raise AssertionError("ten tries failed: choose another seed")

    expected = torch.tensor([first_that_fits(row) for row in u.tolist()])
    assert torch.equal(crop_boxes(u, height, width, scale, ratio), expected)


def test_crops_that_often_miss_are_distributed_as_torchvisions():
    torchvision()
    draw = importlib.import_module("torchvision.transforms").RandomResizedCrop.get_params
    image, scale, ratio = torch.empty(3, 60, 100), (0.3, 1.0), (0.4, 2.5)
    with torch.random.fork_rng():
        torch.manual_seed(15)
        theirs = torch.tensor([draw(image, list(scale), list(ratio)) for _ in range(2000)])
    u = torch.rand(5000, 2 * CROP_TRIES + 2, generator=seeded(16))
    ours = crop_boxes(u, 60, 100, scale, ratio)
    for column in range(4):
        counts = torch.stack([torch.histc(boxes[:, column].double(), 12, 0, 101) for boxes in (ours, theirs)])
        table = counts[:, counts.sum(dim=0) >= 20]
        assert stats.contingency.chi2_contingency(table.numpy()).pvalue > 1e-4  # pyright: ignore


def test_every_crop_lies_in_the_image_even_for_the_largest_draw():
    cfg = AugmentConfig()
    u = torch.rand(5000, 2 * CROP_TRIES + 2, generator=seeded(17))
    u[::2, -2:] = 1 - 2**-24
    u[1::2, -2:] = 0
    for h, w in ((8, 8), (32, 32), (20, 28), (1, 1)):
        top, left, height, width = crop_boxes(u, h, w, cfg.crop_scale, cfg.crop_ratio).unbind(1)
        assert (height >= 1).all()
        assert (width >= 1).all()
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + height).max() == h
        assert (left + width).max() == w


@pytest.mark.parametrize(
    ("image", "ratio", "box"),
    [
        ((30, 30), (3.0, 4.0), (10, 0, 10, 30)),  # too wide: full width, a third as high, in the middle
        ((30, 30), (0.25, 0.5), (0, 7, 30, 15)),  # too high: full height, half as wide
        ((40, 20), (0.75, 4 / 3), (6, 0, 27, 20)),
    ],
)
def test_a_crop_that_never_fits_becomes_the_largest_centred_one(image, ratio, box):
    u = torch.rand(10, 2 * CROP_TRIES + 2, generator=seeded(18))
    height, width = image
    assert torch.equal(crop_boxes(u, height, width, (1.0, 1.0), ratio), torch.tensor([box]).expand(10, 4))
    torchvision()
    theirs = importlib.import_module("torchvision.transforms").RandomResizedCrop.get_params
    assert theirs(torch.empty(3, *image), [1.0, 1.0], list(ratio)) == box


# Wrong input


def test_a_blur_wider_than_the_image_is_refused_whoever_is_drawn():
    x = pictures(1, (3, 4, 6))
    cfg = AugmentConfig(blur_kernel=9, blur_prob=1e-9)
    with pytest.raises(ConfigError, match=r"augment.blur_kernel = 9: .* 4 x 6 pixels; use at most 7"):
        augment(x, cfg, seeded())
    with pytest.raises(ConfigError, match="blur_kernel"):
        gaussian_blur(x, 9, torch.ones(1))
    assert augment(x, replace(cfg, blur_kernel=7), seeded()).shape == x.shape
    assert augment(x, replace(cfg, blur_prob=0.0), seeded()).shape == x.shape


def test_two_channels_are_refused_by_name():
    with pytest.raises(DataError, match=r"\(5, 2, 8, 8\)"):
        augment(torch.zeros(5, 2, 8, 8), AugmentConfig(), seeded())


def test_apply_params_does_what_augment_does():
    x, cfg = pictures(8, (3, 16, 16)), AugmentConfig()
    params = draw_params(8, 16, 16, cfg, seeded(19))
    assert torch.equal(apply_params(x, params, cfg.blur_kernel), augment(x, cfg, seeded(19)))


# In C++


@pytest.fixture(scope="module")
def natively():
    apply = load_native()
    assert apply is apply_natively
    return apply


@pytest.mark.parametrize("shape", [*SHAPES, (3, 17, 40)])
@pytest.mark.parametrize(
    "cfg",
    [
        AugmentConfig(),
        AugmentConfig(color_strength=1.25, color_prob=1.0, grayscale_prob=0.0, blur_prob=0.0),
        AugmentConfig(crop_scale=(0.01, 1.0), blur_prob=1.0, blur_sigma=(0.01, 9.0), color_prob=0.3),
        OFF,
    ],
)
def test_the_same_bits_come_from_cpp(natively, shape, cfg):
    x = pictures(300, shape)
    before = x.clone()
    assert torch.equal(augment(x, cfg, seeded(2), natively), augment(x, cfg, seeded(2)))
    assert torch.equal(x, before)


def test_the_same_bits_come_from_cpp_for_other_layouts_threads_and_streams(natively):
    x, cfg = pictures(40, (3, 16, 12)), AugmentConfig()
    expected = augment(x, cfg, seeded())
    assert torch.equal(augment(x.to(memory_format=torch.channels_last), cfg, seeded(), natively), expected)
    assert torch.equal(augment(torch.cat([x, x], dim=3)[..., :12], cfg, seeded(), natively), expected)
    threads = torch.get_num_threads()
    for other in (1, 2, 3):
        torch.set_num_threads(other)
        try:
            assert torch.equal(augment(x, cfg, seeded(), natively), expected)
        finally:
            torch.set_num_threads(threads)
    parts = streams(0, 1, "augment", Shards.of_rank(0, 1, 4), 40)
    again = streams(0, 1, "augment", Shards.of_rank(0, 1, 4), 40)
    assert torch.equal(augment(x, cfg, parts, natively), augment(x, cfg, again))


def test_cpp_keeps_a_nan_as_python_does(natively):
    x = pictures(64, (3, 8, 8))
    x[5, 1, 3] = math.nan
    x[6] = math.nan
    ours, plain = augment(x, AugmentConfig(), seeded(), natively), augment(x, AugmentConfig(), seeded())
    assert torch.equal(ours.isnan(), plain.isnan())
    assert torch.equal(ours.nan_to_num(), plain.nan_to_num())
    assert ours.isnan().any()


def test_cpp_takes_an_empty_batch_and_leaves_float64_to_python(natively):
    assert augment(torch.empty(0, 3, 8, 8), AugmentConfig(), seeded(), natively).shape == (0, 3, 8, 8)
    x = pictures(20, (3, 8, 8), torch.float64)
    assert torch.equal(augment(x, AugmentConfig(), seeded(), natively), augment(x, AugmentConfig(), seeded()))


def test_without_a_compiler_python_does_it(monkeypatch):
    monkeypatch.setattr(native, "load", native.load.__wrapped__)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert load_native() is apply_params
