"""Weights of the feature extractors: installed once from a file at hand, checked at every use, never downloaded.

The published files are pickles. `install` reads one, after its SHA-256 has been checked, with `weights_only=True`, and
keeps its tensors as safetensors; nothing is unpickled from then on.

    <cache>/weights/inception.safetensors   the tensors
    <cache>/weights/inception.json          digests of them and of the file that they came from
"""

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from ebm_core.errors import DataError
from ebm_core.files import whole_file
from ebm_core.manifest import sha256_file
from workers.features.networks import NETWORKS

CACHE_VARIABLE = "EBM_CACHE"

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the published FID weights, 95,628,359 bytes; also named pt_inception-2015-12-05-6726825d.pth. The names end in the
digest's first eight digits."""


@dataclass(frozen=True)
class Kind:
    """A network whose weights can be installed."""

    title: str
    where: str
    """Where a person gets the file."""
    command: str


KINDS: dict[str, Kind] = {
    "inception": Kind(
        "the Inception-V3 weights of FID",
        f"get weights-inception-2015-12-05-6726825d.pth from {INCEPTION_URL}",
        "ebm data inception --from FILE",
    ),
    "mobilenet": Kind(
        "the MobileNetV2 weights of fid_medium",
        "take any state dict of torchvision's mobilenet_v2 (.pth or .safetensors)",
        "ebm data mobilenet --from FILE",
    ),
}


def default_cache() -> Path:
    """The folder that EBM_CACHE names, else `confab-ebm` in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().absolute() / "confab-ebm"


@dataclass(frozen=True)
class Installed:
    """Tensors of a network, and where they come from."""

    tensors: dict[str, Tensor]
    sha256: str
    """Of the tensors as installed: names them in every result."""
    source_sha256: str
    """Of the file that they were installed from."""


@dataclass(frozen=True)
class Weights:
    """The weights in one cache folder. Travels between processes."""

    cache: Path
    inception_sha256: str = INCEPTION_SHA256
    """What the file of the Inception weights must hash to. Results made under another digest say so; it is here for
    tests, and nothing that a person can set reaches it."""

    @classmethod
    def default(cls) -> "Weights":
        """The weights of this machine's user."""
        return cls(default_cache())

    def install(self, kind: str, source: Path) -> Path:
        """Check the file `source`, convert it and keep it in the cache; returns the file that was written.

        Raises DataError, with nothing written, for a file that is missing, is not the published one, or is no state
        dict of that network.
        """
        if not source.is_file():
            raise DataError(f"{source}: no such file; {KINDS[kind].where}")
        try:
            digest = sha256_file(source)
            if kind == "inception" and digest != self.inception_sha256:
                raise DataError(
                    f"{source}: SHA-256 {digest[:16]}..., but that of {KINDS[kind].title} begins with "
                    f"{self.inception_sha256[:16]}: not the published file, or damaged; {KINDS[kind].where}"
                )
            return self._keep(kind, _read_state(kind, source), digest)
        except OSError as error:
            raise DataError(f"{error.filename or source}: {error.strerror or error}; nothing was installed") from None

    def check(self, kind: str) -> None:
        """DataError that says what to get and to run, unless the weights have been installed here."""
        path, note = self._paths(kind)
        known = KINDS[kind]
        if not path.is_file() or not note.is_file():
            raise DataError(f"{path} is missing: {known.title}; {known.where}, then run `{known.command}`")

    def load(self, kind: str) -> Installed:
        """The installed tensors, their digest checked. Raises DataError where they are missing or damaged."""
        self.check(kind)
        path, note = self._paths(kind)
        known = KINDS[kind]
        try:
            said = json.loads(note.read_bytes())
            sha256, source = str(said["sha256"]), str(said["source_sha256"])
            sound = sha256_file(path) == sha256
        except (OSError, ValueError, KeyError, TypeError):
            sound, sha256, source = False, "", ""
        if not sound or (kind == "inception" and source != self.inception_sha256):
            raise DataError(f"{path} is not what was installed; run `{known.command}` again")
        return Installed(load_file(path), sha256, source)

    def _keep(self, kind: str, tensors: dict[str, Tensor], source_sha256: str) -> Path:
        path, note = self._paths(kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as fresh:
            save_file(tensors, fresh)
            said = {"sha256": sha256_file(fresh), "source_sha256": source_sha256}
        with whole_file(note) as fresh:  # between the two, `load` refuses
            fresh.write_text(json.dumps(said) + "\n")
        return path

    def _paths(self, kind: str) -> tuple[Path, Path]:
        folder = self.cache / "weights"
        return folder / f"{kind}.safetensors", folder / f"{kind}.json"


def _read_state(kind: str, source: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that fits the network, by name. Never runs code of a pickle."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which do not matter here
            if source.suffix == ".safetensors":
                state = load(source.read_bytes())
            else:
                state = torch.load(source, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # a file that is something else can fail anywhere in the reader
        state = None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{source}: cannot be read as the weights of a network; {KINDS[kind].where}")
    tensors = {str(name): value.detach().contiguous().clone() for name, value in state.items()}
    try:
        NETWORKS[kind](tensors)
    except DataError as error:
        raise DataError(f"{source}: {error}; {KINDS[kind].where}") from None
    return tensors
