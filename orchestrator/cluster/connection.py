"""Starting or finding a Ray, quietly."""

import contextlib
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from ebm_core.errors import EbmError, first_line
from orchestrator.cluster import ray_internals
from orchestrator.cluster.signals import ask_once

QUIET_ENV = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a lost worker, and the end, are noticed at the controller's next poll
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # of a worker that hangs; Ray waits 600 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # S3 servers other than AWS refuse the newer default
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
"""Set for the driver unless the environment has them; Ray hands its own on to the workers."""


class ClusterError(EbmError):
    """No Ray answers, or the one that does cannot hold the job."""


def start_ray(address: str | None = None, say: Callable[[str], None] = lambda _: None) -> None:
    """Connect to `address`, else to RAY_ADDRESS, else to the cluster that `ray start` left here, else start one.

    A Ray started here listens on loopback alone, asks for a token (unless RAY_AUTH_MODE says otherwise) and ends with
    this process; one that this process already holds is used as it is. `say` hears what is done. Raises ClusterError
    when a named address does not answer.
    """
    for name, value in QUIET_ENV.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    ray_internals.show_token()
    named = address or os.environ.get("RAY_ADDRESS") or None
    found, alone = _find(named)
    with ray_internals.loopback() if alone else contextlib.nullcontext():
        if found is None:
            say("starting a Ray on this machine")
            _make_token()
            _init(address="local", include_dashboard=False, **ray_internals.LOOPBACK_ADDRESS)
        else:
            say(f"joining the Ray at {found}")
            _init(address=found)


def _find(named: str | None) -> tuple[str | None, bool]:
    """(host:port of the Ray to join, or None; whether it is on loopback alone, as one to start would be)."""
    try:
        if found := _find_address(named):
            return found, False
    except ClusterError:
        pass  # one that listens on loopback alone does not answer at this machine's other address
    with ray_internals.loopback():
        return _find_address(named), True


def _make_token() -> None:
    """A token for this user's Ray, in Ray's own place. Ray makes one too, which everybody on the machine can read."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):  # there is one, or Ray will say what is wrong with this place
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))


def _find_address(named: str | None) -> str | None:
    """host:port of the Ray to join; None when none was named and none runs here."""
    try:
        found = ray_internals.bootstrap_address(named)
    except (ConnectionError, ValueError) as why:
        raise ClusterError(f"`address` {named}: {first_line(why)}") from None
    if found is None or "://" in found or _answers(found):
        return found
    if named is None:
        return None  # the file that `ray start` wrote outlived its cluster
    raise ClusterError(
        f"no Ray answers at {named}; start one with `RAY_AUTH_MODE=token ray start --head`, or leave out `address`"
    )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def _init(**kwargs: Any) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray_internals.no_cluster_messages()
    try:
        with _interrupts_wait():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **kwargs)
    except Exception as why:  # a machine too busy to start it in time gets Ray's bare Exception
        raise ClusterError(f"Ray could not be reached or started: {first_line(why)}") from None
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold a Ctrl-C back until Ray has started, for it crashes when interrupted; a second one ends the process."""
    came: list[int] = []
    try:
        with ask_once(came.append, again=lambda number: os._exit(128 + number), numbers=(signal.SIGINT,)):
            yield
    finally:
        if came:
            ray.shutdown()
            raise KeyboardInterrupt


def is_shared() -> bool:
    """Whether this Ray was there before this process, and stays: one that ends with us nobody watches from outside."""
    return ray_internals.is_head() is False


@contextlib.contextmanager
def ray_session(address: str | None = None, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """A Ray for the length of a block; one that this process found running stays."""
    held = ray.is_initialized()
    start_ray(address, say)
    try:
        yield
    finally:
        if not held:
            ray.shutdown()
