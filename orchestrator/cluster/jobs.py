"""Jobs on a Ray cluster through its dashboard: submit, find, follow, stop. HTTP alone; nothing is started here.

A job carries the code that submitted it: the three packages of this project, less than a megabyte, go along as
`py_modules` and come before what the cluster has installed. So the version that you have is the version that runs, and
the cluster's image needs our dependencies only. Credentials never travel: the cluster's nodes have their own.
"""

import asyncio
import hashlib
import importlib.util
import json
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ebm_core.errors import ConfigError, first_line
from orchestrator.cluster.connection import ClusterError
from orchestrator.records import provenance
from orchestrator.records.provenance import package_version, without_secrets
from orchestrator.storage.run_store import RunStore

PACKAGES = ("ebm_core", "workers", "orchestrator")
STOP_WAIT_S = 55
"""What a stopped job gets to store its checkpoint before it is killed; Ray's own default is 3 s."""
PLACES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that a job takes along: they say where an S3 server is, and hold no secret."""
POLL_S = 0.5
_RUN, _VERSION, _CODE, _SETTINGS = "ebm.run", "ebm.version", "ebm.code", "ebm.settings"


@dataclass(frozen=True)
class Job:
    """A line of `ebm jobs`. Times are UTC, ISO 8601; None: not yet, or not known."""

    run: str | None
    """None: a job that plain `ray job submit` started without name=."""
    job: str
    status: str
    """Ray's PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; LOST: its head node is gone, the run in storage is not."""
    started: str | None
    ended: str | None
    version: str | None
    command: str
    message: str = ""
    exit_status: int | None = None

    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED", "LOST")

    def tree(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class Jobs:
    """The jobs of the cluster whose dashboard is at `address` (None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS)."""

    def __init__(self, address: str | None = None, say: Callable[[str], None] = lambda _: None) -> None:
        """`say` hears of a Ray that differs in its patch level. Raises ClusterError: no answer, no token, other Ray."""
        self.address = dashboard_address(address)
        with _one_line(self.address):
            self._client = JobSubmissionClient(self.address)
            logging.getLogger("ray").setLevel(logging.WARNING)  # the client has set it to INFO: a line for each upload
            theirs = self._client._server_ray_version or ""  # pyright: ignore[reportAttributeAccessIssue]
        compare_versions(ray.__version__, theirs, say)

    def submit(self, words: Sequence[str], run: str, settings: Any = None) -> str:
        """Start `ebm WORDS` on the cluster, for the run of that name; returns the job's id.

        `settings` is recorded with the job. Raises ConfigError for a word with a secret: a job's command is public.
        """
        for word in words:
            if without_secrets(word) != word:
                shown = without_secrets(word)
                raise ConfigError(f"{shown!r}: a job's command is shown to all; give the cluster's nodes the secret")
        environment = {name: os.environ[name] for name in PLACES if os.environ.get(name)}
        environment |= {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        metadata = {_RUN: run, _VERSION: package_version("confab-ebm") or "?", _CODE: code_digest()}
        if settings is not None:
            metadata[_SETTINGS] = json.dumps(settings, separators=(",", ":"))
        with _one_line(self.address):
            return self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "orchestrator.cli", *words]),
                submission_id=f"{run}-{uuid.uuid4().hex[:8]}",
                runtime_env={
                    "py_modules": [str(folder) for folder in code_folders()],
                    "excludes": ["__pycache__", "*.pyc"],
                    "env_vars": environment,
                },
                metadata=metadata,
            )

    def list(self) -> list[Job]:
        """Our jobs that this head node knows, newest first."""
        with _one_line(self.address):
            found = [d for d in self._client.list_jobs() if d.submission_id and _is_ours(d)]
        return [_job(details) for details in sorted(found, key=lambda d: d.start_time or 0, reverse=True)]

    def find(self, name: str) -> Job:
        """The newest job of a run of that name, or the job of that id. ClusterError names the jobs that there are."""
        jobs = self.list()
        for job in jobs:
            if name in (job.run, job.job):
                return job
        known = ", ".join(dict.fromkeys(job.run or job.job for job in jobs)) or "none"
        raise ClusterError(f"no job of a run {name!r} at {self.address}; there are: {known}")

    def refresh(self, job: Job) -> Job:
        """The job as it is now."""
        with _one_line(self.address):
            return _job(self._client.get_job_info(job.job))

    def logs(self, job: Job) -> str:
        """All that the job has printed."""
        with _one_line(self.address):
            return self._client.get_job_logs(job.job)

    def follow(self, job: Job, write: Callable[[str], None]) -> Job:
        """Pass on what the job prints until it is over, over lost connections too; returns how it ended."""
        shown = 0

        def pass_on(text: str) -> None:
            nonlocal shown
            shown += len(text)
            write(text)

        while not job.is_over():
            try:
                asyncio.run(self._tail(job.job, shown, pass_on))
            except (
                aiohttp.ClientError,
                RuntimeError,
            ):  # the connection, not the job, ended: go on behind what is shown
                time.sleep(POLL_S)
            time.sleep(POLL_S)
            job = self.refresh(job)
        rest = self.logs(job)[shown:]
        if rest:
            write(rest)
        return job

    async def _tail(self, job_id: str, skipped: int, write: Callable[[str], None]) -> None:
        position = 0
        async for text in self._client.tail_job_logs(job_id):
            new = text[max(0, skipped - position) :]
            position += len(text)
            if new:
                write(new)

    def stop(self, job: Job, wait_s: float = STOP_WAIT_S + 5) -> Job:
        """Ask the job to store a checkpoint and leave; returns when it has. ClusterError if it has not in `wait_s`."""
        if job.is_over():
            return job
        with _one_line(self.address):
            self._client.stop_job(job.job)
        deadline = time.monotonic() + wait_s
        while not (job := self.refresh(job)).is_over():
            if time.monotonic() > deadline:
                raise ClusterError(f"job {job.job} has not ended within {wait_s:g} s; see `ebm logs {job.job}`")
            time.sleep(POLL_S)
        return job


def dashboard_address(address: str | None) -> str:
    """The URL of the dashboard to talk to. Raises ConfigError when none is named."""
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    if not is_dashboard(named):
        was = f"`address` {named}: " if named else ""
        raise ConfigError(f"{was}name the cluster's dashboard: `address` http://HOST:8265, or RAY_API_SERVER_ADDRESS")
    if without_secrets(named) != named:
        raise ConfigError("`address`: has a password in it; use a token: RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH")
    return named.rstrip("/")


def is_dashboard(address: str | None) -> bool:
    """Whether an address is that of a dashboard, not of a Ray to join."""
    return (address or "").startswith(("http://", "https://"))


def compare_versions(ours: str, theirs: str, say: Callable[[str], None]) -> None:
    """ClusterError for another minor version of Ray, a word to `say` for another patch level."""
    if ours == theirs:
        return
    remedy = f"install ray=={theirs} here, or upgrade the cluster to {ours}"
    if ours.split(".")[:2] != theirs.split(".")[:2]:
        raise ClusterError(f"the cluster runs Ray {theirs or '?'}, this machine {ours}: {remedy}")
    say(f"the cluster runs Ray {theirs}, this machine {ours}; if something fails, {remedy}")


def code_folders() -> list[Path]:
    """The folders of this project's packages, wherever they are installed."""
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    return [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None]


def code_digest() -> str:
    """SHA-256 over the names and contents of this project's modules: which code a job was sent with."""
    digest = hashlib.sha256()
    for folder in code_folders():
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cpp")]):
            content = path.read_bytes()
            digest.update(f"{folder.name}/{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _is_ours(details: JobDetails) -> bool:
    words = (details.entrypoint or "").split()
    return _RUN in (details.metadata or {}) or "orchestrator.cli" in words or any(Path(w).name == "ebm" for w in words)


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    command = (details.entrypoint or "").replace("python -m orchestrator.cli", "ebm")
    named = (word.removeprefix("name=") for word in command.split() if word.startswith("name="))
    failed = details.status == JobStatus.FAILED
    return Job(
        run=metadata.get(_RUN) or next(named, None),
        job=str(details.submission_id),
        status=details.status.value,
        started=_moment(details.start_time),
        ended=_moment(details.end_time),
        version=metadata.get(_VERSION),
        command=without_secrets(command),
        message=_last_line(details.message) if failed else "",
        exit_status=details.driver_exit_code,
    )


def _moment(milliseconds: int | None) -> str | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else None


def _last_line(text: str | None) -> str:
    return next((line.strip() for line in reversed((text or "").splitlines()) if line.strip()), "")


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    """What Ray raises on the way, as a ClusterError."""
    try:
        yield
    except AuthenticationError:
        raise ClusterError(
            f"{address} asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token file"
        ) from None
    except (ConnectionError, requests.ConnectionError, requests.Timeout, aiohttp.ClientConnectionError):
        raise ClusterError(f"no answer from {address}: check the address, and that the cluster's head runs") from None
    except (RuntimeError, ValueError, aiohttp.ClientError, requests.RequestException) as why:
        raise ClusterError(f"the cluster at {address}: {first_line(why)}") from None


def lost_jobs(storage: str, known: Collection[str]) -> list[Job]:
    """Jobs that the runs of a store remember and the cluster does not: history ends with a head node."""
    store = RunStore(storage)
    found = []
    for name in store.runs():
        for launch in provenance.launches(store.run(name)):
            job = launch.get("job")
            if not isinstance(job, str) or job in known:
                continue
            command = " ".join(["ebm", *map(str, launch.get("command", [])[1:])])
            version = launch.get("packages", {}).get("confab-ebm")
            found.append(Job(name, job, "LOST", launch.get("started"), None, version, command))
    return sorted(found, key=lambda job: job.started or "", reverse=True)
