"""`ebm runs` and `ebm runs compare`."""

import sys
from typing import Annotated, Any, Optional

import typer

from orchestrator.cli.options import RunName, Storage
from orchestrator.terminal.tables import open_console, print_table

app = typer.Typer(help="List and compare stored runs.", invoke_without_command=True)
SHOWN = ("run", "data", "step", "state", "energy gap", "scores", "modified")


@app.callback()
def runs(
    context: typer.Context,
    storage: Annotated[str, typer.Option(help="Where the runs are: a folder or s3://bucket/prefix.")] = "./runs",
    sweep: Annotated[Optional[str], typer.Option(help="List the trials of one sweep only.")] = None,  # noqa: UP045
    sort: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Score, such as fid_judge, or column to sort by; -NAME puts the largest first. Default: the name."
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print all columns, one JSON object per line.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read every run again instead of trusting the catalogue.")
    ] = False,
) -> None:
    """List stored runs, from the catalogue beside them."""
    if context.invoked_subcommand is not None:
        return
    from orchestrator.records import catalogue
    from orchestrator.storage.run_store import RunStore

    store = RunStore(storage)
    table = catalogue.rebuild(store) if rebuild else catalogue.read(store)
    table = catalogue.select(table, sweep, sort)
    if json_:
        for row in table.to_pylist():
            print(_json_line(row))
        return
    if not table.num_rows:
        print(f"no runs{f' of sweep {sweep}' if sweep else ''} in {storage}; `ebm train digits` makes one")
        return
    _show(catalogue.summaries(table))


def _json_line(row: dict[str, Any]) -> str:
    import json

    def plain(value: Any) -> Any:
        return value.isoformat() if hasattr(value, "isoformat") else value

    return json.dumps({name: plain(value) for name, value in row.items() if value is not None})


def _show(found: list[Any]) -> None:
    from rich.table import Table

    from orchestrator.terminal.tables import number

    table = Table(show_edge=False, pad_edge=False)
    for column in SHOWN:
        table.add_column(column, justify="right" if column in ("step", "energy gap") else "left", overflow="fold")
    for line in found:
        scores = "  ".join(f"{name} {number(value)}" for name, value in line.scores.items())
        modified = line.modified.astimezone().strftime("%Y-%m-%d %H:%M") if line.modified else "-"
        steps = f"{line.step}/{line.num_steps}"
        table.add_row(line.name, line.data, steps, line.state, number(line.energy_gap), scores or "-", modified)
    open_console().print(table)


@app.command()
def compare(first: RunName, second: RunName, storage: Storage = "./runs") -> None:
    """Show how two runs differ: settings, scores, last logged row.

    Example: ebm runs compare digits-0001 digits-0002
    """
    from orchestrator.reports.differences import compare as side_by_side
    from orchestrator.storage.find import open_run

    found = side_by_side(open_run(first, storage), open_run(second, storage))
    for title, lines in (("settings", found.settings), ("scores", found.scores), ("last metrics", found.metrics)):
        if lines:
            print_table(title, (title, *found.names), lines)
        else:
            open_console().print(f"{title}: no difference")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(verify)
    app.command()(gc)


def verify(
    run: RunName,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Mark damaged checkpoints, so that no run resumes from them.")
    ] = False,
    storage: Storage = "./runs",
) -> None:
    """Check size and SHA-256 of every file of every checkpoint of RUN. Exit status 1 if one is damaged.

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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be deleted; delete nothing.")] = False,
    older_than: Annotated[
        float,
        typer.Option(
            min=1, help="Smallest age in hours of what is deleted: younger files may belong to an upload under way."
        ),
    ] = 24.0,
    storage: Storage = "./runs",
) -> None:
    """Delete what killed processes left in RUN: uncommitted checkpoints, temporary files, parts of uploads.

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
