"""`ebm evaluate`, `compose` and `sample`: scores and images of stored models."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from orchestrator.cli.flags import of_section
from orchestrator.cli.options import Address, RunName, Storage
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
            help="Names, separated by commas: fid, kid, inception_score, precision_recall; fid_judge, fid_rotation, "
            "fid_medium, fid_small and their kin; energy_gap, nearest_train, diversity, classifier; ood, chains, "
            "composition."
        ),
    ],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[STUDY.NAME=VALUE]...",
            help="Settings of the studies among the metrics, such as chains.num_steps=3000 or ood.sets=noise; the page "
            "of the configuration lists all below `evaluation.`.",
        ),
    ] = None,
    checkpoint: Annotated[int | None, typer.Option(min=0, help="Step of the checkpoint. Default: the newest.")] = None,
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
    """Score a stored checkpoint on Ray and write the results beside it.

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
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of images.")] = 64,
    out: Annotated[Optional[Path], typer.Option(help="PNG file to write. Default: <run>-<step>.png here.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(min=0, help="Samples of one seed are the same each time.")] = 0,
    checkpoint: Annotated[int | None, typer.Option(min=0, help="Step of the checkpoint. Default: the newest.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Langevin steps. Default: sampler.generate_steps.")] = None,
    storage: Storage = "./runs",
) -> None:
    """Draw images from the averaged (EMA) model of a stored run."""
    from orchestrator.evaluation.sample import draw_grid

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    print(draw_grid(run, storage=storage, count=count, out=out, seed=seed, step=checkpoint, num_steps=steps, say=say))
