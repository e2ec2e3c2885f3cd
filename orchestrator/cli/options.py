"""Arguments and options that several commands share, and what a finished run shows."""

from typing import Annotated, Any, Optional

import typer

from orchestrator.terminal.tables import open_console, print_table

COMMANDS = ("train", "sweep", "evaluate", "resume", "clone")
"""Commands that can be submitted as a job."""

Settings = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads this form)
    typer.Argument(
        metavar="[PATH=VALUE]...",
        help="Settings to change, such as train.num_steps=1000; `ebm config PRESET` lists all.",
    ),
]
Preset = Annotated[
    str,
    typer.Argument(
        metavar="PRESET",
        help="Settings to start from: digits, digits_paper, mnist, mnist_paper, fashion_mnist, fashion_mnist_paper, "
        "cifar10, cifar10_small, celeba_hq, lsun_bedroom or objects.",
    ),
]
Address = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Ray cluster to use, HOST:PORT. Default: RAY_ADDRESS, else the cluster on this machine, else a new "
        "private one."
    ),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Stored run: its name in --storage, its folder, or s3://bucket/.../run.")
]


def _step(text: str) -> str:
    if text != "best" and not text.isdecimal():
        raise typer.BadParameter(f"{text} is neither the number of a training step nor the word best")
    return text


Checkpoint = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        parser=_step,
        metavar="STEP",
        help="Step of the checkpoint, or the word best: the one with the best score by checkpoint.best "
        "(fid_judge or fid_rotation where it names none). Default: the newest.",
    ),
]
Storage = Annotated[str, typer.Option(help="Where runs are looked up by name: a folder or s3://bucket/prefix.")]


def show_result(result: Any) -> None:
    """What a RunResult left behind: where, its grid, its page, its scores."""
    from orchestrator.records.scores import score_rows

    console = open_console()
    if result.already_finished:
        console.print(f"run {result.name} is finished: it has all {result.num_steps} steps", markup=False)
    console.print(f"run   {result.uri}", markup=False, soft_wrap=True)
    if result.grid:
        console.print(f"grid  {result.uri}/{result.grid}", markup=False, soft_wrap=True)
    if result.page:
        console.print(f"page  {result.uri}/{result.page}", markup=False, soft_wrap=True)
    if result.scores:
        rows = (
            (row[0], *("-" if value is None else f"{value:.4g}" for value in row[1:]))
            for row in score_rows(result.scores)
        )
        print_table(f"scores at step {result.step}", ("score", "samples", "real, held out", "noise"), rows)
