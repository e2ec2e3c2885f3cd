"""A fuzzer of everything that reads what others may have written: checkpoints, manifests, settings, data files.

    python -m tests.fuzz --seconds 600          guided by coverage (atheris) where that is installed
    python -m tests.fuzz --inputs 500 --seed 1  the same inputs each time, without atheris
    python -m tests.fuzz --replay FILE          one input again

Ends with status 0 when each input was taken or refused by an error of ours, within the bounds of `guard.py`. Otherwise
the last line names the file that has the input.
"""

import argparse
import contextlib
import faulthandler
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def main() -> int:
    """Fuzz in a process of its own, which may die of what it reads; status 1, and the input is kept, if it does."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--inputs", type=int, help="stop after so many; the same ones for the same seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="do without atheris")
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        return inside(asked)
    memory = Path("/dev/shm")  # a store syncs each file, which a disk makes slow
    base = Path(tempfile.mkdtemp(prefix="ebm-fuzz-", dir=memory if memory.is_dir() else None)).resolve()
    command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:], "--inside", str(base)]
    status = subprocess.run(command, check=False).returncode
    if status:
        print(f"found something (status {status}); again with: python -m tests.fuzz --replay {base / 'input'}")
        return 1
    print("nothing found")
    shutil.rmtree(base)
    return 0


def inside(asked: argparse.Namespace) -> int:
    """What the process of its own does."""
    guided = not asked.plain and asked.inputs is None and asked.replay is None
    with instrumented() if guided else contextlib.nullcontext(False) as guided:
        from tests.fuzz.fuzz import Fuzz
        from tests.fuzz.guard import Guard
        from tests.readers import Targets
    guard = Guard(asked.inside)
    fuzz = Fuzz(asked.inside, Targets(guard.root), guard)
    for name in fuzz.names:
        fuzz.read(name, fuzz.seeds[name])  # everything is imported, and accepted, before the bounds are set
    guard.install()
    faulthandler.enable()
    print(f"fuzzing {len(fuzz.names)} readers {'guided by coverage' if guided else 'without guidance'}", flush=True)
    if asked.replay:
        name, _, data = asked.replay.read_bytes().partition(b"\n")
        fuzz.read(name.decode(), data)
    elif guided:
        fuzz.guided(asked.seconds)  # ends the process
    else:
        fuzz.plain(asked.seed, asked.inputs, asked.seconds)
    print("  ".join(f"{name}: {number}" for name, number in sorted(fuzz.count.items())))
    return 0


@contextlib.contextmanager
def instrumented() -> Iterator[bool]:
    """Imports inside count the lines that run, for atheris; enters with False where that is not installed."""
    try:
        import atheris
    except ImportError:
        yield False
        return
    with atheris.instrument_imports(include=["ebm_core", "orchestrator"]):
        yield True


if __name__ == "__main__":
    sys.exit(main())
