"""From a URI to a run: what is accepted, what is refused without showing a secret, what is kept in JSON."""

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ebm_core.config import to_tree
from ebm_core.errors import CheckpointError, ConfigError
from orchestrator.settings.job import job_preset, parse
from orchestrator.settings.overrides import override
from orchestrator.settings.trees import check_resumable
from orchestrator.storage.commits import step_name
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.interface import ObjectMissing, StorageError
from orchestrator.storage.run_store import RunStore, open_store, require_run_name
from orchestrator.storage.s3 import S3Store
from tests.store_contract import flip_bit, write_checkpoint


def test_folders_are_named_by_path_or_file_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for uri, folder in {
        "./runs": tmp_path / "runs",
        "runs/": tmp_path / "runs",
        str(tmp_path / "a b"): tmp_path / "a b",
        f"file://{tmp_path}/a%20b": tmp_path / "a b",
        f"file://localhost{tmp_path}/runs": tmp_path / "runs",
        "~/runs": tmp_path / "home" / "runs",
    }.items():
        store = open_store(uri)
        assert isinstance(store.objects, FolderStore)
        assert store.objects.root == folder
        assert store.uri == str(folder)
        assert store.run("r").uri == str(folder / "r")


@pytest.mark.parametrize(
    ("uri", "environment", "expected"),
    [
        ("s3://runs", {}, ("runs", "", None)),
        ("s3://runs/", {}, ("runs", "", None)),
        ("s3://runs/a/b-1/", {}, ("runs", "a/b-1", None)),
        ("s3://runs/p?endpoint_url=http://127.0.0.1:9000", {}, ("runs", "p", "http://127.0.0.1:9000")),
        ("s3://runs/p?endpoint_url=http%3A%2F%2Fhost%3A1%2F", {}, ("runs", "p", "http://host:1")),
        ("s3://runs", {"AWS_ENDPOINT_URL": "https://s3.example"}, ("runs", "", "https://s3.example")),
        (
            "s3://runs",
            {"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "http://s3:2"},
            ("runs", "", "http://s3:2"),
        ),
        ("s3://runs?endpoint_url=http://uri:3", {"AWS_ENDPOINT_URL_S3": "http://s3:2"}, ("runs", "", "http://uri:3")),
    ],
)
def test_s3_uris_name_bucket_prefix_and_server(
    monkeypatch: pytest.MonkeyPatch, uri: str, environment: dict[str, str], expected: tuple
):
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    objects = open_store(uri).objects
    assert isinstance(objects, S3Store)
    assert (objects.bucket, objects.prefix, objects.endpoint) == expected


def test_the_uri_of_a_run_keeps_the_server():
    run = open_store("s3://runs/p/?endpoint_url=http://127.0.0.1:9000").run("r")
    assert run.uri == "s3://runs/p/r?endpoint_url=http://127.0.0.1:9000"
    assert open_store("s3://runs").run("r").uri == "s3://runs/r"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:hush@runs/p",
        "s3://AKIAKEY:hush/hush@runs/p",
        "s3://hush@runs",
        "s3://runs:hush/p",
        "s3://runs/p?aws_secret_access_key=hush",
        "s3://runs/p?hush",
        "s3://runs/p?endpoint_url=http://user:hush@host:1",
        "s3://runs/p?endpoint_url=http://host:1&secret=hush",
        "s3://runs/p?endpoint_url=http://host:1?token=hush",
        "s3://runs/p?endpoint_url=http://host:1/hush",
        "s3://runs/p?endpoint_url=ftp://hush",
        "s3://runs/p?endpoint_url=http://hush:99999",
        "s3://runs/p?endpoint_url=",
        "s3://runs/p#hush",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str):
    with pytest.raises(ConfigError) as caught:
        open_store(uri)
    assert "hush" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("value", ["http://user:hush@host:1", "hush", "http://"])
def test_a_wrong_endpoint_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable} must be http://HOST:PORT") as caught:
        open_store("s3://runs")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "a\0b",
        "a\nb",
        "gs://runs",
        "http://127.0.0.1:9000/runs",
        "S3://runs",
        "file://relative/runs",
        "file://",
        "file:///runs?x=1",
        "s3://",
        "s3:///prefix",
        "s3://a",
        "s3://-bad-",
        "s3://runs/../other",
        "s3://runs//p",
        "s3://runs/.hidden",
        "s3://runs/a b",
        "s3://runs/a%20b",
    ],
)
def test_a_uri_without_meaning_is_refused_in_one_line(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^storage: [^\n]+$"):
        open_store(uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "a b", "a\0", "a\n", "é", "x" * 129, None, 1])
def test_a_run_cannot_have_a_name_that_is_a_path(name: object):
    with pytest.raises(ConfigError, match="name = "):
        require_run_name(name)  # type: ignore[arg-type]
    assert require_run_name("digits-0001.b_C") == "digits-0001.b_C"


def test_steps_sort_as_text_and_have_nine_digits():
    assert step_name(500) == "step-000000500"
    assert sorted(map(step_name, (10, 9, 999_999_999))) == [step_name(9), step_name(10), step_name(999_999_999)]
    for wrong in (-1, 10**9, 1.0, True, "1"):
        with pytest.raises(StorageError, match="cannot be stored"):
            step_name(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "refused"),
    [((), False), (("data.condition=label",), True), (("data.condition=label", "buffer.conditions=kept"), False)],
)
def test_a_run_from_before_a_setting_goes_on_as_it_began_or_is_refused(
    tmp_path: Path, settings: tuple[str, ...], refused: bool
):
    job = override(job_preset("digits_paper"), ["name=r", *settings])
    tree = to_tree(job)
    del tree["buffer"]["conditions"]
    run = RunStore(str(tmp_path)).run("r")
    run.write_config(tree)
    assert run.read_config()["buffer"]["conditions"] == "kept"
    check_resumable(run.read_config(), parse(run.read_config()))  # `ebm resume`
    if refused:
        with pytest.raises(ConfigError, match=r"buffer\.conditions was 'kept', now 'data'"):
            check_resumable(run.read_config(), job)
    else:
        check_resumable(run.read_config(), job)


def test_json_is_kept_exactly_or_refused(tmp_path: Path):
    run = RunStore(str(tmp_path)).run("r")
    tree = {"a": [1, 2.5, None, True, "ü"], "b": {}}
    run.write_json("sub/x.json", tree)
    assert run.read_json("sub/x.json") == tree
    for wrong in ({"x": float("nan")}, {"x": float("inf")}, {"x": object()}):
        with pytest.raises(StorageError, match=r"cannot write .*sub/y\.json"):
            run.write_json("sub/y.json", wrong)
    with pytest.raises(ObjectMissing):
        run.read_json("sub/y.json")
    run.write_bytes("torn.json", b'{"a": ')
    with pytest.raises(StorageError, match=r"torn\.json is damaged: not JSON"):
        run.read_json("torn.json")
    run.write_bytes("config.json", b"[]")
    with pytest.raises(StorageError, match=r"config\.json is damaged: no settings"):
        run.read_config()


def test_an_unreadable_mark_of_damage_condemns_to_be_safe(tmp_path: Path):
    run = RunStore(str(tmp_path / "runs")).run("r")
    write_checkpoint(run, 1)
    write_checkpoint(run, 2)
    run.write_bytes("checkpoints/step-000000002/DAMAGED", b"torn")
    assert run.checkpoints() == [1]
    found = run.newest_sound(tmp_path / "into", pytest.fail)
    assert found is not None
    assert found[0] == 1


def test_a_checkpoint_deleted_under_a_reader_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # `ebm sample` listed steps 1 and 2; before it reads 2, the training job commits 3 and 4 and deletes 1 and 2.
    run = RunStore(str(tmp_path / "runs")).run("r")
    for step in (1, 2):
        write_checkpoint(run, step)
    fetch, overtaken = run.fetch_checkpoint, []

    def overtaken_fetch(step: int, into: Path) -> Path:
        if not overtaken:
            overtaken.append(step)
            for new in (3, 4):
                write_checkpoint(run, new)
            assert run.retain(2) == [1, 2]
        return fetch(step, into)

    monkeypatch.setattr(run, "fetch_checkpoint", overtaken_fetch)
    found = run.newest_sound(tmp_path / "into", pytest.fail)
    assert found is not None
    assert found[0] == 4
    assert overtaken == [2]


def test_warnings_reach_the_log_when_nobody_asks_for_them(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = RunStore(str(tmp_path / "runs")).run("r")
    attempt, _ = write_checkpoint(run, 1)
    flip_bit(run, f"checkpoints/step-000000001/{attempt}/state.json")
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError):
        run.newest_sound(tmp_path / "into")
    assert ["state.json" in record.message for record in caplog.records] == [True]


def test_a_full_local_disk_does_not_condemn_a_checkpoint(tmp_path: Path):
    run = RunStore(str(tmp_path / "runs")).run("r")
    write_checkpoint(run, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot use the local path"):
        run.newest_sound(tmp_path / "file", pytest.fail)
    assert run.checkpoints() == [1]


def test_errors_survive_a_trip_between_processes():
    for error in (StorageError("a"), ObjectMissing("b")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)


def test_a_folder_needs_no_boto3(tmp_path: Path):
    code = (
        "import sys; from orchestrator.storage.run_store import open_store; open_store(sys.argv[1]).check_writable(); "
        "assert not {'boto3', 'botocore', 'ray'} & set(sys.modules)"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "runs")], cwd=root, check=True, timeout=60)
