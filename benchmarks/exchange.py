"""What the workers' exchanges cost on gloo over loopback: `average_gradients`, `Group.from_first` and `Group.all`.

    python -m benchmarks.exchange [--workers 2 4 8] [--rounds 30] [--json FILE]

Real processes and a real process group, without Ray. On two cores more than two processes take turns, and a barrier
then waits for the scheduler: the least of the rounds says what the exchange itself costs, the median what it was.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from orchestrator.training.group import Group, average_gradients

SIZES = {
    "1 KiB": 2**10,
    "digits, 0.8 MiB": 4 * 210_657,
    "4 MiB": 2**22,
    "cifar10, 25 MiB": 4 * 6_564_196,
    "celeba_hq, 103 MiB": 4 * 27_053_700,
}
"""Bytes of float32 gradients: three presets', and two round figures."""


def timed(rounds: int, work: Callable[[], object]) -> dict[str, float]:
    """Least and median seconds of this rank, all ranks beginning together; the first call is not counted."""
    seconds = []
    for _ in range(rounds + 1):
        dist.barrier()
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return {"least_s": min(seconds[1:]), "median_s": statistics.median(seconds[1:])}


def rank_main(rank: int, size: int, folder: str, rounds: int) -> None:
    """One worker; rank 0 leaves the figures in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    group, found = Group(rank, size), {}
    for name, count in SIZES.items():
        tensors = [torch.ones(count // 4), torch.ones(12, dtype=torch.float64)]  # gradients; the step's metrics
        found[f"average_gradients, {name}"] = timed(rounds, lambda tensors=tensors: average_gradients(tensors))
    found["from_first, a step's news"] = timed(4 * rounds, lambda: group.from_first((False, False)))
    found["all, None"] = timed(4 * rounds, lambda: group.all(None))
    if rank == 0:
        Path(folder, "figures.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measured(size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Figures of rank 0 of a group of this size."""
    with tempfile.TemporaryDirectory(prefix="ebm-bench-") as folder:
        spawn(rank_main, (size, folder, rounds), nprocs=size)
        return json.loads(Path(folder, "figures.json").read_text())


def ring_constants(figures: dict[str, dict[str, float]], size: int) -> dict[str, float]:
    """Latency of a hop and bytes per second of a ring: 2 (n - 1) latency + 2 (n - 1) / n bytes / rate seconds.

    A straight line by least squares through the least times, each weighted by its own.
    """
    times = np.array([figures[f"average_gradients, {name}"]["least_s"] for name in SIZES])
    moved = np.array([2 * (size - 1) / size * count for count in SIZES.values()])
    design = np.stack([np.full_like(times, 2 * (size - 1)), moved], axis=1)
    latency, per_byte = np.linalg.lstsq(design / times[:, None], np.ones_like(times), rcond=None)[0]
    return {"latency_s": float(latency), "bytes_per_s": float(1 / per_byte)}


def main() -> None:
    """Print a table; with --json, write all figures as well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    record: dict[str, Any] = {"load_before": os.getloadavg()[0], "workers": {}}
    print("| Workers | Exchange | Least, ms | Median, ms |\n| ---: | --- | ---: | ---: |")
    for size in options.workers:
        figures = measured(size, options.rounds)
        constants = ring_constants(figures, size)
        record["workers"][size] = {"figures": figures, "ring": constants}
        for name, one in figures.items():
            print(f"| {size} | {name} | {1e3 * one['least_s']:.2f} | {1e3 * one['median_s']:.2f} |", flush=True)
        rate = constants["bytes_per_s"]
        print(f"| {size} | ring: {1e6 * constants['latency_s']:.0f} us a hop, {rate / 1e9:.2f} GB/s | | |", flush=True)
        record["load_after"] = os.getloadavg()[0]
        if options.json:
            options.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"load {record['load_before']:.1f} before, {record['load_after']:.1f} after")


if __name__ == "__main__":
    main()
