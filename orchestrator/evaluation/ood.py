"""Out-of-distribution detection (Table 3) of a stored checkpoint, its sets shared by the actors."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ebm_core.config import DataConfig
from ebm_core.errors import ConfigError
from orchestrator.evaluation.request import EvaluationRequest
from orchestrator.evaluation.study import Asked, Document, Study
from orchestrator.storage.run_store import Run
from orchestrator.terminal.tables import Table
from workers.calls import call
from workers.evaluator import Evaluator
from workers.studies import ood, ood_sets

OOD_SHARD = 500
"""Images of a set in one call."""


def image_sets(request: EvaluationRequest, trained: DataConfig) -> list[ood_sets.ImageSet]:
    """The held-out split and the sets that were asked for. ConfigError for an unknown or a repeated one."""
    how = {"protocol": request.protocol, "limit": request.ood_images, "seed": request.seed}
    names = request.ood_sets or ood_sets.default_sets(trained, request.protocol)
    sets = [ood_sets.ImageSet(ood_sets.INSIDE, **how), *(ood_sets.image_set(text, trained, **how) for text in names)]
    if len({which.name for which in sets}) < len(sets):
        raise ConfigError(f"`ood_sets` {' '.join(names)}: each set once, and not {ood_sets.INSIDE}")
    if request.cifar100_fault:
        faulty = [ood_sets.stuck(which) for which in sets if which.name == "cifar100"]
        if not faulty:
            raise ConfigError("`cifar100_fault`: shown beside the sound number, so cifar100 must be among the sets")
        sets += faulty
    return sets


def describe(asked: Asked) -> dict[str, dict[str, Any]]:
    """Size and origin of each set. Raises what reading it raises."""
    sets = image_sets(asked.request, asked.trained)
    return asked.runner.run({which.name: call(Evaluator.describe_set, which) for which in sets})


def measure(asked: Asked) -> Document:
    """The result of metric ood; its member `columns` holds every image's energy."""
    sets, described = image_sets(asked.request, asked.trained), describe(asked)
    calls = {
        (which.name, start): call(Evaluator.measure_set, which, start, min(start + OOD_SHARD, size))
        for which in sets
        for size in [described[which.name]["num_images"]]
        for start in range(0, size, OOD_SHARD)
    }
    parts = asked.runner.run(calls)
    columns = {which.name: _joined([parts[key] for key in calls if key[0] == which.name]) for which in sets}
    request = asked.request
    document = asked.one(call(Evaluator.report_ood, columns, described, request.protocol, request.seed))
    return document | {"columns": columns}


def store(run: Run, folder: str, document: Document) -> None:
    """Energies as Parquet, from which scores can be made again, and their histograms. The result holds the file's
    SHA-256, so that energies of another evaluation cannot pass for its own."""
    columns, metric = document.pop("columns"), document["metric"]
    parquet = _parquet(columns, _origin(document))
    document["energies"] = {"file": f"{metric}-energies.parquet", "sha256": hashlib.sha256(parquet).hexdigest()}
    run.write_bytes(f"{folder}/{metric}-energies.parquet", parquet)
    protocol = document["protocol"]["name"]
    title = f"{run.name}, step {int(folder.rpartition('-')[2])}, protocol {protocol}"
    auroc = {name: one["auroc"] for name, one in document["sets"].items()}
    run.write_bytes(f"{folder}/{metric}.png", ood.histograms_png(columns, title, auroc))


def _origin(document: Mapping[str, Any]) -> dict[str, Any]:
    """Whose energies these are: travels inside their file."""
    kept = ("metric", "checkpoint_digest", "dataset", "data_fingerprint", "seed", "protocol")
    published = {name: one["published_auroc"] for name, one in document["sets"].items()}
    return {key: document[key] for key in kept} | {"published": published}


def tables(document: Mapping[str, Any], step: int) -> list[Table]:
    """Every set against the held-out images: area beside the paper's and the untrained ones, then the other scores."""
    protocol, sets, note = document["protocol"]["name"], document["sets"], NOTE
    title = f"OOD, protocol {protocol}, step {step}, seed {document['seed']}: "
    title += f"{document['num_inside']} held-out {document['dataset']} images against"
    if ood_sets.FAULT in sets:
        note += f" {ood_sets.FAULT}: the published reader's one image; cifar100 is the sound number."
    few = [name for name, one in sets.items() if one["num_images"] < FEW]
    if few:
        note += f" Fewer than {FEW} images, so that the interval says little: {', '.join(few)}."
    areas = ("set", "images", "AUROC", "95 %", "paper", "TV", "PNG", "std")
    others = ("set", "AUPR in", "AUPR out", "FPR95 in", "FPR95 out")
    return [
        Table(title, areas, [_areas(name, one) for name, one in sets.items()], note),
        Table(f"OOD, protocol {protocol}", others, [_others(name, one) for name, one in sets.items()]),
    ]


NOTE = (
    "paper: Table 3. TV, PNG, std: AUROC of total variation, PNG size and pixel spread, without training; "
    "more counts as inside."
)
FEW = 100
"""Images of a set below which its table carries a warning."""


def _areas(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = one["intervals"]["auroc"]
    paper = "-" if one["published_auroc"] is None else f"{one['published_auroc']:.2f}"
    untrained = (f"{value:.3f}" for value in one["low_level_auroc"].values())
    return (name, str(one["num_images"]), f"{one['auroc']:.3f}", f"{low:.3f}-{high:.3f}", paper, *untrained)


def _others(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    return (name, *(f"{one[key]:.3f}" for key in ("aupr_in", "aupr_out", "fpr95_in", "fpr95_out")))


def _joined(parts: Sequence[ood.Columns]) -> ood.Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _parquet(columns: Mapping[str, ood.Columns], origin: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(ood.table(columns, origin), out)
    return out.getvalue()


STUDY = Study(check=image_sets, prepare=describe, measure=measure, store=store, tables=tables)
