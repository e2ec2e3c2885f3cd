"""`ebm report`."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from orchestrator.cli.options import Storage


def report(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run or sweep to report; two or more runs are compared on one page."),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="HTML file to write. Default: report/index.html in the run; for a comparison, a file in this folder."
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Rewrite the page until the run ends; the browser reloads it by itself.")
    ] = False,
    every: Annotated[
        int, typer.Option(min=2, max=3600, help="Seconds between two versions of the page (--live).")
    ] = 20,
    tensorboard: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="Write event files for TensorBoard to DIR/RUN instead of a page."),
    ] = None,
    storage: Storage = "./runs",
) -> None:
    """Make a self-contained HTML page about a run, a sweep, or several runs side by side.

    Example: ebm report digits-0001 --out digits.html
    """
    from ebm_core.errors import ConfigError
    from orchestrator.reports.write import follow, named_runs, write_report

    if tensorboard is not None:
        from orchestrator.reports.tensorboard import write_events

        if live or out is not None:
            raise ConfigError("--tensorboard writes event files and no page: leave out --live and --out")
        for file in write_events(named_runs(names, storage=storage), tensorboard):
            print(file)
        return
    if live and len(names) > 1:
        raise ConfigError("--live follows one run or sweep: name one")
    if live:
        print(follow(names, storage=storage, out=out, every_s=every, say=lambda text: print(text, file=sys.stderr)))
    else:
        print(write_report(names, storage=storage, out=out))
