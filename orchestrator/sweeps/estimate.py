"""`ebm sweep --dry-run`: the trials, what they reserve, and how long they take by a short measurement here."""

import math
from collections import Counter
from dataclasses import dataclass, replace

from ebm_core.errors import EbmError
from ebm_core.fast.engine import set_threads
from ebm_core.profile import profile_step
from orchestrator.cluster.connection import ray_session
from orchestrator.records.sweeps import PlannedTrial
from orchestrator.settings.job import JobConfig, core_config
from orchestrator.settings.overrides import override
from orchestrator.sweeps.plan import SweepPlan
from orchestrator.sweeps.ranges import draw_random, parse_space
from orchestrator.sweeps.room import Room, find_room, num_trials
from orchestrator.sweeps.search import trial_of_row, trial_of_search
from orchestrator.terminal.tables import open_console, print_table
from orchestrator.training.start import check_data, resolved

STARTUP_S = 25.0
"""Seconds from a trial's start to its first step and from its last to its result, on an idle machine of two cores."""
MEASURED_BATCH = 8
MEASURED_STEPS = 3
QUICK_S = 1.0
"""A step of a small batch that is over so soon is mostly overhead: then the whole batch is timed."""
MAX_MEASURED = 6
SHOWN = 40


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


def show_dry_run(plan: SweepPlan, base: JobConfig, max_concurrent: int | None, address: str | None) -> None:
    """Print what a sweep would do. Nothing is stored; a Ray is asked what it has, or started for a moment."""
    base = resolved(base)
    with ray_session(address):
        room = find_room(plan, base, max_concurrent)
    trials = planned_trials(plan, base)
    try:
        times, why = estimate(trials, base, room), ""
    except EbmError as error:
        times, why = {}, " ".join(str(error).split())
    rows = [
        (trial.run, _minutes(times[trial.trial]) if times else "-", " ".join(trial.settings))
        for trial in trials[:SHOWN]
    ]
    print_table(f"sweep {plan.name}: {len(trials)} trials", ("run", "training", "settings"), rows)
    say = open_console().print
    if len(trials) > SHOWN:
        say(f"... and {len(trials) - SHOWN} more")
    if plan.search == "optuna" and plan.kind == "search":
        say("Optuna chooses settings by results: these are a random search's, to show their range and cost")
    gpus = f" and {room.gpus:g} GPUs" if room.gpus else ""
    say(f"each reserves {room.cpus:g} CPUs{gpus}; {room.concurrent} at a time on this Ray")
    if not times:
        say(f"no estimate of time: {why}", markup=False, soft_wrap=True)
        return
    total = math.fsum(one.seconds + STARTUP_S for one in times.values())
    kinds = Counter(one.measured for one in times.values())
    say(
        f"about {total / room.concurrent / 60:.0f} minutes, {total * room.cpus / 3600:.2g} CPU-hours: {MEASURED_STEPS} "
        f"steps were timed for {kinds[True]} trials"
        f"{f', {kinds[False]} more were taken to be like them' if kinds[False] else ''}; {STARTUP_S:g} s for each "
        "trial's start and end; scores come on top, and so do busy neighbours"
    )


def _minutes(one: Estimate) -> str:
    minutes = one.seconds / 60
    text = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    return text if one.measured else f"~{text}"
