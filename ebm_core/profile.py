"""Where the time of a training step goes: the real `train_step`, with a clock around its parts."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ebm_core import losses, trainer
from ebm_core.config import TrainConfig
from ebm_core.data import labelled_batches, load
from ebm_core.fast.engine import frozen_twin
from ebm_core.trainer import TrainState, init_state, train_step

PARTS = {
    "sampling": "Langevin steps, each a forward pass and an input gradient",
    "forwards": "energies of data and negatives",
    "backward": "gradients in theta, and of L_opt in the negatives",
    "KL": "gradient of L_KL in theta, through the last Langevin step",
    "buffer": "draw from and insert into the replay buffer, chain starts",
    "augmentation": "data augmentation transitions of past samples",
    "L_ent": "past samples of Eq. 7 and the nearest among them",
    "optimizer": "gradient norm, Adam",
    "EMA": "average of the parameters",
    "data wait": "the next batch of images",
    "communication": "average of gradients over the workers",
    "other": "metrics, stability monitor, effective weights of the frozen energy",
}
NETWORK = ("sampling", "forwards", "backward", "KL")
"""The parts that are network passes; all others should vanish beside them."""


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Median seconds of each part of a step, and the arithmetic behind the network passes."""

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


@dataclass(slots=True)
class _Part:
    """A part that runs: since when, and how much of it inner parts took."""

    name: str
    start: float
    inner: float = 0.0


class Clock:
    """Sums the time inside wrapped functions; what an inner one takes is not counted for the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[_Part] = []
        self._device = device

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = self.now()
        self._open.append(_Part(name, begin))
        try:
            yield
        finally:
            end, part = self.now(), self._open.pop()
            self._add(part.name, end - part.start - part.inner)
            if self._open:
                self._open[-1].inner += end - begin

    def rename(self, name: str, new: str) -> None:
        """What is left of the innermost part counts as `new`, if that part is `name`."""
        if self._open and self._open[-1].name == name:
            now, part = self.now(), self._open[-1]
            self._add(name, now - part.start - part.inner)
            self._open[-1] = _Part(new, now)

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call


def profile_step(cfg: TrainConfig, num_steps: int = 5) -> StepProfile:
    """Train two steps to warm up, then time `num_steps` steps of the real data; medians. DataError without data."""
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
    steps: list[dict[str, float]] = []
    clock = Clock(state.device)
    with clocked(state, clock):
        for _ in range(num_steps + 2):
            clock.seconds = {}
            with clock.part("other"):
                with clock.part("data wait"):
                    x_data, condition = next(batches)
                train_step(state, x_data, cfg, condition=condition)
            steps.append(clock.seconds)
    totals = [sum(step.values()) for step in steps]
    typical = steps[2:]
    seconds = {part: _median([step.get(part, 0.0) for step in typical]) for part in PARTS}
    chain_seconds = seconds["sampling"] / cfg.sampler.num_steps
    return StepProfile(
        seconds=seconds,
        step_seconds=_median(totals[2:]),
        first_step_seconds=totals[0],
        langevin_flops=langevin_flops(state, cfg),
        langevin_seconds=chain_seconds,
        ceiling_flops=convolution_ceiling(state.device, cfg.engine.precision),
    )


@contextmanager
def clocked(state: TrainState, clock: Clock) -> Iterator[None]:
    """Time the names that `train_step` calls; the step itself is the one that training runs."""
    names = {
        "improved_cd_loss": "forwards",
        "chain_starts": "buffer",
        "augment": "augmentation",
        "past_samples": "L_ent",
        "_clip": "optimizer",
        "_sync": "communication",
        "ema_update": "EMA",
    }

    def negatives(*args: Any, **kwargs: Any) -> torch.Tensor:
        x_neg = sample_negatives(*args, **kwargs)
        if x_neg.requires_grad:  # once their gradient is there, only L_KL's way into theta is left
            x_neg.register_hook(lambda _: clock.rename("backward", "KL"))
        return x_neg

    with ExitStack() as stack:
        sample_negatives = clock.timed("sampling", trainer.sample_negatives)
        stack.enter_context(patch.object(trainer, "sample_negatives", negatives))
        for name, part in names.items():
            stack.enter_context(patch.object(trainer, name, clock.timed(part, getattr(trainer, name))))
        entropy = clock.timed("L_ent", losses.nearest_neighbor_entropy)
        stack.enter_context(patch.object(losses, "nearest_neighbor_entropy", entropy))
        stack.enter_context(patch.object(torch.Tensor, "backward", clock.timed("backward", torch.Tensor.backward)))
        stack.enter_context(patch.object(state.optimizer, "step", clock.timed("optimizer", state.optimizer.step)))
        stack.enter_context(patch.object(state.buffer, "add", clock.timed("buffer", state.buffer.add)))
        yield


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
    clock, times = Clock(device), []
    with torch.no_grad():
        for _ in range(rounds + 2):
            start = clock.now()
            for _ in range(4):
                F.conv2d(x, weight, padding=1)
            times.append((clock.now() - start) / 4)
    return 2 * 16 * 32 * 32 * 9 * 64 * 64 / min(times)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
