"""Out-of-distribution detection (Table 3) of a stored checkpoint, its sets shared by the actors."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ebm_core.config import DataConfig
from ebm_core.errors import ConfigError
from orchestrator.request import EvaluationRequest
from orchestrator.storage import Run
from orchestrator.study import Asked, Document, Study, Table
from workers import ood

OOD_SHARD = 500
"""Images of a set in one call."""


def image_sets(request: EvaluationRequest, trained: DataConfig) -> list[ood.ImageSet]:
    """The held-out split and the sets that were asked for. ConfigError for an unknown or a repeated one."""
    sets = [ood.ImageSet(ood.INSIDE), *(ood.image_set(text, trained) for text in request.ood_sets)]
    if len({which.name for which in sets}) < len(sets):
        raise ConfigError(f"--ood {' '.join(request.ood_sets)}: each set once, and not {ood.INSIDE}")
    return sets


def set_sizes(asked: Asked) -> dict[str, int]:
    """Images of each set. Raises what reading it raises."""
    sets = image_sets(asked.request, asked.trained)
    return asked.pool.run({which.name: (asked.step, "set_size", which, asked.request.ood_images) for which in sets})


def measure(asked: Asked) -> Document:
    """The result of metric ood; its member `columns` holds every image's energy."""
    sets, size, limit = image_sets(asked.request, asked.trained), set_sizes(asked), asked.request.ood_images
    calls = {
        (which.name, start): (
            asked.step, "measure_set", which, start, min(start + OOD_SHARD, size[which.name]), limit
        )
        for which in sets
        for start in range(0, size[which.name], OOD_SHARD)
    }  # fmt: skip
    parts = asked.pool.run(calls)
    columns = {which.name: _joined([parts[key] for key in calls if key[0] == which.name]) for which in sets}
    return asked.pool.run({0: (asked.step, "report_ood", columns)})[0] | {"columns": columns}


def store(run: Run, folder: str, document: Document) -> None:
    """Energies as Parquet, from which scores can be made again, and their histograms."""
    columns = document.pop("columns")
    run.write_bytes(f"{folder}/ood-energies.parquet", _parquet(columns))
    title = f"energies of {run.name} at {folder.rpartition('/')[2]}"
    run.write_bytes(f"{folder}/ood.png", ood.histograms_png(columns, title))


def tables(document: Mapping[str, Any], step: int) -> list[Table]:
    """Every set against the held-out images, with the untrained scores beside the energy's."""
    columns = ("set", "images", "AUROC (95 %)", "AUPR in", "AUPR out", "FPR95", "variation", "PNG", "std", "Table 3")
    return [
        Table(
            f"out of distribution, step {step}: {document['num_inside']} held-out images against",
            columns,
            ood_rows(document),
            "variation, PNG, std: AUROC of total variation, PNG size, pixel spread, untrained; more counts as inside",
        )
    ]


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


def _joined(parts: Sequence[ood.Columns]) -> ood.Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _parquet(columns: Mapping[str, ood.Columns]) -> bytes:
    out = io.BytesIO()
    pq.write_table(ood.table(columns), out)
    return out.getvalue()


STUDY = Study(check=image_sets, prepare=set_sizes, measure=measure, store=store, tables=tables)
