"""Actors that share a list of calls; one that dies is replaced and its call made again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from ebm_core.errors import EbmError
from orchestrator.cluster.connection import ClusterError
from workers.calls import Call

K = TypeVar("K")
T = TypeVar("T")

REPLACEMENTS = 3
"""Actors that may die before the evaluation gives up."""

Say = Callable[[str], None]
Take = Callable[[Any, Any], None]
"""Hears (key, what the call returned) as calls end, in any order."""


class Pool:
    """Actors that share a list of calls. A context: they end with it."""

    def __init__(self, make: Callable[[], Any], num_actors: int, say: Say = lambda _: None) -> None:
        """make: starts an actor whose `call` method takes what `run` is given."""
        self._make, self._say, self._deaths, self._closed = make, say, 0, False
        self._idle = [make() for _ in range(num_actors)]
        self._busy: dict[Any, tuple[Any, Any, object]] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors; a `run` in another thread ends with a ClusterError."""
        self._closed = True
        for actor in [*self._idle, *(busy[0] for busy in list(self._busy.values()))]:
            ray.kill(actor)

    def run(self, calls: Mapping[Any, tuple[Any, ...]], take: Take | None = None) -> dict[Any, Any]:
        """{key: what the call returned}, in the order of `calls`; empty where `take` is given and hears it instead.

        An EbmError of an actor is raised as it was there. Raises ClusterError when more actors have died than may be
        replaced.
        """
        waiting, found, mine = list(reversed(calls)), {}, object()
        take = take or found.__setitem__
        while waiting or self._busy:
            while waiting and self._idle:
                actor, key = self._idle.pop(), waiting.pop()
                self._busy[actor.call.remote(*calls[key])] = (actor, key, mine)
            done, _ = ray.wait(list(self._busy), num_returns=1)
            actor, key, whose = self._busy.pop(done[0])
            try:
                answer = ray.get(done[0])
            except RayActorError:
                self._replace_dead()
                if whose is mine:
                    waiting.append(key)
                continue
            except RayTaskError as error:
                self._idle.append(actor)
                if whose is not mine:
                    continue
                if isinstance(error.cause, EbmError):
                    raise error.cause from None
                raise
            self._idle.append(actor)
            if whose is mine:  # else left over by a run that ended with an error
                take(key, answer)
        return {key: found[key] for key in calls} if found else {}

    def _replace_dead(self) -> None:
        if self._closed:
            raise ClusterError("the scoring actors were ended")
        self._deaths += 1
        if self._deaths > REPLACEMENTS:
            raise ClusterError(f"{self._deaths} scoring actors have died; see the logs of this Ray") from None
        self._say("a scoring actor died; its shard is made again")
        self._idle.append(self._make())


@dataclass(frozen=True)
class PoolRunner:
    """The actors of a pool as a `workers.calls.Runner`: each call goes to one of them, behind the arguments `first`."""

    pool: Pool
    first: tuple[Any, ...] = ()
    """What an actor needs beside the call, such as the step of a checkpoint."""

    def run(self, calls: Mapping[K, Call[Any, T]], take: Callable[[K, T], None] | None = None) -> dict[K, T]:
        """As `Pool.run`."""
        return self.pool.run({key: (*self.first, one) for key, one in calls.items()}, take)
