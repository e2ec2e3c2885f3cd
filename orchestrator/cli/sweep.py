"""`ebm sweep`."""

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from orchestrator.cli.options import Address
from orchestrator.terminal.tables import open_console, print_table

if TYPE_CHECKING:
    from orchestrator.settings.job import JobConfig
    from orchestrator.sweeps.estimate import Estimate
    from orchestrator.sweeps.plan import SweepPlan, SweepRequest


def sweep(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="Grid (table2, figure9, figure7, truncation, buffer and steps of the paper; recipe), preset, or file "
            "PLAN.yaml.",
        ),
    ],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[PATH=VALUE]...",
            help="Settings of every trial, and beside a preset the values to try: a list such as "
            "optimizer.lr=1e-4,1e-3 (a grid: every combination of lists, with every seed) or a range such as "
            "sampler.step_size='loguniform(0.5,10)' (a search). model.widths=8,16,16 is one value, as everywhere; "
            "two of them are model.widths='[8,16],[16,32]'.",
        ),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Name of the sweep. Default: made from WHAT and the preset."),
    ] = None,
    preset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Preset that a grid starts from. Default: cifar10; digits for recipe, and with --smoke."),
    ] = None,
    metric: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Objective of the sweep: a score that is made beside training, or a logged column. Default: fid_judge "
            "for data sets with labels, fid_rotation for others."
        ),
    ] = None,
    mode: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Direction of the objective: min or max. Default: whichever is better for it."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds for each row of a grid.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of a search; first seed of a grid.")] = 0,
    trials: Annotated[int, typer.Option(help="Number of trials (searches only).")] = 16,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Number of trials that run at once. Default: one per CPU or GPU.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="Early stopping of a search: asha stops trials that score badly, none lets all finish.")
    ] = "none",
    search: Annotated[str, typer.Option(help="How a search chooses values: random or optuna.")] = "random",
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink models and steps, so that a grid takes minutes on two cores.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the trials, what they need and about how long they take; run nothing."),
    ] = False,
    address: Address = None,
) -> None:
    """Run many trainings on Ray: a grid of the paper, or a search. Repeat the command to resume an interrupted sweep.

    Examples: ebm sweep table2 --smoke
    ebm sweep digits optimizer.lr=1e-4,1e-3 --seeds 2 --name lr
    ebm sweep digits sampler.step_size='loguniform(0.5,10)' --trials 8 --scheduler asha
    """
    from orchestrator.sweeps.plan import SweepRequest, concurrent_trials, make_plan

    request = SweepRequest(
        preset=preset,
        name=name,
        settings=tuple(settings or ()),
        metric=metric,
        mode=mode,
        seeds=seeds,
        seed=seed,
        trials=trials,
        scheduler=scheduler,
        search=search,
        max_concurrent=max_concurrent,
        smoke=smoke,
    )
    plan, base = make_plan(what, request)
    concurrent = concurrent_trials(what, request)
    if dry_run:
        show_dry_run(plan, base, concurrent, address)
        return
    from orchestrator.reports.sweep_table import links, sweep_table
    from orchestrator.sweeps.driver import run_sweep
    from orchestrator.terminal.sweep_progress import open_sweep_display

    display = open_sweep_display(plan.mode)
    stored, number = run_sweep(plan, base, max_concurrent=concurrent, address=address, display=display)
    table = sweep_table(stored)
    print_table(table.title, table.columns, table.rows)
    if table.note:
        open_console().print(table.note, markup=False)
    for line in links(stored, base.storage):
        open_console().print(line, markup=False, soft_wrap=True)
    left = sum(1 for trial in stored.trials if trial.result is None)
    if number is not None or left:
        print(f"sweep {plan.name} is not complete; go on with the same command", file=sys.stderr)
        raise typer.Exit(128 + number if number is not None else 1)


def parse_words(words: Sequence[str]) -> tuple[str, "SweepRequest"]:
    """(WHAT, what is asked for) of `ebm sweep WORDS`. Raises ConfigError, or what the command line raises."""
    from typer.main import get_command

    from orchestrator.sweeps.plan import SweepRequest

    app = typer.Typer(add_completion=False)
    app.command()(sweep)
    given = get_command(app).make_context("ebm sweep", list(words)).params
    given["settings"] = tuple(given["settings"] or ())
    fields = {field.name for field in dataclasses.fields(SweepRequest)}
    return given["what"], SweepRequest(**{name: value for name, value in given.items() if name in fields})


SHOWN = 40


def show_dry_run(plan: "SweepPlan", base: "JobConfig", max_concurrent: int | None, address: str | None) -> None:
    """Print what a sweep would do. Nothing is stored; a Ray is asked what it has, or started for a moment."""
    from ebm_core.errors import EbmError
    from orchestrator.cluster.connection import ray_session
    from orchestrator.sweeps.estimate import MEASURED_STEPS, STARTUP_S, estimate, planned_trials
    from orchestrator.sweeps.room import find_room
    from orchestrator.training.start import resolved

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


def _minutes(one: "Estimate") -> str:
    minutes = one.seconds / 60
    text = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    return text if one.measured else f"~{text}"
