"""Scoring actors: how they are made, how many, and how each gets a checkpoint, on whichever node it lives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster.connection import ClusterError
from orchestrator.cluster.environment import WORKER_ENV, adopt
from orchestrator.settings.job import EvaluationConfig
from orchestrator.storage.run_store import RunStore
from workers.actor import evaluator_actor
from workers.features.weights import KINDS, Weights
from workers.metrics.registry import METRICS


@dataclass(frozen=True)
class FetchCheckpoint:
    """What the actor calls with a step and a folder."""

    storage: str
    name: str
    environment: Mapping[str, str] = field(repr=False)

    def __call__(self, step: int, folder: str) -> Path:
        """Download and verify the checkpoint of `step` into `folder`."""
        adopt(self.environment)
        return RunStore(self.storage).run(self.name).fetch_checkpoint(step, Path(folder))


def check_weights(metrics: Sequence[str], weights: Weights) -> None:
    """Refuse scores whose extractor is not installed on this machine, before anything starts."""
    for name in metrics:
        kind = {"inception": "inception", "medium": "mobilenet"}.get(
            getattr(METRICS.get(name), "extractor", None) or ""
        )
        if kind in KINDS:
            weights.check(kind)


def new_actor(fetch: FetchCheckpoint, request: EvaluationConfig, weights: Weights, num_cpus: float = 1) -> Any:
    """An actor that scores checkpoints of one run, with a GPU of its own where the request asks for it."""
    actor = evaluator_actor(num_cpus=num_cpus, num_gpus=1 if request.use_gpu else 0)
    options = {"num_reference": request.num_reference, "weights": weights}
    outside = "DEFAULT"  # of what a sweep's trial has reserved for itself: there is no GPU in it
    return actor.options(runtime_env={"env_vars": WORKER_ENV}, scheduling_strategy=outside).remote(fetch, None, options)


def num_actors(request: EvaluationConfig) -> int:
    """Actors that a request of `ebm evaluate` gets. Raises ClusterError for more than there is room for."""
    kind = "GPU" if request.use_gpu else "CPU"
    most = int(ray.cluster_resources().get(kind, 0))
    wanted = request.num_actors or max(1, most)
    if wanted > most:
        raise ClusterError(
            f"`num_actors` {wanted}: this Ray has {most} {kind}s, one for each actor; use fewer or add nodes"
        )
    return wanted
