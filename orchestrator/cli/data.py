"""`ebm data`: get data sets and weights, check files, prepare a data set for a cluster."""

from pathlib import Path
from typing import Annotated, Optional

import typer

From = Annotated[Path, typer.Option("--from", metavar="FILE", help="The file; nothing is downloaded.")]
Cache = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder to install into. Default: EBM_CACHE, else ~/.cache/confab-ebm."),
]


def inception(source: From, cache: Cache = None) -> None:
    """Install the Inception-V3 weights of FID, after checking that they are the published ones.

    Get weights-inception-2015-12-05-6726825d.pth from the releases of torch-fidelity, or
    pt_inception-2015-12-05-6726825d.pth, the same file, from those of pytorch-fid.
    """
    _install("inception", source, cache)


def mobilenet(source: From, cache: Cache = None) -> None:
    """Install weights of torchvision's mobilenet_v2 (.pth or .safetensors) for fid_medium, kid_medium and so on.

    Which file it was stands in every score: numbers of different files cannot be compared.
    """
    _install("mobilenet", source, cache)


def _install(kind: str, source: Path, cache: Path | None) -> None:
    from workers.features.weights import Weights, default_cache

    path = Weights(default_cache() if cache is None else cache.expanduser().absolute()).install(kind, source)
    print(f"installed {path}")
