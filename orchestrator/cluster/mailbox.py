"""The actor between driver and workers: messages one way, the wish to stop the other; who has stored which files."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from ebm_core.errors import first_line
from ebm_core.manifest import FileEntry
from orchestrator.cluster.connection import ClusterError


class Mailbox:
    """What workers tell the driver, and whether the driver wants them to stop. An actor without CPUs."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Any]] = []
        self._stop = False
        self._deposits = Deposits()

    def post(self, kind: str, payload: Any) -> None:
        """Leave a message; kinds are `started`, `row`, `note`, `checkpoint`, `checkpoint_duration`
        and `error`."""
        self._messages.append((kind, payload))

    def drain(self) -> list[tuple[str, Any]]:
        """All messages since the last call, oldest first."""
        messages, self._messages = self._messages, []
        return messages

    def request_stop(self) -> None:
        """Ask the workers to store a checkpoint and leave."""
        self._stop = True

    def stop_requested(self) -> bool:
        """What rank 0 asks between steps."""
        return self._stop

    def deposit(self, attempt: str, rank: int, entries: Sequence[FileEntry]) -> None:
        """A rank has stored these files of a checkpoint."""
        self._deposits.add(attempt, rank, entries)

    def deposits(self, attempt: str) -> Mapping[int, list[FileEntry]]:
        """What the ranks have stored of a checkpoint so far."""
        return self._deposits.of(attempt)


def open_mailbox() -> Any:
    """A Mailbox actor on the driver's node. Raises ClusterError when it cannot live there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
    try:
        ray.get(mailbox.drain.remote())
    except RayActorError as why:
        if "No module named" in str(why):
            raise ClusterError("this Ray's nodes lack confab-ebm: install it on each and restart Ray") from None
        raise ClusterError(f"this Ray cannot run our actors: {first_line(why)}") from None
    return mailbox


GATHER_POLL_S = 0.05


class Deposits:
    """Who has stored which files of an attempt; in the mailbox, since threads must not use the workers' collectives."""

    def __init__(self) -> None:
        self._by_rank: dict[int, list[FileEntry]] = {}
        self._attempt = ""

    def add(self, attempt: str, rank: int, entries: Sequence[FileEntry]) -> None:
        """Rank's files of this attempt are stored. A new attempt replaces the one before it."""
        if attempt != self._attempt:
            self._attempt, self._by_rank = attempt, {}
        self._by_rank[rank] = list(entries)

    def of(self, attempt: str) -> Mapping[int, list[FileEntry]]:
        """Files by rank, as far as they are stored."""
        return dict(self._by_rank) if attempt == self._attempt else {}


def gather(mailbox: Any, attempt: str, size: int) -> list[FileEntry]:
    """Every rank's files of an attempt, once all `size` ranks have stored theirs."""
    while len(found := ray.get(mailbox.deposits.remote(attempt))) < size:
        time.sleep(GATHER_POLL_S)
    return [entry for rank in sorted(found) for entry in found[rank]]
