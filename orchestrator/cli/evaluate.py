"""`ebm evaluate`, `compose` and `sample`: scores and images of stored models."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from orchestrator.cli.options import Address, Checkpoint, RunName, Storage
from orchestrator.terminal.tables import open_console, print_table


def evaluate(
    run: RunName,
    metrics: Annotated[
        str,
        typer.Option(
            help="Names, separated by commas: fid, kid, inception_score, precision_recall; fid_judge, fid_rotation, "
            "fid_medium, fid_small and their kin; energy_gap, nearest_train, diversity, classifier; ood, chains, "
            "composition."
        ),
    ],
    checkpoint: Checkpoint = None,
    num_images: Annotated[int, typer.Option(min=2, max=10_000_000, help="Generated images to score.")] = 1000,
    num_reference: Annotated[
        int, typer.Option(min=2, help="At most so many training images behind scores in Inception features.")
    ] = 50_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images.")] = 0,
    actors: Annotated[int | None, typer.Option(min=1, help="Ray actors. Default: one per CPU or GPU.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU for each actor.")] = False,
    cache: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Folder of installed weights, trained judges and kept features. Default: EBM_CACHE, else "
            "~/.cache/confab-ebm."
        ),
    ] = None,
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
    descent_steps: Annotated[int, typer.Option(min=20, max=10**6, help="Of their noiseless descent (Fig. 8).")] = 1000,
    chain_transitions: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Steps between their augmentations. Default: sampler.transition_every."),
    ] = None,
    storage: Storage = "./runs",
    address: Address = None,
) -> None:
    """Score a stored checkpoint on Ray and write the results beside it.

    Example: ebm evaluate digits-0001 --metrics fid_judge,kid_judge,ood --ood interpolation --ood noise
    """
    from orchestrator.evaluation.evaluate import evaluate as score
    from orchestrator.evaluation.evaluate import tables
    from orchestrator.evaluation.request import EvaluationRequest
    from orchestrator.storage.commits import step_name
    from workers.features.weights import Weights

    request = EvaluationRequest(
        metrics=tuple(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip())),
        num_images=num_images,
        num_reference=num_reference,
        seed=seed,
        num_actors=actors,
        use_gpu=gpu,
        num_chains=chains,
        chain_steps=chain_steps,
        descent_steps=descent_steps,
        transition_every=chain_transitions,
        protocol=protocol,
        ood_sets=tuple(ood or ()),
        ood_images=ood_images,
        cifar100_fault=cifar100_fault,
    )
    stored, step, found = score(
        run,
        request,
        storage=storage,
        step=checkpoint,
        address=address,
        say=lambda text: print(text, file=sys.stderr),
        weights=None if cache is None else Weights(cache.expanduser().absolute()),
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


def sample(
    run: RunName,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of images.")] = 64,
    out: Annotated[Optional[Path], typer.Option(help="PNG file to write. Default: <run>-<step>.png here.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(min=0, help="Samples of one seed are the same each time.")] = 0,
    checkpoint: Checkpoint = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Langevin steps. Default: sampler.generate_steps.")] = None,
    storage: Storage = "./runs",
) -> None:
    """Draw images from the averaged (EMA) model of a stored run."""
    from orchestrator.evaluation.sample import draw_grid

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    print(draw_grid(run, storage=storage, count=count, out=out, seed=seed, step=checkpoint, num_steps=steps, say=say))
