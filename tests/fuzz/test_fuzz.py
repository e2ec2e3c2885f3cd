"""A short run of the fuzzer, and that it sees each thing that an input may not do."""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.mutate import MAX_BYTES, mutate

ROOT = Path(__file__).parents[2]


def run(*words: str, seconds: float = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.mark.full
def test_some_hundred_inputs_are_taken_or_refused_within_the_bounds():
    done = run("-m", "tests.fuzz", "--inputs", "360", "--seed", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("nothing found\n")
    counts = [int(word) for word in done.stdout.replace(":", " ").split() if word.isdigit()]
    assert counts[0] == len(counts) - 1, "the first line says how many readers there are"
    assert all(count >= 10 for count in counts[1:])


def test_changes_repeat_with_their_seed_differ_from_it_and_stay_small():
    import random

    data = b'{"a": [1, 2, {"b": null}], "c": "text"}'
    made = [mutate(data, random.Random(seed)) for seed in range(200)]
    assert made == [mutate(data, random.Random(seed)) for seed in range(200)]
    assert len(set(made)) > 100
    assert data not in made[:3]
    assert max(map(len, made)) <= MAX_BYTES


HARNESS = """
import sys
from pathlib import Path
from tests.fuzz.guard import Guard
from tests.fuzz import test_fuzz

base = Path(sys.argv[1])
guard = Guard(base, memory_bytes=1 << 28, seconds=3.0)
guard.install()
with guard.watch("target", b"the input"):
    getattr(test_fuzz, sys.argv[2])(base)
print("unseen")
"""


def harmless(base: Path) -> None:
    (base / "root" / "file").write_text("x")
    (base / "root" / "file").rename(base / "root" / "other")


def writes_outside(base: Path) -> None:
    (base.parent / "outside").write_text("x")


def climbs_out(base: Path) -> None:
    (base / "root" / ".." / "made").mkdir()


def moves_out(base: Path) -> None:
    (base / "root" / "file").write_text("x")
    (base / "root" / "file").rename(base.parent / "outside")


def deletes_outside(base: Path) -> None:
    (base.parent / "precious").unlink(missing_ok=True)


def connects(base: Path) -> None:
    import socket

    socket.socket().connect_ex(("127.0.0.1", 9))


def starts_a_program(base: Path) -> None:
    subprocess.run(["true"], check=False)


def unpickles(base: Path) -> None:
    pickle.loads(pickle.dumps(Path))


def fills_memory(base: Path) -> None:
    bytearray(1 << 30)


def hangs(base: Path) -> None:
    time.sleep(60)


def raises(base: Path) -> None:
    raise KeyError("not an error of ours")


@pytest.mark.parametrize(
    "deed",
    [
        writes_outside,
        climbs_out,
        moves_out,
        deletes_outside,
        connects,
        starts_a_program,
        unpickles,
        fills_memory,
        hangs,
        raises,
    ],
    ids=lambda deed: deed.__name__,
)
def test_what_an_input_may_not_do_is_seen_and_the_input_is_kept(deed: Callable[[Path], None], tmp_path: Path):
    (tmp_path / "precious").write_text("x")
    done = run("-c", HARNESS, str(tmp_path / "base"), deed.__name__, seconds=60)
    assert done.returncode != 0
    assert "unseen" not in done.stdout
    assert (tmp_path / "base" / "input").read_bytes() == b"target\nthe input"


def test_what_a_reader_may_do_is_no_offence(tmp_path: Path):
    done = run("-c", HARNESS, str(tmp_path / "base"), "harmless", seconds=60)
    assert (done.returncode, done.stdout) == (0, "unseen\n"), done.stderr
