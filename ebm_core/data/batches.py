"""Which images a step sees, as a pure function of (seed, step): a loader has no state to save.

The data is one endless sequence: a permutation of all images per epoch, keyed by (seed, epoch). Step s takes the
places s B to s B + B - 1 of it, so a batch may straddle two epochs and every epoch shows each image exactly once.
Of a set that memory does not hold, the permutation is one of shards, and of the images within each window of them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ebm_core.config import DataConfig
from ebm_core.data.catalog import condition_table, default_config, load
from ebm_core.data.dataset import Dataset
from ebm_core.data.pixels import dequantize
from ebm_core.data.prepared import WINDOW
from ebm_core.errors import ConfigError
from ebm_core.rng import Shards, stream, streams
from ebm_core.types import Samples


def batch_indices(
    num_images: int, batch_size: int, seed: int, step: int, shards: tuple[int, ...] = ()
) -> Int64[Tensor, "b"]:
    """Numbers of the images in the global batch of one step (0 is the first), (batch_size). shards: as in Dataset."""
    if num_images < 1 or batch_size < 1 or step < 0:
        raise ConfigError(f"step {step} of batches of {batch_size} from {num_images} images: there is no such batch")
    place, end = step * batch_size, (step + 1) * batch_size
    parts: list[Tensor] = []
    while place < end:
        epoch, offset = divmod(place, num_images)
        part = _epoch_order(num_images, seed, epoch, shards)[offset : offset + end - place]
        parts.append(part)
        place += len(part)
    return torch.cat(parts)


@lru_cache(maxsize=3)
def _epoch_order(num_images: int, seed: int, epoch: int, shards: tuple[int, ...]) -> Tensor:
    rng = stream(seed, epoch, "epoch")
    if not shards:
        return torch.randperm(num_images, generator=rng)
    images = [torch.arange(end - size, end) for size, end in zip(shards, accumulate(shards), strict=True)]
    order: list[Tensor] = []
    for window in torch.randperm(len(shards), generator=rng).split(WINDOW):
        pool = torch.cat([images[shard] for shard in window.tolist()])
        order.append(pool[torch.randperm(len(pool), generator=rng)])
    return torch.cat(order)


def labelled_batches(
    data: str | DataConfig | Dataset,
    batch_size: int,
    *,
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
    shards: Shards | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Samples, Float[Tensor, "b k"] | None]]:
    """(x_data, condition) of steps `start` to `stop` - 1; condition is None when the data has none set.

    data: a data set, its settings (its train split is loaded), or a preset's or data set's name for their defaults.
    batch_size: images per step over all workers; x_data is the part of it that `shards` own (None: all).
    stop: None ends where the first pass over the data does, at step ceil(n / batch_size).
    x_data: float32 (b c h w) in [0, 1), dithered by U(0, 1/256) unless data.dither is off; the same for a given (seed,
    step), whatever `start` was and however the shards are divided over workers.
    """
    shards = Shards() if shards is None else shards
    if batch_size < 1 or start < 0:
        raise ConfigError(f"batch_size = {batch_size}, start = {start}: must be at least 1 and 0")
    if shards.span(batch_size).start == shards.span(batch_size).stop:
        raise ConfigError(f"train.batch_size = {batch_size}: leaves a worker without an image; raise it")
    dataset = data if isinstance(data, Dataset) else load(default_config(data) if isinstance(data, str) else data)
    table = condition_table(dataset, dataset.cfg)
    stop = -(-len(dataset) // batch_size) if stop is None else stop
    return _steps(dataset, table, batch_size, seed, range(start, stop), shards, torch.device(device))


def _steps(
    dataset: Dataset,
    table: Tensor | None,
    batch_size: int,
    seed: int,
    steps: range,
    shards: Shards,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    span = shards.span(batch_size)

    def numbers(step: int) -> Tensor:
        return batch_indices(len(dataset), batch_size, seed, step, dataset.shards)[span]

    early = max(1, sum(dataset.shards[:WINDOW]) // 2 // batch_size)  # steps: half of a window
    if not steps:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="ebm-batches") as reader:  # one batch ahead of the step
        coming = numbers(steps.start)
        images = reader.submit(dataset.fetch, coming)
        for step in steps:
            levels, index = images.result().to(device), coming
            if step + 1 < steps.stop:
                coming = numbers(step + 1)
                images = reader.submit(dataset.fetch, coming)
            if dataset.expect is not None and step + early < steps.stop:
                dataset.expect(numbers(step + early))
            dither = streams(seed, step, "dither", shards, batch_size, device) if dataset.cfg.dither else None
            yield dequantize(levels, dither), None if table is None else table[index].to(device)


def batches(
    data: str | DataConfig | Dataset,
    batch_size: int,
    *,
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
    shards: Shards | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Samples]:
    """x_data of `labelled_batches` alone."""
    pairs = labelled_batches(data, batch_size, seed=seed, start=start, stop=stop, shards=shards, device=device)
    return (x_data for x_data, _ in pairs)
