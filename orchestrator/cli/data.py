"""`ebm data`: get data sets and weights, check files, prepare a data set for a cluster."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from orchestrator.cli.options import Settings

data_app = typer.Typer(
    help="Download, check or prepare data sets, and install weights for scores.", no_args_is_help=True
)

From = Annotated[Path, typer.Option("--from", metavar="FILE", help="File with the weights, which you have downloaded.")]
Cache = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder to install the weights in. Default: EBM_CACHE, else ~/.cache/confab-ebm."),
]


@data_app.command()
def inception(source: From, cache: Cache = None) -> None:
    """Install the published Inception-V3 weights, which the scores fid, kid and inception_score need.

    Nothing is downloaded: get weights-inception-2015-12-05-6726825d.pth from the releases of torch-fidelity, or the
    equal file pt_inception-2015-12-05-6726825d.pth from those of pytorch-fid. Its SHA-256 is checked.
    """
    _install("inception", source, cache)


@data_app.command()
def mobilenet(source: From, cache: Cache = None) -> None:
    """Install weights of torchvision's mobilenet_v2 (.pth or .safetensors), for the scores in features `medium`.

    Every score records which file was used: compare only scores from equal files.
    """
    _install("mobilenet", source, cache)


def _install(kind: str, source: Path, cache: Path | None) -> None:
    from workers.features.weights import Weights, default_cache

    path = Weights(default_cache() if cache is None else cache.expanduser().absolute()).install(kind, source)
    print(f"installed {path}")


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set to download, such as cifar10.")],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[data.root=FOLDER]", help="Folder to download into. Default: ./data."),
    ] = None,
) -> None:
    """Download a data set through torchvision into data.root, in the layout that training reads."""
    from ebm_core.data import absolute_root, download

    data = _data_job(name, settings).data
    print(download(data.name, absolute_root(data.root)))


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Preset, or data set such as cifar10.")],
    settings: Settings = None,
) -> None:
    """Read a data set and print how many images it has, and their shape."""
    from ebm_core.data import check_files, load

    cfg = _data_job(name, settings).data
    check_files(cfg)
    for split in ("train", "test"):
        images = load(cfg, split)
        channels, height, width = images.image_shape
        print(f"{name} {split}: {len(images)} images of {channels} x {height} x {width}")


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Preset, or data set such as cifar10.")],
    to: Annotated[
        str, typer.Option("--to", metavar="PLACE", help="Where to write: a new folder or s3://BUCKET/PREFIX.")
    ],
    settings: Settings = None,
) -> None:
    """Decode a data set once and store it as Parquet files, which training reads with data.root=PLACE.

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
