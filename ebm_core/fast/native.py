"""This package's operators in C++, `torch.ops.confab.*`: compiled on first use, in seconds, then kept on disk."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch.utils import cpp_extension

from ebm_core.errors import EbmError

FLAGS = ["-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-w"]
INSTRUCTIONS = {
    "AVX512": ["-march=skylake-avx512", "-mtune=icelake-server", "-mprefer-vector-width=512"],
    "AVX2": ["-march=haswell"],
}
"""Compiler's options by PyTorch's name for what the CPU can do; elsewhere the compiler's own choice."""


class BuildError(EbmError):
    """A C++ file of this package cannot be compiled here."""


def compiler() -> str | None:
    """The C++ compiler that PyTorch's own compiled code uses, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


@cache
def load(name: str, *options: str) -> None:
    """Make the operators of `name`.cpp available, compiled with `options`: once per user and version.

    BuildError, with what to do, when there is no compiler, it fails, or what it makes cannot be kept.
    """
    command = compiler()
    if command is None:
        raise BuildError("there is no C++ compiler here; install g++")
    try:
        library = _built(Path(__file__).with_name(f"{name}.cpp"), command, options)
    except OSError as error:
        raise BuildError(
            f"cannot keep what {command} compiles: {error}; name a folder of yours in TORCH_EXTENSIONS_DIR"
        ) from None
    torch.ops.load_library(library)


def _built(source: Path, command: str, options: tuple[str, ...]) -> Path:
    """The shared library, made by `command` unless it lies in the cache (`TORCH_EXTENSIONS_DIR`, or the user's own)."""
    flags = [*FLAGS, *INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), []), *options]
    key = hashlib.sha256(repr((source.read_bytes(), flags, torch.__version__, command)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()) / "confab"
    library = folder / f"{source.stem}-{key}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    torch_paths = [f"-I{path}" for path in cpp_extension.include_paths()]
    torch_paths += [f"-L{path}" for path in cpp_extension.library_paths()]
    with tempfile.TemporaryDirectory(dir=folder) as temp:
        made = Path(temp) / library.name
        done = subprocess.run(
            [command, *flags, str(source), *torch_paths, "-lc10", "-ltorch_cpu", "-o", str(made)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or [f"status {done.returncode}"]
            raise BuildError(f"{command} fails on {source.name}: {said[0]}; name another in CXX")
        made.replace(library)  # whole or not at all: workers of one machine may compile side by side
    return library
