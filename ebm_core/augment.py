"""Data augmentation transitions (Section 2.3, Appendix A.2): jumps of a chain to a similar image.

SimCLR's order: random resized crop, flip, colour jitter, greyscale, Gaussian blur; each sample has its own parameters.
All are drawn first (`draw_params`) and applied second (`apply_params`), so that either half can be checked alone.

What a sample becomes depends on itself and on its own draws, to the last bit: pixels go through single additions,
products, comparisons and float64 means alone, which round alike whatever else is in the batch. (A fused multiply-add or
a matrix product may round by the position in the batch; so would a result by the number of workers.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ebm_core.config import AugmentConfig
from ebm_core.errors import ConfigError, DataError
from ebm_core.rng import Rng, uniform

Images = Float[Tensor, "b c h w"]
PerSample = Float[Tensor, "b"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
JITTER = (0.8, 0.8, 0.8, 0.4)
"""Half-widths of the four factors at strength 1, as in SimCLR."""
LUMA = (0.2989, 0.587, 0.114)
"""Light of red, green and blue (ITU-R 601 as torchvision rounds it: white has 0.9999)."""
CROP_TRIES = 10
DRAWS = {"crop": 2 * CROP_TRIES + 2, "flip": 1, "jitter": 1, "factors": 4, "order": 4, "gray": 1, "blur": 1, "sigma": 1}
"""Uniform numbers per sample: always all of them, so that one setting never shifts the draws of another."""


@dataclass(frozen=True, slots=True)
class AugmentParams:
    """What happens to each of b samples."""

    boxes: Int[Tensor, "b 4"]
    """Crop in pixels: top, left, height, width."""
    flip: Bool[Tensor, "b"]
    jitter: Bool[Tensor, "b"]
    """Whether colours change at all."""
    factors: Float[Tensor, "b 4"]
    """Brightness, contrast, saturation (1 changes nothing) and hue shift in turns (0 changes nothing)."""
    order: Int[Tensor, "b 4"]
    """Row i lists the four operations in the order in which sample i meets them."""
    gray: Bool[Tensor, "b"]
    blur: Bool[Tensor, "b"]
    sigma: Float[Tensor, "b"]
    """Standard deviation of the blur, in pixels."""


Apply = Callable[[Images, AugmentParams, int], Images]
"""`apply_params`, or something that does the same."""


@torch.no_grad()
def augment(x: Images, cfg: AugmentConfig, rng: Rng, apply: Apply | None = None) -> Images:
    """A random transition of each image to a similar one (Section 2.3); `x` itself when `cfg.enabled` is false.

    x: (b c h w) in [0, 1], c = 1 or 3, on the device of `rng`; left as it is. Returns the same shape, in [0, 1],
    without a graph. Grey images keep hue and saturation, and greyscale does nothing to them. `apply` is what the
    engine uses for `apply_params`. DataError for another number of channels, ConfigError for a blur too wide for the
    image.
    """
    if not cfg.enabled:
        return x
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise DataError(f"cannot augment a batch of shape {tuple(x.shape)}: give (b, 1, h, w) or (b, 3, h, w)")
    b, _, height, width = x.shape
    if cfg.blur_prob > 0:
        _require_room(cfg.blur_kernel, height, width)
    return (apply or apply_params)(x, draw_params(b, height, width, cfg, rng, x.device), cfg.blur_kernel)


def draw_params(
    num_samples: int, height: int, width: int, cfg: AugmentConfig, rng: Rng, device: torch.device | str = "cpu"
) -> AugmentParams:
    """The random parameters of `num_samples` images of height x width pixels, from one draw keyed by sample."""
    u = uniform((num_samples, sum(DRAWS.values())), rng, device).double()
    part = dict(zip(DRAWS, u.split(list(DRAWS.values()), dim=1), strict=True))
    return AugmentParams(
        boxes=crop_boxes(part["crop"], height, width, cfg.crop_scale, cfg.crop_ratio),
        flip=part["flip"][:, 0] < cfg.flip_prob,
        jitter=(part["jitter"][:, 0] < cfg.color_prob) & (cfg.color_strength > 0),
        factors=jitter_factors(part["factors"], cfg.color_strength),
        order=part["order"].argsort(dim=1),
        gray=part["gray"][:, 0] < cfg.grayscale_prob,
        blur=part["blur"][:, 0] < cfg.blur_prob,
        sigma=_between(part["sigma"][:, 0], *cfg.blur_sigma),
    )


def apply_params(x: Images, params: AugmentParams, blur_kernel: int) -> Images:
    """The images that `params` makes of `x`; `x` is left as it is."""
    x = crop_and_flip(x, params.boxes, params.flip)
    x = _apply_where(params.jitter, color_jitter, x, params.factors, params.order)
    x = _apply_where(params.gray, grayscale, x)
    x = _apply_where(params.blur, lambda x, sigma: gaussian_blur(x, blur_kernel, sigma), x, params.sigma)
    return x.clamp_(0, 1)  # a blur's weights sum to 1 up to rounding


def _apply_where(chosen: Bool[Tensor, "b"], change: Callable[..., Tensor], x: Images, *values: Tensor) -> Images:
    """`change` the chosen samples of `x`, in place: the work is done for them alone."""
    index = chosen.nonzero().squeeze(1)
    if len(index) == 0:
        return x
    return x.index_copy_(0, index, change(*(v.index_select(0, index) for v in (x, *values))))


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


# Random resized crop and flip


def crop_boxes(
    u: Float[Tensor, "b draws"], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Int[Tensor, "b 4"]:
    """Top, left, height and width of a random crop per row of u ~ U[0, 1), distributed as torchvision's
    RandomResizedCrop: area uniform in `scale` (of the image), log(width / height) uniform in log `ratio`, sides rounded
    to pixels, the first of ten tries that fits in the image, at a uniform place. A sample whose ten tries all fail gets
    the largest centred crop whose ratio lies in `ratio`.

    u: ten areas, ten ratios, top, left: (b, 22).
    """
    u = u.double()
    area = _between(u[:, :CROP_TRIES], *scale) * (height * width)
    aspect = _between(u[:, CROP_TRIES : 2 * CROP_TRIES], math.log(ratio[0]), math.log(ratio[1])).exp()
    sides = torch.stack([(area / aspect).sqrt().round(), (area * aspect).sqrt().round()], dim=2)  # (b, tries, 2)
    image = torch.tensor([height, width], dtype=u.dtype, device=u.device)
    fits = ((sides >= 1) & (sides <= image)).all(dim=2)
    found = fits.any(dim=1, keepdim=True)
    first = sides[torch.arange(len(u), device=u.device), fits.byte().argmax(dim=1)]
    largest = [max(1, min(height, round(width / ratio[0]))), max(1, min(width, round(height * ratio[1])))]
    size = torch.where(found, first, image.new_tensor(largest))
    corner = torch.where(found, (u[:, -2:] * (image - size + 1)).floor(), ((image - size) / 2).floor())
    return torch.cat([corner, size], dim=1).long()


def crop_and_flip(x: Images, boxes: Int[Tensor, "b 4"], flip: Bool[Tensor, "b"]) -> Images:
    """Each image's box, stretched over the whole image (bilinear between pixel centres) and mirrored left to right
    where `flip`. A crop is never larger than the image, so an antialiased resize would give the same. The box of the
    whole image changes no bit, and a constant image stays constant to the last bit.
    """
    b, c, height, width = x.shape
    upper, lower, weight = _taps(boxes[:, 0], boxes[:, 2], height, x.dtype)
    image_row = torch.arange(b * c, device=x.device).view(b, c, 1) * height  # rows of all images, one below the other
    rows = x.reshape(b * c * height, width)
    upper, lower = (rows.index_select(0, (image_row + i[:, None]).flatten()).view(x.shape) for i in (upper, lower))
    x = _interpolate(upper, lower, weight[:, None, :, None])
    taps = _taps(boxes[:, 1], boxes[:, 3], width, x.dtype)
    left, right, weight = (torch.where(flip[:, None], t.flip(1), t)[:, None, None] for t in taps)
    left, right = (x.gather(3, i.expand(x.shape)) for i in (left, right))
    return _interpolate(left, right, weight)


def _taps(start: Tensor, length: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels of [start, start + length) that each of `size` outputs lies between, and the second's weight."""
    center = torch.arange(size, device=start.device, dtype=torch.float64) + 0.5
    position = (center * (length[:, None].double() / size) - 0.5).clamp_min(0)
    first = position.floor()
    second = torch.minimum(first + 1, length[:, None] - 1)
    return (first + start[:, None]).long(), (second + start[:, None]).long(), (position - first).to(dtype)


def _interpolate(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """first + weight (second - first), in the memory of `second`."""
    return second.sub_(first).mul_(weight).add_(first)


# Colour


def jitter_factors(u: Float[Tensor, "b 4"], strength: float) -> Float[Tensor, "b 4"]:
    """Three factors in 1 +- 0.8 x strength, not below 0; a hue shift in +- 0.4 x strength, at most half a turn."""
    half = [strength * j for j in JITTER]
    low = [max(0.0, 1 - s) for s in half[:HUE]] + [-min(0.5, half[HUE])]
    high = [1 + s for s in half[:HUE]] + [min(0.5, half[HUE])]
    return u.new_tensor(low) + (u.new_tensor(high) - u.new_tensor(low)) * u


def color_jitter(x: Images, factors: Float[Tensor, "b 4"], order: Int[Tensor, "b 4"]) -> Images:
    """Brightness, contrast, saturation and hue of each image, in each image's own order.

    Sorted by the place of hue, the images that meet their k-th blend (of three) before hue are the first ones, and
    those that meet it after hue the last: hue is done once for all, a blend once for those whose turn it is.
    """
    hue_place = (order == HUE).byte().argmax(dim=1)
    rank = hue_place.argsort(descending=True, stable=True)
    x, factors, order = x.index_select(0, rank), factors[rank].to(x.dtype), order[rank]
    if x.shape[1] == 1:
        factors[:, SATURATION] = 1
    blends = order[order != HUE].view(-1, 3)
    weights = _blend_weights(blends, factors.gather(1, blends))
    num_before = (hue_place[:, None] > torch.arange(3, device=x.device)).sum(dim=0).tolist()
    for k, n in enumerate(num_before):
        _blend_(x[:n], weights[:n, k])
    x = adjust_hue(x, factors[:, HUE])
    for k, n in enumerate(num_before):
        _blend_(x[n:], weights[n:, k])
    return torch.empty_like(x).index_copy_(0, rank, x)


def adjust_brightness(x: Images, factor: PerSample) -> Images:
    """Blend with black: factor 0 is black, 1 the image."""
    return _blend_(x.clone(), _blend_weights(BRIGHTNESS, factor))


def adjust_contrast(x: Images, factor: PerSample) -> Images:
    """Blend with the image's mean light: factor 0 is flat grey, 1 the image."""
    return _blend_(x.clone(), _blend_weights(CONTRAST, factor))


def adjust_saturation(x: Images, factor: PerSample) -> Images:
    """Blend with the image in greyscale: factor 0 is greyscale, 1 the image. A grey image stays as it is."""
    return x if x.shape[1] == 1 else _blend_(x.clone(), _blend_weights(SATURATION, factor))


def _blend_weights(kind: Tensor | int, factor: Float[Tensor, "*blends"]) -> Float[Tensor, "*blends 3"]:
    """Weights of the image, of its light and of its mean light in brightness, contrast or saturation."""
    rest = 1 - factor
    return torch.stack([factor, rest * (kind == SATURATION), rest * (kind == CONTRAST)], dim=-1)


def _blend_(x: Images, weights: Float[Tensor, "b 3"]) -> Images:
    """own x + of_light luma(x) + of_mean mean(luma(x)), held in [0, 1]; in place."""
    own, of_light, of_mean = weights.to(x.dtype)[..., None, None, None].unbind(1)
    light = luma(x)
    base = light * of_light
    mean = light.flatten(1).mean(dim=1, dtype=torch.float64).to(x.dtype)
    return x.mul_(own).add_(base.add_(mean.view_as(own) * of_mean)).clamp_(0, 1)


def adjust_hue(x: Images, shift: PerSample) -> Images:
    """Turn the hue by `shift` turns, with HSV's value and saturation kept exactly. A grey image stays as it is.

    At a hue of t sixths of a turn (red 0, green 2, blue 4), HSV's colour is value - chroma * lost, where a channel has
    lost nothing up to one sixth away from its own hue, everything from two sixths on, and goes linearly in between.
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # |t| <= 3 is two plus what red has lost less what green and blue have; on green's side of the circle t > 0.
    sixths = (green + blue).sub_(red).sub_(value).div_(chroma.clamp_min(torch.finfo(x.dtype).tiny)).add_(2)
    sixths.copysign_(green - blue)
    sixths.add_(6 * shift.to(x.dtype).view(-1, 1, 1))
    sixths.sub_((sixths / 6).floor_().mul_(6))
    lost = (sixths[:, None] - x.new_tensor([3, 2, 4]).view(3, 1, 1)).abs_().sub_(1)
    lost[:, 0].neg_().add_(1)  # red is at 0 and 6: measured from the opposite hue, 3
    return value[:, None] - lost.clamp_(0, 1).mul_(chroma[:, None])


def luma(x: Images) -> Float[Tensor, "b 1 h w"]:
    """Light of each pixel: 0.2989 red + 0.587 green + 0.114 blue; a grey image is its own light."""
    if x.shape[1] == 1:
        return x
    red, green, blue = (x[:, i : i + 1] * weight for i, weight in enumerate(LUMA))
    return red.add_(green).add_(blue)


def grayscale(x: Images) -> Images:
    """Every channel replaced by the pixel's light; a grey image stays as it is."""
    return luma(x).repeat(1, x.shape[1], 1, 1)


# Blur


def gaussian_blur(x: Images, kernel: int, sigma: PerSample) -> Images:
    """Convolution with exp(-d^2 / 2 sigma^2) over `kernel` pixels each way, normalised; the image is mirrored at its
    edges (without repeating them). sigma: pixels, one per sample. ConfigError when half a kernel exceeds the image.
    """
    _require_room(kernel, x.shape[2], x.shape[3])
    weights = blur_weights(kernel, sigma).to(x.dtype)
    return _blur_axis(_blur_axis(x, weights, 2), weights, 3)


def blur_weights(kernel: int, sigma: PerSample) -> Float[Tensor, "b reach"]:
    """Weights of a pixel and of its neighbours on one side, at distance 0, 1, ..., in float64."""
    distance = torch.arange(kernel // 2 + 1, device=sigma.device, dtype=torch.float64)
    bell = (distance / sigma.double()[:, None]).square().div(-2).exp()
    return bell / (2 * bell.sum(dim=1, keepdim=True) - 1)  # bell[0] = 1


def _blur_axis(x: Images, weights: Float[Tensor, "b reach"], axis: int) -> Images:
    size, reach = x.shape[axis], weights.shape[1] - 1
    padded = F.pad(x, (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0), mode="reflect")
    out = x * weights[:, 0, None, None, None]
    for d in range(1, reach + 1):
        pair = padded.narrow(axis, reach - d, size) + padded.narrow(axis, reach + d, size)
        out.add_(pair.mul_(weights[:, d, None, None, None]))
    return out


def _require_room(kernel: int, height: int, width: int) -> None:
    if kernel // 2 >= min(height, width):
        raise ConfigError(
            f"augment.blur_kernel = {kernel}: too wide for images of {height} x {width} pixels; "
            f"use at most {2 * min(height, width) - 1}, or augment.blur_prob=0"
        )
