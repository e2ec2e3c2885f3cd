"""The command `ebm`. Heavy imports happen inside the commands, so that `ebm --help` answers at once."""

import os
import signal
import sys
from typing import Annotated

import typer

from orchestrator.cli import data, evaluate, jobs, metrics, report, runs, sweep, train
from orchestrator.cli.flags import in_flags

app = typer.Typer(
    name="ebm",
    help="Train, sample, score and compare energy-based models of images, on PyTorch and Ray. Begin with `ebm doctor`, "
    "then `ebm train digits`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def doctor(
    storage: Annotated[
        str, typer.Option(help="Storage to test by writing to it: a folder or s3://bucket/prefix.")
    ] = "./runs",
) -> None:
    """Check versions, hardware, storage and Ray on this machine. Exit status 1 if something must be mended."""
    from orchestrator.cli.doctor import examine

    failed = 0
    colors = {"OK": typer.colors.GREEN, "WARN": typer.colors.YELLOW, "FAIL": typer.colors.RED}
    for finding in examine(storage):
        typer.echo(f"{typer.style(f'{finding.state:<4}', fg=colors[finding.state])}  {finding.what}")
        if finding.remedy:
            typer.echo(f"      {finding.remedy}")
        failed += finding.state == "FAIL"
    if failed:
        raise typer.Exit(1)


for command in (
    doctor,
    train.train,
    evaluate.sample,
    evaluate.evaluate,
    evaluate.compose,
    report.report,
    sweep.sweep,
    train.config,
    train.profile,
):
    app.command()(command)
app.command(context_settings={"ignore_unknown_options": True})(jobs.submit)
for command in (jobs.jobs, jobs.logs, jobs.stop, jobs.resume, jobs.clone):
    app.command()(command)
runs.register(app)
app.add_typer(data.data_app, name="data")
app.add_typer(runs.app, name="runs")
app.add_typer(metrics.metrics_app, name="metrics")


def main() -> None:
    """Entry point of `ebm`: an EbmError is one line and exit status 2 (3: diverged), never a traceback."""
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        os.environ.setdefault(name, "when_required")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # PyTorch's profiler prints when it starts and stops
    try:
        code = app(prog_name="ebm", standalone_mode=False)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        code = 128 + signal.SIGPIPE
    except Exception as error:
        code = _explain(error)
    sys.exit(code)


def _explain(error: Exception) -> int:
    """Print the line that belongs to an error, and return the exit status. A fault of the program is raised again."""
    from ebm_core.errors import DivergenceError, EbmError

    if isinstance(error, EbmError):
        print(f"ebm: {' '.join(in_flags(str(error)).split())}", file=sys.stderr)
        return 3 if isinstance(error, DivergenceError) else 2
    if hasattr(error, "format_message"):  # the command line itself is wrong
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        if message:
            print(f"ebm: {message.rstrip('.')}; see `ebm --help`", file=sys.stderr)
        return 2
    raise error
