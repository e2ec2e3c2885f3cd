"""The storage contract and its failures on a real S3 server: run by tests/s3/run.sh, which starts one."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from boto3.session import Session

from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import RunStore, open_store
from orchestrator.storage.s3 import S3Store
from tests.faults import FaultProxy, fault_proxy, make_bucket
from tests.orchestrator.training.test_saving import KILLS, check_crashes, check_points, check_random_kills
from tests.store_contract import RUN_CHECKS, STORE_CHECKS, Check, write_checkpoint

pytestmark = pytest.mark.s3
BUCKET = "confab-tests"


@pytest.fixture(scope="module")
def endpoint() -> str:
    """The server's URL, with an empty bucket; credentials are in the environment."""
    url = os.environ["CONFAB_S3_ENDPOINT"]
    make_bucket(url, BUCKET)
    return url


@pytest.fixture
def proxy(endpoint: str) -> Iterator[FaultProxy]:
    with fault_proxy(endpoint) as proxy:
        yield proxy


def name_of(check: Check) -> str:
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", STORE_CHECKS, ids=name_of)
def test_an_object_store_keeps_its_promise(check: Check, endpoint: str):
    check(lambda name: S3Store(BUCKET, f"objects/{check.__name__}/{name}", endpoint, page_keys=50))


@pytest.mark.parametrize("check", RUN_CHECKS, ids=name_of)
def test_a_run_store_keeps_its_promise(check: Check, endpoint: str):
    check(lambda name: open_store(f"s3://{BUCKET}/runs/{check.__name__}/{name}?endpoint_url={endpoint}"))


def test_large_files_travel_in_parts(endpoint: str, tmp_path: Path):
    store = S3Store(BUCKET, "parts", endpoint, multipart_bytes=5 * 2**20)
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(2**20) * 13)
    store.put("large", source)
    store.get_file("large", copy)
    assert copy.read_bytes() == source.read_bytes()
    head = store._client.head_object(Bucket=BUCKET, Key="parts/large")
    assert head["ETag"].strip('"').endswith("-3")  # three parts, says the server


def test_a_wrong_secret_is_access_denied_and_not_shown(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    store = RunStore(S3Store(BUCKET, "denied", endpoint))
    for call in (store.runs, store.check_writable, store.run("r").checkpoints):
        with pytest.raises(StorageError, match=r"access denied \(\w+\); check the credentials") as caught:
            call()
        assert "wrong-secret" not in str(caught.value)


def test_an_unknown_key_is_access_denied(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StorageError, match="access denied"):
        S3Store(BUCKET, "denied", endpoint).put("key", b"x")


def test_a_missing_bucket_is_named(endpoint: str):
    store = RunStore(S3Store("no-such-bucket", "", endpoint))
    for call in (store.runs, store.check_writable):
        with pytest.raises(StorageError, match="there is no such bucket; create it"):
            call()


def test_a_full_quota_is_an_error_and_no_checkpoint(endpoint: str):
    config = ["-c", f"{os.environ['CONFAB_S3_SERVER']}/ceph.conf", "-n", "client.admin"]
    admin = ["radosgw-admin", *config, "quota"]
    make_bucket(endpoint, "small")
    limit = ["set", "--quota-scope=bucket", "--uid=tests", "--bucket=small", "--max-objects=3"]
    for words in (limit, ["enable", "--quota-scope=bucket", "--uid=tests", "--bucket=small"]):
        assert os.spawnvp(os.P_WAIT, admin[0], [*admin, *words]) == 0
    run = RunStore(S3Store("small", "", endpoint)).run("r")
    with pytest.raises(StorageError, match="QuotaExceeded"):
        write_checkpoint(run, 1)
    assert len(list(run.list())) == 3
    assert run.checkpoints() == []


def test_a_body_that_is_damaged_on_the_way_is_refused_by_the_server(endpoint: str):
    # The request is signed with the SHA-256 of its body; the server must compare.
    store = S3Store(BUCKET, "damaged", endpoint, max_attempts=1)

    def damage(request, **_: object) -> None:
        request.body = b"y"

    store._client.meta.events.register("before-send.s3.PutObject", damage)
    with pytest.raises(StorageError, match="cannot write"):
        store.put("key", b"x")
    assert not S3Store(BUCKET, "damaged", endpoint).exists("key")


@pytest.mark.parametrize("kind", [403, 411, 503, "drop"])
def test_a_lasting_fault_leaves_no_checkpoint(proxy: FaultProxy, kind: int | str):
    run = RunStore(S3Store(BUCKET, f"fault-{kind}", proxy.url, max_attempts=3)).run("r")
    write_checkpoint(run, 1)
    for key in ("model.safetensors", "MANIFEST.json", "COMMITTED"):
        proxy.inject(kind, "PUT", key)
        with pytest.raises(StorageError, match=key):
            write_checkpoint(run, 2)
        proxy.faults.clear()
        assert run.checkpoints() == [1]


def test_a_lost_answer_to_the_commit_is_still_a_victory(proxy: FaultProxy):
    run = RunStore(S3Store(BUCKET, "lost", proxy.url)).run("r")
    proxy.inject("lose", "PUT", "COMMITTED", times=1)
    attempt, _ = write_checkpoint(run, 1)
    assert run.read_json("checkpoints/step-000000001/COMMITTED")["attempt"] == attempt


def test_an_outage_is_reported_soon_and_leaves_what_was_committed(endpoint: str, tmp_path: Path):
    # Stopping the server's process is an outage in which connections are accepted and nothing is answered.
    run = RunStore(S3Store(BUCKET, "outage", endpoint, read_timeout_s=1, max_attempts=2)).run("r")
    write_checkpoint(run, 1)
    server = int(Path(os.environ["CONFAB_S3_SERVER"], "run", "radosgw.pid").read_text())
    os.kill(server, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(StorageError, match="did not answer in time"):
            write_checkpoint(run, 2)
        assert time.monotonic() - started < 15
    finally:
        os.kill(server, signal.SIGCONT)
    assert run.checkpoints() == [1]
    write_checkpoint(run, 2)
    assert run.newest_sound(tmp_path, pytest.fail) == (2, tmp_path / "step-000000002")


def test_the_server_lists_no_upload_that_was_given_up(endpoint: str):
    # What interrupted uploads in parts leave is invisible but costs space: ours are aborted.
    uploads = Session().client("s3", endpoint_url=endpoint).list_multipart_uploads(Bucket=BUCKET)
    assert uploads.get("Uploads", []) == []


def test_a_save_killed_at_any_named_point_shows_the_old_checkpoint_or_the_new(endpoint: str, tmp_path: Path):
    where = f"s3://{BUCKET}/crash-points?endpoint_url={endpoint}"
    check_points(f"s3://{BUCKET}/points?endpoint_url={endpoint}", tmp_path / "scratch", "s3")
    check_crashes(where, tmp_path / "scratch", "s3")


def test_random_kills_lose_nothing_that_a_save_had_returned(endpoint: str, tmp_path: Path):
    check_random_kills(f"s3://{BUCKET}/random?endpoint_url={endpoint}", tmp_path / "scratch", KILLS)
