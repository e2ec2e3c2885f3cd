"""Segments of long chains as they are finished, so that a killed study goes on where it was.

    <run>/evaluations/step-…/chains-progress/<key>/<variant>-<number>.safetensors

One object per segment, written once; its header holds the SHA-256 of its tensors. `key` stands for all that the bits
depend on, so a study never goes on from another's segments. A damaged one is made again, with those after it.
"""

import dataclasses
import hashlib
import struct
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from orchestrator.storage.interface import ObjectMissing
from orchestrator.storage.run_store import Run
from workers.studies.chains import NUM_TIMES, Segment

FOLDER = "chains-progress"
DIGEST = "sha256"


class Progress:
    """The stored segments of one study below a run's evaluation `folder`."""

    def __init__(self, run: Run, folder: str, key: str) -> None:
        self._run, self._folder = run, f"{folder}/{FOLDER}/{key}"

    def load(self, variant: str) -> list[Segment]:
        """The sound segments of a variant from number 0 on, up to the first that is missing or damaged."""
        segments: list[Segment] = []
        while len(segments) <= NUM_TIMES:
            try:
                segments.append(_parse(self._run.read_bytes(self._key(variant, len(segments)))))
            except (ObjectMissing, SafetensorError, KeyError, TypeError, ValueError):
                break
        return segments

    def save(self, variant: str, number: int, segment: Segment) -> None:
        """Store a finished segment."""
        tensors = {f.name: getattr(segment, f.name).contiguous() for f in dataclasses.fields(Segment)}
        self._run.write_bytes(self._key(variant, number), save(tensors, {DIGEST: _digest(tensors)}))

    def _key(self, variant: str, number: int) -> str:
        return f"{self._folder}/{variant}-{number:02d}.safetensors"


def clear(run: Run, folder: str) -> None:
    """Remove every study's segments below an evaluation folder."""
    for info in list(run.list(f"{folder}/{FOLDER}/")):
        run.delete(info.key)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _parse(data: bytes) -> Segment:
    """Raises ValueError, KeyError, TypeError or SafetensorError for anything but what `save` wrote."""
    tensors = load(data)
    header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    if f'"{DIGEST}":"{_digest(tensors)}"'.encode() not in header:
        raise ValueError("the tensors are not those that were stored")
    return Segment(**tensors)
