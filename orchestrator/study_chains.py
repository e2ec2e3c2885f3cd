"""Long chains (Fig. 5 to 8) of a stored checkpoint, a variant to an actor."""

from collections.abc import Mapping
from typing import Any

from orchestrator.storage import Run
from orchestrator.study import Asked, Document, Study, Table
from workers.chains import STRIP_CHAINS, VARIANTS
from workers.pictures import curves_png, strip_png


def measure(asked: Asked) -> Document:
    """The result of metric chains; its member `studies` holds every variant's states."""
    request = asked.request
    size = (request.num_chains, request.chain_steps, request.seed)
    studies = asked.pool.run({name: (asked.step, "run_chains", name, *size) for name in VARIANTS})
    document = asked.pool.run({0: (asked.step, "report_chains", studies, request.seed)})[0]
    return document | {"studies": studies}


def store(run: Run, folder: str, document: Document) -> None:
    """Pictures: curves over steps, and every variant's first chains from left to right."""
    for name, study in document.pop("studies").items():
        strip = study.states[:, :STRIP_CHAINS].transpose(0, 1)
        run.write_bytes(f"{folder}/chains-{name}.png", strip_png(strip))
    curves = {name: (one["steps"][1:], one["fid_small"][1:]) for name, one in document["variants"].items()}
    title = f"{document['num_chains']} chains of {run.name} running on"
    label = "fid_small to training images"
    run.write_bytes(f"{folder}/chains.png", curves_png(curves, title, label, xlabel="Langevin step"))


def tables(document: Mapping[str, Any], step: int) -> list[Table]:
    """Each variant early, half way and at its end."""
    columns = ("kind", "steps", "fid_small", "energy", "gradient", "clamped", "variation", "distance")
    return [Table(f"{document['num_chains']} long chains, step {step}", columns, chain_rows(document))]


def chain_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(variant, step, fid_small, energy, gradient norm, clamped, variation, distance between chains) as text."""
    rows = []
    keys = ("fid_small", "energy", "gradient_norm", "clamped_fraction", "total_variation", "pairwise_distance")
    for name, one in document["variants"].items():
        last = len(one["steps"]) - 1
        for i in sorted({last // 10, last // 2, last}):
            rows.append((name, str(one["steps"][i]), *(f"{one[key][i]:.4g}" for key in keys)))
    return rows


STUDY = Study(
    check=lambda request, trained: None, prepare=lambda asked: None, measure=measure, store=store, tables=tables
)
