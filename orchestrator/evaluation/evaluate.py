"""`ebm evaluate`: scores of a stored checkpoint, its image shards shared by K actors, written beside it.

Actors have one thread each, so a shard's bits do not depend on their number. One that dies is replaced and its shard
made again. Nothing is written before every score exists; writing again overwrites.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ebm_core.config import DataConfig, from_tree
from ebm_core.errors import ConfigError
from orchestrator.cluster.connection import start_ray
from orchestrator.cluster.environment import storage_environment
from orchestrator.cluster.pool import Pool, PoolRunner, Say
from orchestrator.evaluation.actors import FetchCheckpoint, check_weights, new_actor, num_actors
from orchestrator.evaluation.folder import ResultsFolder
from orchestrator.records import catalogue
from orchestrator.records.scores import find_step, score_rows, shown_name
from orchestrator.settings.job import EvaluationConfig
from orchestrator.storage.find import open_run
from orchestrator.storage.run_store import Run
from workers.calls import Runner
from workers.evaluator import Evaluator, score_all
from workers.features.weights import Weights
from workers.metrics.registry import METRICS
from workers.studies import STUDIES
from workers.studies.study import Asked, Document
from workers.tables import Table


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A checkpoint, what is asked of it, and what calls its evaluators."""

    request: EvaluationConfig
    seed: int
    run: Run
    step: int
    trained: DataConfig
    """The data that the checkpoint was trained on."""
    runner: Runner[Evaluator]

    @property
    def folder(self) -> ResultsFolder:
        """Where the results go."""
        return ResultsFolder(self.run, self.step)

    def asked(self, study: str) -> Asked[Any]:
        """The part of a study."""
        return Asked(
            options=self.request.studies[study],
            num_images=self.request.num_images,
            seed=self.seed,
            trained=self.trained,
            run_name=self.run.name,
            step=self.step,
            folder=self.folder,
            runner=self.runner,
        )


def evaluate(
    where: str,
    request: EvaluationConfig,
    *,
    seed: int = 0,
    storage: str = "./runs",
    step: str | int | None = None,
    address: str | None = None,
    say: Say = lambda _: None,
    weights: Weights | None = None,
) -> tuple[Run, int, dict[str, Document]]:
    """Score a checkpoint of the run at `where` and store the results; run, step, {metric: result}.

    request: what to score; `every` and `grid_count` are of no meaning here. seed: of the generated images.
    step: a stored step, `best` (by the scores of the run's checkpoints), None for the newest.
    weights: of the feature extractors, None for those of this machine's user. Raises an EbmError for anything that does
    not fit, in which case nothing is stored.
    """
    if not request.metrics:
        raise ConfigError(f"`metrics` names nothing; known: {', '.join((*METRICS, *STUDIES))}")
    run = open_run(where, storage)
    trained = from_tree(DataConfig, run.read_config().get("data"), "data")
    check_studies(request, trained)
    step = find_step(run, step)
    weights = weights or Weights.default()
    check_weights(request.metrics, weights)
    start_ray(address, say)
    make = partial(new_actor, FetchCheckpoint(run.store.uri, run.name, storage_environment()), request, weights)
    with Pool(make, num_actors(request), say) as pool:
        runner = PoolRunner(pool, (step,))
        asked = Evaluation(request=request, seed=seed, run=run, step=step, trained=trained, runner=runner)
        found = score(asked)
    store_results(asked, found)
    catalogue.update(run.store, [run.name])
    return run, step, found


def check_studies(request: EvaluationConfig, trained: DataConfig) -> None:
    """Refuse studies that cannot be made of a run on this data, before anything starts."""
    for name, options in request.studies.items():
        STUDIES[name].check(options, trained)


def score(asked: Evaluation) -> dict[str, Document]:
    """The result of everything that was asked for."""
    request = asked.request
    parts = {name: asked.asked(name) for name in request.studies}
    for name, part in parts.items():
        STUDIES[name].prepare(part)
    names = request.scores
    found = score_all(asked.runner, names, request.num_images, asked.seed) if names else {}
    return found | {name: STUDIES[name].measure(part) for name, part in parts.items()}


def store_results(asked: Evaluation, found: Mapping[str, Document]) -> None:
    """Write results beside the checkpoint, over those of an earlier evaluation."""
    for name in asked.request.studies:
        STUDIES[name].store(asked.asked(name), found[name])
    for document in found.values():
        asked.folder.write_json(f"{document['metric']}.json", document)
    for name in asked.request.studies:
        STUDIES[name].tidy(asked.asked(name))


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
