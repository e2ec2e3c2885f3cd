"""What all tests share: the floor below which the suite must not shrink."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FLOOR = Path(__file__).with_name("floor.txt")
# Else the other half of the suite starves what a Ray of this one runs.
os.environ.setdefault("RAY_worker_niceness", "0")
# Judges that one test trains, the next may use, in other processes too; never those of this machine's user.
if "EBM_TEST_CACHE" not in os.environ:
    os.environ["EBM_TEST_CACHE"] = tempfile.mkdtemp(prefix="ebm-cache-")
    atexit.register(shutil.rmtree, os.environ["EBM_TEST_CACHE"], ignore_errors=True)
os.environ["EBM_CACHE"] = os.environ["EBM_TEST_CACHE"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--floor", action="store_true", help="fail if fewer tests ran than tests/floor.txt records")


class Floor:
    """Counts the outcomes of a whole run, also when workers of pytest-xdist execute it."""

    def __init__(self) -> None:
        self.num_passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.num_passed += report.when == "call" and report.passed

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        floor = int(FLOOR.read_text())
        if exitstatus == 0 and self.num_passed < floor:
            print(f"\nonly {self.num_passed} tests passed, tests/floor.txt records {floor}: was a test lost?")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--floor") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Floor())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A group that pytest-xdist would scatter over its workers is an error: its tests share a Ray or a folder."""
    if getattr(config.option, "loadgroup", False):
        scattered = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if scattered:
            raise pytest.UsageError(
                f"pytest {pytest.__version__} and pytest-xdist do not keep {scattered[0]} in its group"
            )


@contextmanager
def local_ray(**resources: int) -> Iterator[None]:
    """A Ray of these resources in this process, with a folder of its own, ended and removed with the context."""
    import ray

    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: a socket's path has at most 107 characters
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=folder,
            **resources,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two CPUs in this process."""
    with local_ray(num_cpus=2):
        yield
