"""The order of work behind a set of scores: what an evaluator does alone, and several actors share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ebm_core.errors import ConfigError, DataError
from workers.metrics.metric import Accumulator
from workers.metrics.reference import Reference
from workers.metrics.registry import find_metric

Calls = Mapping[Any, tuple[Any, ...]]
"""{key: (method of an evaluator, its arguments)}."""

Run = Callable[[Calls, Callable[[Any, Any], None]], None]
"""Makes calls in any order, on any workers, and hands (key, what a call returned) over as it comes, perhaps twice."""


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


def score_all(run: Run, metrics: Sequence[str], num_images: int, seed: int) -> dict[str, dict[str, Any]]:
    """Each metric's result over the first `num_images` images of `seed`; the same bits however `run` shares the work.

    Partials are folded as they come, so that memory does not grow with their number. Raises what the calls raise.
    """
    answer: dict[Any, Any] = {}
    run({0: ("make_plan", metrics, num_images)}, answer.__setitem__)
    plan: Plan = answer[0]
    known: dict[str, dict[str, Any]] = {name: {} for name in metrics}
    for real in plan.real_sets:
        states = _folded(run, real.metrics, real.count, plan.shard_size, lambda i, real=real: ("score_real", real, i))
        for name, state in states.items():
            known[name][real.which] = state
    made = _folded(run, metrics, num_images, plan.shard_size, lambda i: ("score_shard", metrics, i, num_images, seed))
    run(
        {name: ("finish", name, made[name], known[name], plan, num_images, seed) for name in metrics},
        answer.__setitem__,
    )
    return {name: answer[name] for name in metrics}


def _folded(
    run: Run, metrics: Sequence[str], count: int, shard_size: int, call: Callable[[int], tuple[Any, ...]]
) -> dict[str, Any]:
    num_shards = math.ceil(count / shard_size)
    together = {name: Accumulator(find_metric(name), num_shards) for name in metrics}

    def take(shard: int, partials: dict[str, Any]) -> None:
        for name, partial in partials.items():
            together[name].add(shard, partial)

    run({i: call(i) for i in range(num_shards)}, take)
    return {name: one.result() for name, one in together.items()}
