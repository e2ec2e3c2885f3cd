"""A local file is written whole or not at all, whatever ends the writer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebm_core.files import whole_file

KILLED = """
import os, signal, sys
from pathlib import Path
from ebm_core import files

path, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "renaming":
    files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with files.whole_file(path) as fresh:
    with fresh.open("w") as file:
        file.write("half ")
        file.flush()
        if moment == "writing":
            os.kill(os.getpid(), signal.SIGKILL)
        file.write("of it")
"""


@pytest.mark.full
@pytest.mark.parametrize("moment", ["writing", "renaming"])
@pytest.mark.parametrize("before", ["the old file", None])
def test_a_kill_leaves_what_was_there(moment: str, before: str | None, tmp_path: Path):
    path = tmp_path / "file.txt"
    if before is not None:
        path.write_text(before)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], cwd=root, check=False, timeout=120)
    assert done.returncode == -9
    assert (path.read_text() if path.exists() else None) == before
    with whole_file(path) as fresh:  # and the next writer is not in its way
        fresh.write_text("new")
    assert path.read_text() == "new"


def test_the_name_appears_with_all_of_the_content(tmp_path: Path):
    path = tmp_path / "file.txt"
    with whole_file(path) as fresh:
        fresh.write_text("new")
        assert not path.exists()
        assert fresh.parent == path.parent  # a rename across file systems would be a copy
        assert fresh.name.startswith(".")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as fresh:
            fresh.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "none" / "file.txt") as fresh:
        fresh.write_text("new")
