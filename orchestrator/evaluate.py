"""`ebm evaluate`: scores of a stored checkpoint, its shards shared by K actors, written beside it.

Actors have one thread each, so a shard's bits do not depend on their number. One that dies is replaced and its shard
made again. Nothing is written before every score exists; writing again overwrites.
"""

import math
from collections.abc import Mapping
from typing import Any

import ray

from ebm_core.config import DataConfig, from_tree
from ebm_core.errors import CheckpointError, ConfigError
from orchestrator import study_chains, study_ood
from orchestrator.cluster import WORKER_ENV, ClusterError, start_ray, storage_environment
from orchestrator.pool import Pool, Say
from orchestrator.request import EvaluationRequest
from orchestrator.runs import score_rows
from orchestrator.sample import open_run
from orchestrator.score_job import FetchCheckpoint
from orchestrator.storage import Run, step_name
from orchestrator.study import Asked, Document, Study, Table
from workers.actor import evaluator_actor
from workers.generate import SHARD_SIZE
from workers.metrics import METRICS

__all__ = ["STUDIES", "EvaluationRequest", "evaluate", "tables"]

STUDIES: dict[str, Study] = {"ood": study_ood.STUDY, "chains": study_chains.STUDY}
"""What can be asked for beside METRICS."""


def evaluate(
    where: str,
    request: EvaluationRequest,
    *,
    storage: str = "./runs",
    step: int | None = None,
    address: str | None = None,
    say: Say = lambda _: None,
) -> tuple[Run, int, dict[str, Document]]:
    """Score a checkpoint of the run at `where` (None: its newest) and store the results; run, step, {metric: result}.

    Raises an EbmError for anything that does not fit, in which case nothing is stored.
    """
    _check_names(request)
    run = open_run(where, storage)
    trained = from_tree(DataConfig, run.read_config().get("data"), "data")
    for study in _studies(request).values():
        study.check(request, trained)
    step = _choose_step(run, step)
    start_ray(address, say)
    fetch = FetchCheckpoint(run.store.uri, run.name, storage_environment())
    with Pool(lambda: _new_actor(fetch), _num_actors(request), say) as pool:
        found = _score(Asked(request, pool, step, trained))
    folder = f"evaluations/{step_name(step)}"
    for name, study in _studies(request).items():
        study.store(run, folder, found[name])
    for document in found.values():
        run.write_json(f"{folder}/{document['metric']}.json", document)
    return run, step, found


def tables(found: Mapping[str, Mapping[str, Any]], step: int) -> list[Table]:
    """What a person sees of the results: the scores of generated images in one table, then each study's."""

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    shown = []
    plain = {name: document for name, document in found.items() if name not in STUDIES}
    if plain:
        first = next(iter(plain.values()))
        title = f"step {step}, {first['num_images']} generated images, seed {first['seed']}, averaged weights"
        rows = [(name, text(ours), text(real), text(noise)) for name, ours, real, noise in score_rows(plain)]
        shown.append(Table(title, ("score", "samples", "real, held out", "noise"), rows))
    for name, study in STUDIES.items():
        if name in found:
            shown += study.tables(dict(found[name]), step)
    return shown


def _check_names(request: EvaluationRequest) -> None:
    known = ", ".join((*METRICS, *STUDIES))
    if not request.metrics:
        raise ConfigError(f"--metrics names nothing; known: {known}")
    for name in request.metrics:
        if name in ("fid", "kid", "inception_score"):
            raise ConfigError(
                f"--metrics {name}: needs Inception-V3 features, which this version does not have; "
                "fid_small and kid_small are stand-ins that cannot be compared with published numbers"
            )
        if name not in METRICS and name not in STUDIES:
            raise ConfigError(f"--metrics {name}: unknown; known: {known}")


def _studies(request: EvaluationRequest) -> dict[str, Study]:
    return {name: study for name, study in STUDIES.items() if name in request.metrics}


def _choose_step(run: Run, step: int | None) -> int:
    stored = run.checkpoints()
    if not stored:
        raise CheckpointError(f"run {run.uri} has no checkpoint yet")
    if step is not None and step not in stored:
        raise ConfigError(f"--checkpoint {step}: run {run.name} has {', '.join(map(str, sorted(stored)))}")
    return max(stored) if step is None else step


def _score(asked: Asked) -> dict[str, Document]:
    request, pool, step = asked.request, asked.pool, asked.step
    names = tuple(name for name in request.metrics if name in METRICS)
    found: dict[str, Document] = {}
    for study in _studies(request).values():
        study.prepare(asked)
    if names:
        pool.run({0: (step, "prepare", names)})
        shards = range(math.ceil(request.num_images / SHARD_SIZE))
        partials = pool.run({i: (step, "score_shard", names, i, request.num_images, request.seed) for i in shards})
        for name in names:
            deliveries = [(shard, part[name]) for shard, part in partials.items()]
            call = (step, "finish", name, deliveries, request.num_images, request.seed)
            found[name] = pool.run({0: call})[0]
    return found | {name: study.measure(asked) for name, study in _studies(request).items()}


def _new_actor(fetch: FetchCheckpoint) -> Any:
    return evaluator_actor(num_cpus=1).options(runtime_env={"env_vars": WORKER_ENV}).remote(fetch)


def _num_actors(request: EvaluationRequest) -> int:
    cpus = int(ray.cluster_resources().get("CPU", 0))
    wanted = request.num_actors or max(1, cpus)
    if wanted > cpus:
        raise ClusterError(f"--actors {wanted}: this Ray has {cpus} CPUs, one for each actor; use fewer or add nodes")
    return wanted
