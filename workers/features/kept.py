"""Tensors kept on disk between evaluations: written whole or not at all, and read only if nothing in them has changed.

A file that is missing, damaged or cannot be written costs the time to compute its content again, nothing else.
"""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ebm_core.files import whole_file

Tensors = Mapping[str, np.ndarray]


def digest(tensors: Tensors) -> str:
    """SHA-256 (hex) of the tensors' bytes, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(np.ascontiguousarray(tensors[name]).tobytes())
    return found.hexdigest()


def read(path: Path) -> dict[str, np.ndarray] | None:
    """What `write` stored at `path`; None for a file that is missing, or is not what was written."""
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            said = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return tensors if digest(tensors) == said else None


def write(path: Path, tensors: Tensors) -> None:
    """Store tensors at `path`, over what was there; a folder or disk that takes nothing is no error."""
    with contextlib.suppress(OSError, SafetensorError):  # a full disk must not end an evaluation
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as fresh:
            save_file(dict(tensors), fresh, {"sha256": digest(tensors)})
