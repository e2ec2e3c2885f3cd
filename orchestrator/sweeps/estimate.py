"""What a sweep would cost, said before it starts: trials, what they reserve, how long they take by a measurement."""

import math
from dataclasses import dataclass, replace

from ebm_core.fast.engine import set_threads
from ebm_core.profile import profile_step
from orchestrator.records.sweeps import PlannedTrial
from orchestrator.settings.job import JobConfig, core_config
from orchestrator.settings.overrides import override
from orchestrator.sweeps.plan import SweepPlan
from orchestrator.sweeps.ranges import draw_random, parse_space
from orchestrator.sweeps.room import Room, num_trials
from orchestrator.sweeps.search import trial_of_row, trial_of_search
from orchestrator.training.start import check_data

STARTUP_S = 25.0
"""Seconds from a trial's start to its first step and from its last to its result, on an idle machine of two cores."""
MEASURED_BATCH = 8
MEASURED_STEPS = 3
QUICK_S = 1.0
"""A step of a small batch that is over so soon is mostly overhead: then the whole batch is timed."""
MAX_MEASURED = 6


@dataclass(frozen=True)
class Estimate:
    """Seconds of training of one trial, on what it reserves, and whether its own settings were measured."""

    seconds: float
    measured: bool


def planned_trials(plan: SweepPlan, base: JobConfig) -> list[PlannedTrial]:
    """All trials, as far as they are known before the start: random ones stand for those that Optuna will choose."""
    if plan.kind == "grid":
        return [trial_of_row(plan, index) for index in range(num_trials(plan))]
    ranges = parse_space(plan.space, base)
    seed = plan.search_seed
    return [trial_of_search(plan, index, draw_random(ranges, seed, index)) for index in range(plan.num_trials)]


def estimate(trials: list[PlannedTrial], base: JobConfig, room: Room) -> dict[str, Estimate]:
    """{trial: seconds}: a few steps are timed for at most MAX_MEASURED kinds of trials; others get the mean of those.

    Raises an EbmError where the data is missing or a trial's settings contradict each other.
    """
    check_data(base)
    kinds: dict[tuple[str, ...], float] = {}
    found: dict[str, Estimate] = {}
    for trial in trials:
        settings = tuple(s for s in trial.settings if not s.startswith(("seed=", "cluster.")))
        if settings not in kinds and len(kinds) < MAX_MEASURED:
            kinds[settings] = _step_seconds(override(base, settings), room)
        steps = override(base, settings).train.num_steps
        step = kinds.get(settings, math.fsum(kinds.values()) / len(kinds))
        found[trial.trial] = Estimate(step * steps, settings in kinds)
    return found


def _step_seconds(job: JobConfig, room: Room) -> float:
    """A step's seconds on the CPUs of one worker: with its share of the batch, or a small one, and in proportion."""
    set_threads(job.engine, room.cpus_per_worker)
    share = max(1, job.train.batch_size // job.cluster.num_workers)
    batch = min(MEASURED_BATCH, share)
    seconds = _measured(job, batch)
    return _measured(job, share) if batch < share and seconds < QUICK_S else seconds * share / batch


def _measured(job: JobConfig, batch: int) -> float:
    shards = min(job.buffer.num_shards, batch)
    small = replace(
        job,
        train=replace(job.train, batch_size=batch),
        buffer=replace(job.buffer, num_shards=shards),
        cluster=replace(job.cluster, num_workers=1),
    )
    return profile_step(core_config(small), MEASURED_STEPS).step_seconds
