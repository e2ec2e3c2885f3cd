"""Storing a checkpoint while training goes on: the state is copied to local files first, a thread does the rest."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from ebm_core.manifest import FileEntry

GATHER_POLL_S = 0.05


class BackgroundSaver:
    """Stores one checkpoint at a time. What goes wrong in the thread is raised by the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, store: Callable[[], None]) -> None:
        """Run `store` beside training, after what is still being stored is done."""
        self.wait()

        def work() -> None:
            try:
                store()
            except BaseException as error:  # raised where the training loop can hear it
                self._error = error

        # A daemon: a worker that ends with an error of training does not first finish an upload.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong; costs nothing."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until everything is stored."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()


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
