"""`ebm submit`, `jobs`, `logs`, `stop`, `resume` and `clone`: jobs on a cluster, and runs that go on or are varied."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Optional

import typer

from orchestrator.cli.options import COMMANDS, RunName, Settings, Storage, show_result
from orchestrator.terminal.tables import open_console

Dashboard = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Dashboard of the Ray cluster, http://HOST:8265. Default: RAY_API_SERVER_ADDRESS."),
]
Where = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Where to run: http://HOST:8265 submits a job to that cluster, HOST:PORT uses that cluster from here. "
        "Default: as for `ebm train`."
    ),
]
JobName = Annotated[str, typer.Argument(metavar="RUN", help="Id of a job, or name of a run (its newest job).")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the job's output until the job ends.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]

STATUS_STOPPED = 143


def submit(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help=f"Command to run, with its arguments: {', '.join(COMMANDS[:-1])} or {COMMANDS[-1]}.",
        ),
    ],
    address: Dashboard = None,
    follow: Follow = False,
    json_: Json = False,
) -> None:
    """Run an `ebm` command as a job on a Ray cluster, with the code installed on this machine.

    Example: ebm submit train cifar10 storage=s3://bucket/runs cluster.num_workers=4 --address http://head:8265 --follow
    """
    from orchestrator.cli.words import check_words

    run, words, settings = check_words(command)
    _submit(run, words, settings, address, follow, json_)


def jobs(
    address: Dashboard = None,
    storage: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Storage whose runs are searched for further jobs: a cluster that loses its head node forgets its own."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """List the jobs of a cluster, newest first."""
    from orchestrator.cluster.jobs import Jobs, lost_jobs

    found = Jobs(address, _say).list()
    if storage is not None:
        found += lost_jobs(storage, {job.job for job in found})
    if json_:
        print(json.dumps([job.tree() for job in found], indent=2))
        return
    if not found:
        print("no jobs; `ebm submit train digits storage=...` makes one")
        return
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for column in ("run", "job", "status", "started", "ended", "version", "command"):
        table.add_column(column, overflow="fold")
    for job in found:
        times = (time.removesuffix("+00:00").replace("T", " ") if time else "-" for time in (job.started, job.ended))
        table.add_row(job.run or "-", job.job, job.status, *times, job.version or "-", job.message or job.command)
    open_console().print(table)


def logs(name: JobName, follow: Follow = False, address: Dashboard = None) -> None:
    """Print the output of a job. With -f, follow it to its end and exit with the status of the job."""
    from orchestrator.cluster.jobs import Jobs

    cluster = Jobs(address, _say)
    job = cluster.find(name)
    if follow:
        _follow(cluster, job)
    print(cluster.logs(job), end="")


def stop(name: JobName, address: Dashboard = None) -> None:
    """Stop a job: it stores a checkpoint and ends within 60 s. `ebm resume RUN` continues from there."""
    from orchestrator.cluster.jobs import STOP_WAIT_S, Jobs

    cluster = Jobs(address, _say)
    job = cluster.find(name)
    if job.is_over():
        print(f"job {job.job} is over already: {job.status}")
        return
    _say(f"stopping {job.job}: it stores a checkpoint and has {STOP_WAIT_S} s for it")
    job = cluster.stop(job)
    print(f"job {job.job} is over: {job.status}")


def resume(
    run: RunName,
    settings: Settings = None,
    storage: Storage = "./runs",
    address: Where = None,
    follow: Follow = False,
) -> None:
    """Continue a stored run with its own settings. Only settings that leave its numbers alone may change.

    Example: ebm resume digits-0001 train.num_steps=6000
    """
    from orchestrator.cluster.jobs import is_dashboard

    if is_dashboard(address):
        return _submit_again("resume", run, settings, storage, address, follow)
    from orchestrator.training.start import resumed_job

    return _train(resumed_job(run, storage, settings or []), None, address)


def clone(
    run: RunName,
    settings: Settings = None,
    storage: Storage = "./runs",
    address: Where = None,
    follow: Follow = False,
) -> None:
    """Start a new run with the settings of a stored one, some of them changed. Give its name with name=.

    Example: ebm clone digits-0001 loss.kl_weight=0 seed=1
    """
    from orchestrator.cluster.jobs import is_dashboard

    if is_dashboard(address):
        return _submit_again("clone", run, settings, storage, address, follow)
    from orchestrator.training.start import cloned_job

    job, prefix = cloned_job(run, storage, settings or [])
    return _train(job, prefix, address)


def _train(job: Any, prefix: str | None, address: str | None) -> None:
    from orchestrator.terminal.progress import open_display
    from orchestrator.training.driver import run_training

    result = run_training(job, prefix=prefix, address=address, display=open_display(job.train.num_steps))
    show_result(result)
    if result.stopped_by is not None:
        print(f"stopped at step {result.step} of {result.num_steps}; go on with:", file=sys.stderr)
        print(f"  ebm resume {result.uri}", file=sys.stderr)
        raise typer.Exit(128 + result.stopped_by)


def _submit_again(
    command: str, run: str, settings: list[str] | None, storage: str, address: str | None, follow: bool
) -> None:
    from orchestrator.cli.words import check_words

    words = [command, run, *(settings or [])]
    if "/" not in run:
        words += ["--storage", storage]
    name, words, tree = check_words(words)
    _submit(name, words, tree, address, follow, False)


def _submit(run: str, words: Sequence[str], settings: Any, address: str | None, follow: bool, json_: bool) -> None:
    from orchestrator.cluster.jobs import Jobs

    cluster = Jobs(address, _say)
    job = cluster.submit(words, run, settings)
    if json_:
        print(json.dumps({"run": run, "job": job, "address": cluster.address}))
    else:
        print(f"run {run}")
        print(f"job {job}")
        if not follow:
            _say(f"follow it with:  ebm logs {run} -f --address {cluster.address}")
    if follow:
        _follow(cluster, cluster.find(job))


def _follow(cluster: Any, job: Any) -> None:
    """Show the log to its end and exit with the status of the job's command; Ctrl-C leaves the job alone."""
    try:
        job = cluster.follow(job, lambda text: print(text, end="", file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        _say(f"\nthe job goes on; `ebm logs {job.job} -f` shows it, `ebm stop {job.job}` ends it")
        raise
    if job.status == "STOPPED":
        raise typer.Exit(STATUS_STOPPED)
    if job.status != "SUCCEEDED":
        _say(f"job {job.job}: {job.status}")
    raise typer.Exit(job.exit_status if job.exit_status is not None else job.status != "SUCCEEDED")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
