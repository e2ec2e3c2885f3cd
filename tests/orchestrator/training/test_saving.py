"""A job killed while it saves shows exactly the old or the new checkpoint: at every named point, and at random."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import moto_bucket
from tests.orchestrator.training.saving_children import CRASH_POINTS, FOLDER_MOMENTS, S3_MOMENTS

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("CONFAB_KILLS", "6"))
"""`make kills` asks for 200."""


def saver(task: str, where: str, scratch: Path, *numbers: int) -> Any:
    """What saving_children.py prints; its own judgement of each state is in its exit status."""
    scratch.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    script = Path(__file__).with_name("saving_children.py")
    command = [sys.executable, script, task, where, *map(str, numbers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check_points(where: str, scratch: Path, kind: str) -> None:
    """The list of names is what an undisturbed save passes: none is missing from it and none is invented."""
    passed = saver("points", where, scratch)
    assert list(dict.fromkeys(passed)) == list(CRASH_POINTS[kind])


def check_crashes(where: str, scratch: Path, kind: str) -> None:
    """Every point was hit; before COMMITTED has its name the old checkpoint is seen, from then on the new one."""
    seen = saver("crash", where, scratch)
    points = CRASH_POINTS[kind]
    assert list(seen) == list(points), f"never hit: {set(points) - set(seen)}"
    decisive = points.index("create COMMITTED: " + ("named" if kind == "folder" else "answered"))
    assert list(seen.values()) == [int(number >= decisive) for number in range(len(points))]


def check_random_kills(where: str, scratch: Path, count: int) -> dict[str, int]:
    """Whenever the kill comes: at most the save under way is lost, and what is seen is exact."""
    seen = saver("random", where, scratch, count, 7)
    print(f"\n{where}: {seen}")
    assert seen["kills"] == count
    assert seen["saves"] >= count // 4, "savers were killed before they had saved anything: the test shows nothing"
    return seen


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """(kind, URI) of an empty store: a folder, and moto's S3 server."""
    if request.param == "folder":
        yield "folder", str(tmp_path / "runs")
        return
    bucket = f"saving-{os.urandom(6).hex()}"  # moto's buckets outlive its server within a process
    with moto_bucket(bucket) as endpoint:
        yield "s3", f"s3://{bucket}/runs?endpoint_url={endpoint}"


@pytest.mark.full
def test_the_named_crash_points_are_those_that_a_save_passes(place: tuple[str, str], tmp_path: Path):
    kind, where = place
    check_points(where, tmp_path / "scratch", kind)
    # Nine objects are written and seven kinds of them deleted; in a folder, a step's directory is made besides.
    expected = 9 * len(FOLDER_MOMENTS) + 7 * 3 + 1 if kind == "folder" else 9 * len(S3_MOMENTS) + 7 * 2
    assert len(CRASH_POINTS[kind]) == expected


@pytest.mark.full
def test_a_save_killed_at_any_named_point_shows_the_old_checkpoint_or_the_new(place: tuple[str, str], tmp_path: Path):
    kind, where = place
    check_crashes(where, tmp_path / "scratch", kind)


@pytest.mark.full
def test_random_kills_lose_nothing_that_a_save_had_returned(place: tuple[str, str], tmp_path: Path):
    check_random_kills(place[1], tmp_path / "scratch", KILLS)
