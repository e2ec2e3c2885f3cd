"""Score documents of a run, and which checkpoints still wait for theirs."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ebm_core.errors import CheckpointError, ConfigError
from orchestrator.settings.job import JobConfig, headline_metric
from orchestrator.storage.commits import step_name
from orchestrator.storage.interface import ObjectMissing
from orchestrator.storage.run_store import Run
from workers.metrics.feature_metrics import FIELD_IMAGES, printed_name

MAX_AWAITING = 8
"""Checkpoints that outlive checkpoint.keep because their scores are still to come: scoring that is slower than training
must not decide by its pace what is scored, and scoring that never ends must not fill the store."""


def read_scores(run: Run, step: int) -> dict[str, dict[str, Any]]:
    """{metric: score document} of a step; empty when it was not scored."""
    folder = f"evaluations/{step_name(step)}/"
    names = (info.key.removeprefix(folder) for info in run.list(folder))
    return {
        name.removesuffix(".json"): run.read_json(folder + name)
        for name in names
        if name.endswith(".json") and "/" not in name
    }


def chains_grid_key(step: int) -> str:
    """Key of the grid that holds the chains of training."""
    return f"samples/{step_name(step)}.png"


def ema_grid_key(step: int) -> str:
    """Key of the grid that the averaged model draws from noise."""
    return f"samples/{step_name(step)}-ema.png"


def grid_key(run: Run, step: int) -> str | None:
    """Key of the step's best sample grid: the averaged model's, else that of the chains of training, else None."""
    kept = {info.key for info in run.list(f"samples/{step_name(step)}")}
    return next((key for key in (ema_grid_key(step), chains_grid_key(step)) if key in kept), None)


def headline(document: Mapping[str, Any]) -> float:
    """The number of a score document that stands for it in a table."""
    return float(document["value"])


def shown_name(name: str, document: Mapping[str, Any]) -> str:
    """What a person reads instead of `name`: an FID of few images says of how many."""
    return printed_name(name, int(document.get("num_images", FIELD_IMAGES)))


def score_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, float | None, float | None, float | None]]:
    """(what, of the samples, of real held-out images, of noise) for a table; a number alone says little."""
    rows: list[tuple[str, float | None, float | None, float | None]] = []
    for name, document in scores.items():
        if name == "energy_gap":
            columns = (document[f"energy_{which}"] for which in ("generated", "heldout", "noise"))
            rows.append(("mean energy", *columns))
        elif name == "classifier":
            for key in ("mean_confidence", "class_entropy", "classes_seen"):
                rows.append((f"classifier {key}", document[key], document["heldout"][key], document["noise"][key]))
        elif name.startswith("precision_recall"):
            extractor = name.removeprefix("precision_recall").removeprefix("_")
            for key in ("precision", "recall", "density", "coverage"):
                shown = f"{key} ({extractor})" if extractor else key
                rows.append((shown, document[key], document["heldout"][key], document["noise"][key]))
        elif name == "diversity":
            for key, shown in (("ratio", "diversity (pair distances)"), ("duplicates", "near-duplicates")):
                rows.append((shown, document[key], document["heldout"][key], document["noise"][key]))
        elif name == "chains":
            rows.append(
                (
                    f"{document.get('distance', 'fid_small')} of long chains, end over best",
                    headline(document),
                    None,
                    None,
                )
            )
        elif name == "composition":
            rows.append(("composed images that are as asked", headline(document), None, None))
        elif name == "ood":
            for other, one in document["sets"].items():
                rows.append((f"AUROC against {other}", one["auroc"], None, None))
        else:
            rows.append(
                (shown_name(name, document), headline(document), document.get("heldout"), document.get("noise"))
            )
    return rows


def is_scored(step: int, job: JobConfig) -> bool:
    """Whether a checkpoint gets scores: with evaluation.every, its multiples and the last step."""
    every = job.evaluation.every
    return every > 0 and (step % every == 0 or step == job.train.num_steps)


def lacking_scores(run: Run, job: JobConfig, steps: Sequence[int]) -> list[int]:
    """Those of the steps that lack a score of evaluation.metrics, or the grid, which is stored last."""
    if not steps:
        return []
    stored = {info.key for prefix in ("evaluations/", "samples/") for info in run.list(prefix)}

    def complete(step: int) -> bool:
        documents = {f"evaluations/{step_name(step)}/{name}.json" for name in job.evaluation.documents}
        return documents | {ema_grid_key(step)} <= stored

    return [step for step in steps if not complete(step)]


def unscored(run: Run, job: JobConfig) -> list[int]:
    """Stored checkpoints that get scores and have not got all of them, ascending."""
    return lacking_scores(run, job, [step for step in run.checkpoints() if is_scored(step, job)])


def best_step(run: Run, metric: str) -> int | None:
    """The stored checkpoint with the best value of a score, the older of two that are equal; None: none has one."""
    from workers.metrics.registry import find_metric  # scikit-learn takes its time

    sign = 1.0 if find_metric(metric).better == "less" else -1.0
    values: dict[int, float] = {}
    for step in run.checkpoints():
        with contextlib.suppress(ObjectMissing, ValueError, KeyError, TypeError):  # no score, or none that can be read
            values[step] = sign * headline(json.loads(run.read_bytes(f"evaluations/{step_name(step)}/{metric}.json")))
    ranked = sorted(step for step, value in values.items() if math.isfinite(value))
    return min(ranked, key=values.__getitem__, default=None)


def find_step(run: Run, asked: str | int | None) -> int:
    """The stored checkpoint that `asked` means: a step, `best` (of its run's checkpoint.best, else of the headline
    score of its data set), None for the newest.

    Raises CheckpointError for a run without checkpoints, ConfigError for a step that is not there.
    """
    stored = run.checkpoints()
    if not stored:
        raise CheckpointError(f"run {run.uri} has no checkpoint yet")
    if asked is None:
        return max(stored)
    if asked == "best":
        tree = run.read_config()
        metric = tree.get("checkpoint", {}).get("best") or headline_metric(str(tree["data"]["name"]))
        if (step := best_step(run, metric)) is None:
            raise CheckpointError(f"`step` best: no checkpoint of run {run.name} has a score {metric}; evaluate one")
        return step
    if not str(asked).isdecimal() or int(asked) not in stored:
        raise ConfigError(f"`step` {asked}: run {run.name} has {', '.join(map(str, sorted(stored)))}, and best")
    return int(asked)


def spared(run: Run, job: JobConfig) -> list[int]:
    """Checkpoints that stay beside the newest checkpoint.keep: those that wait for scores, and the best so far."""
    best = best_step(run, job.checkpoint.best) if job.checkpoint.best is not None else None
    return awaiting_scores(run, job) + ([] if best is None else [best])


def awaiting_scores(run: Run, job: JobConfig) -> list[int]:
    """Checkpoints that stay until they are scored, the newest MAX_AWAITING of `unscored`."""
    return unscored(run, job)[-MAX_AWAITING:] if job.evaluation.every else []
