"""What all tests share: the floor below which the suite must not shrink, and one Ray."""

import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.whole_run import Floor, Progress, floors

ROOT = Path(__file__).parents[1]
FLOOR = ROOT / "tests" / "floor.txt"
# Else the other half of the suite starves what a Ray of this one runs.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--floor", metavar="TARGET", help="fail if fewer tests pass than tests/floor.txt records for it")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Groups())
    if (target := config.getoption("--floor")) and not hasattr(config, "workerinput"):
        recorded = floors(FLOOR)
        if target not in recorded:
            raise pytest.UsageError(f"--floor {target}: tests/floor.txt has {', '.join(recorded)}")
        config.pluginmanager.register(Floor(target, recorded[target]))
        config.pluginmanager.register(Progress())


class Groups:
    """Tests that share a Ray run one after another in one process, pytest-xdist's group `ray`, and last."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if shares_ray(item):
                item.add_marker(pytest.mark.xdist_group("ray"))
        items.sort(key=shares_ray)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A group that pytest-xdist would scatter over its workers is an error: its tests share a Ray or a folder."""
    if getattr(config.option, "loadgroup", False):
        scattered = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if scattered:
            raise pytest.UsageError(
                f"pytest {pytest.__version__} and pytest-xdist do not keep {scattered[0]} in its group"
            )


def _start(folder: str, resources: dict[str, int]) -> None:
    """Ray's own start gives up after 30 s, which a busy machine exceeds: three attempts."""
    import ray

    def attempt() -> str:
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=100 * 2**20,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
                **resources,
            )
        except Exception as error:  # Ray raises this very class
            return str(error)
        return ""

    for _ in range(3):
        if not (refusal := attempt()):
            return
        ray.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # the processes of an attempt that failed, which end with this one, are nobody's now
        if "timed out" not in refusal:
            break
    raise RuntimeError(refusal)


@contextmanager
def local_ray(**resources: int) -> Iterator[None]:
    """A Ray of these resources in this process, with a folder of its own, ended and removed with the context.

    Its workers import the tests as this process does.
    """
    import ray

    from orchestrator.cluster.connection import QUIET_ENV

    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: a socket's path has at most 107 characters
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUIET_ENV | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}).items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        try:
            _start(folder, resources)
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


shared_ray = ExitStack()
"""The Ray of `cluster`, while it runs."""


def shares_ray(item: pytest.Item) -> bool:
    return "cluster" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="module")
def cluster() -> None:
    """A Ray of two CPUs in this process, which all tests that ask for it share: starting one takes seconds."""
    import ray

    if not ray.is_initialized():
        shared_ray.enter_context(local_ray(num_cpus=2))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """The shared Ray ends before a test that does not share it."""
    if nextitem is None or not shares_ray(nextitem):
        shared_ray.close()
