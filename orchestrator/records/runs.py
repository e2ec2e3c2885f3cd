"""What is stored about runs: settings, origin, rows, scores and pictures, and the keys under which they lie."""

import json
import re
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa

from ebm_core.config import to_tree
from orchestrator.records.provenance import CONFIG, PROVENANCE, Origin, read_provenance
from orchestrator.records.rows import Row, part_steps, read_parts
from orchestrator.records.scores import headline, read_scores, shown_name
from orchestrator.settings.job import JobConfig
from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import Run, RunStore


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


def read_metrics(run: Run) -> pa.Table:
    """Every logged row of the run, by step."""
    return read_parts(run.read_bytes(key) for key in _parts(run))


def _parts(run: Run) -> list[str]:
    keys = (info.key for info in run.list("metrics/"))
    return sorted(key for key in keys if part_steps(key.removeprefix("metrics/")))


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
