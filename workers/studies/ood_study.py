"""Out-of-distribution detection (Table 3) of a stored checkpoint, its sets shared by the actors."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ebm_core.config import DataConfig, require
from ebm_core.errors import ConfigError
from workers.calls import call
from workers.evaluator import Evaluator
from workers.studies import ood, ood_sets
from workers.studies.study import Asked, Document, Study
from workers.tables import Table

OOD_SHARD = 500
"""Images of a set in one call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OodOptions:
    """Which sets of images are told from the held-out ones, and how they are read (Table 3)."""

    protocol: ood_sets.Protocol = "strict"
    """How images are read: `strict` treats every set alike, `paper_code` does what the published code does."""
    sets: tuple[str, ...] = ()
    """Sets of images, NAME or NAME=FOLDER each; any other name with a folder is a folder of images. Empty: the sets of
    Table 3 for a model of CIFAR-10, else interpolation and noise. The held-out images are always there."""
    limit: int | None = None
    """Most images of each set; a larger set is thinned evenly. null: all images."""
    cifar100_fault: bool = False
    """Show beside cifar100 what the published code's reader makes of it, which returns the first image always; needs
    protocol paper_code."""

    def __post_init__(self) -> None:
        known = f"must be one of {', '.join(ood_sets.PROTOCOLS)}"
        require(self.protocol in ood_sets.PROTOCOLS, "ood.protocol", self.protocol, known)
        require(self.limit is None or self.limit >= 2, "ood.limit", self.limit, "must be at least 2, or null")
        needs = "a fault of the published code; it needs ood.protocol=paper_code"
        require(not self.cifar100_fault or self.protocol == "paper_code", "ood.cifar100_fault", True, needs)


def describe_set(judge: Evaluator, which: ood_sets.ImageSet) -> dict[str, Any]:
    """Size and origin of a set. ConfigError for a conditional energy, DataError for missing files."""
    if judge.model.num_conditions:
        raise ConfigError("metric ood: the energy is conditional; it needs one that is not (Table 3)")
    reader = _reader(judge, which)
    return {
        "num_images": reader.num_images,
        "num_found": len(reader.source),
        "dataset": reader.source.name,
        "split": reader.source.split,
        "data_fingerprint": reader.source.fingerprint(),
    }


def measure_set(judge: Evaluator, which: ood_sets.ImageSet, start: int, stop: int) -> ood.Columns:
    """Energies and low-level quantities of images start to stop - 1 of a set."""
    reader = _reader(judge, which)
    images, x = reader.images(start, stop)
    ood_sets.check_alike(which, x, judge.cfg.image_shape)
    return ood.measure(images, x, judge.energies(x), reader.image_numbers[start:stop].numpy())


def _reader(judge: Evaluator, which: ood_sets.ImageSet) -> ood_sets.SetReader:
    return judge.kept(which, lambda: ood_sets.SetReader(which, judge.heldout))


def report_ood(
    judge: Evaluator,
    found: Mapping[str, ood.Columns],
    described: Mapping[str, Mapping[str, Any]],
    options: OodOptions,
    seed: int,
) -> Document:
    """The result of metric ood over whole sets, ready for JSON; described: as `describe_set` has it."""
    published = ood.PUBLISHED if judge.train.name == "cifar10" else {}  # Table 3, where it is about this data
    made = ood.report(found, published)
    for name, one in made["sets"].items():
        one["source"] = described[name]
    return {
        "metric": metric(options),
        **made,
        "inside": described[ood_sets.INSIDE],
        "seed": seed,
        **judge.provenance(
            "-E(x) of held-out images with that of each other set",
            preprocessing=ood_sets.PREPROCESSING[options.protocol],
            name=options.protocol,
        ),
    }


def metric(options: OodOptions) -> str:
    """What the result is called: the two protocols are two results."""
    return "ood" if options.protocol == "strict" else f"ood_{options.protocol}"


def image_sets(options: OodOptions, trained: DataConfig, seed: int = 0) -> list[ood_sets.ImageSet]:
    """The held-out split and the sets that were asked for. ConfigError for an unknown or a repeated one."""
    how = {"protocol": options.protocol, "limit": options.limit, "seed": seed}
    names = options.sets or ood_sets.default_sets(trained, options.protocol)
    sets = [ood_sets.ImageSet(ood_sets.INSIDE, **how), *(ood_sets.image_set(text, trained, **how) for text in names)]
    if len({which.name for which in sets}) < len(sets):
        raise ConfigError(f"ood.sets = {','.join(names)}: each set once, and not {ood_sets.INSIDE}")
    if options.cifar100_fault:
        faulty = [ood_sets.stuck(which) for which in sets if which.name == "cifar100"]
        if not faulty:
            raise ConfigError("ood.cifar100_fault: shown beside the sound number, so cifar100 must be among the sets")
        sets += faulty
    return sets


def describe(asked: Asked[OodOptions]) -> dict[str, dict[str, Any]]:
    """Size and origin of each set. Raises what reading it raises."""
    sets = image_sets(asked.options, asked.trained, asked.seed)
    return asked.runner.run({which.name: call(describe_set, which) for which in sets})


def measure(asked: Asked[OodOptions]) -> Document:
    """The result of metric ood; its member `columns` holds every image's energy."""
    sets, described = image_sets(asked.options, asked.trained, asked.seed), describe(asked)
    calls = {
        (which.name, start): call(measure_set, which, start, min(start + OOD_SHARD, size))
        for which in sets
        for size in [described[which.name]["num_images"]]
        for start in range(0, size, OOD_SHARD)
    }
    parts = asked.runner.run(calls)
    columns = {which.name: _joined([parts[key] for key in calls if key[0] == which.name]) for which in sets}
    document = asked.one(call(report_ood, columns, described, asked.options, asked.seed))
    return document | {"columns": columns}


def store(asked: Asked[OodOptions], document: Document) -> None:
    """Energies as Parquet, from which scores can be made again, and their histograms. The result holds the file's
    SHA-256, so that energies of another evaluation cannot pass for its own."""
    columns, name = document.pop("columns"), document["metric"]
    parquet = _parquet(columns, _origin(document))
    document["energies"] = {"file": f"{name}-energies.parquet", "sha256": hashlib.sha256(parquet).hexdigest()}
    asked.folder.write(f"{name}-energies.parquet", parquet)
    protocol = document["protocol"]["name"]
    title = f"{asked.run_name}, step {asked.step}, protocol {protocol}"
    auroc = {key: one["auroc"] for key, one in document["sets"].items()}
    asked.folder.write(f"{name}.png", ood.histograms_png(columns, title, auroc))


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


STUDY = Study(
    options=OodOptions,
    check=image_sets,
    prepare=describe,
    measure=measure,
    store=store,
    tables=tables,
    metric=metric,
)
