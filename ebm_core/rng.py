"""Streams of randomness keyed by (seed, step, purpose, shard): a step's draws depend on nothing that ran before it.

A batch of B samples is divided over V batch shards (here: shards); shard v holds the global samples floor(v B / V) to
floor((v + 1) B / V). Each shard has its own stream, so what a sample sees depends on its global index and never on the
rank that happens to compute it: resuming at a step needs the step's number alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from ebm_core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shards:
    """The contiguous batch shards `first` to `first + count - 1`, of `total`, that one worker owns."""

    total: int = 1
    first: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not (self.count >= 1 and self.first >= 0 and self.first + self.count <= self.total):
            raise ConfigError(f"shards {self.first} to {self.first + self.count - 1} of {self.total} do not exist")

    @classmethod
    def of_rank(cls, rank: int, world_size: int, total: int) -> "Shards":
        """The share of worker `rank` of `world_size`, which must divide `total`."""
        if world_size < 1 or total % world_size:
            raise ConfigError(
                f"cluster.num_workers = {world_size}: must divide buffer.num_shards = {total}; "
                f"set buffer.num_shards to a multiple of {world_size}"
            )
        count = total // world_size
        return cls(total, rank * count, count)

    def __iter__(self):
        return iter(range(self.first, self.first + self.count))

    def bounds(self, batch_size: int) -> list[int]:
        """Global index at which each owned shard starts, and the end of the last: count + 1 numbers."""
        return [v * batch_size // self.total for v in range(self.first, self.first + self.count + 1)]

    def sizes(self, batch_size: int) -> list[int]:
        """Samples of a global batch in each owned shard."""
        edges = self.bounds(batch_size)
        return [b - a for a, b in pairwise(edges)]

    def span(self, batch_size: int) -> slice:
        """This worker's part of a global batch."""
        edges = self.bounds(batch_size)
        return slice(edges[0], edges[-1])


def stream(seed: int, step: int, purpose: str, shard: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose state is a function of its key alone."""
    key = hashlib.sha256(f"{seed}/{step}/{purpose}/{shard}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(key[:8], "little", signed=True))


@dataclass(frozen=True, slots=True)
class ShardStreams:
    """One generator per owned shard, with the number of samples that each shard holds in this batch."""

    generators: tuple[torch.Generator, ...]
    sizes: tuple[int, ...]


Rng: TypeAlias = torch.Generator | ShardStreams
"""A single stream for library use, or one per shard for a job; `normal` and `uniform` draw from either."""


def streams(
    seed: int, step: int, purpose: str, shards: Shards, batch_size: int, device: torch.device | str = "cpu"
) -> ShardStreams:
    """The streams of a worker's shards for one step and purpose, for a global batch of `batch_size`."""
    generators = tuple(stream(seed, step, purpose, shard, device) for shard in shards)
    return ShardStreams(generators, tuple(shards.sizes(batch_size)))


def normal(
    shape: Sequence[int], rng: Rng, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """N(0, 1), `shape` = (samples, ...)."""
    return _drawn(torch.empty(tuple(shape), device=device, dtype=dtype), rng, Tensor.normal_)


def uniform(
    shape: Sequence[int], rng: Rng, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """U[0, 1), `shape` = (samples, ...)."""
    return _drawn(torch.empty(tuple(shape), device=device, dtype=dtype), rng, Tensor.uniform_)


def _drawn(out: Tensor, rng: Rng, fill) -> Tensor:
    if isinstance(rng, torch.Generator):
        return fill(out, generator=rng)
    if out.shape[0] != sum(rng.sizes):
        raise ConfigError(f"{out.shape[0]} samples, but the streams' shards hold {sum(rng.sizes)}: use one batch size")
    for generator, part in zip(rng.generators, out.split(rng.sizes), strict=True):
        fill(part, generator=generator)  # a view: the draw lands in `out`
    return out
