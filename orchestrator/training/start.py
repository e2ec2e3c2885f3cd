"""How a job begins: its settings resolved, its data checked, its run claimed or found finished."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ebm_core.data import absolute_root, check_files, num_conditions
from ebm_core.errors import ConfigError, EbmError
from orchestrator.evaluation.actors import check_weights
from orchestrator.evaluation.evaluate import check_studies
from orchestrator.records import provenance, runs
from orchestrator.records.scores import grid_key, read_scores, unscored
from orchestrator.settings.job import JobConfig, parse
from orchestrator.settings.overrides import override
from orchestrator.settings.trees import check_resumable
from orchestrator.storage.find import open_run
from orchestrator.storage.run_store import Run, RunStore
from workers.features.weights import Weights


class TrainingError(EbmError):
    """Workers kept failing for a reason that is no EbmError."""


@dataclass(frozen=True)
class RunResult:
    """What a finished or interrupted run left behind."""

    name: str
    uri: str
    step: int
    num_steps: int
    already_finished: bool = False
    stopped_by: int | None = None
    """The signal that ended it early."""
    grid: str | None = None
    """Key of the last sample grid, below the run."""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Score documents of the last checkpoint by score."""
    page: str | None = None
    """Key of the HTML page that was made at the end."""


def resolved(job: JobConfig) -> JobConfig:
    """The job with absolute folders (workers start elsewhere) and its device decided."""
    data = replace(job.data, root=absolute_root(job.data.root))
    storage = job.storage if "://" in job.storage else str(Path(job.storage).expanduser().absolute())
    return replace(job, data=data, storage=storage)


def check_data(job: JobConfig) -> None:
    """Missing files, and a condition that the data cannot give, are found before anything starts."""
    check_files(job.data)
    if job.data.condition != "none":
        num_conditions(job.data)
    if job.evaluation.every:
        check_weights(job.evaluation.metrics, Weights.default())
        check_studies(job.evaluation, job.data)


def finished_run(store: RunStore, job: JobConfig) -> RunResult | None:
    """The result of a run of this name that has all its steps and scores, else None. Refuses other settings."""
    if job.name is None or not store.run(job.name).exists():
        return None
    run = store.run(job.name)
    check_resumable(run.read_config(), job)
    reached = max(run.checkpoints(), default=0)
    if reached < job.train.num_steps or reached in unscored(run, job):  # killed before the last scores were stored
        return None
    return replace(_result(run, job, reached), already_finished=True)


def claim_run(store: RunStore, job: JobConfig, prefix: str, origin: provenance.Origin) -> tuple[JobConfig, int]:
    """The job under its name, and the step of its newest checkpoint (0: none). Writes config and provenance."""
    if job.name is None:
        return runs.create_numbered(store, job, prefix, origin), 0
    run = store.run(job.name)
    if not run.exists() and runs.create(store, job, origin):
        return job, 0
    check_resumable(run.read_config(), job)
    runs.update(run, job, origin)
    return job, max(run.checkpoints(), default=0)


def _result(run: Run, job: JobConfig, step: int) -> RunResult:
    return RunResult(
        name=str(job.name),
        uri=run.uri,
        step=step,
        num_steps=job.train.num_steps,
        grid=grid_key(run, step),
        scores=read_scores(run, step),
    )


def stored_job(where: str, storage: str) -> JobConfig:
    """The settings of a stored run, with `storage` where it was found now."""
    run = open_run(where, storage)
    return replace(parse(run.read_config()), storage=run.store.uri, name=run.name)


def resumed_job(where: str, storage: str, settings: Sequence[str]) -> JobConfig:
    """The job that goes on with a run. Raises ConfigError for a change of its name."""
    if any(word.startswith("name=") for word in settings):
        raise ConfigError(f"resume {where}: keeps its name; `ebm clone {where} name=...` begins another run")
    return override(stored_job(where, storage), settings)


def cloned_job(where: str, storage: str, settings: Sequence[str]) -> tuple[JobConfig, str]:
    """(the job of a new run with the settings of a stored one, how its name begins)."""
    source = stored_job(where, storage)
    job = override(replace(source, name=None), settings)
    if job.name is not None and RunStore(job.storage).run(job.name).exists():
        raise ConfigError(f"name = {job.name!r}: exists in {job.storage}; name the clone otherwise")
    prefix, _, number = str(source.name).rpartition("-")
    return job, prefix if number.isdigit() and prefix else str(source.name)
