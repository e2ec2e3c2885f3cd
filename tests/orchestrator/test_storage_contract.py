"""Every store keeps the same promises: a folder, and moto's S3 server. (tests/s3 asks a real server the same.)"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.objects import FolderStore, ObjectStore
from orchestrator.s3 import S3Store
from orchestrator.storage import RunStore
from tests.faults import make_bucket, moto_server
from workers.testing import RUN_CHECKS, STORE_CHECKS, Check

Open = Callable[[str], ObjectStore]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, moto_server() as endpoint:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        make_bucket(endpoint, "contract")
        yield endpoint


@pytest.fixture(params=["folder", "moto"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """A store by name, separate for each test."""
    if request.param == "folder":
        return lambda name: FolderStore(tmp_path / name)
    endpoint, prefix = request.getfixturevalue("moto"), request.node.name.split("[")[1].rstrip("]")
    prefix = prefix.replace("-", "_") + "/" + tmp_path.name
    return lambda name: S3Store("contract", f"{prefix}/{name}", endpoint, page_keys=50)


def name_of(check: Check) -> str:
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", STORE_CHECKS, ids=name_of)
def test_an_object_store_keeps_its_promise(check: Check, open_store: Open):
    check(open_store)


@pytest.mark.parametrize("check", RUN_CHECKS, ids=name_of)
def test_a_run_store_keeps_its_promise(check: Check, open_store: Open):
    check(lambda name: RunStore(open_store(name)))
