"""Stores of past samples that chains start from (Section 2.5): uint8, on the device, vectorised, in whole shards.

A batch shard (here: shard) keeps its own slots and count of samples ever offered; a worker owns whole shards, so a
change of world size moves them without mixing. Every operation costs the same whatever the capacity.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Int64
from torch import Tensor

from ebm_core import rng as streams
from ebm_core.config import BufferConfig
from ebm_core.data.pixels import quantize
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.rng import Rng, Shards, ShardStreams
from ebm_core.types import ImageShape, Pixels, Samples


class SampleBuffer(ABC):
    """The slots of one worker's shards. Subclasses decide which slot an offered sample takes."""

    def __init__(
        self,
        capacity: int,
        image_shape: ImageShape,
        shards: Shards | None = None,
        num_conditions: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """`capacity` counts the slots of all shards of the job; this worker holds its shards' part of them."""
        self.shards = shards or Shards()
        if capacity < self.shards.total:
            raise ConfigError(f"buffer.capacity = {capacity}: must be at least buffer.num_shards ({self.shards.total})")
        self._capacity = self.shards.sizes(capacity)  # slots per owned shard
        self._offset = [sum(self._capacity[:i]) for i in range(len(self._capacity))]
        num_slots = sum(self._capacity)
        self._levels = torch.zeros((num_slots, *image_shape), dtype=torch.uint8, device=device)
        self._born = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._born_sum = 0
        self._conditions = torch.zeros((num_slots, num_conditions), device=device)
        self.num_seen = [0] * len(self._capacity)
        """Samples ever offered to each owned shard; the reservoir's odds need it."""

    def __len__(self) -> int:
        """Filled slots."""
        return sum(self._filled())

    @property
    def num_slots(self) -> int:
        return len(self._levels)

    def _filled(self) -> list[int]:
        return [min(n, c) for n, c in zip(self.num_seen, self._capacity, strict=True)]

    @abstractmethod
    def _slots_for(self, order: Tensor, capacity: int, luck: Tensor) -> Tensor:
        """Slot of the samples that are the `order`-th ever offered (from 1); `capacity` or more: not kept.

        luck: U[0, 1) float64, one per sample.
        """

    returns = False
    """Whether the end of a chain takes the slot that the chain came from."""

    def add(
        self,
        x: Samples,
        rng: Rng,
        *,
        condition: Tensor | None = None,
        step: int = 0,
        slots: Int64[Tensor, "b"] | None = None,
    ) -> None:
        """Offer a batch in order, quantised to uint8 here and never again. `step` dates the samples.

        x: (b c h w) in [0, 1]; with shard streams, split over the shards as they say. Where one batch hits a slot
        twice, the later sample stays, as if they had come one by one. slots: where the chains came from.
        """
        luck = streams.uniform((len(x),), rng, x.device, torch.float64)
        targets, start = [], 0
        for i, size in enumerate(self._sizes(len(x), rng)):
            order = torch.arange(1, size + 1, device=x.device) + self.num_seen[i]
            slot = self._slots_for(order, self._capacity[i], luck[start : start + size])
            targets.append(torch.where(slot < self._capacity[i], slot + self._offset[i], -1))
            self.num_seen[i] += size
            start += size
        target = torch.cat(targets)
        if self.returns and slots is not None:
            target = torch.where(target < 0, slots, target)
        taken, source = _last_writer(target)
        self._levels[taken] = quantize(x[source])
        self._born_sum += int((step - self._born[taken]).sum())
        self._born[taken] = step
        if condition is not None:
            self._conditions[taken] = condition[source]

    def draw(self, count: int, rng: Rng) -> tuple[Pixels, Tensor]:
        """`count` uniform draws with replacement: uint8 (count c h w), and their conditions (count k).

        With shard streams each shard's part comes from its own slots; with one generator, from all of them.
        """
        return self.read(self.draw_slots(count, rng))

    def read(self, slots: Int64[Tensor, "n"]) -> tuple[Pixels, Tensor]:
        """What the slots hold: uint8 (n c h w), and their conditions (n k)."""
        return self._levels[slots], self._conditions[slots]

    def draw_slots(self, count: int, rng: Rng) -> Int64[Tensor, "n"]:
        """The slots of `draw`: numbers within this worker's part."""
        if len(self) == 0:
            raise ConfigError("the buffer is empty: add() a batch before the first draw()")
        luck = streams.uniform((count,), rng, self._levels.device, torch.float64)
        if isinstance(rng, ShardStreams):
            filled = torch.tensor(self._filled(), device=luck.device)
            shard = torch.repeat_interleave(torch.tensor(rng.sizes, device=luck.device))
            if bool((filled[shard] == 0).any()):
                raise ConfigError("a shard of the buffer is empty: add() a batch of this size before the first draw()")
            return (luck * filled[shard]).long() + torch.tensor(self._offset, device=luck.device)[shard]
        ends = torch.tensor(self._filled(), device=luck.device).cumsum(0)
        position = (luck * len(self)).long()
        shard = torch.searchsorted(ends, position, right=True)
        before = torch.cat([ends.new_zeros(1), ends[:-1]])
        return position - before[shard] + torch.tensor(self._offset, device=luck.device)[shard]

    def _sizes(self, count: int, rng: Rng) -> list[int]:
        if isinstance(rng, ShardStreams):
            return list(rng.sizes)
        return Shards(self.shards.count, 0, self.shards.count).sizes(count)

    def mean_age(self, step: int) -> float:
        """Mean number of steps since the held samples were inserted; 0 when empty."""
        return step - self._born_sum / len(self) if len(self) else 0.0

    def shard_state(self, shard: int) -> dict[str, Tensor]:
        """All that must be saved of one owned shard."""
        i = shard - self.shards.first
        rows = slice(self._offset[i], self._offset[i] + self._filled()[i])
        return {
            "levels": self._levels[rows].cpu(),
            "born": self._born[rows].cpu(),
            "conditions": self._conditions[rows].cpu(),
            "num_seen": torch.tensor([self.num_seen[i]]),
        }

    def load_shard_state(self, shard: int, saved: dict[str, Tensor]) -> None:
        """Put back what `shard_state` gave; CheckpointError if it does not fit this buffer."""
        i = shard - self.shards.first
        try:
            num_seen, levels = int(saved["num_seen"]), saved["levels"]
            conditions, born = saved["conditions"], saved["born"]
        except KeyError as missing:
            raise CheckpointError(f"buffer shard {shard} lacks the tensor {missing}") from None
        except (ValueError, RuntimeError, OverflowError):  # not one whole number
            raise CheckpointError(f"buffer shard {shard} does not say how many samples it has seen") from None
        expected = (min(num_seen, self._capacity[i]), *self._levels.shape[1:])
        fits = levels.dtype == torch.uint8 and born.shape == expected[:1]
        if not fits or tuple(levels.shape) != expected or conditions.shape != (expected[0], self._conditions.shape[1]):
            raise CheckpointError(
                f"buffer shard {shard} holds {tuple(levels.shape)} {levels.dtype}, this run needs {expected} uint8; "
                "continue with the settings that wrote it"
            )
        rows = slice(self._offset[i], self._offset[i] + expected[0])
        self._levels[rows], self._born[rows], self._conditions[rows] = (
            levels.to(self._levels.device),
            born.to(self._born.device),
            conditions.to(self._conditions.device),
        )
        self._born_sum = int(self._born.sum())
        self.num_seen[i] = num_seen


class ReservoirBuffer(SampleBuffer):
    """Uniform sample of all past samples (Section 2.5): after n, each is held with odds capacity / n (Algorithm R)."""

    def _slots_for(self, order: Tensor, capacity: int, luck: Tensor) -> Tensor:
        return torch.where(order <= capacity, order - 1, (luck * order).long())


class FifoBuffer(SampleBuffer):
    """The latest samples only: the replay buffer that Section 2.5 argues against (Table 2's ablation)."""

    def _slots_for(self, order: Tensor, capacity: int, luck: Tensor) -> Tensor:
        return (order - 1) % capacity


class PersistentBuffer(SampleBuffer):
    """A fixed number of chains that go on: each end takes the slot it came from (persistent CD, Tieleman, 2008).

    The other kinds draw with replacement and keep each end beside its start. Of such lines of descent ever fewer
    survive, in ever larger families: after n generations about 2 / n of them (a critical branching process).
    """

    returns = True

    def _slots_for(self, order: Tensor, capacity: int, luck: Tensor) -> Tensor:
        return order - 1


BUFFERS: dict[str, type[SampleBuffer]] = {
    "reservoir": ReservoirBuffer,
    "fifo": FifoBuffer,
    "persistent": PersistentBuffer,
}


def build_buffer(
    cfg: BufferConfig, image_shape: ImageShape, shards: Shards, num_conditions: int, device: torch.device | str
) -> SampleBuffer:
    """The configured kind of buffer for one worker's shards, empty."""
    return BUFFERS[cfg.kind](cfg.capacity, image_shape, shards, num_conditions, device)


def _last_writer(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct targets >= 0, and for each the last position that writes it: duplicate writes have no defined winner."""
    order = targets.argsort(stable=True)
    ordered = targets[order]
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    last &= ordered >= 0
    return ordered[last], order[last]
