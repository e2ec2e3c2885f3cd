"""`ebm evaluate`."""

import sys
from typing import Annotated, Optional

import typer

from orchestrator.cli_options import Address, RunName, Storage, open_console, print_table


def evaluate(
    run: RunName,
    metrics: Annotated[
        str, typer.Option(help="Names, separated by commas: ood, chains, or those of training's scores.")
    ],
    checkpoint: Annotated[int | None, typer.Option(min=0, help="Step of the checkpoint. Default: the newest.")] = None,
    num_images: Annotated[int, typer.Option(min=2, max=10_000_000, help="Generated images to score.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images.")] = 0,
    actors: Annotated[int | None, typer.Option(min=1, help="Ray actors, one CPU each. Default: all CPUs.")] = None,
    ood: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="NAME[=FOLDER]",
            help="A set for the metric ood, or any folder of images; once per set. Default: Table 3's for CIFAR-10.",
        ),
    ] = None,
    ood_images: Annotated[
        int | None, typer.Option(min=2, help="At most so many images of each set. Default: all.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="Of the metric ood: strict or paper_code.")] = "strict",
    cifar100_fault: Annotated[
        bool, typer.Option("--cifar100-fault", help="With paper_code: also its CIFAR-100 reader, stuck at one image.")
    ] = False,
    chains: Annotated[int, typer.Option(min=2, max=100_000, help="Pool of the metric chains.")] = 64,
    chain_steps: Annotated[int, typer.Option(min=20, max=10**6, help="Langevin steps of these chains.")] = 1000,
    storage: Storage = "./runs",
    address: Address = None,
) -> None:
    """Score a stored checkpoint on Ray and write the results beside it.

    Example: ebm evaluate digits-0001 --metrics fid_small,kid_small,ood --ood interpolation --ood noise
    """
    from orchestrator.evaluate import EvaluationRequest, tables
    from orchestrator.evaluate import evaluate as score
    from orchestrator.storage import step_name

    request = EvaluationRequest(
        metrics=tuple(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip())),
        num_images=num_images,
        seed=seed,
        num_actors=actors,
        num_chains=chains,
        chain_steps=chain_steps,
        protocol=protocol,
        ood_sets=tuple(ood or ()),
        ood_images=ood_images,
        cifar100_fault=cifar100_fault,
    )
    stored, step, found = score(
        run, request, storage=storage, step=checkpoint, address=address, say=lambda text: print(text, file=sys.stderr)
    )
    console, folder = open_console(), f"{stored.uri}/evaluations/{step_name(step)}"
    first = next(iter(found.values()))
    weights, data = first["checkpoint_digest"][:12], f"{first['dataset']} {first['data_fingerprint'][:12]}"
    console.print(f"run {stored.name}, step {step}, averaged weights {weights}, data {data}", markup=False)
    for table in tables(found, step):
        print_table(table.title, table.columns, table.rows)
        if table.note:
            console.print(table.note, markup=False)
    console.print(f"written to {folder}/", soft_wrap=True, markup=False)
    for document in found.values():
        if "energies" in document:
            again = f"scores again from their energies: python -m workers.ood {folder}/{document['energies']['file']}"
            console.print(again, soft_wrap=True, markup=False)
