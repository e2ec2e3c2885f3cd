"""From any picture to uint8 pixels of the wanted size and channels: the same way for every data set."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from ebm_core.errors import DataError, first_line
from ebm_core.types import Pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Files that count as images, in any case of letters."""

MAX_ASPECT = 100
"""Long side over short side beyond which an image has no sensible central square."""


def fit(levels: Pixels, image_size: int, channels: int) -> UInt8[Tensor, "b {channels} {image_size} {image_size}"]:
    """Images (b c h w) as (b channels image_size image_size): grey or RGB, short side resized (bilinear with an
    antialiasing filter), centre cropped. Images that fit already come back unchanged."""
    levels = _with_channels(levels, channels)
    height, width = levels.shape[-2:]
    if (height, width) == (image_size, image_size):
        return levels
    short = min(height, width)
    height, width = image_size * height // short, image_size * width // short
    if short != image_size:
        levels = F.interpolate(levels, (height, width), mode="bilinear", antialias=True)
    top, left = (height - image_size) // 2, (width - image_size) // 2
    return levels[..., top : top + image_size, left : left + image_size].contiguous()


def _with_channels(levels: Tensor, channels: int) -> Tensor:
    if levels.shape[1] == channels:
        return levels
    if channels == 3:
        return levels.expand(-1, 3, -1, -1).contiguous()
    red, green, blue = levels.to(torch.int32).unbind(1)
    luma = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16  # ITU-R 601, in 1/65536 as Pillow has it
    return luma.to(torch.uint8).unsqueeze(1)


def decode(source: Path | bytes, name: str) -> UInt8[Tensor, "c h w"]:
    """An image file, or its bytes, as grey (1 h w) or RGB (3 h w). The camera's orientation is applied, transparent
    parts show white, 16 bits become 8. DataError with `name` for one that cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                pixels = _eight_bits(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's parsers raise what they happen to meet in a damaged file
        raise DataError(f"{name}: cannot be read as an image ({first_line(error)}); replace or remove it") from error
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise DataError(f"{name}: {width} x {height} pixels are too narrow to cut a square from; replace or remove it")
    return torch.from_numpy(pixels.reshape(height, width, -1)).permute(2, 0, 1).contiguous()


def _eight_bits(image: Image.Image) -> np.ndarray:
    """(h w) for grey, (h w 3) for the rest, uint8 and writable."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        return np.clip(np.array(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    grey = image.mode in ("1", "L", "LA")
    return np.array(image.convert("L" if grey else "RGB"))
