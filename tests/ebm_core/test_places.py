"""One rule for the name of a run and one for an address on an S3 server, whoever reads them."""

import json
from pathlib import Path

import pytest

from ebm_core.config import DataConfig
from ebm_core.errors import ConfigError
from ebm_core.places import S3Place, is_run_name, parse_s3
from orchestrator.records.sweeps import SweepRecord
from orchestrator.settings.job import JobConfig
from orchestrator.storage.run_store import RunStore, open_store
from orchestrator.storage.s3 import S3Store

STORED = Path(__file__).parents[1] / "data" / "runs-0.1"
NAMES = ["digits-0001", "a.run_1-x", "_x", "0", "x" * 128, "table2-digits-plain-seed0", "x-", "a..b"]
NO_NAMES = ["", ".", "..", ".hidden", "-x", "--name", "a/b", "a b", "a\n", "é", "x" * 129]


def accepts(make, *arguments, **named) -> bool:
    try:
        make(*arguments, **named)
    except ConfigError as why:
        assert "\n" not in str(why)
        return False
    return True


@pytest.mark.parametrize("name", [*NAMES, *NO_NAMES])
def test_a_job_a_store_and_a_sweep_agree_on_what_a_run_can_be_called(name: str, tmp_path: Path):
    store = RunStore(str(tmp_path))
    assert is_run_name(name) == (name in NAMES)
    assert (
        accepts(JobConfig, name=name)
        == accepts(store.run, name)
        == accepts(SweepRecord, store, name)
        == (name in NAMES)
    )


def test_the_runs_that_version_0_1_stored_keep_their_names():
    names = [path.parent.name for path in STORED.glob("*/config.json")]
    assert names
    assert RunStore(str(STORED)).runs() == sorted(names)
    for name in names:
        tree = json.loads((STORED / name / "config.json").read_text())
        assert is_run_name(name)
        assert tree["name"] in (name, None)


ADDRESSES = [
    ("s3://runs", S3Place("runs", "", None)),
    ("s3://runs/a/b-1/", S3Place("runs", "a/b-1", None)),
    ("s3://my.bucket/p?endpoint_url=http://127.0.0.1:9000", S3Place("my.bucket", "p", "http://127.0.0.1:9000")),
    ("s3://runs/p?endpoint_url=https://host/", S3Place("runs", "p", "https://host")),
    ("s3://runs/p?endpoint_url=http%3A%2F%2Fhost%3A1", S3Place("runs", "p", "http://host:1")),
    ("s3://runs/p?endpoint_url=http://[::1]:9000", S3Place("runs", "p", "http://[::1]:9000")),
]
NO_ADDRESSES = [
    *("s3://", "s3://a", "s3:///p", "s3://runs//p", "s3://runs/../p", "s3://runs/.hidden", "s3://runs/a b"),
    *("s3://user:hush@runs/p", "s3://runs:1/p", "s3://runs/p?region=hush", "s3://runs/p#hush"),
    *("s3://runs/p?endpoint_url=ftp://hush", "s3://runs/p?endpoint_url=http://user:hush@host"),
    "s3://runs/p?endpoint_url=http://host:1/hush",
]


@pytest.mark.parametrize(("uri", "place"), ADDRESSES)
def test_an_address_means_the_same_to_a_store_and_to_a_data_set(
    uri: str, place: S3Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert parse_s3(uri) == place
    assert parse_s3(place.uri) == place
    assert DataConfig(root=uri).root == uri
    objects = open_store(uri).objects
    assert isinstance(objects, S3Store)
    assert objects.describe() == place.uri


@pytest.mark.parametrize("uri", NO_ADDRESSES)
def test_what_is_no_address_is_refused_by_both_without_repeating_a_secret(uri: str):
    for make in (parse_s3, open_store, lambda root: DataConfig(root=root)):
        with pytest.raises(ConfigError) as end:
            make(uri)
        assert "hush" not in str(end.value)
        assert "\n" not in str(end.value)
