"""A run of the suite from which tests are missing fails, and one shows how far it is, in lines of 80 columns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import FLOOR
from tests.whole_run import bar, floors

ROOT = Path(__file__).parents[1]
PLUGIN = """
from tests.whole_run import Floor, Progress

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Floor("few", 3))
        config.pluginmanager.register(Progress())
"""


def whole_run(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """A run of `tests`, by two processes, that must not have fewer than three."""
    (folder / "conftest.py").write_text(PLUGIN)
    (folder / "test_some.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-n", "2", "-p", "no:cacheprovider", str(folder)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


THREE = "import pytest\n@pytest.mark.parametrize('number', range(3))\ndef test_it(number):\n    "


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("pass", 0, []),
        ("number < 2 or pytest.skip('not here')", 1, ["only 2 tests passed, tests/floor.txt records 3 for few"]),
        ("assert number < 2", 1, ["failed: test_some.py::test_it[2]"]),
    ],
    ids=["as many", "fewer", "one fails"],
)
def test_a_run_fails_below_its_floor_and_counts_up_to_the_last_test(
    tmp_path: Path, body: str, status: int, said: list[str]
):
    done = whole_run(tmp_path, THREE + body)
    assert done.returncode == status, done.stdout + done.stderr
    bars = [line for line in done.stdout.splitlines() if line.startswith("[#")]
    assert [re.findall(r"\d+ %  \d of 3", line) for line in bars] == [
        ["33 %  1 of 3"],
        ["66 %  2 of 3"],
        ["100 %  3 of 3"],
    ]
    assert all(line in done.stdout for line in said)
    assert ("only" in done.stdout) == (said != [] and said[0].startswith("only"))
    assert max(len(line) for line in bars) <= 80


def test_a_bar_fits_into_80_columns():
    assert bar(35, 100, 200.0) == "[#######-------------]  35 %  35 of 100 tests after 3 min 20 s"
    assert len(bar(9_999, 10_000, 59_999.0)) <= 80


def test_the_floor_of_all_tests_is_not_below_that_of_the_quick_ones():
    recorded = floors(FLOOR)
    assert recorded.keys() == {"test", "test-all"}
    assert 2000 < recorded["test"] < recorded["test-all"]
