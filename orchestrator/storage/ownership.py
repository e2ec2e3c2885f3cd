"""Who may write a folder of a store: one command at a time, whoever was killed while it held the folder.

    <folder>/000001.json        Owner: created once, which has exactly one winner (folder.py); never changed or deleted
    <folder>/000001.beat.json   {"count", "released"}: written anew every BEAT_S while the owner lives, and at its end

The highest number owns. Numbers only grow, so an owner that was given up for dead and comes back sees a higher one and
knows that it has lost. Whether an owner lives is asked of the machine where that is ours, and else judged by its beat
and our own clock: two machines' clocks are never compared.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from ebm_core.errors import EbmError
from orchestrator.storage.interface import ObjectMissing, ObjectStore, StorageError

BEAT_S = 3.0
"""Seconds between an owner's signs of life."""
LEASE_S = 30.0
"""An owner on another machine that gives no sign for so long is taken for dead."""
LOOK_S = 0.5
_CLAIM = re.compile(r"(\d{6})\.json")


class OwnedError(EbmError):
    """Another command owns the folder, or has taken it over."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that owns a folder."""

    host: str
    """Its machine's name, for people."""
    pid: int
    place: str
    """Machine since its start and namespace of processes: where the pid means something; empty: not known."""
    born: str
    """When the kernel started the process, in its clock ticks: pids are used again."""
    since: str
    """UTC, ISO 8601."""

    def told(self) -> str:
        """For a message."""
        return f"process {self.pid} on {self.host} since {self.since}"


def this_process() -> Owner:
    """The owner that this process would be."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Owner(host=socket.gethostname(), pid=os.getpid(), place=_place(), born=_born(os.getpid()) or "", since=now)


def is_alive(owner: Owner) -> bool | None:
    """Does that process run? None: it is not on this machine, or the machine cannot tell."""
    if not owner.place or owner.place != _place():
        return None
    return _born(owner.pid) == owner.born


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """Start of a running process in clock ticks since the machine's; None: none runs, or only its exit status is left.

    Whoever sets the machine's clock moves psutil's times of a start and of the boot alike, and not what lies between.
    """
    boot = psutil.boot_time()
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        after_boot = process.create_time() - boot
    except psutil.Error:
        return None
    if psutil.boot_time() != boot:  # set just now
        return _born(pid)
    return str(round(after_boot * os.sysconf("SC_CLK_TCK")))


class Ownership:
    """The right to write a folder, from `take` until `release` or until another command has taken it over."""

    def __init__(
        self, objects: ObjectStore, folder: str, what: str, *, beat_s: float = BEAT_S, lease_s: float = LEASE_S
    ) -> None:
        """`what` names the folder's content in messages."""
        self._objects, self._folder, self._what = objects, folder, what
        self._beat_s, self._lease_s = beat_s, lease_s
        self._number, self._count = 0, 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def wait_until_free(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Return when nobody owns the folder. Raises OwnedError at the first sign of life of who does.

        Only a dead owner on another machine costs time: LEASE_S without a sign. Writes nothing.
        """
        self._number = self._newest()
        if self._number == 0:
            return
        beat, owner = self._beat(self._number), self._owner(self._number)
        if beat.get("released"):
            return
        alive = is_alive(owner) if owner else None
        if alive is None:
            told = owner.told() if owner else "an unknown process"
            say(f"{self._what} was not left in order by {told}; watching it for {self._lease_s:g} s")
            alive = self._shows_life(beat)
        if alive:
            raise OwnedError(self._refusal(owner))

    def take(self, lost: Callable[[str], None]) -> None:
        """Own the folder; call it after `wait_until_free`. Raises OwnedError if another command was quicker.

        `lost` is called once, in a thread, with a line for a person if another command takes the folder over: from
        then on this one must write nothing.
        """
        mine = this_process()
        if not self._objects.create(self._key(self._number + 1), (json.dumps(asdict(mine)) + "\n").encode()):
            raise OwnedError(self._refusal(self._owner(self._number + 1)))
        self._number += 1
        self._over.clear()
        self._thread = threading.Thread(target=self._live, args=(lost,), name="ebm-owner", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let the next command have the folder at once. A store that fails here costs it LEASE_S, nothing else."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        with contextlib.suppress(StorageError):
            self._write_beat(released=True)

    def _live(self, lost: Callable[[str], None]) -> None:
        while True:
            with contextlib.suppress(StorageError):  # a store that does not answer: the next beat may come through
                newest = self._newest()
                if newest > self._number:
                    winner = self._owner(newest)
                    lost(f"{self._what} was taken over by {winner.told() if winner else 'another command'}")
                    return
                self._write_beat()
            if self._over.wait(self._beat_s):
                return

    def _shows_life(self, before: dict[str, Any]) -> bool:
        """Does the owner give a sign within LEASE_S? One that releases meanwhile is gone."""
        deadline = time.monotonic() + self._lease_s
        while time.monotonic() < deadline:
            time.sleep(min(LOOK_S, self._beat_s))
            if self._newest() > self._number:
                return True
            now = self._beat(self._number)
            if now != before:
                return not now.get("released")
        return False

    def _refusal(self, owner: Owner | None) -> str:
        told = owner.told() if owner else "another command"
        return f"{self._what} is being run by {told}; wait for it or stop it"

    def _newest(self) -> int:
        start = len(self._folder) + 1
        keys = (info.key[start:] for info in self._objects.list(f"{self._folder}/"))
        return max((int(match[1]) for match in map(_CLAIM.fullmatch, keys) if match), default=0)

    def _owner(self, number: int) -> Owner | None:
        """None: what is stored is no owner that this version knows."""
        try:
            return Owner(**json.loads(self._objects.get(self._key(number))))
        except (ValueError, TypeError, ObjectMissing):
            return None

    def _beat(self, number: int) -> dict[str, Any]:
        try:
            tree = json.loads(self._objects.get(self._beat_key(number)))
            return tree if isinstance(tree, dict) else {}
        except (ValueError, ObjectMissing):
            return {}

    def _write_beat(self, released: bool = False) -> None:
        self._count += 1
        tree = {"count": self._count, "released": released}
        self._objects.put(self._beat_key(self._number), (json.dumps(tree) + "\n").encode())

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number:06d}.json"

    def _beat_key(self, number: int) -> str:
        return f"{self._folder}/{number:06d}.beat.json"
