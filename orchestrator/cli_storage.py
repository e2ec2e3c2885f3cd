"""`ebm verify` and `ebm gc`: whether what is stored is sound, and what may go."""

import sys
from typing import Annotated, Any

import typer

from orchestrator.cli_options import RunName, Storage
from orchestrator.terminal.tables import open_console, print_table


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(verify)
    app.command()(gc)


def verify(
    run: RunName,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Mark damaged checkpoints, so that nothing resumes from them.")
    ] = False,
    storage: Storage = "./runs",
) -> None:
    """Read every file of every checkpoint of RUN and compare size and SHA-256. Exit status 1 if one is damaged.

    Example: ebm verify s3://runs/cifar10-0001
    """
    from orchestrator.storage.find import open_run
    from orchestrator.storage.upkeep import examine

    verdicts = list(examine(open_run(run, storage), (lambda text: print(text, file=sys.stderr)) if set_aside else None))
    rows = [(str(v.step), v.name, "-" if v.size is None else f"{v.size:,}", _state(v)) for v in verdicts]
    print_table(f"checkpoints of {run}", ("step", "file", "bytes", "state"), rows)
    problems = [v.problem for v in verdicts if v.problem]
    for problem in problems:
        open_console().print(problem, markup=False, soft_wrap=True)
    steps = {v.step for v in verdicts}
    usable = steps - {v.step for v in verdicts if v.problem or v.set_aside}
    open_console().print(f"{len(usable)} of {len(steps)} checkpoints can be used")
    if problems:
        raise typer.Exit(1)


def _state(verdict: Any) -> str:
    if verdict.problem:
        return "damaged"
    return "sound, set aside" if verdict.set_aside else "sound"


def gc(
    run: RunName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    older_than: Annotated[
        float, typer.Option(min=1, help="Hours: what is younger may belong to an upload under way.")
    ] = 24.0,
    storage: Storage = "./runs",
) -> None:
    """Delete what killed writers left in RUN: attempts that no COMMITTED names, temporary files, parts of uploads.

    Example: ebm gc digits-0001 --dry-run
    """
    from datetime import timedelta

    from orchestrator.storage.find import open_run
    from orchestrator.storage.upkeep import collect

    found = collect(open_run(run, storage), timedelta(hours=older_than), dry_run=dry_run)
    if found:
        print_table(f"rubbish in {run}", ("what", "why", "bytes"), [(r.what, r.why, f"{r.size:,}") for r in found])
    total = sum(r.size for r in found)
    open_console().print(f"{'would delete' if dry_run else 'deleted'} {len(found)} leftovers, {total:,} bytes")
