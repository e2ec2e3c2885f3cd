"""Calls that travel to whatever holds their subject, such as an evaluator in another process: a function and its
arguments, which a reader and a type checker can follow. The subject is the function's first argument."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

K = TypeVar("K")
P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
Subject = TypeVar("Subject", contravariant=True)
Answer = TypeVar("Answer", covariant=True)
Known = TypeVar("Known", covariant=True)


@dataclass(frozen=True, slots=True)
class Call(Generic[Subject, Answer]):
    """What `call` makes."""

    function: Callable[..., Any]
    """A method of the subject's class, or a function of a module: it travels by its name."""
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self, subject: Subject) -> Answer:
        """What the function returns for this subject. Raises what it raises."""
        return self.function(subject, *self.arguments, **self.options)


def call(function: Callable[Concatenate[S, P], T], *arguments: P.args, **options: P.kwargs) -> Call[S, T]:
    """`function(subject, *arguments, **options)` for a subject elsewhere, as in `call(Evaluator.grid_png, 64)`."""
    return Call(function, arguments, options)


class Runner(Protocol[Known]):
    """What makes calls, in any order, in any number of processes that each have the subject."""

    def run(self, calls: Mapping[K, Call[Known, T]], take: Callable[[K, T], None] | None = None) -> dict[K, T]:
        """{key: what the call returned}, in the order of `calls`. Where `take` is given, it hears each (key, answer) as
        calls end, perhaps twice, and nothing is returned."""
        ...


class Here(Generic[S]):
    """A subject of this process, which answers one call after the other."""

    def __init__(self, subject: S) -> None:
        self._subject = subject

    def run(self, calls: Mapping[K, Call[S, T]], take: Callable[[K, T], None] | None = None) -> dict[K, T]:
        """As `Runner.run`."""
        found: dict[K, T] = {}
        take = take or found.__setitem__
        for key, one in calls.items():
            take(key, one(self._subject))
        return found
