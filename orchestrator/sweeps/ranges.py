"""Ranges that a search draws settings from: `loguniform(10,1000)`, `uniform(0,1)`, `randint(1,8)`, `choice(a,b,c)`.

A range belongs to a dotted path of the configuration and is checked with `override()`: at both ends, or at each option.
"""

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ebm_core.errors import ConfigError
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import override

Kind = Literal["uniform", "loguniform", "randint", "choice"]
_CALL = re.compile(r"([a-z_]+)\((.*)\)", re.DOTALL)
_KINDS = ("uniform", "loguniform", "randint", "choice")


@dataclass(frozen=True)
class Range:
    """What one setting may be."""

    kind: Kind
    low: float = 0.0
    high: float = 0.0
    """Both ends belong to it."""
    options: tuple[str, ...] = ()
    """Of a choice: texts as after PATH=."""

    def draw(self, rng: random.Random) -> str:
        """A value as text, for `override()`."""
        if self.kind == "choice":
            return rng.choice(self.options)
        if self.kind == "randint":
            return str(rng.randint(int(self.low), int(self.high)))
        if self.kind == "loguniform":
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return repr(min(max(drawn, self.low), self.high))  # exp(log(x)) may lie an ulp outside
        return repr(rng.uniform(self.low, self.high))

    def ends(self) -> tuple[str, ...]:
        """The values that must be possible for all others to be."""
        if self.kind == "choice":
            return self.options
        if self.kind == "randint":
            return (str(int(self.low)), str(int(self.high)))
        return (repr(self.low), repr(self.high))


def is_range(text: str) -> bool:
    """Does the text after PATH= look like a call? No setting of the configuration does."""
    return _CALL.fullmatch(text.strip()) is not None


def parse_range(path: str, text: str) -> Range:
    """The range that `text` stands for. Raises ConfigError of one line for anything else."""
    match = _CALL.fullmatch(text.strip())
    if match is None or match[1] not in _KINDS:
        raise ConfigError(f"{path} = {text!r}: write uniform(a,b), loguniform(a,b), randint(a,b) or choice(x,y,...)")
    kind, arguments = match[1], split_arguments(match[2])
    if kind == "choice":
        if not arguments or not all(arguments):
            raise ConfigError(f"{path} = {text!r}: name at least one option, and none of them empty")
        if len(set(arguments)) < len(arguments):
            raise ConfigError(f"{path} = {text!r}: an option is named twice")
        return Range("choice", options=tuple(arguments))
    return _numbers(path, text, kind, arguments)


def _numbers(path: str, text: str, kind: str, arguments: list[str]) -> Range:
    number = int if kind == "randint" else float
    try:
        low, high = (number(argument) for argument in arguments)
    except ValueError:
        words = "two whole numbers" if kind == "randint" else "two numbers"
        raise ConfigError(f"{path} = {text!r}: {kind} needs {words}, the lowest and the highest") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{path} = {text!r}: the lowest value must be below the highest, both finite")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{path} = {text!r}: loguniform needs positive numbers; use uniform")
    return Range(kind, float(low), float(high))  # pyright: ignore[reportArgumentType]


def split_arguments(text: str) -> list[str]:
    """The parts of `text` between commas that no bracket encloses; none of an empty text."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts] if text.strip() else []


def parse_space(space: Mapping[str, str], base: JobConfig) -> dict[str, Range]:
    """The ranges of a search, each tried on `base` at its ends and once between. Raises ConfigError naming the path."""
    ranges = {path: parse_range(path, text) for path, text in space.items()}
    for path, one in ranges.items():
        if path in ("name", "storage", "data.root"):
            raise ConfigError(f"{path} = {space[path]!r}: a sweep names its runs and keeps them in one storage")
        between = one.draw(random.Random(0))  # both ends of uniform(1,3) are whole numbers, and hardly another
        for value in (*one.ends(), between):
            override(base, [f"{path}={value}"])
    return ranges


def draw_random(ranges: Mapping[str, Range], seed: int, index: int) -> dict[str, str]:
    """{path: value} of trial `index` of a random search: a function of the seed, the number and the path alone."""
    return {path: one.draw(random.Random(f"{seed}/{index}/{path}")) for path, one in ranges.items()}


def optuna_distribution(one: Range) -> object:
    """The range as Optuna has it; its categories are texts."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.kind == "choice":
        return CategoricalDistribution(one.options)
    if one.kind == "randint":
        return IntDistribution(int(one.low), int(one.high))
    return FloatDistribution(one.low, one.high, log=one.kind == "loguniform")
