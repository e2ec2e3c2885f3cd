"""`ebm train`, `config` and `profile`."""

import os

import torch
from rich.console import Console
from rich.table import Table

from ebm_core.fast.engine import set_threads
from ebm_core.profile import PARTS, profile_step
from orchestrator.settings.job import JobConfig, core_config


def show_profile(job: JobConfig, num_steps: int) -> None:
    """Time `num_steps` steps of `job` in this process, one worker with all cores, and print where they went."""
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
