"""How a stored run is called: a name, a folder or a URI, read in one way by every command."""

from pathlib import Path

import pytest

from ebm_core.errors import ConfigError
from orchestrator.cli.words import check_words
from orchestrator.reports.write import _sweep_folder
from orchestrator.storage.find import open_run, split_place
from orchestrator.storage.run_store import RunStore


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("first", ("./runs", "first")),
        ("first/", ("./runs", "first")),
        ("runs/first", ("runs", "first")),
        ("./first", (".", "first")),
        ("/first", ("/", "first")),
        ("/data/runs/first/", ("/data/runs", "first")),
        ("s3://bucket/runs/first", ("s3://bucket/runs", "first")),
        ("s3://bucket/first/?endpoint_url=http://h:1", ("s3://bucket?endpoint_url=http://h:1", "first")),
    ],
)
def test_a_place_is_a_storage_and_a_name(where: str, place: tuple[str, str]):
    assert split_place(where, "./runs") == place


def test_every_reader_finds_the_run_by_name_folder_and_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    RunStore("runs").run("first").write_config({})
    for where in ("first", "runs/first", f"{tmp_path}/runs/first/", f"file://{tmp_path}/runs/first"):
        assert open_run(where, "runs").uri == str(tmp_path / "runs" / "first")
        assert _sweep_folder(where, "runs") is None
    RunStore("runs").objects.create("grid/sweep.json", b"{}")
    for where in ("grid", f"{tmp_path}/runs/grid/"):
        folder = _sweep_folder(where, "runs")
        assert folder is not None
        assert folder.uri == str(tmp_path / "runs" / "grid")
    with pytest.raises(ConfigError, match=r"run 'second' is not in .*: there are first"):
        open_run("second", "runs")


@pytest.mark.parametrize("where", ["/r/first", "s3://bucket/r/first?endpoint_url=http://h:1", "first"])
def test_a_job_on_a_cluster_is_named_by_the_run(where: str):
    name, _, _ = check_words(["resume", where, "--storage", "/r"])
    assert name == "first"
