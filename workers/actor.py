"""Evaluator and composer as Ray actors: the only file of this package that knows Ray."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch

from ebm_core.config import DataConfig, from_tree
from workers.calls import Call
from workers.evaluator import Evaluator
from workers.studies.composer import Composer

T = TypeVar("T")

Fetch = Callable[[int, str], Path]
"""Brings the checkpoint of a step into the folder of that name, wherever it is stored; returns where it lies."""


class ScoreActor:
    """Scores checkpoints of one run by their step, one at a time."""

    def __init__(
        self, fetch: Fetch, data: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        """data: a DataConfig as a tree, where this machine's files lie elsewhere than in training.

        options: further arguments of Evaluator, such as `weights` and `num_reference`. It runs on the actor's GPU, if
        it has one. An actor that reserved neither CPU nor GPU has one thread, which runs while a core is free.
        """
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
        torch.set_num_threads(max(1, int(cpus)))
        if not cpus and not ray.get_gpu_ids():
            give_way()
        self._fetch = fetch
        self._data = None if data is None else from_tree(DataConfig, data, "data")
        self._options = dict(options or {}) | {"device": "cuda" if ray.get_gpu_ids() else "cpu"}
        self._open: tuple[int, Evaluator] | None = None

    def call(self, step: int, asked: Call[Evaluator, T]) -> T:
        """`asked` of the evaluator of the checkpoint at `step`, fetched once and kept until another step is asked for.

        The copy of the checkpoint is removed. Raises what `fetch` and the call raise; the caller sees that EbmError.
        """
        if self._open is None or self._open[0] != step:
            self._open = None  # two models at a time need not fit
            with tempfile.TemporaryDirectory(prefix="ebm-score-") as folder:
                evaluator = Evaluator.from_checkpoint(self._fetch(step, folder), self._data, **self._options)
            self._open = (step, evaluator)
        return asked(self._open[1])

    def num_threads(self) -> int:
        """Threads of PyTorch's operators in this actor."""
        return torch.get_num_threads()


class CompositionActor:
    """Draws from compositions of checkpoints of several runs."""

    def __init__(self, fetches: Sequence[tuple[Fetch, int]]) -> None:
        """fetches: what brings each run's checkpoint, and its step."""
        torch.set_num_threads(1)
        self._fetches = fetches
        self._composer: Composer | None = None

    def call(self, asked: Call[Composer, T]) -> T:
        """`asked` of the `Composer` of these checkpoints, fetched at the first call. Raises what it raises."""
        if self._composer is None:
            with tempfile.TemporaryDirectory(prefix="ebm-compose-") as folder:
                places = [Path(folder, str(i)) for i in range(len(self._fetches))]
                found = [fetch(step, str(p)) for (fetch, step), p in zip(self._fetches, places, strict=True)]
                self._composer = Composer.from_checkpoints(found)
        return asked(self._composer)


def give_way() -> None:
    """Let this thread, and those that it starts, run only on cores that nothing else wants, where the system can.

    A core that runs nothing but such threads counts as free, so whatever wakes up goes there and not to training's.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def evaluator_actor(num_cpus: float = 1, num_gpus: float = 0) -> Any:
    """The actor class with these resources: `evaluator_actor().remote(fetch)`, then `.call.remote(step, call(...))`."""
    return ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(ScoreActor)


def composition_actor(num_cpus: float = 1) -> Any:
    """The actor class with these resources."""
    return ray.remote(num_cpus=num_cpus)(CompositionActor)
