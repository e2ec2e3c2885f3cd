"""`ebm compose`."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from orchestrator.cli_options import Address, Storage
from orchestrator.terminal.tables import open_console, print_table


def compose(
    concepts: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN[@STEP][:CONDITION]...",
            help="Two runs or more of one data set. CONDITION: attributes such as left=1,top=0, or a class.",
        ),
    ],
    op: Annotated[str, typer.Option(help="and: product. or: mixture. not: the first without the others.")] = "and",
    weight: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(help="Once for each energy, in order; for `not`, for each after the first."),
    ] = None,
    constants: Annotated[
        str,
        typer.Option(
            help="code: as published (and: step size over the number of energies; or: sharpness 100; not: weight "
            "0.001). paper: the bare forms."
        ),
    ] = "code",
    sharpness: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="or: of -log(sum of exp(-sharpness E)) / sharpness."),
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, max=1_000_000, help="Of the composition, and of each run.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Images of one seed are the same each time.")] = 0,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Langevin steps. Default: the first run's sampler.generate_steps."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PNG file to write, with a .json beside it. Default: <first run>/compositions/."),
    ] = None,
    actors: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Ray actors, one CPU each. Default: all CPUs."),
    ] = None,
    storage: Storage = "./runs",
    address: Address = None,
) -> None:
    """Draw from several trained energies at once, and have each factor that was asked for judged.

    Example: ebm compose shapes:cube sides:left=1 --op and --out cube-left.png
    """
    from orchestrator.evaluation.compose import ComposeRequest, tables
    from orchestrator.evaluation.compose import compose as run_composition

    request = ComposeRequest(
        concepts=tuple(concepts),
        operation=op,
        constants=constants,
        weights=tuple(weight) if weight else None,
        sharpness=sharpness,
        num_images=num_images,
        num_steps=steps,
        seed=seed,
        num_actors=actors,
    )
    document, written = run_composition(
        request, storage=storage, out=out, address=address, say=lambda text: print(text, file=sys.stderr)
    )
    for table in tables(document):
        print_table(table.title, table.columns, table.rows)
    for place in written:
        open_console().print(f"written to {place}", soft_wrap=True)
