"""Scores and sample grids of checkpoints, made by actors beside training; their failures never reach training."""

import queue
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from ebm_core.errors import EbmError, kind_and_line
from orchestrator.cluster.connection import ClusterError
from orchestrator.cluster.environment import storage_environment
from orchestrator.cluster.pool import Pool, PoolRunner
from orchestrator.evaluation.actors import FetchCheckpoint, new_actor, num_actors
from orchestrator.evaluation.evaluate import Evaluation, score, store_results
from orchestrator.records.scores import ema_grid_key, headline, is_scored, unscored
from orchestrator.settings.job import JobConfig, core_config
from orchestrator.storage.commits import step_name
from orchestrator.storage.run_store import Run
from workers.calls import call
from workers.evaluator import Evaluator
from workers.features.weights import Weights

ATTEMPTS = 2
"""Attempts at scoring a checkpoint, each with fresh actors; within one, the image shard of a dead actor is repeated."""


class Scorer:
    """A thread of the driver that hands checkpoints to scoring actors, in order, and stores what comes back."""

    def __init__(self, job: JobConfig, run: Run, weights: Weights | None = None) -> None:
        """Begins with the stored checkpoints that an earlier job has left without scores."""
        self._job, self._run, self._weights = job, run, weights or Weights.default()
        self.num_failures = 0
        """Attempts that failed."""
        self.headlines: dict[str, float] = {}
        """Newest score by metric."""
        self._offered: set[int] = set()
        self._steps: queue.Queue[int | None] = queue.Queue()
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._pool: Pool | None = None
        self._scored: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self._closed = False
        self._warned = False
        for step in unscored(run, job):
            self.offer(step)
        self._thread = threading.Thread(target=self._work, name="ebm-scorer", daemon=True)
        self._thread.start()

    def offer(self, step: int, always: bool = False) -> None:
        """Score the committed checkpoint of `step`, if it is one of those that get scores, or `always`."""
        if (always or is_scored(step, self._job)) and step not in self._offered:
            self._offered.add(step)
            self._steps.put(step)

    def messages(self) -> list[str]:
        """What has gone well or wrong since the last call, a line each."""
        return [self._messages.get() for _ in range(self._messages.qsize())]

    def scored(self) -> list[tuple[int, dict[str, Any]]]:
        """(step, score documents) of what was stored since the last call."""
        return [self._scored.get() for _ in range(self._scored.qsize())]

    def busy(self) -> bool:
        """Whether some of what was offered is not scored yet."""
        return self._steps.unfinished_tasks > 0

    def close(self) -> None:
        """End the thread and the actors, finished or not."""
        self._closed = True
        self._steps.put(None)
        self._end_actors()

    def _end_actors(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            for attempt in range(ATTEMPTS):
                try:
                    self._score(step)
                    break
                except Exception as error:  # scoring is a guest here: whatever it does, training goes on
                    if self._closed or self._is_given_up(step, attempt, error):
                        break
            if self._closed:
                return
            self._steps.task_done()

    def _is_given_up(self, step: int, attempt: int, error: Exception) -> bool:
        """Say what went wrong, and whether another attempt is worthwhile."""
        try:
            self._end_actors()
            if not any(self._run.list(f"checkpoints/{step_name(step)}/COMMITTED")):
                keep = self._job.checkpoint.keep
                self._messages.put(f"step {step} is not scored: its turn came after checkpoint.keep={keep} deleted it")
                return True
        except (EbmError, RayError):
            pass  # a store or a Ray that does not answer: the attempts count
        last = attempt + 1 == ATTEMPTS
        self.num_failures += 1
        self._messages.put(f"scoring step {step} failed ({_cause(error)}); {'giving up' if last else 'trying again'}")
        return last

    def _score(self, step: int) -> None:
        request, seed = self._job.evaluation, self._job.seed
        if self._pool is None:
            count = request.num_actors or num_actors(request)
            if request.use_gpu and ray.cluster_resources().get("GPU", 0) < count:
                raise ClusterError(f"evaluation.use_gpu = true: this Ray has not {count} GPUs")
            fetch = FetchCheckpoint(self._job.storage, str(self._job.name), storage_environment())
            make = partial(new_actor, fetch, request, self._weights, num_cpus=0)  # training has taken the CPUs
            self._pool = Pool(make, count, self._messages.put)
        runner, trained = PoolRunner(self._pool, (step,)), core_config(self._job).data
        asked = Evaluation(request=request, seed=seed, run=self._run, step=step, trained=trained, runner=runner)
        found = score(asked)
        grid = runner.run({0: call(Evaluator.grid_png, request.grid_count, seed)})[0]
        store_results(asked, found)
        self._run.write_bytes(ema_grid_key(step), grid)
        self.headlines |= {name: headline(document) for name, document in found.items()}
        self._scored.put((step, found))
        self._warn(step, found)

    def _warn(self, step: int, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Say once that the samples have collapsed."""
        spread = found.get("diversity", {})
        if spread.get("collapsed") and not self._warned:
            self._warned = True
            self._messages.put(f"step {step}: {'; '.join(spread['notes'])}")


def _cause(error: Exception) -> str:
    """The EbmError that the actor raised, or the first line of what else went wrong."""
    inner = getattr(error, "cause", None) or error
    if isinstance(inner, EbmError):
        return str(inner)
    return kind_and_line(inner)
