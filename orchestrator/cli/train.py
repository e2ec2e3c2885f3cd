"""`ebm train`, `config` and `profile`."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import Address, Preset, Settings, show_result

if TYPE_CHECKING:
    from orchestrator.settings.job import JobConfig


def train(preset: Preset, settings: Settings = None, address: Address = None) -> None:
    """Train a model. If a run called name= exists, it is resumed from its newest checkpoint.

    Example: ebm train digits train.num_steps=500 name=first
    """
    from orchestrator.settings.job import job_preset
    from orchestrator.settings.overrides import override

    job = override(job_preset(preset), settings or [])
    from orchestrator.terminal.progress import open_display
    from orchestrator.training.driver import run_training

    result = run_training(job, prefix=preset, address=address, display=open_display(job.train.num_steps))
    show_result(result)
    if result.stopped_by is not None:
        again = " ".join(word for word in settings or [] if not word.startswith("name="))
        print(f"stopped at step {result.step} of {result.num_steps}; go on with:", file=sys.stderr)
        print(f"  ebm train {preset} name={result.name} {again}".rstrip(), file=sys.stderr)
        raise typer.Exit(128 + result.stopped_by)


def config(
    preset: Preset,
    settings: Settings = None,
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Print every setting, as a preset and your changes make it."""
    import json

    from ebm_core.config import to_tree
    from orchestrator.settings.job import job_preset
    from orchestrator.settings.overrides import override
    from orchestrator.settings.trees import describe

    job = override(job_preset(preset), settings or [])
    print(json.dumps(to_tree(job), indent=2, ensure_ascii=False) if json_ else describe(job))


def profile(
    preset: Preset,
    settings: Settings = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Number of steps to time, after two to warm up.")] = 5,
) -> None:
    """Time the parts of a training step on this machine, and predict how long a full run takes.

    Example: ebm profile cifar10 train.batch_size=16 engine.compile=true engine.winograd=true
    """
    from orchestrator.settings.job import job_preset
    from orchestrator.settings.overrides import override

    show_profile(override(job_preset(preset), settings or []), steps)


def show_profile(job: "JobConfig", num_steps: int) -> None:
    """Time `num_steps` steps of `job` in this process, one worker with all cores, and print where they went."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from ebm_core.fast.engine import set_threads
    from ebm_core.profile import PARTS, profile_step
    from orchestrator.settings.job import core_config

    cfg = core_config(job)
    set_threads(cfg.engine, len(os.sched_getaffinity(0)))
    found = profile_step(cfg, num_steps)
    console = Console(soft_wrap=True, highlight=False)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    table.add_column("what it is", overflow="fold")
    for part, what in PARTS.items():
        seconds = found.seconds[part]
        table.add_row(part, f"{1e3 * seconds:.1f}", f"{seconds / found.step_seconds:.1%}", what)
    table.add_row("step", f"{1e3 * found.step_seconds:.1f}", "100.0%", f"median of {num_steps} steps")
    console.print(table)
    batch = f"batch {cfg.train.batch_size}, {torch.get_num_threads()} threads, {cfg.engine.precision}"
    how = [name for name, is_so in (("compiled", cfg.engine.compile), ("Winograd", cfg.engine.winograd)) if is_so]
    console.print(", ".join([batch, *how]), markup=False)
    console.print(f"outside the network   {found.overhead:.1%} of the step")
    console.print(
        f"Langevin step         {1e3 * found.langevin_seconds:.1f} ms for {found.langevin_flops / 1e9:.2f} GFLOP: "
        f"{found.achieved_flops / 1e9:.0f} GFLOP/s, {found.achieved_flops / found.ceiling_flops:.0%} of the "
        f"{found.ceiling_flops / 1e9:.0f} that a 3x3 convolution reaches here"
    )
    console.print(f"first step            {found.first_step_seconds:.1f} s")
    steps = cfg.train.num_steps
    console.print(f"a run of {steps} steps  {found.hours(steps):.2g} hours here, without checkpoints and scores")
