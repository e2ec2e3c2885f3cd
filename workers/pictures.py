"""Sample grids, strips of chains and curves as PNG bytes, sized for looking at."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ebm_core.errors import DataError

PAGE_WIDTH = 800
"""Pixels: small images are enlarged by whole factors until a grid is about this wide."""

PADDING = 2
"""Pixels between images, after enlarging."""

LARGEST_SCALE = 16
"""A few small images are not enlarged beyond this: their pixels would be all that one sees."""

GAP = 12
"""White pixels between grids that stand side by side."""

SLATE = (88, 104, 136)
"""Colour of the padding: bluish, so that no grey image runs into it."""


def grid_png(images: UInt8[Tensor, "n c h w"], columns: int | None = None, scale: int | None = None) -> bytes:
    """`images` (n c h w), c 1 or 3, row by row as one PNG.

    columns: images in a row; by default as many as make the grid square, n = 64 giving 8. scale: each pixel becomes
    scale x scale; by default what brings the grid to about 800 pixels. Raises DataError for no images or another shape.
    """
    pixels = _as_rgb(images)
    columns = min(columns or math.ceil(math.sqrt(len(pixels))), len(pixels))
    return _png(_tiled(pixels, columns, scale or _fitting_scale(columns, pixels.shape[2])))


def strip_png(chains: UInt8[Tensor, "chains time c h w"], scale: int | None = None) -> bytes:
    """States of chains as one PNG: a row for each chain, time from left to right. Errors and scale as in `grid_png`."""
    if chains.ndim != 5:
        raise DataError(f"chains of shape {tuple(chains.shape)}: need (chains, time, channels, height, width)")
    pixels = _as_rgb(chains.flatten(0, 1))
    columns = chains.shape[1]
    return _png(_tiled(pixels, columns, scale or _fitting_scale(columns, pixels.shape[2])))


def grids_png(groups: Sequence[UInt8[Tensor, "n c h w"]]) -> bytes:
    """Square grids of equally many images side by side as one PNG, such as a pool of chains at several times.

    Scale and errors as in `grid_png`, and DataError for no groups or groups of different shapes.
    """
    if len({group.shape for group in groups}) != 1:
        raise DataError(f"grids of shapes {[tuple(group.shape) for group in groups]}: need at least one, all alike")
    pixels = [_as_rgb(group) for group in groups]
    columns = math.ceil(math.sqrt(len(pixels[0])))
    scale = _fitting_scale(columns * len(groups), pixels[0].shape[2])
    pages = [_tiled(one, columns, scale) for one in pixels]
    gap = np.full((pages[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    return _png(np.concatenate([part for page in pages for part in (gap, page)][1:], axis=1))


def curves_png(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    ylabel: str,
    *,
    xlabel: str = "training step",
    log_y: bool = False,
    level: float | None = None,
) -> bytes:
    """Curves y(x) by name as one PNG of 800 x 450 pixels; the axes' labels carry the units.

    level: a dashed line at this height, such as a limit or 0. A value that is not finite leaves a gap in its curve.
    Raises DataError when there is no curve, one is empty, or its x and y differ in length.
    """
    if not series:
        raise DataError(f"no curves for {title!r}: give at least one series")
    from matplotlib.figure import Figure  # only here: every process of a job loads this module
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in series.items():
        if len(x) != len(y) or not len(x):
            raise DataError(f"curve {name!r}: {len(x)} positions and {len(y)} values; need as many, at least one")
        marker = "o" if len(x) < 30 else None
        axes.plot(np.asarray(x), np.asarray(y), label=name, linewidth=1.5, marker=marker, markersize=4)
    if level is not None:
        axes.axhline(level, color="black", linewidth=1, linestyle="--", alpha=0.6)
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(title, fontsize=13)
    axes.set_xlabel(xlabel, fontsize=11)
    axes.set_ylabel(ylabel, fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=10)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _as_rgb(images: UInt8[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape or images.dtype.itemsize != 1:
        raise DataError(
            f"images of shape {tuple(images.shape)} and type {images.dtype}: need uint8 (n, 1 or 3, height, width), "
            "at least one"
        )
    return np.broadcast_to(images.cpu().numpy().transpose(0, 2, 3, 1), (*_nhw(images), 3))


def _nhw(images: Tensor) -> tuple[int, int, int]:
    return images.shape[0], images.shape[2], images.shape[3]


def _fitting_scale(columns: int, width: int) -> int:
    """The whole factor, at least 1, that brings `columns` images of `width` pixels nearest to PAGE_WIDTH."""
    return min(LARGEST_SCALE, max(1, round((PAGE_WIDTH / columns - PADDING) / width)))


def _tiled(pixels: UInt8[np.ndarray, "n h w 3"], columns: int, scale: int) -> UInt8[np.ndarray, "H W 3"]:
    """Images enlarged without smoothing and laid out row by row, with padding around each."""
    if scale < 1 or columns < 1:
        raise DataError(f"columns = {columns}, scale = {scale}: both must be at least 1")
    n, height, width = pixels.shape[0], pixels.shape[1] * scale, pixels.shape[2] * scale
    rows = math.ceil(n / columns)
    down, right = height + PADDING, width + PADDING
    page = np.full((rows * down + PADDING, columns * right + PADDING, 3), SLATE, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, left = PADDING + (i // columns) * down, PADDING + (i % columns) * right
        page[top : top + height, left : left + width] = image.repeat(scale, axis=0).repeat(scale, axis=1)
    return page


def _png(page: UInt8[np.ndarray, "H W 3"]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(page).save(out, format="PNG", optimize=True)
    return out.getvalue()
