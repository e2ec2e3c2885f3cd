"""Where the time of a training step goes: `train_step` under PyTorch's profiler, by the names of its parts."""

import time
from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from ebm_core.config import TrainConfig
from ebm_core.data import labelled_batches, load
from ebm_core.fast.engine import frozen_twin
from ebm_core.trainer import TrainState, init_state, train_step

PARTS = {
    "sampling": "Langevin steps, each a forward pass and an input gradient",
    "forwards": "energies of data and samples; the flow term",
    "backward": "gradients in theta, and of L_opt in the samples",
    "KL": "gradient of L_KL in theta, through the last Langevin step",
    "buffer": "chain starts: draw from and insert into the buffer",
    "augmentation": "data augmentation transitions of past samples",
    "L_ent": "past samples of Eq. 7 and the nearest among them",
    "optimizer": "gradient norm, Adam",
    "EMA": "average of the parameters",
    "data wait": "the next batch of images",
    "communication": "average of gradients over the workers",
    "other": "logged numbers, stability monitor, effective weights of the frozen energy",
}
STEP = "step"
"""What a whole step is recorded as."""
NETWORK = ("sampling", "forwards", "backward", "KL")
"""The parts that are network passes; all others should vanish beside them."""


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Seconds of each part of the median step, and the arithmetic behind the network passes."""

    seconds: dict[str, float]
    step_seconds: float
    first_step_seconds: float
    """The first step, which compiles where `engine.compile` is set."""
    langevin_flops: int
    """Floating-point operations of one Langevin step, convolutions and matrix products alone."""
    langevin_seconds: float
    ceiling_flops: float
    """Measured operations per second of a 3x3 convolution of 64 channels at the engine's precision."""

    @property
    def overhead(self) -> float:
        """Fraction of the step that no network pass accounts for."""
        return 1 - sum(self.seconds[part] for part in NETWORK) / self.step_seconds

    @property
    def achieved_flops(self) -> float:
        """Operations per second of the sampling."""
        return self.langevin_flops / self.langevin_seconds

    def hours(self, num_steps: int) -> float:
        """Predicted hours of `num_steps` steps: checkpoints and scores come on top."""
        return (self.first_step_seconds + (num_steps - 1) * self.step_seconds) / 3600


def profile_step(cfg: TrainConfig, num_steps: int = 5) -> StepProfile:
    """Train two steps to warm up, then time `num_steps` of the real data and take the median one. DataError without."""
    state = init_state(cfg)
    images = load(cfg.data, "train")
    batches = labelled_batches(
        images,
        cfg.train.batch_size,
        seed=cfg.seed,
        start=0,
        stop=num_steps + 2,
        shards=state.shards,
        device=state.device,
    )

    def step() -> None:
        with record_function("data wait"):
            x_data, condition = next(batches)
        train_step(state, x_data, cfg, condition=condition)

    start = _now(state.device)
    step()
    first = _now(state.device) - start
    step()
    by_length = sorted(timed_parts(step, num_steps, state.device), key=lambda parts: sum(parts.values()))
    seconds = by_length[num_steps // 2]
    chain_seconds = seconds["sampling"] / cfg.sampler.num_steps
    return StepProfile(
        seconds=seconds,
        step_seconds=sum(seconds.values()),
        first_step_seconds=first,
        langevin_flops=langevin_flops(state, cfg),
        langevin_seconds=chain_seconds,
        ceiling_flops=convolution_ceiling(state.device, cfg.engine.precision),
    )


def timed_parts(step: Callable[[], object], num_steps: int, device: torch.device) -> list[dict[str, float]]:
    """Run `step` under PyTorch's profiler: for each of `num_steps` times the seconds of PARTS, which add up to it."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(num_steps):
            with record_function(STEP):
                step()
                if on_gpu:
                    torch.cuda.synchronize(device)
    return parts_of(profiler.events() or [])


def parts_of(events: Iterable[Any]) -> list[dict[str, float]]:
    """Seconds of PARTS in each recorded step, from the profiler's events (its times are in microseconds).

    What an inner part takes is not counted for the outer one. Where kernels ran on a GPU, a part has the seconds of the
    kernels that it launched, and `other` the rest of the step.
    """
    on_cpu = sorted((e for e in events if e.device_type.name == "CPU"), key=lambda e: e.time_range.start)
    marks = [event for event in on_cpu if event.is_user_annotation and event.name in PARTS]
    found = []
    for step in (event.time_range for event in on_cpu if event.is_user_annotation and event.name == STEP):
        turns = _turns(step, [mark for mark in marks if step.start <= mark.time_range.start < step.end])
        seconds = dict.fromkeys(PARTS, 0.0)
        launches = [event for event in on_cpu if event.kernels and step.start <= event.time_range.start < step.end]
        for event in launches:
            _, part = turns[bisect(turns, event.time_range.start, key=lambda turn: turn[0]) - 1]
            seconds[part] += 1e-6 * sum(kernel.duration for kernel in event.kernels)
        if launches:
            seconds["other"] += max(0.0, 1e-6 * (step.end - step.start) - sum(seconds.values()))
        else:
            for (start, part), (end, _) in pairwise([*turns, (step.end, "")]):
                seconds[part] += 1e-6 * (end - start)
        found.append(seconds)
    return found


def _turns(step: Any, marks: list[Any]) -> list[tuple[float, str]]:
    """(since when, the innermost part) through a step. A mark `KL` turns what is left of a backward pass into it."""
    turns, open_parts = [(step.start, "other")], [(step.end, "other")]

    def close(until: float) -> None:
        while len(open_parts) > 1 and open_parts[-1][0] <= until:
            end, _ = open_parts.pop()
            turns.append((end, open_parts[-1][1]))

    for mark in marks:
        start, end = mark.time_range.start, mark.time_range.end
        close(start)
        if mark.name == "KL" and open_parts[-1][1] == "backward":
            open_parts[-1] = (open_parts[-1][0], "KL")
        elif mark.name != "KL":
            open_parts.append((end, mark.name))
        turns.append((start, open_parts[-1][1]))
    close(step.end)
    return turns


def langevin_flops(state: TrainState, cfg: TrainConfig) -> int:
    """Operations of one Langevin step of this worker's batch: a forward pass and the input gradient.

    Those of direct convolutions, whether or not `engine.winograd` saves some.
    """
    count = sum(state.shards.sizes(cfg.train.batch_size))
    x = torch.zeros((count, *cfg.image_shape), device=state.device, requires_grad=True)
    condition = None
    if state.model.num_conditions:
        condition = torch.zeros((count, state.model.num_conditions), device=state.device)
    with FlopCounterMode(display=False) as counter:
        at = state.engine.lowered(x).clone()  # the counter's hooks need an inner node
        torch.autograd.grad(frozen_twin(state.model, at.dtype)(at, condition).sum(), x)
    return counter.get_total_flops()


def convolution_ceiling(device: torch.device, precision: str, rounds: int = 7) -> float:
    """Operations per second of a single 3x3 convolution, 64 channels on 16 images of 32 x 32: the best of `rounds`."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x = torch.randn(16, 64, 32, 32, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    times = []
    with torch.no_grad():
        for _ in range(rounds + 2):
            start = _now(device)
            for _ in range(4):
                F.conv2d(x, weight, padding=1)
            times.append((_now(device) - start) / 4)
    return 2 * 16 * 32 * 32 * 9 * 64 * 64 / min(times)


def _now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
