"""Scores and sample grids of checkpoints, made by an actor beside training; its failures never reach training."""

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from ebm_core.errors import EbmError
from orchestrator.cluster import WORKER_ENV, adopt, storage_environment
from orchestrator.config import JobConfig
from orchestrator.runs import ema_grid_key, headline
from orchestrator.storage import Run, RunStore, step_name
from workers.actor import evaluator_actor

ATTEMPTS = 2
"""A scorer that fails or dies is tried once more, with a fresh actor."""


@dataclass(frozen=True)
class FetchCheckpoint:
    """What the actor calls to get a checkpoint of this run, on whichever node it lives."""

    storage: str
    name: str
    environment: Mapping[str, str] = field(repr=False)

    def __call__(self, step: int, folder: str) -> Path:
        """Download and verify the checkpoint of `step` into `folder`."""
        adopt(self.environment)
        return RunStore(self.storage).run(self.name).fetch_checkpoint(step, Path(folder))


def is_scored(step: int, job: JobConfig) -> bool:
    """Whether a checkpoint gets scores: with evaluation.every, its multiples and the last step."""
    every = job.evaluation.every
    return every > 0 and (step % every == 0 or step == job.train.num_steps)


class Scorer:
    """A thread of the driver that hands checkpoints to a scoring actor, in order, and stores what comes back."""

    def __init__(self, job: JobConfig, run: Run) -> None:
        self._job, self._run = job, run
        self.num_failures = 0
        """Attempts that failed."""
        self.headlines: dict[str, float] = {}
        """Newest score by metric."""
        self._steps: queue.Queue[int | None] = queue.Queue()
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._actor: Any = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="ebm-scorer", daemon=True)
        self._thread.start()

    def offer(self, step: int) -> None:
        """Score the committed checkpoint of `step`, if it is one of those that get scores."""
        if is_scored(step, self._job):
            self._steps.put(step)

    def messages(self) -> list[str]:
        """What has gone well or wrong since the last call, a line each."""
        return [self._messages.get() for _ in range(self._messages.qsize())]

    def busy(self) -> bool:
        """Whether some of what was offered is not scored yet."""
        return self._steps.unfinished_tasks > 0

    def close(self) -> None:
        """End the thread and the actor, finished or not."""
        self._closed = True
        self._steps.put(None)
        self._end_actor()

    def _end_actor(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            for attempt in range(ATTEMPTS):
                try:
                    self._score(step)
                    break
                except Exception as error:  # scoring is a guest here: whatever it does, training goes on
                    if self._closed:
                        return
                    self.num_failures += 1
                    again = "trying again" if attempt + 1 < ATTEMPTS else "giving up"
                    self._messages.put(f"scoring step {step} failed ({_cause(error)}); {again}")
                    self._end_actor()
            self._steps.task_done()

    def _score(self, step: int) -> None:
        evaluation = self._job.evaluation
        if self._actor is None:
            fetch = FetchCheckpoint(self._job.storage, str(self._job.name), storage_environment())
            self._actor = evaluator_actor(num_cpus=0).options(runtime_env={"env_vars": WORKER_ENV}).remote(fetch)
        found: Any = ray.get(
            self._actor.score.remote(
                step, evaluation.metrics, evaluation.num_images, self._job.seed, evaluation.grid_count
            )
        )
        folder = step_name(step)
        for name, document in found["scores"].items():
            self._run.write_json(f"evaluations/{folder}/{name}.json", document)
            self.headlines[name] = headline(document)
        self._run.write_bytes(ema_grid_key(step), found["grid_png"])


def _cause(error: Exception) -> str:
    """The EbmError that the actor raised, or the first line of what else went wrong."""
    inner = getattr(error, "cause", None) or error
    if isinstance(inner, EbmError):
        return str(inner)
    return f"{type(inner).__name__}: {(str(inner).splitlines() or [''])[0]}"
