"""Actors that share a list of calls; one that dies is replaced and its call made again."""

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ebm_core.errors import EbmError
from orchestrator.cluster import ClusterError

REPLACEMENTS = 3
"""Actors that may die before the evaluation gives up."""

Say = Callable[[str], None]


class Pool:
    """Actors that share a list of calls. A context: they end with it."""

    def __init__(self, make: Callable[[], Any], num_actors: int, say: Say = lambda _: None) -> None:
        """make: starts an actor whose `call` method takes what `run` is given."""
        self._make, self._say, self._deaths = make, say, 0
        self._idle = [make() for _ in range(num_actors)]
        self._busy: dict[Any, tuple[Any, Any]] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)

    def run(self, calls: Mapping[Any, tuple[Any, ...]]) -> dict[Any, Any]:
        """{key: what the call returned}, in the order of `calls`. An EbmError of an actor is raised as it was there.

        Raises ClusterError when more actors have died than may be replaced.
        """
        waiting, found = list(reversed(calls)), {}
        while waiting or self._busy:
            while waiting and self._idle:
                actor, key = self._idle.pop(), waiting.pop()
                self._busy[actor.call.remote(*calls[key])] = (actor, key)
            done, _ = ray.wait(list(self._busy), num_returns=1)
            actor, key = self._busy.pop(done[0])
            try:
                found[key] = ray.get(done[0])
                self._idle.append(actor)
            except RayActorError:
                self._deaths += 1
                if self._deaths > REPLACEMENTS:
                    raise ClusterError(f"{self._deaths} scoring actors have died; see the logs of this Ray") from None
                self._say("a scoring actor died; its shard is made again")
                waiting.append(key)
                self._idle.append(self._make())
            except RayTaskError as error:
                self._idle.append(actor)
                if isinstance(error.cause, EbmError):
                    raise error.cause from None
                raise
        return {key: found[key] for key in calls}
