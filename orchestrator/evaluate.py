"""`ebm evaluate`: scores of a stored checkpoint, its shards shared by K actors, written beside it.

Actors have one thread each, so a shard's bits do not depend on their number. One that dies is replaced and its shard
made again. Nothing is written before every score exists; writing again overwrites.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayActorError, RayTaskError

from ebm_core.config import DataConfig, from_tree
from ebm_core.errors import CheckpointError, ConfigError, EbmError
from orchestrator.cluster import WORKER_ENV, ClusterError, start_ray, storage_environment
from orchestrator.sample import open_run
from orchestrator.score_job import FetchCheckpoint
from orchestrator.storage import Run, step_name
from workers import ood
from workers.actor import evaluator_actor
from workers.chains import NUM_TIMES, STRIP_CHAINS, VARIANTS
from workers.generate import SHARD_SIZE
from workers.metrics import METRICS
from workers.pictures import curves_png, strip_png

OOD = "ood"
"""The score that is made of image sets, not of generated images."""

CHAINS = "chains"
"""The study of long chains (Fig. 5 to 8)."""

STUDIES = (OOD, CHAINS)
"""What is known to `ebm evaluate` beside METRICS."""

OOD_SHARD = 500
"""Images of a set in one call."""

REPLACEMENTS = 3
"""Actors that may die before the evaluation gives up."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to score, checked before anything starts."""

    metrics: tuple[str, ...]
    num_images: int = 1000
    """Generated images."""
    seed: int = 0
    ood_sets: tuple[str, ...] = ood.MADE
    """NAME or NAME=FOLDER each; the held-out split is always there."""
    ood_images: int = 10_000
    """Largest number of images of a set; a larger one is thinned evenly."""
    num_chains: int = 64
    """Chains of the study of long chains."""
    chain_steps: int = 1000
    """Their steps; the paper goes up to 3,000."""
    num_actors: int | None = None
    """None: one per CPU of the cluster."""

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigError(f"--metrics names nothing; known: {', '.join((*METRICS, *STUDIES))}")
        for name in self.metrics:
            if name in ("fid", "kid", "inception_score"):
                raise ConfigError(
                    f"--metrics {name}: needs Inception-V3 features, which this version does not have; "
                    "fid_small and kid_small are stand-ins that cannot be compared with published numbers"
                )
            if name not in (*METRICS, *STUDIES):
                raise ConfigError(f"--metrics {name}: unknown; known: {', '.join((*METRICS, *STUDIES))}")
        if self.num_images < 2:
            raise ConfigError(f"--num-images {self.num_images}: a score needs at least 2")
        if self.ood_images < 1:
            raise ConfigError(f"--ood-images {self.ood_images}: at least 1")
        if self.num_chains < 2:
            raise ConfigError(f"--chains {self.num_chains}: distances between chains need at least 2")
        if self.chain_steps < NUM_TIMES:
            raise ConfigError(f"--chain-steps {self.chain_steps}: at least {NUM_TIMES}, the times that are looked at")
        if self.num_actors is not None and self.num_actors < 1:
            raise ConfigError(f"--actors {self.num_actors}: at least 1")


def evaluate(
    where: str,
    request: EvaluationRequest,
    *,
    storage: str = "./runs",
    step: int | None = None,
    address: str | None = None,
    say: Say = lambda _: None,
) -> tuple[Run, int, dict[str, dict[str, Any]]]:
    """Score a checkpoint of the run at `where` (None: its newest) and store the results; run, step, {metric: result}.

    Raises an EbmError for anything that does not fit, in which case nothing is stored.
    """
    run = open_run(where, storage)
    trained = from_tree(DataConfig, run.read_config()["data"], "data")
    sets = [ood.ImageSet(ood.INSIDE), *(ood.image_set(text, trained) for text in request.ood_sets)]
    if len({which.name for which in sets}) < len(sets):
        raise ConfigError(f"--ood {' '.join(request.ood_sets)}: each set once, and not {ood.INSIDE}")
    stored = run.checkpoints()
    if not stored:
        raise CheckpointError(f"run {run.uri} has no checkpoint yet")
    if step is not None and step not in stored:
        raise ConfigError(f"--checkpoint {step}: run {run.name} has {', '.join(map(str, sorted(stored)))}")
    step = max(stored) if step is None else step
    start_ray(address, say)
    fetch = FetchCheckpoint(run.store.uri, run.name, storage_environment())
    with Pool(lambda: _new_actor(fetch), _num_actors(request), say) as pool:
        found = _score(pool, step, request, sets)
    folder = f"evaluations/{step_name(step)}"
    if OOD in found:
        columns = found[OOD].pop("columns")
        run.write_bytes(f"{folder}/ood-energies.parquet", _parquet(columns))
        title = f"energies of {run.name} at step {step}"
        run.write_bytes(f"{folder}/ood.png", ood.histograms_png(columns, title))
    if CHAINS in found:
        _store_chains(run, folder, found[CHAINS])
    for name, document in found.items():
        run.write_json(f"{folder}/{name}.json", document)
    return run, step, found


def _store_chains(run: Run, folder: str, document: dict[str, Any]) -> None:
    """Pictures of the study: curves over steps, and every variant's first chains from left to right."""
    for name, study in document.pop("studies").items():
        strip = study.states[:, :STRIP_CHAINS].transpose(0, 1)
        run.write_bytes(f"{folder}/chains-{name}.png", strip_png(strip))
    curves = {name: (one["steps"][1:], one["fid_small"][1:]) for name, one in document["variants"].items()}
    title = f"{document['num_chains']} chains of {run.name} running on"
    label = "fid_small to training images"
    run.write_bytes(f"{folder}/chains.png", curves_png(curves, title, label, xlabel="Langevin step"))


def _score(
    pool: "Pool", step: int, request: EvaluationRequest, sets: Sequence[ood.ImageSet]
) -> dict[str, dict[str, Any]]:
    names = tuple(name for name in request.metrics if name not in STUDIES)
    found: dict[str, dict[str, Any]] = {}
    size = dict[str, int]()
    if OOD in request.metrics:  # what cannot be read is refused before the long work
        calls = {which.name: (step, "set_size", which, request.ood_images) for which in sets}
        size = pool.run(calls)
    if names:
        pool.run({0: (step, "prepare", names)})
        shards = range(math.ceil(request.num_images / SHARD_SIZE))
        partials = pool.run({i: (step, "score_shard", names, i, request.num_images, request.seed) for i in shards})
        for name in names:
            deliveries = [(shard, part[name]) for shard, part in partials.items()]
            call = (step, "finish", name, deliveries, request.num_images, request.seed)
            found[name] = pool.run({0: call})[0]
    if OOD in request.metrics:
        calls = {
            (which.name, start): (
                step, "measure_set", which, start, min(start + OOD_SHARD, size[which.name]), request.ood_images
            )
            for which in sets
            for start in range(0, size[which.name], OOD_SHARD)
        }  # fmt: skip
        parts = pool.run(calls)
        columns = {which.name: _joined([parts[key] for key in calls if key[0] == which.name]) for which in sets}
        found[OOD] = pool.run({0: (step, "report_ood", columns)})[0] | {"columns": columns}
    if CHAINS in request.metrics:
        size_of = (request.num_chains, request.chain_steps, request.seed)
        studies = pool.run({name: (step, "run_chains", name, *size_of) for name in VARIANTS})
        document = pool.run({0: (step, "report_chains", studies, request.seed)})[0]
        found[CHAINS] = document | {"studies": studies}
    return found


class Pool:
    """Actors that share a list of calls. A context: they end with it."""

    def __init__(self, make: Callable[[], Any], num_actors: int, say: Say = lambda _: None) -> None:
        """make: starts an actor whose `call` method takes what `run` is given."""
        self._make, self._say, self._deaths = make, say, 0
        self._idle = [make() for _ in range(num_actors)]
        self._busy: dict[Any, tuple[Any, Any]] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)

    def run(self, calls: Mapping[Any, tuple[Any, ...]]) -> dict[Any, Any]:
        """{key: what the call returned}, in the order of `calls`. An EbmError of an actor is raised as it was there.

        Raises ClusterError when more actors have died than may be replaced.
        """
        waiting, found = list(reversed(calls)), {}
        while waiting or self._busy:
            while waiting and self._idle:
                actor, key = self._idle.pop(), waiting.pop()
                self._busy[actor.call.remote(*calls[key])] = (actor, key)
            done, _ = ray.wait(list(self._busy), num_returns=1)
            actor, key = self._busy.pop(done[0])
            try:
                found[key] = ray.get(done[0])
                self._idle.append(actor)
            except RayActorError:
                self._deaths += 1
                if self._deaths > REPLACEMENTS:
                    raise ClusterError(f"{self._deaths} scoring actors have died; see the logs of this Ray") from None
                self._say("a scoring actor died; its shard is made again")
                waiting.append(key)
                self._idle.append(self._make())
            except RayTaskError as error:
                self._idle.append(actor)
                if isinstance(error.cause, EbmError):
                    raise error.cause from None
                raise
        return {key: found[key] for key in calls}


def _new_actor(fetch: FetchCheckpoint) -> Any:
    return evaluator_actor(num_cpus=1).options(runtime_env={"env_vars": WORKER_ENV}).remote(fetch)


def _num_actors(request: EvaluationRequest) -> int:
    cpus = int(ray.cluster_resources().get("CPU", 0))
    wanted = request.num_actors or max(1, cpus)
    if wanted > cpus:
        raise ClusterError(f"--actors {wanted}: this Ray has {cpus} CPUs, one for each actor; use fewer or add nodes")
    return wanted


def _joined(parts: Sequence[ood.Columns]) -> ood.Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _parquet(columns: Mapping[str, ood.Columns]) -> bytes:
    out = io.BytesIO()
    pq.write_table(ood.table(columns), out)
    return out.getvalue()


def table_rows(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """(score, of the samples, of real held-out images, of noise) as text, for a person."""
    from orchestrator.runs import score_rows

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    plain = {name: document for name, document in found.items() if name not in STUDIES}
    return [(name, text(ours), text(real), text(noise)) for name, ours, real, noise in score_rows(plain)]


def ood_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(set, images, AUROC with its interval, AUPR in, AUPR out, FPR95, each low-level AUROC, Table 3) as text."""
    rows = []
    for name, one in document["sets"].items():
        low, high = one["auroc_interval"]
        published = one["published_auroc"]
        rows.append(
            (
                name,
                str(one["num_images"]),
                f"{one['auroc']:.3f} ({low:.3f} to {high:.3f})",
                *(f"{one[key]:.3f}" for key in ("aupr_in", "aupr_out", "fpr95_in")),
                *(f"{value:.3f}" for value in one["low_level_auroc"].values()),
                "-" if published is None else f"{published:.2f}",
            )
        )
    return rows


def chain_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(variant, step, fid_small, energy, gradient norm, clamped, variation, distance between chains) as text."""
    rows = []
    keys = ("fid_small", "energy", "gradient_norm", "clamped_fraction", "total_variation", "pairwise_distance")
    for name, one in document["variants"].items():
        last = len(one["steps"]) - 1
        for i in sorted({last // 10, last // 2, last}):
            rows.append((name, str(one["steps"][i]), *(f"{one[key][i]:.4g}" for key in keys)))
    return rows
