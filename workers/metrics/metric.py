"""What a score is, and how image shards (here: shards) make it, with the same bits whoever computed which, and when."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ebm_core.errors import DataError
from workers.metrics.reference import Reference, Shard

Better: TypeAlias = Literal["less", "more"]


def append(state: list[Any] | None, part: Any) -> list[Any]:
    """A fold that keeps every partial."""
    state = [] if state is None else state
    state.append(part)
    return state


@dataclass(frozen=True, slots=True)
class Metric:
    """A score. `Any` stands for plain arrays, which travel between processes."""

    compares: str
    """What with what, for the protocol in the result."""
    better: Better | None
    """Whether less or more of `value` is better; None: neither, as of a ratio that should be 1."""
    prepare: Callable[[Reference], object]
    """Refuses unfit data before the first image is drawn."""
    score: Callable[[Shard, Reference], Any]
    """An image shard's partial."""
    finish: Callable[[Any, Reference, Mapping[str, Any]], dict[str, Any]]
    """`value`, the number to watch, and the further ones that explain it, from the folded partials of the generated
    images and of each real set."""
    fold: Callable[[Any, Any], Any] = append
    """(what the image shards so far made, or None; the next one's partial) to what they make together."""
    least: int = 2
    """Images of a set below which the score means nothing."""
    extractor: str | None = None
    """Whose features it compares."""
    real_sets: Mapping[str, int] = field(default_factory=dict)
    """Sets of `Reference.real_shard` that are scored as generated images are, and the most images that are needed."""


class Accumulator:
    """Folds partials in the order of their image shards as they come: late ones wait, repeated ones change nothing."""

    def __init__(self, metric: Metric, num_shards: int) -> None:
        self._metric, self._num_shards = metric, num_shards
        self._next, self._state = 0, None
        self._early: dict[int, Any] = {}
        self._strange: set[int] = set()

    def add(self, shard: int, partial: Any) -> None:
        """Take the partial of an image shard."""
        if not 0 <= shard < self._num_shards:
            self._strange.add(shard)
        elif shard >= self._next:
            self._early.setdefault(shard, partial)
        while self._next in self._early:
            self._state = self._metric.fold(self._state, self._early.pop(self._next))
            self._next += 1

    def result(self) -> Any:
        """What all image shards make together. Raises DataError when one is missing or unknown."""
        missing = set(range(self._next, self._num_shards)) - self._early.keys()
        odd = sorted(missing | self._strange)
        if odd or not self._num_shards:
            raise DataError(
                f"scores of shards {odd} are missing or not asked for; {self._num_shards} shards make the set"
            )
        return self._state


def combine(metric: Metric, deliveries: Iterable[tuple[int, Any]], num_shards: int) -> Any:
    """What shards 0 to num_shards - 1 make together, delivered as (shard, partial) in any order.

    One delivered twice counts once. Raises DataError when one is missing or unknown.
    """
    together = Accumulator(metric, num_shards)
    for shard, partial in deliveries:
        together.add(shard, partial)
    return together.result()
