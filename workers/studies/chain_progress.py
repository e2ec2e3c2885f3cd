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

from workers.studies.chains import NUM_TIMES, Segment
from workers.studies.study import Folder

PLACE = "chains-progress"
DIGEST = "sha256"


class Progress:
    """The stored segments of one study among the results of a checkpoint."""

    def __init__(self, folder: Folder, key: str) -> None:
        self._folder, self._place = folder, f"{PLACE}/{key}"

    def load(self, variant: str) -> list[Segment]:
        """The sound segments of a variant from number 0 on, up to the first that is missing or damaged."""
        segments: list[Segment] = []
        while len(segments) <= NUM_TIMES:
            data = self._folder.read(self._name(variant, len(segments)))
            if data is None:
                break
            try:
                segments.append(_parse(data))
            except (SafetensorError, KeyError, TypeError, ValueError):
                break
        return segments

    def save(self, variant: str, number: int, segment: Segment) -> None:
        """Store a finished segment."""
        tensors = {f.name: getattr(segment, f.name).contiguous() for f in dataclasses.fields(Segment)}
        self._folder.write(self._name(variant, number), save(tensors, {DIGEST: _digest(tensors)}))

    def _name(self, variant: str, number: int) -> str:
        return f"{self._place}/{variant}-{number:02d}.safetensors"


def clear(folder: Folder) -> None:
    """Remove every study's segments from among the results of a checkpoint."""
    for name in folder.names(f"{PLACE}/"):
        folder.delete(name)


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
