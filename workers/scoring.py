"""What a set of scores needs: the real images that its metrics compare with, after all that can be refused."""

from collections.abc import Sequence
from dataclasses import dataclass

from ebm_core.errors import ConfigError, DataError
from workers.metrics.reference import Reference
from workers.metrics.registry import find_metric


@dataclass(frozen=True, slots=True)
class RealSet:
    """`count` evenly spread images of a set, whose scores are needed by `metrics`."""

    which: str
    count: int
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Shards of `shard_size` of the generated and of these real images."""

    shard_size: int
    real_sets: tuple[RealSet, ...]


def check_request(metrics: Sequence[str], num_images: int) -> None:
    """Refuse an unknown metric, and a number of images that is too small for one."""
    if num_images < 1:
        raise ConfigError(f"{num_images} images asked for: at least 1")
    for name in metrics:
        least = find_metric(name).least
        if num_images < least:
            raise ConfigError(f"num_images = {num_images}: the score {name} needs at least {least} images")


def make_plan(
    metrics: Sequence[str], num_images: int, reference: Reference, shard_size: int, num_real: int, num_reference: int
) -> Plan:
    """The real images that the metrics compare with, after everything that can be refused has been looked at.

    num_real, num_reference: most images of a split, for the Inception scores and for the others. Raises ConfigError
    or DataError.
    """
    check_request(metrics, num_images)
    wanted: dict[tuple[str, int], list[str]] = {}
    for name in metrics:
        metric = find_metric(name)
        most = num_reference if metric.extractor == "inception" else num_real
        for which, needed in metric.real_sets.items():
            count = min(reference.length(which), most, needed, needed if which == "train" else num_images)
            if count < metric.least:
                raise DataError(f"metric {name}: {count} {which} images; it needs at least {metric.least}")
            wanted.setdefault((which, count), []).append(name)
        metric.prepare(reference)
    sets = (RealSet(which, count, tuple(names)) for (which, count), names in wanted.items())
    return Plan(shard_size, tuple(sets))
