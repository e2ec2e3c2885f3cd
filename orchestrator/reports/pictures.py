"""Stored pictures inside a page: which of them, and small enough that the page stays a page."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from orchestrator.records.scores import chains_grid_key, ema_grid_key
from orchestrator.storage.commits import parse_step_name
from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import Run

IMAGE_BUDGET = 3_000_000
"""Bytes of all pictures of a page before base64, which adds a third: with curves and text it stays under 5 MB."""


@dataclass(frozen=True)
class Picture:
    """An embedded picture."""

    uri: str
    """data:image/…;base64,…"""
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Grids:
    """Sample grids over training, oldest first."""

    chains: list[Picture]
    """What training's own chains hold (draws from the buffer)."""
    averaged: list[Picture]
    """What the averaged model draws from noise."""


def spread(items: Sequence[int], most: int) -> list[int]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    picked = {round(i * (len(items) - 1) / (most - 1)) for i in range(most)} if most > 1 else {len(items) - 1}
    return [items[i] for i in sorted(picked)]


def grid_steps(run: Run) -> tuple[list[int], list[int]]:
    """Steps with a grid of the chains, and of the averaged model."""
    chains, averaged = [], []
    for info in run.list("samples/"):
        stem = info.key.removeprefix("samples/").removesuffix(".png")
        step = parse_step_name(stem.removesuffix("-ema"))
        if info.key.endswith(".png") and step is not None:
            (averaged if stem.endswith("-ema") else chains).append(step)
    return sorted(chains), sorted(averaged)


def grids(run: Run, *, most: int = 6, budget: int = IMAGE_BUDGET) -> Grids:
    """Grids of at most `most` steps of each kind, all of them within `budget` bytes."""
    chains, averaged = (spread(steps, most) for steps in grid_steps(run))
    share = budget // max(len(chains) + len(averaged), 1)

    def read(key: str, step: int, what: str) -> Picture | None:
        return picture(run, key, f"{what} of {run.name} at step {step:,}", f"step {step:,}", share)

    text = "grid of samples drawn from noise by the averaged model"
    made = [read(chains_grid_key(step), step, "grid of samples from the training chains") for step in chains]
    drawn = [read(ema_grid_key(step), step, text) for step in averaged]
    return Grids([p for p in made if p], [p for p in drawn if p])


def last_grid(run: Run, budget: int) -> Picture | None:
    """The newest grid, the averaged model's before the chains', within `budget` bytes."""
    chains, averaged = grid_steps(run)
    steps, key_of = (averaged, ema_grid_key) if averaged else (chains, chains_grid_key)
    if not steps:
        return None
    at = f"step {steps[-1]:,}"
    return picture(run, key_of(steps[-1]), f"samples of {run.name} at {at}", at, budget)


def read_picture(run: Run, key: str) -> tuple[bytes, Image.Image] | None:
    """The file and what it shows; None if it cannot be read as a picture."""
    try:
        data = run.read_bytes(key)
        image = Image.open(io.BytesIO(data))
        image.load()
    except (StorageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return data, image


def picture(run: Run, key: str, alt: str, caption: str, budget: int) -> Picture | None:
    """A stored picture as it is, or as a smaller WebP; None if it cannot be read."""
    stored = read_picture(run, key)
    if stored is None:
        return None
    (data, image), kind = stored, "png"
    if len(data) > budget:
        kind, (data, image) = "webp", fitted(image.convert("RGB"), budget)
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(uri, image.width, image.height, alt, caption)


def fitted(image: Image.Image, budget: int) -> tuple[bytes, Image.Image]:
    """The picture as WebP of at most `budget` bytes, smaller where it must be (but not below 64 pixels)."""
    while True:
        out = io.BytesIO()
        image.save(out, format="WEBP", quality=80, method=2)
        if out.tell() <= budget or image.width <= 64:
            return out.getvalue(), image
        scale = min(0.9, 0.95 * math.sqrt(budget / out.tell()))  # bytes go with the area
        size = (max(64, int(image.width * scale)), max(1, int(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
