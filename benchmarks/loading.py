"""`make bench-loading`: how long training waits for images, and what other ways of reading the same shards would give.

The large set is 60,000 images of 3 x 64 x 64 random bytes (703 MiB: memory does not hold it, windows are used). The
training step is small on purpose: what hides behind it hides behind a larger one. The server is moto, in a process of
its own on the same cores.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.bench import Row, print_rows
from ebm_core.config import DataConfig, TrainConfig
from ebm_core.data import Dataset, batch_indices, labelled_batches, load
from ebm_core.data.prepared import WINDOW
from ebm_core.trainer import init_state, train_step
from orchestrator.settings.job import core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.training.prepare_data import prepare
from tests.faults import make_bucket, moto_server

SIZE, BATCH = 64, 64
LARGE = 60_000


def random_images(num_images: int) -> Dataset:
    """As many images of random bytes, made as they are fetched."""
    cfg = DataConfig(name="lsun_bedroom", image_size=SIZE)

    def read(index: torch.Tensor) -> torch.Tensor:
        rng = torch.Generator().manual_seed(int(index[0]))
        return torch.randint(0, 256, (len(index), 3, SIZE, SIZE), dtype=torch.uint8, generator=rng)

    return Dataset(cfg=cfg, split="train", num_images=num_images, read=read, content=lambda num: [])


def store_large(place: str) -> DataConfig:
    """The large set at `place`."""
    from unittest import mock

    small = replace(random_images(300), split="test")
    sets = {"train": random_images(LARGE), "test": small}
    with (
        mock.patch("orchestrator.training.prepare_data.load", lambda cfg, split: sets[split]),
        mock.patch("orchestrator.training.prepare_data.check_files"),
    ):
        prepare(small.cfg, place)
    return replace(small.cfg, root=place)


def store_pictures(folder: Path, num_images: int) -> DataConfig:
    """JPEG files of 200 x 200, as photographs are: smooth, so that decoding costs what it does."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(num_images):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((200, 200), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return DataConfig(name="image_folder", root=str(folder), image_size=SIZE)


def small_training(data: DataConfig) -> TrainConfig:
    """A net and chains far below the paper's, at the images' size."""
    settings = [f"data.image_size={SIZE}", "model.kind=plain", "model.widths=8,16,16", f"train.batch_size={BATCH}"]
    more = ["model.attention=false", "model.multiscale=false", "sampler.num_steps=2", "augment.enabled=false"]
    return replace(core_config(override(job_preset("cifar10"), settings + more)), data=data)


def waits(data: Dataset, start: int, steps: int) -> tuple[float, float, float]:
    """(seconds to the first batch, seconds waited for the others, seconds of all steps but the first)."""
    cfg = small_training(data.cfg)
    state = init_state(cfg)
    batches = labelled_batches(data, BATCH, start=start, stop=start + steps)
    began = time.perf_counter()
    x_data, _ = next(batches)
    first = time.perf_counter() - began
    train_step(state, x_data, cfg)
    waited, began = 0.0, time.perf_counter()
    for _ in range(steps - 1):
        asked = time.perf_counter()
        x_data, _ = next(batches)
        waited += time.perf_counter() - asked
        train_step(state, x_data, cfg)
    return first, waited, time.perf_counter() - began


def wait_rows(sources: dict[str, DataConfig], steps: int) -> Iterator[Row]:
    """What training waits for images, of its whole time; sets of windows cross from one to the next half-way."""
    for name, cfg in sources.items():
        data = load(cfg)
        boundary = sum(data.shards[:WINDOW]) // BATCH
        start = max(0, boundary - steps // 2)
        first, waited, whole = waits(data, start, steps)
        wait, step = 1e3 * waited / (steps - 1), 1e3 * whole / (steps - 1)
        note = f"{wait:.2f} ms of {step:.0f} ms a step; first batch {first:.2f} s"
        yield Row(f"waiting for images, {name}", waited / whole, 0.01, at_most=True, note=note)


def ours(cfg: DataConfig) -> Iterator[int]:
    """Sizes of the batches of one epoch, as training draws them."""
    for x_data, _ in labelled_batches(cfg, BATCH):
        yield len(x_data)


def arrow_take(cfg: DataConfig) -> Iterator[int]:
    """The same batches by pyarrow.dataset, which reads what holds a row anew each time."""
    import pyarrow.dataset as ds

    rows = ds.dataset(sorted(Path(cfg.root).glob("train-0*.parquet")), format="parquet")
    for step in range(4):
        index = batch_indices(LARGE, BATCH, 0, step)
        yield rows.take(index.numpy(), columns=["image"]).num_rows


def ray_data(cfg: DataConfig) -> Iterator[int]:
    """One epoch of Ray Data with a shuffle buffer as large as our window."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    files = [str(path) for path in sorted(Path(cfg.root).glob("train-0*.parquet"))]
    rows = ray.data.read_parquet(files, shuffle="files").select_columns(["image"])
    window = WINDOW * (LARGE // len(files))
    for batch in rows.iter_batches(batch_size=BATCH, batch_format="numpy", local_shuffle_buffer_size=window):
        levels = torch.from_numpy(np.frombuffer(b"".join(batch["image"]), np.uint8).reshape(-1, 3, SIZE, SIZE).copy())
        yield len(levels)


def rate(batches: Iterator[int]) -> float:
    """Images per second, the start included."""
    began = time.perf_counter()
    return sum(batches) / (time.perf_counter() - began)


def ways(cfg: DataConfig) -> Iterator[Row]:
    """Reading alone, each way once."""
    import ray

    own = rate(ours(cfg))
    take = rate(arrow_take(cfg))
    yield Row("our windows against pyarrow.dataset.take", own / take, note=f"{own:,.0f} and {take:,.0f} images/s")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2 * 2**30)
    try:
        stream = rate(ray_data(cfg))
    finally:
        ray.shutdown()
    note = f"{own:,.0f} and {stream:,.0f} images/s; its place in an epoch cannot be stored"
    yield Row("our windows against Ray Data, shuffle buffer of a window", own / stream, note=note)


def _serve(address: Any) -> None:
    with moto_server() as endpoint:
        make_bucket(endpoint, "datasets")
        address.send(endpoint)
        address.recv()


@contextmanager
def server() -> Iterator[str]:
    """Address of an S3 server in another process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,))
    process.start()
    try:
        yield here.recv()
    finally:
        here.send("end")
        process.join()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {name: token_hex(16) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}  # moto checks none
    with tempfile.TemporaryDirectory(prefix="ebm-bench-") as folder, server() as endpoint:
        large = store_large(f"{folder}/large")
        sources = {
            "JPEG files of 200 x 200": store_pictures(Path(folder, "pictures"), 6_000),
            "windows in a folder": large,
            "windows on S3": store_large(f"s3://datasets/large?endpoint_url={endpoint}"),
        }
        print_rows(wait_rows(sources, options.steps))
        print_rows(ways(large))


if __name__ == "__main__":
    main()
