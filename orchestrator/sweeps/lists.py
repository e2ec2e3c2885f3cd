"""Lists of values: `optimizer.lr=1e-4,1e-3` is a setting with two values to try, and a sweep of them is a grid.

A setting that is itself a list, such as model.widths, has one value however many commas: several are written in
brackets, `model.widths=[8,16],[16,32]`.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from ebm_core.errors import ConfigError
from orchestrator.records.sweeps import Row
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import leaves, override
from orchestrator.sweeps.ranges import is_range, split_arguments

ONE_PLACE = ("name", "storage", "data.root")
"""Settings of a sweep as a whole; a comma belongs to their text."""
MAX_ROWS = 10_000
MAX_KEY = 40
_STRANGE = re.compile(r"[^A-Za-z0-9._-]")


def listed_values(path: str, text: str) -> tuple[str, ...]:
    """The values that `text` after PATH= lists, each as it would stand there alone; one value is a list of one."""
    known = dict(leaves(JobConfig))
    if path not in known or path in ONE_PLACE or is_range(text):
        return (text,)
    values = tuple(split_arguments(text)) or (text,)
    if _is_tuple(known[path]) and not all(value.startswith("[") for value in values):
        return (text,)
    return values


def _is_tuple(hint: Any) -> bool:
    return any(get_origin(one) is tuple for one in (hint, *get_args(hint)))


def listed_rows(lists: Mapping[str, Sequence[str]], base: JobConfig) -> tuple[Row, ...]:
    """A row for each combination of values, the last path's changing fastest; each is tried on `base`.

    Raises ConfigError that names the path of a value that is wrong or listed twice.
    """
    for path, values in lists.items():
        _check_values(path, values, base)
    count = math.prod(len(values) for values in lists.values())
    if count > MAX_ROWS:
        raise ConfigError(f"{', '.join(lists)}: {count} combinations, at most {MAX_ROWS}; draw them: use ranges")
    chosen = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    return tuple(
        Row(
            key=key,
            label=", ".join(f"{path}={value}" for path, value in choice.items()),
            settings=tuple(f"{path}={value}" for path, value in choice.items()),
            choices=choice,
        )
        for key, choice in zip(_keys(chosen), chosen, strict=True)
    )


def _check_values(path: str, values: Sequence[str], base: JobConfig) -> None:
    shown = ",".join(values)
    if path == "seed":
        raise ConfigError(f"seed = {shown!r}: for several seeds give `seeds`, their number, and `seed`, the first")
    if not all(values):
        raise ConfigError(f"{path} = {shown!r}: a value of the list is empty")
    jobs = [override(base, [f"{path}={value}"]) for value in values]
    for index, job in enumerate(jobs):
        if job in jobs[:index]:
            raise ConfigError(f"{path} = {shown!r}: {values[index]} is listed twice")


def _keys(chosen: Sequence[Mapping[str, str]]) -> list[str]:
    """A part of a run's name for each row: `lr-0.001`, or its number where that would be too long or not unique."""
    ends = [path.rpartition(".")[2] for path in chosen[0]]
    short = {path: path if ends.count(end) > 1 else end for path, end in zip(chosen[0], ends, strict=True)}
    keys = [
        "-".join(f"{short[path]}-{_STRANGE.sub('_', value)}" for path, value in choice.items()) for choice in chosen
    ]
    if len(set(keys)) < len(keys) or max(map(len, keys)) > MAX_KEY:
        return [f"{index:04d}" for index in range(len(keys))]
    return keys
