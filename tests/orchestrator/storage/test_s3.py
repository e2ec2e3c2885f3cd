"""What an S3 server or the way to it can do wrong surfaces as one line, soon, and never as a checkpoint."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebm_core.errors import CheckpointError
from ebm_core.manifest import verify
from orchestrator.storage.interface import ObjectMissing, StorageError
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.storage.s3 import S3Store
from tests.faults import FaultProxy, fault_proxy, make_bucket, moto_server
from tests.store_contract import upload_checkpoint, write_checkpoint

SECRET = "test-secret-never-shown"
BOUND_S = 15.0


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, moto_server() as endpoint:
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key-never-shown")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        make_bucket(endpoint, "runs")
        yield endpoint


@pytest.fixture
def proxy(moto: str) -> Iterator[FaultProxy]:
    with fault_proxy(moto) as proxy:
        yield proxy


def open_s3(endpoint: str, prefix: str, **options) -> S3Store:
    """A store whose patience fits a test."""
    patience = {"connect_timeout_s": 2, "read_timeout_s": 1, "max_attempts": 3}
    return S3Store("runs", prefix, endpoint, **patience | options)


@pytest.fixture
def store(proxy: FaultProxy, tmp_path: Path) -> S3Store:
    return open_s3(proxy.url, tmp_path.name)


@pytest.fixture
def run(store: S3Store) -> Run:
    return RunStore(store).run("r")


UPLOADS = ["model.safetensors", "COMMITTED"]


@pytest.mark.full
@pytest.mark.parametrize("key", UPLOADS)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (403, "access denied (AccessDenied); check the credentials"),
        (411, "HTTP 411 MissingContentLength"),
        (500, "HTTP 500 InternalError); try again later"),
        (503, "HTTP 503 ServiceUnavailable); try again later"),
        ("drop", "connection broke off"),
        ("accept", "the server accepted it but does not have it"),
        ("short", "bytes were sent, the server has"),
        ("stall", "the server did not answer in time"),
        ("skewed", "its clock and this machine's differ too much"),
    ],
)
def test_a_lasting_fault_of_any_upload_is_an_error_and_no_checkpoint(
    proxy: FaultProxy, run: Run, kind: int | str, words: str, key: str
):
    write_checkpoint(run, 1)
    fault = proxy.inject(kind, "PUT", key)
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        write_checkpoint(run, 2)
    assert time.monotonic() - started < BOUND_S
    message = str(caught.value)
    assert fault.hits >= 1
    assert words in message, message
    assert key in message, message
    assert "\n" not in message
    assert "never-shown" not in message
    proxy.faults.clear()
    assert run.checkpoints() == [1]
    assert not any(info.key.startswith("checkpoints/step-000000002/COMMITTED") for info in run.list())


@pytest.mark.full
@pytest.mark.parametrize("key", UPLOADS)
@pytest.mark.parametrize("kind", [500, 503, "drop", "lose", "stall", "late", "twice"])
def test_a_passing_fault_is_retried_and_the_checkpoint_is_sound(
    proxy: FaultProxy, run: Run, kind: int | str, key: str, tmp_path: Path
):
    # "lose": the server has stored COMMITTED and its answer got lost; the repeated request hears "exists", yet it won.
    fault = proxy.inject(kind, "PUT", key, times=1 if kind == "twice" else 2)  # nothing repeats what succeeds
    attempt, _ = write_checkpoint(run, 1)
    assert fault.hits == fault.times
    assert run.read_json("checkpoints/step-000000001/COMMITTED")["attempt"] == attempt
    assert verify(run.fetch_checkpoint(1, tmp_path)).step == 1


def test_a_lost_answer_does_not_make_a_loser_a_winner(proxy: FaultProxy, store: S3Store):
    store.put("key", b"first")
    proxy.inject("lose", "PUT", "key", times=1)
    assert store.create("key", b"second") is False
    assert store.get("key") == b"first"


def test_a_commit_whose_answer_never_came_can_be_repeated(proxy: FaultProxy, run: Run):
    attempt, manifest = upload_checkpoint(run, 1)
    proxy.inject("lose", "PUT", "COMMITTED")
    with pytest.raises(StorageError, match="broke off"):
        run.commit(1, attempt, manifest)
    proxy.faults.clear()
    run.commit(1, attempt, manifest)
    assert run.checkpoints() == [1]


@pytest.mark.full
@pytest.mark.parametrize("kind", [500, 503, "drop", "cut", "stall", "late", "trickle"])
def test_a_download_that_fails_at_first_is_completed(proxy: FaultProxy, run: Run, kind: int | str, tmp_path: Path):
    write_checkpoint(run, 1)
    fault = proxy.inject(kind, "GET", "/attempt-", times=2)
    assert run.newest_sound(tmp_path, pytest.fail) == (1, tmp_path / "step-000000001")
    assert fault.hits == 2


@pytest.mark.parametrize("kind", [403, 503, "drop", "cut"])
@pytest.mark.parametrize("key", ["MANIFEST.json", "model.safetensors"])
def test_an_outage_while_reading_does_not_condemn_a_checkpoint(
    proxy: FaultProxy, run: Run, kind: int | str, key: str, tmp_path: Path
):
    write_checkpoint(run, 1)
    proxy.inject(kind, "GET", key)
    messages: list[str] = []
    started = time.monotonic()
    with pytest.raises(StorageError, match=key):
        run.newest_sound(tmp_path, messages.append)
    assert time.monotonic() - started < BOUND_S
    assert messages == []
    proxy.faults.clear()
    assert run.newest_sound(tmp_path, pytest.fail) is not None


def test_a_reader_without_the_right_to_write_still_gets_the_older_checkpoint(
    proxy: FaultProxy, run: Run, tmp_path: Path
):
    write_checkpoint(run, 1)
    attempt, _ = write_checkpoint(run, 2)
    run.write_bytes(f"checkpoints/step-000000002/{attempt}/state.json", b"{}")
    proxy.inject(403, "PUT")
    messages: list[str] = []
    found = run.newest_sound(tmp_path, messages.append)
    assert found is not None
    assert found[0] == 1
    assert len(messages) == 1
    assert "passed over" in messages[0]


def test_a_failing_delete_stops_retention_with_an_error_and_the_kept_stay_sound(
    proxy: FaultProxy, run: Run, tmp_path: Path
):
    for step in (1, 2, 3):
        write_checkpoint(run, step)
    proxy.inject(403, "DELETE", "safetensors")
    with pytest.raises(StorageError, match="access denied"):
        run.retain(2)
    assert run.checkpoints() == [2, 3]  # COMMITTED went first
    proxy.faults.clear()
    write_checkpoint(run, 4)
    assert run.retain(2) == [2]
    assert {info.key.split("/")[1] for info in run.list("checkpoints/")} == {"step-000000003", "step-000000004"}
    assert verify(run.fetch_checkpoint(3, tmp_path)).step == 3


def test_verification_happens_once_per_checkpoint(proxy: FaultProxy, run: Run):
    for step in (1, 2, 3):
        write_checkpoint(run, step)
    run.retain(2)
    proxy.requests.clear()
    write_checkpoint(run, 4)
    run.retain(2)
    read = [path for method, path in proxy.requests if method == "GET" and "model.safetensors" in path]
    assert len(read) == 1
    assert "step-000000004" in read[0]


@pytest.mark.parametrize(
    ("status", "words"), [(403, "access denied"), (411, "HTTP 411"), (500, "HTTP 500"), (503, "HTTP 503")]
)
def test_every_operation_explains_a_refusal(proxy: FaultProxy, store: S3Store, status: int, words: str, tmp_path: Path):
    calls = {
        "write": lambda: store.put("key", b"x"),
        "create": lambda: store.create("key", b"x"),
        "read": lambda: store.get("key"),
        "read ": lambda: store.get_file("key", tmp_path / "copy"),
        "list": lambda: list(store.list()),
        "list ": lambda: list(store.folders()),
        "delete": lambda: store.delete("key"),
        "look up": lambda: store.exists("key"),
        "look up ": lambda: store.size("key"),
    }
    proxy.inject(status)
    for operation, call in calls.items():
        with pytest.raises(StorageError, match=rf"cannot {operation.strip()} s3://runs/.*{words}"):
            call()


def test_large_files_travel_in_parts_both_ways(proxy: FaultProxy, tmp_path: Path):
    part = 5 * 2**20  # the least that S3 allows
    store = open_s3(proxy.url, tmp_path.name, multipart_bytes=part)
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(bytes(range(256)) * 4096 * 11)
    proxy.inject("drop", "PUT", "partNumber=2", times=1)
    store.put("large", source)
    parts = {path.partition("partNumber=")[2][:1] for method, path in proxy.requests if "partNumber=" in path}
    assert parts == {"1", "2", "3"}
    proxy.inject("cut", "GET", "large", times=1)
    store.get_file("large", copy)
    assert copy.read_bytes() == source.read_bytes()


def test_a_failed_upload_in_parts_leaves_nothing(proxy: FaultProxy, tmp_path: Path):
    store = open_s3(proxy.url, tmp_path.name, multipart_bytes=5 * 2**20)
    (tmp_path / "source").write_bytes(b"\0" * 11 * 2**20)
    for kind in (403, "drop"):
        proxy.faults.clear()
        proxy.inject(kind, "PUT", "partNumber=2")
        with pytest.raises(StorageError, match="cannot write"):
            store.put("large", tmp_path / "source")
    assert list(store.list()) == []


def test_a_download_to_where_nothing_can_be_written_blames_the_local_file(store: S3Store, tmp_path: Path):
    store.put("key", b"x")
    with pytest.raises(StorageError, match=r"cannot write the local file .*nowhere"):
        store.get_file("key", tmp_path / "nowhere" / "copy")


def test_a_server_without_conditional_uploads_is_refused_before_the_first_checkpoint(store: S3Store):
    store._client.meta.events.register(  # as a server does that has never heard of the header
        "before-sign.s3.PutObject", lambda request, **_: request.headers.__delitem__("If-None-Match")
    )
    with pytest.raises(StorageError, match=r"ignores If-None-Match.*use a server with conditional uploads"):
        RunStore(store).check_writable()
    assert list(store.list()) == []


def test_a_bucket_that_does_not_exist_is_named(moto: str, tmp_path: Path):
    store = S3Store("no-such-bucket", "", moto, max_attempts=2)
    calls = [
        lambda: RunStore(store).check_writable(),
        lambda: RunStore(store).runs(),
        lambda: RunStore(store).run("r").checkpoints(),
        lambda: store.exists("key"),
        lambda: store.get("key"),
        lambda: store.put("key", b""),
    ]
    for call in calls:
        with pytest.raises(StorageError, match=r"s3://no-such-bucket.*there is no such bucket; create it") as caught:
            call()
        assert not isinstance(caught.value, ObjectMissing)


def test_a_server_that_is_not_there_is_unreachable():
    store = open_s3("http://127.0.0.1:9", "runs")  # the discard port
    started = time.monotonic()
    with pytest.raises(StorageError, match="cannot list s3://runs/runs: the server cannot be reached"):
        RunStore(store).runs()
    assert time.monotonic() - started < BOUND_S


def test_a_server_that_never_answers_is_given_up(moto: str):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts by its backlog, says nothing
        store = S3Store("runs", "", f"http://127.0.0.1:{silent.getsockname()[1]}", read_timeout_s=0.3, max_attempts=2)
        with pytest.raises(StorageError, match="did not answer in time"):
            store.put("key", b"x")


def test_a_web_server_that_is_no_s3_server_is_recognised(proxy: FaultProxy, store: S3Store):
    proxy.inject("page")
    with pytest.raises(StorageError, match="check the endpoint"):
        list(store.list())


def test_without_credentials_the_variables_to_set_are_named(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_s3(moto, "x").put("key", b"")


def test_foreign_objects_in_the_bucket_are_not_ours(store: S3Store):
    store.put("ours", b"1")
    for foreign in ("with space", ".hidden", "a//b", "folder/", "ümlaut", "../up"):
        store._client.put_object(Bucket="runs", Key=f"{store.prefix}/{foreign}", Body=b"2")
    assert [info.key for info in store.list()] == ["ours"]
    assert list(store.folders()) == ["a", "folder"]


def test_the_libraries_do_not_log_what_they_do(caplog: pytest.LogCaptureFixture, store: S3Store):
    with caplog.at_level(logging.DEBUG):
        store.put("key", b"x")
        store.get("key")
    assert [
        record.name for record in caplog.records if record.name.split(".")[0] in ("botocore", "boto3", "urllib3")
    ] == []


def test_a_manifest_of_another_step_behind_a_true_commit_is_noticed(run: Run, tmp_path: Path):
    attempt, manifest = upload_checkpoint(run, 1)
    run.commit(1, attempt, manifest)
    for info in list(run.list("checkpoints/step-000000001/")):
        run.write_bytes(info.key.replace("step-000000001", "step-000000002"), run.read_bytes(info.key))
    with pytest.raises(CheckpointError, match="COMMITTED is damaged: not what a commit of step 2 writes"):
        run.fetch_checkpoint(2, tmp_path)
