"""What each Ray Train worker runs: an adapter between the store, the data and `train_step`. No mathematics here."""

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch

from ebm_core import checkpoint
from ebm_core.config import TrainConfig
from ebm_core.data import Dataset, labelled_batches, load
from ebm_core.errors import DivergenceError, EbmError
from ebm_core.manifest import describe, manifest_bytes
from ebm_core.rng import Shards, stream
from ebm_core.trainer import TrainState, init_state, train_step
from ebm_core.warmup import slower
from orchestrator.cluster.environment import adopt
from orchestrator.cluster.mailbox import gather
from orchestrator.records.rows import Recorder, Row, is_logged, part_bytes, part_name, part_steps
from orchestrator.records.scores import chains_grid_key, spared
from orchestrator.settings.job import JobConfig, core_config, parse
from orchestrator.storage.commits import step_name
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.training.group import Group, average_gradients
from orchestrator.training.rollback import Rollback, RollbackPolicy, complete_rollbacks, record_rollback
from orchestrator.training.saving import BackgroundSaver
from workers.pictures import grid_png

STOP_CHECK_S = 1.0
"""Seconds between rank 0's questions whether the driver wants to stop."""
PREEMPTION_CHECK_S = 2.0
"""Seconds between looks for a notice of preemption. All ranks wait for one another there: 5 ms."""


def train_loop_per_worker(launch: dict[str, Any]) -> None:
    """Restore or begin, train to the last step or until told to stop; an EbmError is posted before it is raised."""
    mailbox = launch["mailbox"]
    adopt(launch["environment"])
    try:
        _train(parse(launch["job"]), launch, mailbox)
    except EbmError as error:
        ray.get(mailbox.post.remote("error", error))
        raise


def _train(job: JobConfig, launch: dict[str, Any], mailbox: Any) -> None:
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(job.engine.num_threads or launch["cpus"])
    cfg = core_config(job)
    run = RunStore(job.storage).run(str(job.name))
    data = load(cfg.data, "train")
    state = init_state(cfg, shards=Shards.of_rank(group.rank, group.size, cfg.buffer.num_shards))
    loop = Loop(run, cfg, job, group, mailbox, Recorder(0), ray.train.get_preemption_info)
    train_until_done(data, state, loop)


def train_until_done(data: Dataset, state: TrainState, loop: "Loop") -> None:
    """Resume and train; after a divergence, as often as the policy has it."""
    while True:
        loop.resume(state)
        try:
            return _train_on(data, state, loop)
        except DivergenceError as error:
            loop.finish()
            if not loop.roll_back(state, error):
                loop.save_diverged(state)
                raise


def _train_on(data: Dataset, state: TrainState, loop: "Loop") -> None:
    """From the state's step to the last, or until told to stop."""
    cfg, group = loop.settings, loop.group
    sync = average_gradients if group.size > 1 else None
    for x_data, condition in labelled_batches(
        data,
        cfg.train.batch_size,
        seed=state.seed,
        start=state.step,
        stop=cfg.train.num_steps,
        shards=state.shards,
        device=state.device,
    ):
        terms = train_step(state, x_data, cfg, sync, condition)
        loop.log(state.step, terms, state.device)
        last = state.step == cfg.train.num_steps
        stop, preempted = loop.news()
        if last or stop or preempted or state.step % loop.job.checkpoint.every == 0:
            loop.save(state)
        if stop and not last:
            break
        loop.saver.check()
    loop.finish()


def restore(run: Run, state: TrainState, group: Group, warn: Callable[[str], None]) -> None:
    """Put the newest sound checkpoint into `state`: rank 0 reads all of it and decides which, every other rank
    downloads and verifies what it needs. (All files for all ranks would be requests by the square of their number.)"""
    with tempfile.TemporaryDirectory(prefix="ebm-restore-") as temp:
        found = run.newest_sound(Path(temp), warn) if group.rank == 0 else None
        step = group.from_first(found[0] if found else None)
        if step is not None:
            own = checkpoint.own_files(state)
            checkpoint.load(state, found[1] if found else run.fetch_checkpoint(step, Path(temp), own))


def drop_rows_after(run: Run, step: int) -> None:
    """Remove the parts of metrics that a lost stretch of training wrote: they will be written again."""
    for info in list(run.list("metrics/")):
        steps = part_steps(info.key.removeprefix("metrics/"))
        if steps is not None and steps[0] > step:
            run.store.objects.delete(f"{run.name}/{info.key}")


@dataclass
class Loop:
    """The duties between two steps: log, ask whether to stop, store."""

    run: Run
    cfg: TrainConfig
    job: JobConfig
    group: Group
    mailbox: Any
    recorder: Recorder
    preemption: Callable[[], Any] = lambda: None
    """What Ray knows of a node of this job that is about to go; asked by all ranks at the same step."""
    preempted: bool = False
    question: Any = None
    """What rank 0 has asked the driver and has no answer to yet."""
    asked_at: float = 0.0
    looked_at: float = 0.0
    rollbacks: list[Rollback] = field(default_factory=list)
    saver: BackgroundSaver = field(default_factory=BackgroundSaver)

    def resume(self, state: TrainState) -> None:
        """Put the newest sound checkpoint into `state`, and complete the rollbacks so far."""
        found: list[Rollback] = complete_rollbacks(self.run, self.warn) if self.group.rank == 0 else []
        self.rollbacks = self.group.from_first(found)
        restore(self.run, state, self.group, lambda text: ray.get(self.mailbox.post.remote("note", text)))
        self.recorder = Recorder(state.step)
        if self.group.rank == 0:
            if self.job.cluster.least_workers < self.job.cluster.num_workers:
                self.warn(f"training on {self.group.size} of {self.job.cluster.num_workers} workers")
            drop_rows_after(self.run, state.step)
            self.mailbox.post.remote("started", state.step)

    @property
    def settings(self) -> TrainConfig:
        """What `train_step` is told: the run's settings, slowed down by the rollbacks so far."""
        return slower(self.cfg, self.rollbacks[-1].lr) if self.rollbacks else self.cfg

    def roll_back(self, state: TrainState, error: DivergenceError) -> bool:
        """Decide (rank 0), write the decision down, say so; False: the run ends. `resume` then carries it out."""
        decision = None
        if self.group.rank == 0:
            began, policy = state.monitor.drift_began(error.step), RollbackPolicy.of(self.cfg)
            steps = self.run.sound_before(began, self.warn) if policy.enabled else []
            decision = policy.decide(self.rollbacks, error, began, steps)
            if decision is not None:
                record_rollback(self.run, self.rollbacks, decision)
                ray.get(self.mailbox.post.remote("note", decision.message()))
        return self.group.from_first(decision) is not None

    def warn(self, text: str) -> None:
        """Tell the driver of something odd that stops nothing."""
        self.mailbox.post.remote("note", text)

    def log(self, step: int, terms: dict[str, float], device: torch.device) -> None:
        """Keep a row and send it to the driver (rank 0; the terms are means over the workers already)."""
        if self.group.rank == 0 and is_logged(step, self.cfg.train.log_every):
            row = terms | {"rollbacks": float(len(self.rollbacks)), "device_memory": peak_bytes(device)}
            self.mailbox.post.remote("row", self.recorder.add(step, row))

    def news(self) -> tuple[bool, bool]:
        """(whether the driver wants to stop; whether a node is about to go, told once to this group of workers).

        Rank 0 asks now and then, and all ranks agree. A preempted worker stores a checkpoint and trains on: the node
        may have minutes left, and Ray starts the workers anew once it is gone.
        """
        look = stop = False
        if self.group.rank == 0:
            stop, look = self._told_to_stop(), time.monotonic() - self.looked_at >= PREEMPTION_CHECK_S
        look, stop = self.group.from_first((look, stop))
        if not look or self.preempted:
            return stop, False
        self.looked_at = time.monotonic()
        if self.preemption() is None:
            return stop, False
        self.preempted = True
        if self.group.rank == 0:
            self.mailbox.post.remote("note", "a node of this job is about to go: storing a checkpoint")
        return stop, True

    def _told_to_stop(self) -> bool:
        """The driver's answer to an earlier question, once it is there: training goes on meanwhile."""
        if self.question is None and time.monotonic() - self.asked_at >= STOP_CHECK_S:
            self.question, self.asked_at = self.mailbox.stop_requested.remote(), time.monotonic()
        if self.question is None or not ray.wait([self.question], timeout=0)[0]:
            return False
        answer, self.question = self.question, None
        return ray.get(answer)

    def save(self, state: TrainState) -> None:
        """Copy the state to local files and have a thread store them, after what an earlier save still stores.

        Raises what went wrong in an earlier save. `finish` waits for this one.
        """
        started = time.monotonic()
        self.saver.wait()
        attempt = self.group.from_first(self.run.new_attempt() if self.group.rank == 0 else None)
        temp = tempfile.TemporaryDirectory(prefix="ebm-save-")
        names = write_own_files(state, self.cfg, Path(temp.name), self.group)
        grid = self.chain_grid(state) if self.group.rank == 0 else b""
        rows, step = self.recorder.take(), state.step

        def store() -> None:
            with temp:
                self._store_rows(rows)
                self._store(step, attempt, Path(temp.name), names, grid)
            self.mailbox.post.remote("checkpoint_duration", time.monotonic() - started)

        self.saver.start(store)

    def _store(self, step: int, attempt: str, folder: Path, names: Sequence[str], grid: bytes) -> None:
        """Each rank its files; rank 0, when all ranks have stored theirs, the picture and the commit."""
        entries = describe(folder, names)
        for name in names:
            self.run.put_checkpoint_file(step, attempt, folder / name)
        if self.group.size > 1:
            ray.get(self.mailbox.deposit.remote(attempt, self.group.rank, entries))
        if self.group.rank > 0:
            return
        if self.group.size > 1:
            entries = gather(self.mailbox, attempt, self.group.size)
        if grid:
            self.run.write_bytes(chains_grid_key(step), grid)
        self.run.commit(step, attempt, manifest_bytes(entries, step))
        self.run.retain(self.job.checkpoint.keep, self.warn, spared(self.run, self.job))
        ray.get(self.mailbox.post.remote("checkpoint", step))

    def finish(self) -> None:
        """Until the last save is stored, on every rank."""
        self.saver.wait()
        self.group.all(None)

    def chain_grid(self, state: TrainState) -> bytes:
        """Where training's chains have been: draws from rank 0's buffer, as a PNG. It costs no sampling.

        Empty while the buffer is: a warm start runs no chains.
        """
        if len(state.buffer) == 0:
            return b""
        rng = stream(state.seed, state.step, "grid", device=state.device)
        levels, _ = state.buffer.draw(self.job.evaluation.grid_count, rng)
        return grid_png(levels.cpu())

    def save_diverged(self, state: TrainState) -> None:
        """Store what a diverged run had under `diverged/`, where nothing resumes from it."""
        self._store_rows(self.recorder.take())
        with tempfile.TemporaryDirectory(prefix="ebm-diverged-") as temp:
            folder = Path(temp)
            for name in write_own_files(state, self.cfg, folder, self.group):
                self.run.write_bytes(f"diverged/{step_name(state.step)}/{name}", folder / name)

    def _store_rows(self, rows: list[Row]) -> None:
        if rows:
            self.run.write_bytes(f"metrics/{part_name(rows)}", part_bytes(rows))


def peak_bytes(device: torch.device) -> float:
    """Most memory that this process has held: of its GPU, or of the machine when it has none."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # Linux counts in KiB


def write_own_files(state: TrainState, cfg: TrainConfig, folder: Path, group: Group) -> list[str]:
    """This rank's files of a checkpoint: its buffer shards and, for rank 0, what all ranks share."""
    shared = checkpoint.write_shared(state, cfg, folder) if group.rank == 0 else []
    return shared + checkpoint.write_shards(state, folder)
