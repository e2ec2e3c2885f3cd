"""`ebm evaluate`, `compose` and `sample`: scores and images of stored models."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from orchestrator.cli.flags import of_section
from orchestrator.cli.options import Address, Checkpoint, RunName, Storage
from orchestrator.terminal.tables import open_console, print_table

OLD_FLAGS = {
    "--ood": "ood.sets",
    "--ood-images": "ood.limit",
    "--protocol": "ood.protocol",
    "--cifar100-fault": "ood.cifar100_fault",
    "--chains": "chains.num_chains",
    "--chain-steps": "chains.num_steps",
    "--descent-steps": "chains.descent_steps",
    "--chain-transitions": "chains.transition_every",
}
"""Flags of 0.1 and the settings that they are now."""


def _old(flag: str, **more: Any) -> Any:
    return typer.Option(flag, help=f"Old form of the setting {OLD_FLAGS[flag]}; gone after this release.", **more)


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
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[STUDY.NAME=VALUE]...",
            help="Settings of the studies to compute, such as chains.num_steps=3000 or ood.sets=noise; the page of the "
            "configuration lists them all, below `evaluation`.",
        ),
    ] = None,
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
    ood: Annotated[Optional[list[str]], _old("--ood", metavar="NAME[=FOLDER]")] = None,  # noqa: UP045
    ood_images: Annotated[Optional[int], _old("--ood-images")] = None,  # noqa: UP045
    protocol: Annotated[Optional[str], _old("--protocol")] = None,  # noqa: UP045
    cifar100_fault: Annotated[bool, _old("--cifar100-fault")] = False,
    chains: Annotated[Optional[int], _old("--chains")] = None,  # noqa: UP045
    chain_steps: Annotated[Optional[int], _old("--chain-steps")] = None,  # noqa: UP045
    descent_steps: Annotated[Optional[int], _old("--descent-steps")] = None,  # noqa: UP045
    chain_transitions: Annotated[Optional[int], _old("--chain-transitions")] = None,  # noqa: UP045
    storage: Storage = "./runs",
    address: Address = None,
) -> None:
    """Score a stored checkpoint, on Ray. The scores are stored beside it.

    Example: ebm evaluate digits-0001 --metrics fid_judge,kid_judge,ood ood.sets=interpolation,noise
    """
    from ebm_core.errors import ConfigError
    from orchestrator.evaluation.evaluate import evaluate as score
    from orchestrator.evaluation.evaluate import tables
    from orchestrator.settings.job import EvaluationConfig
    from orchestrator.settings.overrides import override_studies
    from orchestrator.storage.commits import step_name
    from workers.features.weights import Weights

    old = (ood, ood_images, protocol, cifar100_fault or None, chains, chain_steps, descent_steps, chain_transitions)
    try:
        request = EvaluationConfig(
            metrics=tuple(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip())),
            num_images=num_images,
            num_reference=num_reference,
            num_actors=actors,
            use_gpu=gpu,
        )
        request = override_studies(request, [*_translated(old, tuple(request.studies)), *(settings or ())])
    except ConfigError as why:
        raise ConfigError(of_section("evaluation", str(why))) from None
    stored, step, found = score(
        run,
        request,
        seed=seed,
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


def _translated(given: tuple[Any, ...], studies: tuple[str, ...]) -> list[str]:
    """The settings that old flags stand for, with a line that says so; without those of studies not asked for, which
    never had an effect. given: a value for each of OLD_FLAGS; None: not given."""

    def text(value: Any) -> str:
        if isinstance(value, list):
            return json.dumps(value) if any("," in item for item in value) else ",".join(value)
        return "true" if value is True else str(value)

    found = {
        flag: f"{path}={text(value)}"
        for (flag, path), value in zip(OLD_FLAGS.items(), given, strict=True)
        if value is not None and value != []
    }
    if found:
        new = " ".join(found.values())
        print(f"note: {', '.join(found)}: old flags, gone after this release; write {new}", file=sys.stderr)
    return [setting for setting in found.values() if setting.partition(".")[0] in studies]


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
    from orchestrator.evaluation.compose import ComposeRequest
    from orchestrator.evaluation.compose import compose as run_composition
    from workers.studies.composition import compose_tables

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
    for table in compose_tables(document):
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
