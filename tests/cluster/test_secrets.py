"""Secrets in the environment of a job are nowhere in what the job stores, logs, prints or tells the cluster."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.storage.s3 import S3Store
from tests.faults import make_bucket, moto_server

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray")]

ROOT = Path(__file__).parents[2]
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED01",
    "AWS_SECRET_ACCESS_KEY": "plantedSecretAccessKey/plantedSecret+001",
    "AWS_SESSION_TOKEN": "plantedSessionTokenPlantedSessionToken02",
    "RAY_AUTH_TOKEN": "feedc0defeedc0defeedc0defeedc0defeedc0defeedc0defeedc0defeedc0de",
    "HTTPS_PROXY": "plantedProxyPassword03",
    "HTTP_PROXY": "plantedProxyPassword04",
    "PLANTED_API_KEY": "plantedKeyOfAnotherService05",
}
SUFFIXES = {".json", ".safetensors", ".png", ".parquet", ".html", "COMMITTED"}


def environment(folder: Path, endpoint: str) -> dict[str, str]:
    """That of the job: the secrets, a home and a temporary folder of its own."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "AWS_")) and "proxy" not in n.lower()}
    planted = {n: f"http://me:{v}@127.0.0.1:9" if n.endswith("PROXY") else v for n, v in SECRETS.items()}
    return kept | planted | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "EBM_CACHE": str(folder / "cache"),
        "HOME": str(folder),
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TMPDIR": str(folder / "t"),
    }  # fmt: skip


def searched(name: str, data: bytes) -> list[str]:
    """Names of the secrets in some bytes, in the cells of a table too."""
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data))
        data += repr((table.to_pylist(), table.schema.metadata)).encode()
    return [secret for secret, value in SECRETS.items() if value.encode() in data]


@pytest.fixture(scope="module")
def job() -> Iterator[tuple[dict[str, bytes], dict[str, bytes]]]:
    """After a job: objects in storage, and local files (Ray's folder with its logs, printed text, Ray's account)."""
    folder = Path(tempfile.mkdtemp(prefix="sec", dir="/tmp"))  # sockets have short names only
    (folder / "t").mkdir()
    with pytest.MonkeyPatch.context() as patch, moto_server() as endpoint:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, SECRETS[name])
        make_bucket(endpoint, "secrets")
        words = [sys.executable, str(Path(__file__).with_name("secrets_child.py")), str(folder), "s3://secrets/runs"]
        with (folder / "printed").open("w") as out:
            done = subprocess.run(
                words, cwd=ROOT, env=environment(folder, endpoint), stdout=out, stderr=out, timeout=280, check=False
            )
        assert done.returncode == 0, (folder / "printed").read_text()[-3000:]
        store = S3Store("secrets", "", endpoint)
        stored = {info.key: store.get(info.key) for info in store.list()}
    local = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    yield stored, local
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.full
@pytest.mark.timeout(400)
def test_no_planted_secret_is_in_storage_logs_or_what_ray_tells(job: tuple[dict[str, bytes], dict[str, bytes]]):
    stored, local = job
    for wanted in (
        "config.json",
        "provenance.json",
        "MANIFEST.json",
        "energy_gap.json",
        "index.html",
        "prepared.json",
        ".parquet",
    ):
        assert any(key.endswith(wanted) for key in stored), f"{wanted} was not stored, so it was not searched"
    for wanted in ("told", "printed", "report.html"):
        assert local[wanted], f"{wanted} is empty"
    assert any("logs/" in name and name.endswith((".out", ".log")) for name in local)
    found = {name: secrets for name, data in (stored | local).items() if (secrets := searched(name, data))}
    assert found == {}


@pytest.mark.full
def test_nothing_that_a_job_stores_is_a_pickle(job: tuple[dict[str, bytes], dict[str, bytes]]):
    stored, _ = job
    for key, data in stored.items():
        assert any(key.endswith(suffix) for suffix in SUFFIXES), f"{key}: a kind of file that nobody has looked at"
        if key.endswith(".safetensors"):  # a header of 640 bytes begins as a pickle does: its length comes first
            length = int.from_bytes(data[:8], "little")
            assert isinstance(json.loads(data[8 : 8 + length]), dict), key
        else:
            assert not data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")), key


def test_the_search_sees_a_secret_in_bytes_and_in_a_table():
    import pyarrow as pa

    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [SECRETS["HTTP_PROXY"]]}), sink, compression="zstd")
    assert searched("part.parquet", sink.getvalue()) == ["HTTP_PROXY"]
    assert searched("log", b"x" + SECRETS["RAY_AUTH_TOKEN"].encode()) == ["RAY_AUTH_TOKEN"]
