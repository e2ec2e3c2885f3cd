"""What the page of a run is made of, read from storage. Whatever is absent or damaged leaves a gap, never an error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ebm_core.config import to_tree
from ebm_core.presets import PRESETS
from orchestrator.records import provenance, runs
from orchestrator.records.rows import training_seconds
from orchestrator.settings.job import job_preset
from orchestrator.settings.trees import differences, flatten
from orchestrator.storage.commits import parse_step_name
from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import Run
from workers.metrics.published import TABLE_1

PAPER_SCORES: Mapping[str, Mapping[str, float]] = {"cifar10": TABLE_1}
"""Unconditional CIFAR-10 of Table 1, by data set and metric. (Table 3's figures come with the scores of `ood`.)"""

NOT_COMPARED = ("name", "storage", "data.root")
"""Settings of a machine, which no preset decides."""


@dataclass(frozen=True)
class Setting:
    """A resolved setting beside the preset's."""

    path: str
    value: Any
    preset: Any
    changed: bool


@dataclass(frozen=True)
class Cost:
    """What training took, as far as the stored rows tell."""

    train_s: float
    """Seconds between logged rows, without start-up and pauses."""
    num_workers: int
    per_worker: float
    """CPUs, or GPUs, of a worker."""
    unit: str
    """core-hours or GPU-hours."""

    @property
    def hours(self) -> float:
        """train_s times workers times what each of them held."""
        return self.train_s / 3600 * self.num_workers * self.per_worker


@dataclass(frozen=True)
class RunData:
    """A stored run as a page shows it."""

    name: str
    uri: str
    state: str
    """finished, diverged, unfinished."""
    step: int
    num_steps: int
    settings: list[Setting]
    preset: str
    rows: Mapping[str, list[Any]]
    """Logged columns by name, each with a value or None for every row."""
    scores: dict[int, dict[str, Any]]
    """{step: {metric: document}}."""
    launches: list[dict[str, Any]]
    diverged_at: int | None
    resumed_at: list[int]
    """Steps at which a later launch went on."""
    cost: Cost
    run: Run

    def setting(self, path: str) -> Any:
        """A resolved setting, None if the stored tree lacks it."""
        return next((s.value for s in self.settings if s.path == path), None)

    @property
    def last_scores(self) -> tuple[int, dict[str, Any]] | None:
        """(step, {metric: document}) of the newest scored checkpoint."""
        return max(self.scores.items(), default=None, key=lambda item: item[0])


def gather(run: Run) -> RunData:
    """Read a run. Raises StorageError if it has no readable settings."""
    tree = run.read_config()
    flat = flatten(tree)
    keys = [info.key for info in run.list()]
    rows = read_rows(run)
    launches = _launches(run)
    num_steps = _whole(flat.get("train.num_steps"))
    step = max(run.checkpoints(), default=0)
    diverged_at = max(filter(None, (_step_of(key) for key in keys if key.startswith("diverged/"))), default=None)
    if diverged_at is not None and diverged_at < step:
        diverged_at = None  # it went on with other settings, and got further
    state = "finished" if num_steps and step >= num_steps else "diverged" if diverged_at is not None else "unfinished"
    preset, settings = _settings(tree, launches)
    return RunData(
        name=run.name,
        uri=run.uri,
        state=state,
        step=max(step, diverged_at or 0),
        num_steps=num_steps,
        settings=settings,
        preset=preset,
        rows=rows,
        scores=_scores(run, keys),
        launches=launches,
        diverged_at=diverged_at,
        resumed_at=_resumed(rows, launches),
        cost=measure_cost(rows, flat, launches),
        run=run,
    )


def read_rows(run: Run) -> dict[str, list[Any]]:
    """The logged columns that have any value; none if the parts cannot be read."""
    try:
        table = runs.read_metrics(run)
    except (StorageError, OSError, ValueError):  # pyarrow's errors are of the latter two
        return {"step": []}
    columns = table.to_pydict()
    return {name: values for name, values in columns.items() if name == "step" or any(v is not None for v in values)}


def measure_cost(rows: Mapping[str, Sequence[Any]], flat: Mapping[str, Any], launches: Sequence[Any]) -> Cost:
    """Seconds of training times workers times their CPUs (GPUs)."""
    seconds = training_seconds(rows)
    workers = _whole(flat.get("cluster.num_workers")) or 1
    if flat.get("cluster.use_gpu") is True:
        share = flat.get("cluster.gpus_per_worker")
        return Cost(seconds, workers, float(share) if isinstance(share, int | float) else 1.0, "GPU-hours")
    cpus = _whole(flat.get("cluster.cpus_per_worker"))
    if not cpus:  # an equal share of the node
        hardware = launches[-1].get("hardware") if launches else None
        node = _whole(hardware.get("cpus")) if isinstance(hardware, dict) else 0
        cpus = max(1, node // workers)
    return Cost(seconds, workers, cpus, "core-hours")


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _settings(tree: Mapping[str, Any], launches: Sequence[Mapping[str, Any]]) -> tuple[str, list[Setting]]:
    """(preset, every setting beside it): the preset of the first command, else the nearest one."""
    presets = {name: to_tree(job_preset(name)) for name in PRESETS}
    words = [word for launch in launches[:1] for word in _words(launch)]
    named = [words[i + 1] for i in range(len(words) - 1) if words[i] == "train" and words[i + 1] in presets]
    preset = named[0] if named else min(presets, key=lambda name: len(differences(tree, presets[name])))
    flat, base = flatten(tree), flatten(presets[preset])
    changed = {path for path in differences(tree, presets[preset]) if path not in NOT_COMPARED}
    return preset, [Setting(path, value, base.get(path), path in changed) for path, value in flat.items()]


def _words(launch: Mapping[str, Any]) -> list[str]:
    command = launch.get("command")
    return [str(word) for word in command] if isinstance(command, list) else []


def _launches(run: Run) -> list[dict[str, Any]]:
    try:
        found = run.read_json(provenance.PROVENANCE)["launches"]
        return [launch for launch in found if isinstance(launch, dict)]
    except (StorageError, KeyError, TypeError):
        return []


def _step_of(key: str) -> int | None:
    """The step in `folder/step-000000500/…`."""
    return parse_step_name(key.split("/")[1]) if "/" in key else None


def _scores(run: Run, keys: Sequence[str]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for key in keys:
        step = _step_of(key) if key.startswith("evaluations/") and key.endswith(".json") else None
        if step is None or key.count("/") != 2:
            continue
        try:
            document = run.read_json(key)
        except StorageError:
            continue
        if isinstance(document, dict) and "value" in document:
            found.setdefault(step, {})[key.rpartition("/")[2].removesuffix(".json")] = document
    return dict(sorted(found.items()))


def _resumed(rows: Mapping[str, list[Any]], launches: Sequence[Mapping[str, Any]]) -> list[int]:
    """For each launch after the first, the first step that was logged after its start."""
    found = []
    for launch in launches[1:]:
        try:
            started = datetime.fromisoformat(str(launch["started"])).timestamp()
        except (KeyError, ValueError):
            continue
        later = (s for s, t in zip(rows["step"], rows.get("time", ()), strict=False) if t is not None and t >= started)
        step = next(later, None)
        if step is not None and step > 1:
            found.append(step)
    return sorted(set(found))
