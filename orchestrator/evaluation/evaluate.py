"""`ebm evaluate`: scores of a stored checkpoint, its shards shared by K actors, written beside it.

Actors have one thread each, so a shard's bits do not depend on their number. One that dies is replaced and its shard
made again. Nothing is written before every score exists; writing again overwrites.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ebm_core.config import DataConfig, from_tree
from ebm_core.errors import ConfigError
from orchestrator.cluster.connection import start_ray
from orchestrator.cluster.environment import storage_environment
from orchestrator.cluster.pool import Pool, PoolRunner, Say
from orchestrator.evaluation import chains, composition, ood
from orchestrator.evaluation.actors import FetchCheckpoint, _num_actors, check_weights, new_actor
from orchestrator.evaluation.request import EvaluationRequest
from orchestrator.evaluation.study import Asked, Document, Study
from orchestrator.records import catalogue
from orchestrator.records.scores import find_step, score_rows, shown_name
from orchestrator.storage.commits import step_name
from orchestrator.storage.find import open_run
from orchestrator.storage.run_store import Run
from orchestrator.terminal.tables import Table
from workers.evaluator import score_all
from workers.features.weights import Weights
from workers.metrics.registry import METRICS
from workers.scoring import check_request

__all__ = ["STUDIES", "EvaluationRequest", "evaluate", "tables"]

STUDIES: dict[str, Study] = {
    "ood": ood.STUDY,
    "chains": chains.STUDY,
    "composition": composition.STUDY,
}
"""What can be asked for beside METRICS."""


def evaluate(
    where: str,
    request: EvaluationRequest,
    *,
    storage: str = "./runs",
    step: str | int | None = None,
    address: str | None = None,
    say: Say = lambda _: None,
    weights: Weights | None = None,
) -> tuple[Run, int, dict[str, Document]]:
    """Score a checkpoint of the run at `where` and store the results; run, step, {metric: result}.

    step: a stored step, `best` (by the scores of the run's checkpoints), None for the newest.
    weights: of the feature extractors, None for those of this machine's user. Raises an EbmError for anything that does
    not fit, in which case nothing is stored.
    """
    check_names(request.metrics)
    check_request([name for name in request.metrics if name in METRICS], request.num_images)
    run = open_run(where, storage)
    trained = from_tree(DataConfig, run.read_config().get("data"), "data")
    for study in _studies(request).values():
        study.check(request, trained)
    step = find_step(run, step)
    weights = weights or Weights.default()
    check_weights(request.metrics, weights)
    start_ray(address, say)
    make = partial(new_actor, FetchCheckpoint(run.store.uri, run.name, storage_environment()), request, weights)
    with Pool(make, _num_actors(request), say) as pool:
        found = score(Asked(request, PoolRunner(pool, (step,)), trained, run, results_folder(step)))
    store_results(run, request, step, found)
    catalogue.update(run.store, [run.name])
    return run, step, found


def results_folder(step: int) -> str:
    """Where the results of a checkpoint lie, below its run."""
    return f"evaluations/{step_name(step)}"


def score(asked: Asked) -> dict[str, Document]:
    """The result of everything that was asked for."""
    request = asked.request
    names = tuple(name for name in request.metrics if name in METRICS)
    for study in _studies(request).values():
        study.prepare(asked)
    found = score_all(asked.runner, names, request.num_images, request.seed) if names else {}
    return found | {name: study.measure(asked) for name, study in _studies(request).items()}


def store_results(run: Run, request: EvaluationRequest, step: int, found: Mapping[str, Document]) -> None:
    """Write results beside the checkpoint of `step`, over those of an earlier evaluation."""
    folder = results_folder(step)
    for name, study in _studies(request).items():
        study.store(run, folder, found[name])
    for document in found.values():
        run.write_json(f"{folder}/{document['metric']}.json", document)
    for study in _studies(request).values():
        study.tidy(run, folder)


def tables(found: Mapping[str, Mapping[str, Any]], step: int) -> list[Table]:
    """What a person sees of the results: the scores of generated images in one table, then each study's."""
    plain = {name: document for name, document in found.items() if name not in STUDIES}
    shown = [_score_table(plain, step)] if plain else []
    for name, study in STUDIES.items():
        if name in found:
            shown += study.tables(dict(found[name]), step)
    return shown


def _score_table(plain: Mapping[str, Mapping[str, Any]], step: int) -> Table:
    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    first = next(iter(plain.values()))
    papers = {shown_name(name, one): one["paper"] for name, one in plain.items() if "paper" in one}
    rows = []
    for name, *values in score_rows(plain):
        row = (name, *map(text, values))
        rows.append((*row, text(papers[name]["value"] if name in papers else None)) if papers else row)
    said = [note for document in plain.values() for note in document.get("notes", ())]
    said += [f"paper, {name}: {paper['where']}" for name, paper in papers.items()]
    columns = ("score", "samples", "real, held out", "noise", *(["paper"] if papers else []))
    title = f"step {step}, {first['num_images']} generated images, seed {first['seed']}, averaged weights"
    return Table(title, columns, rows, "\n".join(said))


def check_names(metrics: Sequence[str], setting: str = "`metrics`") -> None:
    """Refuse names that are neither a metric nor a study."""
    known = ", ".join((*METRICS, *STUDIES))
    if not metrics:
        raise ConfigError(f"{setting} names nothing; known: {known}")
    for name in metrics:
        if name not in METRICS and name not in STUDIES:
            raise ConfigError(f"{setting} {name}: unknown; known: {known}")


def _studies(request: EvaluationRequest) -> dict[str, Study]:
    return {name: study for name, study in STUDIES.items() if name in request.metrics}
