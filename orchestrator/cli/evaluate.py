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
            help="Scores and studies to compute, separated by commas. Scores: energy_gap, nearest_train, diversity, "
            "classifier, and fid_X, kid_X, precision_recall_X in features X = judge, rotation, medium or small; fid, "
            "kid, precision_recall and inception_score need Inception-V3's weights. Studies: ood, chains, composition."
        ),
    ],
    checkpoint: Checkpoint = None,
    num_images: Annotated[int, typer.Option(min=2, max=10_000_000, help="Number of generated images to score.")] = 1000,
    num_reference: Annotated[
        int,
        typer.Option(min=2, help="Largest number of training images that scores in Inception features compare with."),
    ] = 50_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images.")] = 0,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Number of processes that share the work. Default: one per CPU or GPU.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Reserve a GPU for each process.")] = False,
    cache: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Folder with installed weights, trained judges and kept features. Default: EBM_CACHE, else "
            "~/.cache/confab-ebm."
        ),
    ] = None,
    ood: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="NAME[=FOLDER]",
            help="Data set to tell from the model's own (study `ood`): a known name, or any folder of images. Give the "
            "option once per set. Default: the sets of Table 3, for CIFAR-10.",
        ),
    ] = None,
    ood_images: Annotated[
        int | None, typer.Option(min=2, help="Largest number of images of each set (study `ood`). Default: all.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Protocol of the study `ood`: strict, or paper_code, which follows the published code.")
    ] = "strict",
    cifar100_fault: Annotated[
        bool,
        typer.Option(
            "--cifar100-fault",
            help="Add the published CIFAR-100 reader, which repeats a single image (--protocol paper_code).",
        ),
    ] = False,
    chains: Annotated[int, typer.Option(min=2, max=100_000, help="Number of long chains (study `chains`).")] = 64,
    chain_steps: Annotated[
        int, typer.Option(min=20, max=10**6, help="Length of each long chain, in Langevin steps (study `chains`).")
    ] = 1000,
    descent_steps: Annotated[
        int, typer.Option(min=20, max=10**6, help="Length of the descent without noise (study `chains`, Fig. 8).")
    ] = 1000,
    chain_transitions: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Steps between augmentations (study `chains`). Default: sampler.transition_every."),
    ] = None,
    storage: Storage = "./runs",
    address: Address = None,
) -> None:
    """Score a stored checkpoint, on Ray. The scores are stored beside it.

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
            help="Two or more runs of one data set. CONDITION is a class, or attributes such as left=1,top=0.",
        ),
    ],
    op: Annotated[
        str,
        typer.Option(
            help="How energies combine: `and` (product), `or` (mixture), `not` (the first without the others)."
        ),
    ] = "and",
    weight: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(
            help="Weight of an energy: once per energy, in order; for `not`, once per energy after the first."
        ),
    ] = None,
    constants: Annotated[
        str,
        typer.Option(
            help="Constants of the composition. `code`, as published: step size over the number of energies (and), "
            "sharpness 100 (or), weight 0.001 (not). `paper`: step size unchanged, sharpness 1, --weight needed (not)."
        ),
    ] = "code",
    sharpness: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Sharpness s of a mixture, -log(sum of exp(-s E)) / s (--op or)."),
    ] = None,
    num_images: Annotated[
        int,
        typer.Option(min=1, max=1_000_000, help="Number of images to draw from the composition, and from each run."),
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images: equal seeds draw equal images.")] = 0,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Number of Langevin steps. Default: the first run's sampler.generate_steps."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PNG file to write, with a .json beside it. Default: <first run>/compositions/."),
    ] = None,
    actors: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Number of processes that share the work, one CPU each. Default: one per CPU."),
    ] = None,
    storage: Storage = "./runs",
    address: Address = None,
) -> None:
    """Draw from several trained energies combined, and judge whether each image has what was asked for.

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
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of images to draw.")] = 64,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PNG file to write. Default: <run>-<step>.png in this folder."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images: equal seeds draw equal images.")] = 0,
    checkpoint: Checkpoint = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of Langevin steps. Default: sampler.generate_steps.")
    ] = None,
    storage: Storage = "./runs",
) -> None:
    """Draw images from a stored run, by its averaged (EMA) model."""
    from orchestrator.evaluation.sample import draw_grid

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    print(draw_grid(run, storage=storage, count=count, out=out, seed=seed, step=checkpoint, num_steps=steps, say=say))
