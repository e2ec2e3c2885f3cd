"""`make bench-saving`: what storing a CIFAR-10 checkpoint costs training, and what reading it back takes."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from benchmarks.bench import Row, print_rows
from ebm_core import checkpoint
from ebm_core.config import TrainConfig
from ebm_core.rng import stream
from ebm_core.trainer import TrainState, fingerprint, init_state, train_step
from orchestrator.records import runs
from orchestrator.records.rows import Recorder
from orchestrator.settings.job import JobConfig, core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.training import group, worker

EVERY = 500
"""Steps between two checkpoints."""


def full_state(cfg: TrainConfig) -> TrainState:
    """A state with moments and a full buffer, as after thousands of steps."""
    state = init_state(cfg)
    generator = stream(0, 0, "bench")
    for _ in range(10):
        state.buffer.add(torch.rand(cfg.buffer.capacity // 10, *cfg.image_shape, generator=generator), generator)
    return state


def step_seconds(state: TrainState, cfg: TrainConfig) -> float:
    """One training step."""
    x = torch.rand(cfg.train.batch_size, *cfg.image_shape, generator=stream(0, state.step, "bench"))
    began = time.perf_counter()
    train_step(state, x, cfg)
    return time.perf_counter() - began


def save_seconds(loop: worker.Loop, state: TrainState) -> float:
    """How long training stands still for a save."""
    began = time.perf_counter()
    loop.save(state)
    return time.perf_counter() - began


def saving(batch: int, rounds: int) -> Iterator[Row]:
    """The same process trains and saves, as a worker does; each round has a step without a save and one beside it."""
    job = override(job_preset("cifar10"), [f"train.batch_size={batch}", "name=bench", "engine.num_threads=1"])
    cfg = core_config(job)
    state = full_state(cfg)
    step_seconds(state, cfg)  # makes the optimizer's moments
    with tempfile.TemporaryDirectory(prefix="ebm-bench-") as folder:
        run, loop = prepared(folder, job, cfg)
        alone, beside, blocked, whole = [], [], [], []
        for _ in range(rounds):
            alone.append(step_seconds(state, cfg))
            blocked.append(save_seconds(loop, state))
            beside.append(step_seconds(state, cfg))
            loop.finish()
            state.step += EVERY
            saved = state.step
            began = time.perf_counter()
            loop.save(state)
            loop.finish()
            whole.append(time.perf_counter() - began)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors") if f"{saved:09d}" in str(path))
        yield from costs(alone, beside, blocked, whole, size)
        expected, fresh = fingerprint(state), init_state(cfg)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as temp:
            found = run.newest_sound(Path(temp), print)
            assert found is not None
            checkpoint.load(fresh, found[1])
        seconds = time.perf_counter() - began
        assert fingerprint(fresh) == expected
    yield Row("seconds to find, verify and load it, over 5 s", seconds / 5, 1.0, at_most=True, note=f"{seconds:.2f} s")


def costs(
    alone: list[float], beside: list[float], blocked: list[float], whole: list[float], size: int
) -> Iterator[Row]:
    """Rows of what a save costs EVERY steps of this batch."""
    step, stall, stored = (statistics.median(values) for values in (alone, blocked, whole))
    slower = max(0.0, statistics.median(beside) - step)
    note = f"{size / 2**20:.0f} MiB; {stall:.2f} s still, the step beside it {slower:.2f} s slower, {step:.1f} s a step"
    yield Row(f"a save, of {EVERY} steps", (stall + slower) / (EVERY * step), 0.01, at_most=True, note=note)
    note = f"{stored:.2f} s in all; the rest is stored beside training"
    yield Row("standing still, of the whole save", stall / stored, note=note)


def prepared(folder: str, job: JobConfig, cfg: TrainConfig) -> tuple[Run, worker.Loop]:
    """A run in a folder, and the loop of its only worker, whose messages nobody reads."""
    run = RunStore(folder).run("bench")
    runs.create(run.store, job, {})
    box: Any = SimpleNamespace(post=SimpleNamespace(remote=lambda *_: None))
    return run, worker.Loop(run, cfg, job, group.Group(), box, Recorder(0))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4, help="small: the cost of a save does not depend on it")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with mock.patch.object(worker.ray, "get", lambda value: value):
        print_rows(saving(options.batch, options.rounds))


if __name__ == "__main__":
    main()
