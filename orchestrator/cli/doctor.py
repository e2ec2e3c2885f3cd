"""`ebm doctor`: what of this machine is missing, unsafe or too small, each with its remedy."""

import contextlib
import importlib.metadata
import ipaddress
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

State = Literal["OK", "WARN", "FAIL"]


class Finding(NamedTuple):
    """One line of the report."""

    state: State
    what: str
    remedy: str = ""


def _versions() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("OK" if good else "FAIL", f"python {version}", "" if good else "install Python 3.11 or newer")
    wanted = {"torch": (2, 6), "torchvision": (0, 21), "ray": (2, 60), "pyarrow": (19,), "pydantic": (2, 10)}
    for name, least in wanted.items():
        yield _package(name, least)


def _package(name: str, least: tuple[int, ...]) -> Finding:
    asked = ".".join(map(str, least))
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("FAIL", f"{name} is not installed", f"pip install '{name}>={asked}'")
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[: len(least)] if part.isdigit())
    if numbers < least:
        return Finding("FAIL", f"{name} {found}", f"pip install '{name}>={asked}'")
    if name == "ray" and numbers[:2] != (2, 60):
        return Finding(
            "WARN", f"ray {found}", "tested with 2.60 alone: pip install 'ray[default,train,tune]>=2.60,<2.61'"
        )
    return Finding("OK", f"{name} {found}")


def _torchvision() -> Iterator[Finding]:
    """The wheel on PyPI is a CUDA build, whose operators are missing beside a CPU torch."""
    from ebm_core.data.vision import torchvision
    from ebm_core.errors import first_line

    try:
        torchvision()
    except Exception as why:  # the point of this line: an import of compiled code may fail in any way
        remedy = "install the torchvision that belongs to this torch: https://pytorch.org/get-started"
        yield Finding("FAIL", f"torchvision cannot be imported: {first_line(why)}", remedy)
        return
    yield Finding("OK", "torchvision can be imported")


def _hardware() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("OK", f"{cores} CPU core{'s' if cores != 1 else ''}")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("OK", f"GPU: {names}; use it with cluster.use_gpu=true")
    else:
        yield Finding("OK", "no GPU that PyTorch can use: digits trains in minutes, cifar10 needs a GPU")


def _room() -> Iterator[Finding]:
    shm = Path("/dev/shm")
    if shm.exists():
        free = shutil.disk_usage(shm).free
        enough = free >= 1 << 30
        remedy = "" if enough else "Ray's object store spills to disk: give the container --shm-size=2g or more"
        yield Finding("OK" if enough else "WARN", f"/dev/shm has {_gib(free)} free", remedy)
    temp = tempfile.gettempdir()
    free = shutil.disk_usage(temp).free
    enough = free >= 2 << 30
    remedy = "" if enough else "free some space, or set TMPDIR and RAY_TMPDIR to a larger disk"
    yield Finding("OK" if enough else "WARN", f"{temp} has {_gib(free)} free", remedy)


def _storage(uri: str) -> Iterator[Finding]:
    """A folder is tried by creating a file in it (or in the first parent that exists); a bucket, by listing it."""
    from ebm_core.errors import EbmError, first_line
    from orchestrator.storage.run_store import RunStore

    if "://" in uri:
        try:
            names = RunStore(uri).runs()
        except EbmError as why:
            yield Finding(
                "FAIL", f"storage {uri}: {first_line(why)}", "check the URI, AWS_ENDPOINT_URL and credentials"
            )
            return
        yield Finding("OK", f"storage {uri} answers, {len(names)} runs")
        return
    folder = Path(uri).absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as why:
        remedy = "choose another with storage=FOLDER, or change its owner"
        yield Finding("FAIL", f"storage {folder} is not writable: {why.strerror}", remedy)
        return
    yield Finding("OK", f"storage {folder} is writable, {_gib(shutil.disk_usage(existing).free)} free")


def _ray_token() -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or path.exists()
    if mode.lower() == "disabled":
        yield Finding("WARN", "Ray token authentication is disabled", "unset RAY_AUTH_MODE, or set RAY_AUTH_MODE=token")
    elif has_token:
        if path.exists() and path.stat().st_mode & 0o077:
            yield Finding("WARN", f"others can read Ray's token {path}", f"chmod 600 {path}")
        else:
            yield Finding("OK", "Ray token authentication has a token")
    elif mode.lower() == "token":
        yield Finding("FAIL", f"RAY_AUTH_MODE=token, but there is no token at {path}", "ray get-auth-token --generate")
    else:
        remedy = "before `ray start`: ray get-auth-token --generate, and export RAY_AUTH_MODE=token"
        yield Finding(
            "WARN", "Ray has no authentication token: `ray start` lets anyone who reaches it run code", remedy
        )


def _ray_listeners() -> Iterator[Finding]:
    """Ports of Ray processes on this machine that other machines can reach."""
    exposed = sorted({port for address, port in _listening(_ray_processes()) if not _is_loopback(address)})
    if exposed:
        remedy = "only its token guards them: set RAY_AUTH_MODE=token, and let a firewall close them to other networks"
        shown = ", ".join(map(str, exposed))
        yield Finding("WARN", f"a running Ray listens beyond loopback on {len(exposed)} ports: {shown}", remedy)
    else:
        yield Finding("OK", "no Ray on this machine listens beyond loopback")


def _ray_processes() -> Iterator[psutil.Process]:
    """Processes whose command line belongs to Ray."""
    from orchestrator.cluster.ray_internals import PROCESSES

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
            command = " ".join(process.cmdline())
            if any(word in command for word in PROCESSES):
                yield process


def _listening(processes: Iterable[psutil.Process]) -> Iterator[tuple[str, int]]:
    """(address, port) of each TCP socket on which one of these listens; those of other users cannot be read."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for socket in process.net_connections("tcp"):
                if socket.status == psutil.CONN_LISTEN:
                    yield socket.laddr.ip, socket.laddr.port


def _is_loopback(address: str) -> bool:
    """Whether an address is 127.x.x.x, ::1 or ::ffff:127.x.x.x."""
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if found.version == 6 else None
    return (mapped or found).is_loopback


def _checksums() -> Iterator[Finding]:
    names = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
    wrong = [name for name in names if os.environ.get(name, "when_required") != "when_required"]
    if wrong:
        remedy = "; ".join(f"export {name}=when_required" for name in wrong)
        yield Finding("WARN", f"{' and '.join(wrong)} may break S3 servers other than AWS", f"{remedy}")
    else:
        yield Finding("OK", "S3 checksums are asked for only when required")


def examine(storage: str = "./runs") -> Iterator[Finding]:
    """All findings, as they are made."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        _torchvision,
        _hardware,
        _room,
        lambda: _storage(storage),
        _ray_token,
        _ray_listeners,
        _checksums,
    ]
    for check in checks:
        yield from check()


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
