"""What is stored about runs: settings, origin, rows, scores and pictures, and the keys under which they lie."""

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from ebm_core.config import to_tree
from ebm_core.data import load
from orchestrator.records.rows import Row, part_steps, read_parts
from orchestrator.settings.job import JobConfig
from orchestrator.storage.commits import step_name
from orchestrator.storage.interface import ObjectMissing, StorageError
from orchestrator.storage.run_store import Run, RunStore
from workers.metrics.feature_metrics import FIELD_IMAGES, printed_name

CONFIG, PROVENANCE = "config.json", "provenance.json"
MAX_AWAITING = 8
"""Checkpoints that outlive checkpoint.keep because their scores are still to come: scoring that is slower than training
must not decide by its pace what is scored, and scoring that never ends must not fill the store."""

_SECRET = re.compile(r"(?i)(token|secret|password|credential|access_?key)[^=\s]*=\S+")
_USER_INFO = re.compile(r"://[^/@\s]+@")


@dataclass(frozen=True)
class RunSummary:
    """A line of `ebm runs`."""

    name: str
    data: str
    step: int
    num_steps: int
    state: str
    """`finished`, `diverged`, `unfinished` or `damaged` (its config.json cannot be read)."""
    energy_gap: float | None
    scores: dict[str, float]
    modified: datetime | None


Origin = dict[str, Any]
"""What `provenance` makes, before anything is stored."""


def create(store: RunStore, job: JobConfig, origin: Origin) -> bool:
    """Write config.json of a new run, unless another process has; then its provenance. False: the run exists."""
    run = store.run(str(job.name))
    document = json.dumps(to_tree(job), indent=2) + "\n"
    if not store.objects.create(f"{run.name}/{CONFIG}", document.encode()):
        return False
    run.write_json(PROVENANCE, {"launches": [origin]})
    return True


def create_numbered(store: RunStore, job: JobConfig, prefix: str, origin: Origin) -> JobConfig:
    """The job under the next free name `<prefix>-0001`, created in storage; racing processes get different names."""
    taken = re.compile(re.escape(prefix) + r"-(\d{4,})")
    numbers = [int(m[1]) for m in map(taken.fullmatch, store.runs()) if m]
    number = max(numbers, default=0) + 1
    while True:
        named = replace(job, name=f"{prefix}-{number:04d}")
        if create(store, named, origin):
            return named
        number += 1


def update(run: Run, job: JobConfig, origin: Origin) -> None:
    """Store the settings that a resumed run goes on with, and add the launch to its provenance."""
    run.write_config(to_tree(job))
    before = read_provenance(run)
    run.write_json(PROVENANCE, before | {"launches": [*before["launches"], origin]})


def launches(run: Run) -> list[Origin]:
    """Every launch of the run, oldest first; none if the job was killed before it wrote the first."""
    return read_provenance(run)["launches"]


def read_provenance(run: Run) -> dict[str, Any]:
    """provenance.json, with its list of launches, empty where a kill came before it was written."""
    try:
        tree = run.read_json(PROVENANCE)
    except ObjectMissing:
        tree = {}
    tree = tree if isinstance(tree, dict) else {}
    return tree | {"launches": tree["launches"] if isinstance(tree.get("launches"), list) else []}


def read_metrics(run: Run) -> pa.Table:
    """Every logged row of the run, by step."""
    return read_parts(run.read_bytes(key) for key in _parts(run))


def read_scores(run: Run, step: int) -> dict[str, dict[str, Any]]:
    """{metric: score document} of a step; empty when it was not scored."""
    folder = f"evaluations/{step_name(step)}/"
    names = (info.key.removeprefix(folder) for info in run.list(folder))
    return {
        name.removesuffix(".json"): run.read_json(folder + name)
        for name in names
        if name.endswith(".json") and "/" not in name
    }


def ema_grid_key(step: int) -> str:
    """Key of the grid that the averaged model draws from noise; `samples/step-….png` holds the chains of training."""
    return f"samples/{step_name(step)}-ema.png"


def grid_key(run: Run, step: int) -> str | None:
    """Key of the step's best sample grid: the averaged model's, else that of the chains of training, else None."""
    kept = {info.key for info in run.list(f"samples/{step_name(step)}")}
    return next((key for key in (ema_grid_key(step), f"samples/{step_name(step)}.png") if key in kept), None)


def _parts(run: Run) -> list[str]:
    keys = (info.key for info in run.list("metrics/"))
    return sorted(key for key in keys if part_steps(key.removeprefix("metrics/")))


def provenance(job: JobConfig) -> Origin:
    """Where the numbers of a launch come from: versions, machine, data, command (with secrets blotted out)."""
    packages = ("torch", "torchvision", "ray", "numpy", "safetensors", "pyarrow", "scikit-learn", "confab-ebm")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [without_secrets(word) for word in sys.argv],
        "job": submission_id(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in packages},
        "hardware": _hardware(),
        "data": {"name": job.data.name, "fingerprint": load(job.data, "train").fingerprint()},
    }


def submission_id() -> str | None:
    """Id of the Ray job that this process is the command of; None outside of a job."""
    try:
        return (
            json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")).get("metadata", {}).get("job_submission_id")
        )
    except (ValueError, AttributeError):
        return None


def without_secrets(word: str) -> str:
    """A word of a command line whose password, token or key is replaced by ***."""
    return _USER_INFO.sub("://***@", _SECRET.sub(lambda m: f"{m[0].partition('=')[0]}=***", word))


def summaries(store: RunStore) -> list[RunSummary]:
    """All runs of a store, by name, each looked at; `catalog.read` is for many."""
    return [summarise(store, name) for name in sorted(store.runs())]


def last_row(run: Run) -> Row:
    """The last logged row of a run, without its absent columns; empty if it has none."""
    parts = _parts(run)
    rows = read_parts([run.read_bytes(parts[-1])] if parts else []).to_pylist()
    return {name: value for name, value in rows[-1].items() if value is not None} if rows else {}


def summarise(store: RunStore, name: str) -> RunSummary:
    """A run as it is now."""
    run = store.run(name)
    try:
        tree = run.read_config()
        data, num_steps = str(tree["data"]["name"]), int(tree["train"]["num_steps"])
    except (StorageError, KeyError, TypeError, ValueError, OverflowError):
        return RunSummary(name, "?", 0, 0, "damaged", None, {}, None)
    step = max(run.checkpoints(), default=0)
    gap = last_row(run).get("energy_gap")
    diverged = any(True for _ in run.list("diverged/"))
    state = "finished" if step >= num_steps else "diverged" if diverged else "unfinished"
    scores = {shown_name(name, document): headline(document) for name, document in read_scores(run, step).items()}
    modified = max((info.modified for info in run.list()), default=None)
    return RunSummary(name, data, step, num_steps, state, gap, scores, modified)


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
        elif name == "chains":
            rows.append(("fid_small of long chains, end over best", headline(document), None, None))
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


def package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}


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
        documents = {f"evaluations/{step_name(step)}/{metric}.json" for metric in job.evaluation.metrics}
        return documents | {ema_grid_key(step)} <= stored

    return [step for step in steps if not complete(step)]


def unscored(run: Run, job: JobConfig) -> list[int]:
    """Stored checkpoints that get scores and have not got all of them, ascending."""
    return lacking_scores(run, job, [step for step in run.checkpoints() if is_scored(step, job)])


def awaiting_scores(run: Run, job: JobConfig) -> list[int]:
    """Checkpoints that stay until they are scored, the newest MAX_AWAITING of `unscored`."""
    return unscored(run, job)[-MAX_AWAITING:] if job.evaluation.every else []
