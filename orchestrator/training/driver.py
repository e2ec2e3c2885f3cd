"""`run_training`: the driver's side of a job. It prepares the run in storage, supervises Ray Train, scores, reports.

Ray Train runs `worker.train_loop_per_worker`; what exists is decided by our own RunStore, never by Ray's state.
"""

import contextlib
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ebm_core.config import to_tree
from ebm_core.errors import DivergenceError, EbmError, kind_and_line
from orchestrator.cluster import connection, environment, mailbox, ray_internals
from orchestrator.cluster.resources import free_cpus, remove_orphaned_groups, worker_resources
from orchestrator.cluster.signals import ask_once, interrupt
from orchestrator.evaluation.beside_training import Scorer
from orchestrator.monitoring.exporter import Link
from orchestrator.monitoring.values import Meter
from orchestrator.records import catalogue, provenance
from orchestrator.records.scores import spared
from orchestrator.settings.job import JobConfig
from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.terminal.progress import Display, Silent
from orchestrator.training.group import COLLECTIVE_TIMEOUT_S, _ProcessGroup
from orchestrator.training.start import RunResult, TrainingError, _result, check_data, claim_run, finished_run, resolved
from orchestrator.training.worker import train_loop_per_worker

RESIZE_S = 30.0
"""So often an elastic job that lacks workers looks for room. More of them cost the steps since the last checkpoint."""
TIDY_S = 5.0
"""So often a job whose workers have not started looks for reservations that its dead predecessors left."""
POLL_S = 1.0
"""So often the driver reads what the workers say. Its processor time is missing where training has every core."""
SCORING_POLL_S = 0.2
"""So often it looks whether the last scores are there, when training is over."""


class Watcher:
    """What a caller that runs jobs for somebody else wants to hear, and to say. This one neither hears nor speaks."""

    def scored(self, step: int, documents: Mapping[str, Any]) -> None:
        """The scores of a checkpoint are stored; documents by score."""

    def stop_requested(self) -> bool:
        """Whether the job shall store a checkpoint and leave; asked about five times a second."""
        return False


def run_training(
    job: JobConfig,
    *,
    prefix: str | None = None,
    address: str | None = None,
    display: Display | None = None,
    watcher: Watcher | None = None,
) -> RunResult:
    """Train `job` on Ray to its last step, resuming a run of the same name, and score its checkpoints beside it.

    `prefix` begins the name of a run that has none. Raises EbmError: ConfigError for settings, DataError for missing
    images, DivergenceError when training left the stable region, TrainingError after cluster.max_failures restarts.
    """
    with contextlib.closing(display or Silent()) as shown:
        return _run_training(resolved(job), prefix, address, shown, watcher or Watcher())


def _run_training(
    job: JobConfig, prefix: str | None, address: str | None, display: Display, watcher: Watcher
) -> RunResult:
    check_data(job)
    store = RunStore(job.storage)
    finished = finished_run(store, job)
    if finished is not None:
        return finished
    origin = provenance.provenance(job)  # reads the data: unreadable files start no Ray and leave no run behind
    store.check_writable()
    with connection.ray_session(address, display.note):
        resources = worker_resources(job)  # a job that can never fit leaves nothing in storage
        job, reached = claim_run(store, job, prefix or job.data.name, origin)
        run = store.run(str(job.name))
        display.note(f"run {job.name} in {run.uri}" + (f", resuming at step {reached}" if reached else ""))
        _catalogue(run, display)
        try:
            result = _Supervisor(job, run, display, watcher).work(resources)
        except RayError as why:
            raise TrainingError(f"lost the Ray that trained ({_one_line(why)}); go on with name={job.name}") from None
        finally:
            page = _leave_page(run, display)
            _catalogue(run, display)
        return replace(result, page=page)


def _leave_page(run: Run, display: Display) -> str | None:
    """However the job ended: a diverged or interrupted run has its page too."""
    from orchestrator.reports.write import leave_page

    return leave_page(run, display.note)


def _catalogue(run: Run, display: Display) -> None:
    """Put the run as it is into the catalogue; what fails there fails no run, for readers look at what it lacks."""
    try:
        catalogue.update(run.store, [run.name])
    except StorageError as why:
        display.note(f"the catalogue lacks {run.name}: {why}; `ebm runs --rebuild` makes it anew")


def scaling(job: JobConfig, resources: dict[str, float]) -> ScalingConfig:
    """What Ray Train is asked for: the workers, and what each of them reserves (`resources.worker_resources`)."""
    least, most = job.cluster.least_workers, job.cluster.num_workers
    return ScalingConfig(
        num_workers=most if least == most else (least, most),
        use_gpu=job.cluster.use_gpu,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_S,
    )


class _Supervisor:
    """Runs `fit()` in a thread, passes on what the workers say, restarts after failures, turns signals into a stop."""

    def __init__(self, job: JobConfig, run: Run, display: Display, watcher: Watcher) -> None:
        self._job, self._run, self._display, self._watcher = job, run, display, watcher
        self._signal: int | None = None
        self._error: EbmError | None = None
        self._step = 0
        self._started = False

    def work(self, resources: dict[str, float]) -> RunResult:
        """Train, score, and say what there is. Raises the EbmError of a worker, or TrainingError."""
        self._mailbox = mailbox.open_mailbox()
        self._scorer = Scorer(self._job, self._run)
        link = Link(self._display.note, ray_internals.temp_folder) if connection.is_shared() else None
        self._meter = Meter(self._run.name, self._job.train.num_steps, link)
        try:
            with ask_once(self._ask_by_signal):
                self._say_waiting(resources)
                self._fit_with_restarts(resources)
                self._finish_scoring()
        finally:
            self._display.close()
            self._meter.close(diverged=isinstance(self._error, DivergenceError))
            with contextlib.suppress(RayError):  # gone already
                self._scorer.close()
                ray.kill(self._mailbox)
        return replace(_result(self._run, self._job, self._step), stopped_by=self._interrupted())

    def _fit_with_restarts(self, resources: dict[str, float]) -> None:
        """Train to the end or a stop; a lost worker costs a restart, the same error twice at one step ends the job."""
        before = None
        for failures in range(self._job.cluster.max_failures + 1):
            failure = self._fit_once(resources)
            if self._error is not None:
                raise self._error
            if failure is None:
                return
            again = (failure, self._step) == before
            before = (failure, self._step)
            if again or self._signal is not None or failures == self._job.cluster.max_failures:
                times = "once" if failures == 0 else f"{failures + 1} times"
                raise TrainingError(f"training of {self._run.name} failed {times}, the last time by {failure}")
            self._meter.set("restarts", failures + 1)
            self._display.note(f"lost a worker ({failure}); restarting from the newest checkpoint")
            time.sleep(min(0.5 * 2**failures, 15.0))

    def _finish_scoring(self) -> None:
        """Wait for the scores that are due, unless a signal came or comes; checkpoints that only waited for them go."""
        if self._signal is None and self._scorer.busy():
            self._display.note("scoring the last checkpoint")
        while self._signal is None and self._scorer.busy():
            time.sleep(SCORING_POLL_S)
            self._read_mail()
        self._read_mail()
        try:
            if self._job.evaluation.every and len(self._run.checkpoints()) > self._job.checkpoint.keep:
                self._run.retain(self._job.checkpoint.keep, self._display.note, spared(self._run, self._job))
        except StorageError as why:  # all that the job was for is stored
            self._display.note(f"older checkpoints stay: {why}")

    def _interrupted(self) -> int | None:
        return self._signal if self._step < self._job.train.num_steps else None

    def _fit_once(self, resources: dict[str, float]) -> str | None:
        """One `fit()`; None when the workers came to their end, otherwise a line about what went wrong."""
        outcome: list[BaseException] = []
        with tempfile.TemporaryDirectory(prefix="ebm-train-") as folder:
            trainer = self._trainer(resources, folder)

            def fit() -> None:
                try:
                    trainer.fit()
                except BaseException as error:  # carried to the main thread, where it is judged
                    outcome.append(error)

            thread = threading.Thread(target=fit, name="ray-train-fit", daemon=True)
            thread.start()
            self._started, tidied = False, time.monotonic()
            while thread.is_alive():
                thread.join(POLL_S)
                self._read_mail()
                if not self._started and time.monotonic() - tidied > TIDY_S:
                    remove_orphaned_groups()  # workers that cannot start may be waiting for these
                    tidied = time.monotonic()
            self._read_mail()
        if outcome and self._error is None:
            self._error = _own_error(outcome[0])
        return _one_line(outcome[0]) if outcome else None

    def _trainer(self, resources: dict[str, float], folder: str) -> TorchTrainer:
        launch = {"job": to_tree(self._job), "mailbox": self._mailbox, "cpus": int(resources["CPU"])}
        launch["environment"] = environment.storage_environment()
        return TorchTrainer(
            train_loop_per_worker,
            train_loop_config=launch,
            scaling_config=scaling(self._job, resources),
            torch_config=_ProcessGroup(
                backend="cpu:gloo,cuda:nccl" if self._job.cluster.use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
            ),
            run_config=RunConfig(
                name=f"{self._job.name}-{uuid.uuid4().hex[:8]}",  # Ray resumes a name that it knows; our store decides
                storage_path=folder,
                worker_runtime_env={"env_vars": environment.WORKER_ENV},
                failure_config=FailureConfig(max_failures=0),  # restarts are ours: we tell errors apart
            ),
        )

    def _read_mail(self) -> None:
        for kind, payload in ray.get(self._mailbox.drain.remote()):
            if kind == "row":
                self._display.row(payload)
                self._meter.row(payload)
            elif kind == "checkpoint":
                self._step = payload
                self._scorer.offer(payload)
                self._meter.checkpoint()
            elif kind == "checkpoint_duration":
                self._meter.set(kind, payload)
            elif kind == "started":
                self._step, self._started = payload, True
                self._meter.started(payload)
            elif kind == "note":
                self._display.note(payload)
            elif kind == "error" and self._error is None:
                self._error = payload
        for message in self._scorer.messages():
            self._display.note(message)
        for step, documents in self._scorer.scored():
            self._watcher.scored(step, documents)
        self._meter.set("evaluation_failures", self._scorer.num_failures)
        self._meter.scores(self._scorer.headlines)
        self._meter.tick()
        if self._signal is None and self._watcher.stop_requested():
            self._ask_to_stop(signal.SIGTERM)

    def _ask_to_stop(self, number: int) -> None:
        self._signal = number
        self._mailbox.request_stop.remote()

    def _say_waiting(self, resources: dict[str, float]) -> None:
        need = resources["CPU"] * self._job.cluster.least_workers
        free = free_cpus()
        if free < need:
            self._display.note(f"waiting for {need:g} CPUs: {free:g} of this Ray are free now")

    def _ask_by_signal(self, number: int) -> None:
        """Of SIGTERM and SIGINT, the first: a checkpoint and an end, unless the watcher has asked for those before."""
        if self._signal is not None:
            interrupt(number)
        self._ask_to_stop(number)
        threading.Thread(target=self._display.note, args=("stopping: storing a checkpoint",), daemon=True).start()


def _own_error(error: BaseException) -> EbmError | None:
    """The EbmError among the failures of the workers, if there is one."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        inner = ray_internals.cause(failure)
        if isinstance(inner, EbmError):
            return inner
    return error if isinstance(error, EbmError) else None


def _one_line(error: BaseException) -> str:
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    return kind_and_line(ray_internals.cause(failures[0]))
