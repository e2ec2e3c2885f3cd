"""What an input may not do, watched from inside the process that reads it.

Memory is bounded by the kernel (RLIMIT_AS above what the process has at the start), time by a watchdog that ends the
process even when native code hangs, and Python's audit events tell of files changed outside the root, of processes
started, of connections made and of names looked up by a pickle.
"""

import faulthandler
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = {
    "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),), "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),), "os.truncate": ((0, None),), "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),), "os.utime": ((0, 3),),
}  # fmt: skip
"""Events that change the file system: where among their arguments a path is, and the directory that it starts from."""
FORBIDDEN = (
    "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "code.__new__", "marshal.loads",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(AssertionError):
    """An input made the reader do what no input may."""


class Guard:
    """The bounds of one process; `install` them once everything is imported, then read each input inside `watch`."""

    def __init__(self, base: Path, memory_bytes: int = 1 << 30, seconds: float = 10.0) -> None:
        """`base` holds `root`, where readers may write, and `input`, the input being read: `NAME\\n` and its bytes."""
        self.root, self.kept = base / "root", base / "input"
        self._base, self._memory, self._seconds = base, memory_bytes, seconds
        self._watching = False
        self._seen: list[str] = []
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)

    def install(self) -> None:
        """Set the limits of this process for good."""
        tempfile.tempdir = str(self.root / "tmp")
        sys.dont_write_bytecode = True
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + self._memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._hear)

    @contextmanager
    def watch(self, name: str, data: bytes) -> Iterator[None]:
        """Keep the input, start the watchdog; raises Forbidden for what was done."""
        self.kept.write_bytes(name.encode() + b"\n" + data)
        faulthandler.dump_traceback_later(self._seconds, exit=True)
        self._seen.clear()
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            faulthandler.cancel_dump_traceback_later()
        strange = sorted({path.name for path in self._base.iterdir()} - {"root", "input", "corpus"})
        if self._seen or strange:  # native code raises no events: look at what lies beside the root as well
            raise Forbidden(f"{name}: {self._seen[:3] or strange}")

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                self._require_inside(event, path)
        elif event in CHANGES:
            for path, start in CHANGES[event]:
                self._require_inside(event, arguments[path], -1 if start is None else arguments[start])
        elif event in FORBIDDEN and not (event in ("code.__new__", "marshal.loads") and _importing()):
            self._seen.append(f"{event} {arguments!r:.200}")

    def _require_inside(self, event: str, path: Any, start: int = -1) -> None:
        if isinstance(path, int) or path == os.devnull:
            return
        folder = os.getcwd() if start < 0 else os.readlink(f"/proc/self/fd/{start}")
        real = os.path.realpath(os.path.join(folder, os.fsdecode(path)))
        if real != str(self.root) and not real.startswith(f"{self.root}{os.sep}"):
            self._seen.append(f"{event} {real:.200}")


def _importing() -> bool:
    """Is a module being imported? Then code is read from compiled files."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
