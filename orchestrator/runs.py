"""What is stored about runs: their settings, origin, rows, scores and pictures, and the names under which to find them."""

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa

from ebm_core.config import to_tree
from ebm_core.data import load
from ebm_core.errors import ConfigError
from orchestrator import telemetry
from orchestrator.config import JobConfig
from orchestrator.storage import RunStore

CONFIG, PROVENANCE = "config.json", "provenance.json"

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


def step_folder(step: int) -> str:
    """`step-000000500`: the segment under which everything of a step is stored."""
    return f"step-{step:09d}"


def create(store: RunStore, job: JobConfig) -> bool:
    """Write config.json of a new run, unless another process has; then its provenance. False: the run exists."""
    run = store.run(str(job.name))
    if not run.create_once(CONFIG, _json(to_tree(job))):
        return False
    run.put(PROVENANCE, _json({"launches": [provenance(job)]}))
    return True


def create_numbered(store: RunStore, job: JobConfig, prefix: str) -> JobConfig:
    """The job under the next free name `<prefix>-0001`, created in storage; racing processes get different names."""
    taken = re.compile(re.escape(prefix) + r"-(\d{4,})")
    numbers = [int(m[1]) for m in map(taken.fullmatch, store.runs()) if m]
    number = max(numbers, default=0) + 1
    while True:
        named = replace(job, name=f"{prefix}-{number:04d}")
        if create(store, named):
            return named
        number += 1


def update(run: Any, job: JobConfig) -> None:
    """Store the settings that a resumed run goes on with, and add the launch to its provenance."""
    run.put(CONFIG, _json(to_tree(job)))
    before = _read_json(run, PROVENANCE) or {}
    launches = before.get("launches") if isinstance(before.get("launches"), list) else []
    run.put(PROVENANCE, _json({"launches": [*launches, provenance(job)]}))


def read_config(run: Any) -> dict[str, Any] | None:
    """The stored tree of settings; None when the run does not exist. ConfigError when it cannot be read."""
    return _read_json(run, CONFIG)


def read_metrics(run: Any) -> pa.Table:
    """Every logged row of the run, by step."""
    names = [name for name in run.list("metrics") if telemetry.part_steps(name)]
    return telemetry.read_parts(run.get(f"metrics/{name}") for name in sorted(names))


def read_scores(run: Any, step: int) -> dict[str, dict[str, Any]]:
    """{metric: score document} of a step; empty when it was not scored."""
    names = [name for name in run.list(f"evaluations/{step_folder(step)}") if name.endswith(".json")]
    found = {name[: -len(".json")]: _read_json(run, f"evaluations/{step_folder(step)}/{name}") for name in sorted(names)}
    return {name: score for name, score in found.items() if score is not None}


def grid_key(run: Any, step: int) -> str | None:
    """Key of the step's sample grid, if there is one."""
    name = f"{step_folder(step)}.png"
    return f"samples/{name}" if name in run.list("samples") else None


def provenance(job: JobConfig) -> dict[str, Any]:
    """Where the numbers of a launch come from: versions, machine, data, command (with secrets blotted out)."""
    packages = ("torch", "torchvision", "ray", "numpy", "safetensors", "pyarrow", "scikit-learn", "confab-ebm")
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [without_secrets(word) for word in sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "hardware": _hardware(),
        "data": {"name": job.data.name, "fingerprint": load(job.data, "train").fingerprint()},
    }


def without_secrets(word: str) -> str:
    """A word of a command line whose password, token or key is replaced by ***."""
    return _USER_INFO.sub("://***@", _SECRET.sub(lambda m: f"{m[0].partition('=')[0]}=***", word))


def summaries(store: RunStore) -> list[RunSummary]:
    """All runs of a store, by name."""
    return [_summary(store, name) for name in sorted(store.runs())]


def _summary(store: RunStore, name: str) -> RunSummary:
    run = store.run(name)
    try:
        tree = read_config(run) or {}
        data, num_steps = str(tree["data"]["name"]), int(tree["train"]["num_steps"])
    except (ConfigError, KeyError, TypeError, ValueError):
        return RunSummary(name, "?", 0, 0, "damaged", None, {}, None)
    step = max(run.committed_steps(), default=0)
    parts = [key for key in run.list("metrics") if telemetry.part_steps(key)]
    gap = None
    if parts:
        rows = telemetry.read_parts([run.get(f"metrics/{max(parts)}")])
        gap = rows["energy_gap"][-1].as_py() if rows.num_rows else None
    scores = {metric: headline(document) for metric, document in read_scores(run, step).items()}
    state = "finished" if step >= num_steps else "diverged" if run.list("diverged") else "unfinished"
    return RunSummary(name, data, step, num_steps, state, gap, scores, run.modified())


def headline(document: Mapping[str, Any]) -> float:
    """The number of a score document that stands for it in a table."""
    return float(document["value"])


def _read_json(run: Any, key: str) -> dict[str, Any] | None:
    content = run.get(key) if run.exists(key) else None
    if content is None:
        return None
    try:
        tree = json.loads(content)
    except ValueError:
        raise ConfigError(f"{run.uri}/{key} is no JSON: restore it, or use another name=") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{run.uri}/{key} holds no settings: restore it, or use another name=")
    return tree


def _json(tree: Mapping[str, Any]) -> bytes:
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}
