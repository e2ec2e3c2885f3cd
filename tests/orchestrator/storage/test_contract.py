"""Every store keeps the same promises: a folder, and moto's S3 server. (tests/s3 asks a real server the same.)"""

from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from ebm_core.errors import EbmError
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.interface import ObjectStore, StorageError
from orchestrator.storage.run_store import RunStore
from orchestrator.storage.s3 import S3Store
from tests.faults import moto_bucket
from tests.store_contract import BAD_KEYS, RUN_CHECKS, STORE_CHECKS, Check, write_checkpoint

Open = Callable[[str], ObjectStore]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_bucket("contract") as endpoint:
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


@pytest.mark.full
@pytest.mark.parametrize("check", RUN_CHECKS, ids=name_of)
def test_a_run_store_keeps_its_promise(check: Check, open_store: Open):
    check(lambda name: RunStore(open_store(name)))


def test_keys_that_somebody_else_put_into_a_bucket_are_not_ours(moto: str, tmp_path: Path):
    # A bucket takes any text as a key, so what a folder cannot hold can lie there. (moto itself takes no line break.)
    client = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    store = RunStore(S3Store("contract", "hostile", moto))
    run = store.run("r")
    run.write_config({"name": "r"})
    attempt, _ = write_checkpoint(run, 1)
    sound = {info.key for info in store.objects.list()}
    below = ("", "r/", "r/checkpoints/", f"r/checkpoints/step-000000001/{attempt}/")
    for key in {f"hostile/{prefix}{bad}" for prefix in below for bad in BAD_KEYS if bad and not {*bad} & {*"\0\n"}}:
        client.put_object(Bucket="contract", Key=key, Body=b"evil")
        client.put_object(Bucket="contract", Key=f"{key}/config.json", Body=b"{}")
    assert {info.key for info in store.objects.list()} == sound
    assert store.runs() == ["r"]
    assert run.checkpoints() == [1]
    fetched = run.fetch_checkpoint(1, tmp_path / "into")
    assert sorted(path.name for path in fetched.iterdir()) == ["MANIFEST.json", "model.safetensors", "state.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["into"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A run with a checkpoint in a store beside the one that is tried."""
    store = RunStore(str(tmp_path / "outside"))
    store.run("r").write_config({"name": "r"})
    write_checkpoint(store.run("r"), 1)
    return tmp_path / "outside"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_is_a_link_out_of_the_folder_is_no_run(outside: Path, tmp_path: Path):
    before = contents(outside)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "r").symlink_to(outside / "r")
    store = RunStore(str(tmp_path / "runs"))
    run = store.run("r")
    assert store.runs() == []
    calls = [
        run.exists,
        run.read_config,
        run.checkpoints,
        lambda: run.write_config({}),
        lambda: run.newest_sound(tmp_path / "into"),
        lambda: run.fetch_checkpoint(1, tmp_path / "into"),
        lambda: write_checkpoint(run, 2),
        lambda: run.retain(2),
        lambda: run.delete("config.json"),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="passes through a symbolic link"):
            call()
    assert contents(outside) == before


@pytest.mark.parametrize("place", ["file", "attempt", "step", "COMMITTED"])
def test_a_part_of_a_checkpoint_that_is_a_link_is_not_read(place: str, outside: Path, tmp_path: Path):
    run = RunStore(str(tmp_path / "runs")).run("r")
    run.write_config({"name": "r"})
    attempt, _ = write_checkpoint(run, 1)
    step = Path("r/checkpoints/step-000000001")
    path = {"step": step, "attempt": step / attempt, "file": step / attempt / "state.json"}.get(place, step / place)
    target = outside / path.name
    (tmp_path / "runs" / path).rename(target)  # the very content, so that only the link can be what is refused
    (tmp_path / "runs" / path).symlink_to(target)
    before = contents(outside)
    with pytest.raises(EbmError) as caught:
        run.fetch_checkpoint(1, tmp_path / "into")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "into").glob("*/*"))
    assert contents(outside) == before
