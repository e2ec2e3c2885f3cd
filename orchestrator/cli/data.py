"""`ebm data`: get data sets and weights, check files, prepare a data set for a cluster."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from orchestrator.cli.options import Settings

data_app = typer.Typer(help="Get data sets, check the files of one, prepare one for a cluster.", no_args_is_help=True)

From = Annotated[Path, typer.Option("--from", metavar="FILE", help="The file; nothing is downloaded.")]
Cache = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder to install into. Default: EBM_CACHE, else ~/.cache/confab-ebm."),
]


@data_app.command()
def inception(source: From, cache: Cache = None) -> None:
    """Install the Inception-V3 weights of FID, after checking that they are the published ones.

    Get weights-inception-2015-12-05-6726825d.pth from the releases of torch-fidelity, or
    pt_inception-2015-12-05-6726825d.pth, the same file, from those of pytorch-fid.
    """
    _install("inception", source, cache)


@data_app.command()
def mobilenet(source: From, cache: Cache = None) -> None:
    """Install weights of torchvision's mobilenet_v2 (.pth or .safetensors) for fid_medium, kid_medium and so on.

    Which file it was stands in every score: numbers of different files cannot be compared.
    """
    _install("mobilenet", source, cache)


def _install(kind: str, source: Path, cache: Path | None) -> None:
    from workers.features.weights import Weights, default_cache

    path = Weights(default_cache() if cache is None else cache.expanduser().absolute()).install(kind, source)
    print(f"installed {path}")


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set such as cifar10.")],
    settings: Annotated[Optional[list[str]], typer.Argument(metavar="[data.root=FOLDER]")] = None,  # noqa: UP045
) -> None:
    """Download a data set through torchvision into data.root, in the layout that training reads."""
    from ebm_core.data import absolute_root, download

    data = _data_job(name, settings).data
    print(download(data.name, absolute_root(data.root)))


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset or a data set such as cifar10.")],
    settings: Settings = None,
) -> None:
    """Read a data set and say what is in it."""
    from ebm_core.data import check_files, load

    cfg = _data_job(name, settings).data
    check_files(cfg)
    for split in ("train", "test"):
        images = load(cfg, split)
        channels, height, width = images.image_shape
        print(f"{name} {split}: {len(images)} images of {channels} x {height} x {width}")


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset or a data set such as cifar10.")],
    to: Annotated[str, typer.Option("--to", metavar="PLACE", help="A new folder or s3://BUCKET/PREFIX.")],
    settings: Settings = None,
) -> None:
    """Decode a data set once and store it as Parquet shards; training then reads them with data.root=PLACE.

    Example: ebm data prepare cifar10 data.root=~/data --to s3://bucket/datasets/cifar10
    """
    from orchestrator.training.prepare_data import prepare

    cfg = _data_job(name, settings).data
    found = prepare(cfg, to, lambda text: print(text, file=sys.stderr))
    print(f"{found.train.num_images:,} images to train on and {found.test.num_images:,} to test with are in {to}")
    print(f"  ebm train {name} data.root={shlex.quote(to)}")


def _data_job(name: str, settings: list[str] | None) -> Any:
    """The preset of that name, or the default job with that data set."""
    from ebm_core.presets import PRESETS
    from orchestrator.settings.job import JobConfig, job_preset
    from orchestrator.settings.overrides import override

    job = job_preset(name) if name in PRESETS else override(JobConfig(), [f"data.name={name}"])
    return override(job, settings or [])
