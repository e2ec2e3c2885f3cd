"""What a step, a checkpoint, a restart and a score cost on n workers: formulas of a line each, and what they predict.

    python -m benchmarks.scaling_model [--operators]

Operations, operators and bytes are counted on the real presets. Rates of this machine come from scaling.json; those
of GPUs are assumptions, each with its source (SOURCES): no GPU was measured.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ebm_core.config import BufferConfig, ModelConfig, TrainConfig
from ebm_core.errors import ConfigError
from ebm_core.presets import PRESETS
from ebm_core.trainer import TrainState, init_state, train_step
from orchestrator.settings.job import job_preset
from orchestrator.settings.overrides import override

MEASURED: dict[str, Any] = json.loads(Path(__file__).with_name("scaling.json").read_text())
SHARED_FILES = 4
"""model, ema, optimizer and state of a checkpoint; each buffer shard is one file more."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a preset asks for, counted: `rest` is a step without its Langevin steps."""

    langevin_flops: float
    """Operations of convolutions and products, per image and Langevin step."""
    rest_flops: float
    langevin_operators: int
    """PyTorch operators that compute something (views do not), per Langevin step, whatever the batch."""
    rest_operators: int
    chain: int
    parameters: int

    @property
    def flops(self) -> float:
        """Operations of a training step, per image."""
        return self.rest_flops + self.chain * self.langevin_flops

    @property
    def operators(self) -> int:
        """Operators of a training step."""
        return self.rest_operators + self.chain * self.langevin_operators

    @property
    def gradient_bytes(self) -> int:
        """What the workers average in each step (its dozen metrics aside)."""
        return 4 * self.parameters


@dataclass(frozen=True, slots=True)
class Device:
    """A processor: operations per second that it reaches in such a network, and seconds that any operator costs."""

    name: str
    flops_per_s: float
    operator_s: float


@dataclass(frozen=True, slots=True)
class Link:
    """The slowest link of a ring: seconds of a hop, bytes per second of one worker in one direction."""

    name: str
    hop_s: float
    bytes_per_s: float


class _Counted(TorchDispatchMode):
    """Counts operators, views aside, and operations of convolutions and products."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.flops = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        self.operators += not any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def small(cfg: TrainConfig, chain: int, batch: int) -> TrainConfig:
    """The same network with short chains of a small batch, and a small buffer of one shard."""
    return dataclasses.replace(
        cfg,
        sampler=dataclasses.replace(cfg.sampler, num_steps=chain),
        train=dataclasses.replace(cfg.train, batch_size=batch),
        buffer=dataclasses.replace(cfg.buffer, num_shards=1, capacity=64),
    )


def counted(cfg: TrainConfig, batch: int = 1) -> Work:
    """Count the second step, when there are past samples and moments, with chains of one and of two steps."""
    found = []
    for chain in (1, 2):
        short = small(cfg, chain, batch)
        state, x = init_state(short), torch.rand(batch, *cfg.image_shape)
        train_step(state, x, short)
        with _Counted() as mode:
            train_step(state, x, short)
        found.append((mode.flops / batch, mode.operators))
    (flops, operators), (flops_two, operators_two) = found
    langevin_flops, langevin_operators = flops_two - flops, operators_two - operators
    parameters = sum(p.numel() for p in state.model.parameters())
    chain = cfg.sampler.num_steps
    rest = operators - langevin_operators
    return Work(langevin_flops, flops - langevin_flops, langevin_operators, rest, chain, parameters)


def compute_seconds(work: Work, images: float, device: Device) -> float:
    """A step of one worker: what its operators cost whatever they do, and its arithmetic."""
    return work.operators * device.operator_s + images * work.flops / device.flops_per_s


def ring_seconds(num_bytes: float, workers: int, link: Link) -> float:
    """An all-reduce: 2 (n - 1) hops, in each of which every worker sends an n-th of the bytes."""
    hops = 2 * (workers - 1)
    return hops * link.hop_s + hops / workers * num_bytes / link.bytes_per_s


def news_seconds(workers: int, broadcast_s: float) -> float:
    """`Loop.news`: two broadcasts (a size, a pickle) along a binomial tree. broadcast_s: of both, one hop."""
    return math.ceil(math.log2(workers)) * broadcast_s


def step_seconds(work: Work, images: float, workers: int, device: Device, link: Link, broadcast_s: float) -> float:
    """A step of n workers with so many images each. Nothing overlaps: gradients are averaged after the backward."""
    exchange = ring_seconds(work.gradient_bytes, workers, link) + news_seconds(workers, broadcast_s)
    return compute_seconds(work, images, device) + exchange


def efficiency(work: Work, images: float, workers: int, device: Device, link: Link, broadcast_s: float) -> float:
    """Images per second of n workers over n times those of one with as many images each (weak scaling)."""
    alone = step_seconds(work, images, 1, device, link, broadcast_s)
    return alone / step_seconds(work, images, workers, device, link, broadcast_s)


def speedup(work: Work, batch: int, workers: int, device: Device, link: Link, broadcast_s: float) -> float:
    """How much sooner a step of the same batch ends when n workers share it (strong scaling)."""
    alone = step_seconds(work, batch, 1, device, link, broadcast_s)
    return alone / step_seconds(work, batch / workers, workers, device, link, broadcast_s)


def checkpoint_bytes(cfg: TrainConfig, state: TrainState) -> dict[str, int]:
    """Bytes of tensors in a checkpoint with a full buffer, by part; headers and state.json are a few KiB more."""
    model = sum(t.numel() * t.element_size() for t in state.model.state_dict().values())
    parameters = list(state.model.parameters())
    moments = sum(2 * p.numel() * p.element_size() + 4 for p in parameters)  # two, and a float32 count of steps
    slot = math.prod(cfg.image_shape) + 8 + 4 * state.model.num_conditions  # levels, date, condition
    buffer = cfg.buffer.capacity * slot + 8 * cfg.buffer.num_shards
    return {"model": model, "ema": model, "optimizer": moments, "buffer": buffer}


def save_requests(shards: int, keep: int, rows: bool = True) -> dict[str, int]:
    """Requests to an S3 store for a checkpoint once old ones go: an upload is PUT and HEAD, reading back HEAD and GET.

    Also uploaded: the picture, the metrics of the steps since, MANIFEST.json, COMMITTED. Listings: of the attempt, and
    of all that is kept. Reading back looks at the two newest COMMITTED, and at the newest checkpoint's files.
    """
    files = SHARED_FILES + shards
    uploads = files + 3 + rows
    pages = math.ceil((files + 1) / 1000) + math.ceil((keep + 1) * (files + 2) / 1000)
    return {"PUT": uploads, "HEAD": uploads + files, "GET": pages + 4 + files, "DELETE": files + 2}


def serial_requests(shards: int, workers: int, keep: int, rows: bool = True) -> int:
    """Those of `save_requests` that rank 0 makes one after another: all but the other ranks' uploads."""
    return sum(save_requests(shards, keep, rows).values()) - 2 * (shards - shards // workers)


def restart_requests(shards: int, workers: int) -> tuple[int, int, int]:
    """Requests of a restart by (rank 0; all other ranks; all other ranks if each read everything, as it was before).

    Rank 0 lists; each reads COMMITTED, the manifest, and HEAD and GET a file.
    """
    pages = math.ceil((SHARED_FILES + shards + 2) / 1000)
    first = pages + 2 + 2 * (SHARED_FILES + shards)
    others = (workers - 1) * (2 + 2 * (SHARED_FILES + shards // workers))
    return first, others, (workers - 1) * (2 + 2 * (SHARED_FILES + shards))


def past_samples(cfg: TrainConfig, workers: int) -> int:
    """Size of B in Eq. 7: a worker measures against its own shards (`trainer.past_samples`)."""
    return min(cfg.loss.num_past, cfg.buffer.capacity // workers)


def score_seconds(work: Work, images: int, steps: int, batch: int, device: Device, actors: int) -> float:
    """Chains of `images` images in batches, shared by the actors; features and distances are not counted."""
    langevin = work.langevin_operators * device.operator_s + batch * work.langevin_flops / device.flops_per_s
    return math.ceil(images / batch / actors) * steps * langevin


def lost_share(workers: int, failures_per_hour: float, interval_s: float, restart_s: float) -> float:
    """Part of the time that failures cost: each loses half an interval between checkpoints, and a restart."""
    return workers * failures_per_hour / 3600 * (interval_s / 2 + restart_s)


def refusal(preset: str, workers: int, *settings: str) -> str:
    """What the settings say to so many workers; empty: nothing."""
    try:
        override(job_preset(preset), [*settings, f"cluster.num_workers={workers}"])
    except ConfigError as why:
        return str(why)
    return ""


REPORTED = 10.69e12 / 0.61
"""Operations per second of an RTX 3090: a user reports 0.61 s for an iteration of the authors' code at batch 128, which
has about the operations of a step of ours (`counted`)."""
SOURCES = {
    "H100 SXM: float32 66.9 and TF32 494.7 TFLOP/s, NVLink 900 GB/s in both directions together": (
        "https://glennklockwood.com/garden/processors/h100"
    ),
    "RTX 3090: float32 35.6 TFLOP/s": (
        "https://holynerdvana.blogspot.com/2022/10/nvidia-geforce-rtx-3090-specifications.html"
    ),
    "400 Gb/s between nodes for each GPU, 419 failures in 54 days of 16,384 H100": "https://arxiv.org/abs/2407.21783",
    "4 to 6 us to launch a kernel": "https://susun-blog.com/blog/pegainfer-3-cuda-graph",
    "S3: 100 to 200 ms for a small object": (
        "https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html"
    ),
    "S3: 3,500 writes and 5,500 reads per second and prefix": (
        "https://docs.aws.amazon.com/AmazonS3/latest/dev/request-rate-perf-considerations.html"
    ),
}
SLOW = Device("H100, slow", 66.9e12 * REPORTED / 35.6e12, 5e-6)
"""The RTX 3090's share of its float32 peak, of the H100's."""
FAST = Device("H100, fast", 494.7e12 * REPORTED / 35.6e12, 5e-6)
"""The same share of the H100's TF32 peak, which PyTorch lets convolutions use: hardly reached by layers as narrow as
these. Arithmetic this quick is the harder case for all that surrounds it."""
NVLINK = Link("NVLink", 5e-6, 450e9)
INFINIBAND = Link("400 Gb/s a GPU", 5e-6, 50e9)
ETHERNET = Link("100 Gb/s a node", 20e-6, 12.5e9)
FAILURES_PER_HOUR = 419 / (54 * 24 * 16_384)
REQUEST_S = (0.02, 0.1)
"""Seconds of a request for a small object, assumed: a near and quick server, and the lower end of what AWS names."""


def broadcast_seconds() -> float:
    """Measured here: `Group.from_first` between two processes."""
    return MEASURED["exchange"]["2"]["figures"]["from_first, a step's news"]["least_s"]


def here() -> Link:
    """Measured here: gloo over loopback between two processes."""
    ring = MEASURED["exchange"]["2"]["ring"]
    return Link("gloo, loopback", ring["latency_s"], ring["bytes_per_s"])


def operator_seconds(rounds: int = 15) -> float:
    """Measured now: seconds an operator of a step whose arithmetic is next to nothing takes in PyTorch, uncompiled."""
    model = ModelConfig(widths=(1, 1, 1, 1, 1), norm="instance", attention=False)
    cfg = dataclasses.replace(PRESETS["cifar10"](), model=model, buffer=BufferConfig(capacity=64, num_shards=1))
    cfg = small(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, image_size=16)), 10, 1)
    work, state, x = counted(cfg), init_state(cfg), torch.rand(1, *cfg.image_shape)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        train_step(state, x, cfg)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) / work.operators


def link_for(workers: int) -> Link:
    """NVLink within a node of 8."""
    return NVLINK if workers <= 8 else INFINIBAND


def print_counts(presets: dict[str, tuple[TrainConfig, Work]]) -> None:
    print("| Preset | Parameters | GFLOP a Langevin step and image | TFLOP a step | Operators a step | MB averaged |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (cfg, work) in presets.items():
        cells = (
            f"{work.parameters:,} | {work.langevin_flops / 1e9:.3f} | {cfg.train.batch_size * work.flops / 1e12:.2f}"
        )
        print(f"| {name} | {cells} | {work.operators:,} | {work.gradient_bytes / 1e6:.1f} |")
    print("\n| Preset | model | EMA | moments | buffer | in all, MB |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (cfg, _) in presets.items():
        parts = checkpoint_bytes(cfg, init_state(cfg))
        cells = " | ".join(f"{size / 1e6:.1f}" for size in (*parts.values(), sum(parts.values())))
        print(f"| {name} | {cells} |")


def print_steps(presets: dict[str, tuple[TrainConfig, Work]]) -> None:
    """Both kinds of scaling, for each device."""
    head = "| Preset | Device | GPUs | Images a GPU | Step, ms | Launching | Averaging, ms | News, ms | Images/s | "
    for kind in ("the same batch, shared", "the preset's batch on each GPU"):
        print(f"\n{kind}:\n\n{head}{'Speed-up' if 'same' in kind else 'Efficiency'} |")
        print("| --- | --- |" + " ---: |" * 8)
        for name, (cfg, work) in presets.items():
            for device in (SLOW, FAST):
                for workers in (1, 8, 64, 512):
                    images = cfg.train.batch_size / (workers if "same" in kind else 1)
                    if images < 1:
                        continue
                    about = (work, images, workers, device, link_for(workers), broadcast_seconds())
                    whole = step_seconds(*about)
                    ring = ring_seconds(work.gradient_bytes, workers, link_for(workers))
                    told = news_seconds(workers, broadcast_seconds())
                    gain = efficiency(*about)
                    if "same" in kind:
                        gain = speedup(work, cfg.train.batch_size, *about[2:])
                    launching = f"{100 * work.operators * device.operator_s / whole:.0f} %"
                    cells = f"{workers} | {images:g} | {1e3 * whole:.0f} | {launching} | {1e3 * ring:.1f}"
                    rate = f"{workers * images / whole:,.0f}"
                    print(f"| {name} | {device.name} | {cells} | {1e3 * told:.1f} | {rate} | {gain:.2f} |")


def print_control(presets: dict[str, tuple[TrainConfig, Work]], keep: int = 3, every: int = 500) -> None:
    """What surrounds the steps."""
    print("\n| GPUs and batch shards | Requests a checkpoint | by rank 0 in turn | s at 20 and 100 ms |", end="")
    print(" a restart: rank 0, others | others before |\n| ---: | ---: | ---: | ---: | ---: | ---: |")
    for workers in (8, 64, 512):
        every_one, turn = sum(save_requests(workers, keep).values()), serial_requests(workers, workers, keep)
        first, others, before = restart_requests(workers, workers)
        seconds = ", ".join(f"{turn * s:.0f}" for s in REQUEST_S)
        print(f"| {workers} | {every_one:,} | {turn:,} | {seconds} | {first:,}, {others:,} | {before:,} |")
    print("\n| Preset | GPUs | As it is | Past samples a GPU | Time lost to failures |")
    print("| --- | ---: | --- | ---: | ---: |")
    for name, (cfg, work) in presets.items():
        for workers in (8, 64, 512):
            step = step_seconds(work, cfg.train.batch_size, workers, SLOW, link_for(workers), broadcast_seconds())
            lost = lost_share(workers, FAILURES_PER_HOUR, every * step, 300)
            says = refusal(name, workers).partition(": ")[2] or "accepted"
            print(f"| {name} | {workers} | {says} | {past_samples(cfg, workers)} | {100 * lost:.3f} % |")
    print("\n| Preset | Images | Steps | Actors | Hours, slow and fast |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (cfg, work) in presets.items():
        for actors in (1, 8):
            steps = cfg.sampler.generate_steps
            hours = [score_seconds(work, 50_000, steps, 256, device, actors) / 3600 for device in (SLOW, FAST)]
            print(f"| {name} | 50,000 | {steps} | {actors} | {hours[0]:.2f}, {hours[1]:.2f} |")


def main() -> None:
    """Print the tables of docs/scaling.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--operators", action="store_true", help="measure what an operator costs on this machine, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.operators:
        print(
            f"{1e6 * operator_seconds():.1f} us an operator of PyTorch on this machine, load {os.getloadavg()[0]:.1f}\n"
        )
    presets = {name: (PRESETS[name](), counted(PRESETS[name]())) for name in ("cifar10", "celeba_hq")}
    print_counts(presets)
    print_steps(presets)
    print_control(presets)


if __name__ == "__main__":
    main()
