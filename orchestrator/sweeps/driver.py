"""`run_sweep`: trials scheduled by Ray Tune, each a whole training job; what exists is decided by our own record.

Tune's drivers reserve no CPU: training workers get all of them, so that trials in wait cannot starve those that run.
"""

import contextlib
import math
import os
import tempfile
import threading
import time
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial as TuneTrial

from ebm_core.config import to_tree
from ebm_core.errors import ConfigError, first_line
from orchestrator.cluster import connection, environment, mailbox
from orchestrator.cluster.signals import ask_once
from orchestrator.records import catalogue
from orchestrator.records.sweeps import OWNERS, PlannedTrial, StoredSweep, SweepPlan, SweepRecord, marked_sweep
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import override
from orchestrator.storage.ownership import OwnedError, Ownership
from orchestrator.storage.run_store import RunStore
from orchestrator.sweeps.plan import check_same
from orchestrator.sweeps.ranges import parse_space
from orchestrator.sweeps.result import conclude
from orchestrator.sweeps.room import Room, find_room, num_trials
from orchestrator.sweeps.search import OptunaSuggester, PlannedSearch, RandomSuggester, Trials, asha, trial_of_row
from orchestrator.sweeps.trial import Launch, launch_tree, planned_of, planned_tree, run_trial
from orchestrator.terminal.sweep_progress import Quiet, SweepDisplay
from orchestrator.training.start import TrainingError, check_data, resolved

DRIVER_RESOURCES = {"memory": 2.0**20}
"""What a trial's own process reserves: a mebibyte, since Tune wants something, and not a hundredth of a CPU, for then
1.99 of two CPUs are left, which hold one worker."""
PROCESS_RETRIES = 3
"""A trial whose process dies is started again so often, from its run's newest checkpoint."""
STOP_GRACE_S = 45.0
"""Trials that were asked to store a checkpoint and leave are ended after so long: before a stopped Ray job is killed
(submit.STOP_WAIT_S)."""
POLL_S = 0.5

TUNE_ENV = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # results are ours to keep
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an unstable trial may have no score
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_sweep(
    plan: SweepPlan,
    base: JobConfig,
    *,
    max_concurrent: int | None = None,
    address: str | None = None,
    display: SweepDisplay | None = None,
) -> tuple[StoredSweep, int | None]:
    """Run what is left of a sweep; what is stored then, and the signal that ended it early.

    Raises an EbmError before anything is stored when the plan cannot be run; OwnedError while another command runs it,
    or when one has taken it over; TrainingError when Ray is lost.
    """
    base = resolved(base)
    store = RunStore(base.storage)
    record = SweepRecord(store, plan.name)
    check_startable(record, plan, base)
    owner = Ownership(store.objects, f"{plan.name}/{OWNERS}", f"sweep {plan.name}")
    with contextlib.closing(display or Quiet()) as shown:
        owner.wait_until_free(shown.note)
        with connection.ray_session(address, shown.note):
            room = find_room(plan, base, max_concurrent)
            base = replace(base, cluster=replace(base.cluster, cpus_per_worker=room.cpus_per_worker))
            driver = _Driver(plan, base, record, room, shown)
            owner.take(driver.lose)
            try:
                record.create_plan(plan)
                number = driver.work()
            except RayError as why:
                raise TrainingError(f"lost the Ray that ran the sweep ({first_line(why)}); run it again") from None
            finally:
                owner.release()
    return record.read(), number


def check_startable(record: SweepRecord, plan: SweepPlan, base: JobConfig) -> None:
    """Refuse missing data, a store that cannot be written, and names that are taken by something else."""
    check_data(base)
    record.store.check_writable()
    if record.store.run(plan.name).exists():
        raise ConfigError(f"`name` {plan.name}: is a run in {record.store.uri}; choose another name")
    if record.exists():
        check_same(record.plan(), plan)
    for index in range(num_trials(plan)):
        name = trial_of_row(plan, index).run if plan.kind == "grid" else f"{plan.name}-{index:04d}"
        run = record.store.run(name)
        if not record.exists() and run.exists() and (marked_sweep(run) or ("",))[0] != plan.name:
            raise ConfigError(f"run {name} exists in {record.store.uri} and is not of this sweep; use another `name`")


class _Driver(tune.Callback, tune.Stopper):
    """What Tune calls while trials run: it reads the mailbox, tells the display, and writes down what Tune stopped."""

    def __init__(
        self, plan: SweepPlan, base: JobConfig, record: SweepRecord, room: Room, display: SweepDisplay
    ) -> None:
        self._plan, self._base, self._record, self._room, self._display = plan, base, record, room, display
        self._signal: int | None = None
        self._signalled_at = math.inf
        self._lost: str | None = None
        self._running: set[str] = set()
        self._polled_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore that we do not use."""
        return {}

    def work(self) -> int | None:
        """Run all trials that have not ended; the signal that came, if one did. OwnedError: see `lose`."""
        total = num_trials(self._plan)
        trials = Trials(self._record, self._plan, self._base, self._suggester(), total)
        done = sum(1 for trial in self._record.read().trials if trial.result)
        self._display.begin(done, total)
        if done == total:
            return None
        self._mailbox = mailbox.open_mailbox()
        try:
            with ask_once(self._ask_to_stop), tempfile.TemporaryDirectory(prefix="ebm-sweep-") as folder:
                self._tune(trials, folder)
            self._poll()
        finally:
            with contextlib.suppress(RayError):
                ray.kill(self._mailbox)
        if self._lost is not None:
            raise OwnedError(f"{self._lost}; this command has ended its trials and stored nothing since")
        return self._signal

    def lose(self, reason: str) -> None:
        """Another command owns the sweep: end the trials at once and write nothing more."""
        self._lost = reason

    def _tune(self, trials: Trials, folder: str) -> None:
        for name, value in TUNE_ENV.items():
            os.environ.setdefault(name, value)
        scheduler = asha(self._plan, self._record, self._base) if self._plan.scheduler == "asha" else None
        tune.Tuner(
            tune.with_resources(run_trial, DRIVER_RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=PlannedSearch(trials, self._launch, self.conclude_stopped),
                scheduler=scheduler,
                num_samples=num_trials(self._plan),
                max_concurrent_trials=self._room.concurrent,
                reuse_actors=scheduler is None,  # a new process costs seconds; of a stopped trial, threads live on
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=self._plan.name,
                storage_path=folder,
                stop=self,
                callbacks=[self],
                failure_config=tune.FailureConfig(max_failures=PROCESS_RETRIES),
                verbose=0,
            ),
        ).fit()

    def _suggester(self) -> RandomSuggester | OptunaSuggester | None:
        if self._plan.kind == "grid":
            return None
        ranges = parse_space(self._plan.space, self._base)
        if self._plan.search == "optuna":
            return OptunaSuggester(ranges, self._plan.search_seed, self._plan.metric, self._plan.mode)
        return RandomSuggester(ranges, self._plan.search_seed)

    def _launch(self, planned: PlannedTrial, job: JobConfig) -> dict[str, Any]:
        tree, room = to_tree(job), self._room
        launch = Launch(
            job=tree,
            sweep=self._plan.name,
            trial=planned_tree(planned),
            cpus=room.cpus,
            gpus=room.gpus,
            mailbox=self._mailbox,
            environment=environment.storage_environment(),
        )
        return launch_tree(launch)

    def _ask_to_stop(self, number: int) -> None:
        self._signal, self._signalled_at = number, time.monotonic()
        self._mailbox.request_stop.remote()
        threading.Thread(target=self._display.note, args=("stopping: trials store checkpoints",), daemon=True).start()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tune's question whether to stop a trial: never, the scheduler decides."""
        return False

    def stop_all(self) -> bool:
        """Tune's question whether to end: after a signal, once the trials that ran have left."""
        if self._lost is not None:
            return True
        if self._signal is None:
            return False
        return not self._running or time.monotonic() - self._signalled_at > STOP_GRACE_S

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if time.monotonic() - self._polled_at >= POLL_S:
            self._polled_at = time.monotonic()
            self._poll()

    def _poll(self) -> None:
        for kind, payload in ray.get(self._mailbox.drain.remote()):
            if kind == "row":
                self._display.row(*payload)
            elif kind == "scored":
                trial, step, values = payload
                self._display.scored(trial, step, values.get(self._plan.metric))
            elif kind == "note" and _worth_showing(payload[1]):
                self._display.note(f"{payload[0]}: {payload[1]}")

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = _planned(trial).trial
        self._running.add(name)
        self._display.started(name, int(trial.config["launch"]["job"]["train"]["num_steps"]))

    def conclude_stopped(self, planned: PlannedTrial, said: dict[str, Any]) -> None:
        """Write the result of a trial that ended without a word of its own: the scheduler has stopped it.

        `said` is what Tune heard of it last. Called before the search hears of the end.
        """
        mine = self._signal is None and self._lost is None
        if not mine or said.get("state") is not None or self._record.result(planned.trial) is not None:
            return
        job = override(self._base, [*planned.settings, f"name={planned.run}"])
        step = int(said.get("step", 0))
        reason = f"stopped at step {step} by {self._plan.scheduler}"
        run = self._record.store.run(planned.run)
        result = conclude(run, job, self._plan, planned, "stopped", reason=reason, stopped_at=step)
        self._record.create_result(result)
        catalogue.update(self._record.store, [planned.run])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Say how a trial ended."""
        planned = _planned(trial)
        self._running.discard(planned.trial)
        self._display.ended(planned.trial, self._verdict(planned, trial.last_result or {}))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A trial's process has died too often."""
        planned = _planned(trial)
        self._running.discard(planned.trial)
        if self._lost is None and self._record.result(planned.trial) is None:
            self._record.write_crash(
                planned.trial, "its process died", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            )
        self._display.ended(planned.trial, "crashed: its process died")

    def _verdict(self, planned: PlannedTrial, said: dict[str, Any]) -> str:
        result = self._record.result(planned.trial)
        if result is None:
            return f"crashed: {said['reason']}" if said.get("reason") else "interrupted"
        value = "no score" if result.value is None else f"{self._plan.metric} {result.value:.4g}"
        what = f"unstable at step {result.unstable_at}" if result.state == "unstable" else result.state
        return f"{what}, {value}"


def _planned(trial: TuneTrial) -> PlannedTrial:
    return planned_of(trial.config["launch"]["trial"])


def _worth_showing(text: str) -> bool:
    return not text.startswith(("run ", "scoring the last", "waiting for"))
