"""Without the token nobody joins the Ray that `ebm train` starts, and nobody submits a job to a cluster."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from orchestrator.cli import doctor
from orchestrator.cluster.ray_internals import LOOPBACK
from tests.cluster.test_two_nodes import BIN, Nodes, folder  # noqa: F401

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray")]

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4
OWN = """
import sys
import ray
from orchestrator.cluster.connection import start_ray
start_ray()
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
JOIN = """
import sys
import ray
from orchestrator.cluster.connection import start_ray
start_ray(sys.argv[1])
print(ray.get(ray.remote(num_cpus=0)(lambda: "ran").remote()))
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of somebody with this home, and no token but one in `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"} | more


def listeners(owner: int) -> list[str]:
    """Addresses on which a process and its descendants listen."""
    process = psutil.Process(owner)
    return [address for address, _ in doctor._listening([process, *process.children(recursive=True)])]


@pytest.fixture
def homes() -> Iterator[tuple[Path, Path]]:
    """Our home and a stranger's."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as base:
        ours, other = Path(base, "us"), Path(base, "them")
        ours.mkdir()
        other.mkdir()
        yield ours, other


@pytest.mark.full
@pytest.mark.timeout(500)
def test_the_ray_that_a_bare_command_starts_lets_nobody_join_without_its_token(homes: tuple[Path, Path]):
    ours, other = homes
    words = [sys.executable, "-c", OWN]
    with subprocess.Popen(
        words,
        env=environment(ours, RAY_TMPDIR=str(ours)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as owner:
        assert owner.stdout is not None
        address = next(line.strip() for line in owner.stdout if re.match(r"[\d.]+:\d+$", line))
        found = listeners(owner.pid)

        def join(home: Path, **more: str) -> subprocess.CompletedProcess[str]:
            own = environment(home, **more)
            words = [sys.executable, "-c", JOIN, address]
            return subprocess.run(words, env=own, capture_output=True, text=True, timeout=100, check=False)

        (other / "wrong").write_text("f" * 64)
        with ThreadPoolExecutor(3) as pool:
            bare = pool.submit(join, other)
            wrong = pool.submit(join, other, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(other / "wrong"))
            owned = pool.submit(join, ours, RAY_AUTH_MODE="token").result()
            strangers = [bare.result(), wrong.result()]
        token = ours / ".ray" / "auth_token"
        assert token.stat().st_mode & 0o077 == 0, "others on this machine can read the token"
        owner.communicate("")
    assert len(found) >= 4
    assert [at for at in found if not doctor._is_loopback(at)] == [], "a Ray of ours listens on loopback alone"
    assert owned.stdout == "ran\n", owned.stderr
    for stranger in strangers:
        assert stranger.returncode != 0
        assert stranger.stdout == ""


@pytest.mark.full
@pytest.mark.timeout(500)
def test_a_job_submitted_without_the_token_is_refused_and_leaves_no_trace(
    folder: Path,  # noqa: F811
    homes: tuple[Path, Path],
):
    ours, other = homes
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    trusted = environment(ours, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"))
    trusted[LOOPBACK] = "0"
    trusted["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    with Nodes(folder, trusted) as nodes:
        nodes.start("head")
        url = f"http://127.0.0.1:{nodes._ports['dashboard']}"

        def ask(token: str | None, method: str = "POST", path: str = "/api/jobs/") -> requests.Response:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            body = {"entrypoint": f"touch {folder / 'sprung'}"} if method == "POST" else None
            return requests.request(method, url + path, json=body, headers=headers, timeout=60)

        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                if ask(TOKEN, "GET").status_code == 200:
                    break
            except requests.ConnectionError:
                time.sleep(0.5)
        found = listeners(nodes._running[0].pid)
        assert len(found) >= 4
        assert [at for at in found if not doctor._is_loopback(at)] == [], "`make up` says that it is on loopback"
        assert ask(None).status_code == 401
        assert ask("f" * 64).status_code == 403
        for method, path in (("GET", "/api/jobs/"), ("GET", "/api/cluster_status"), ("GET", "/api/actors")):
            assert ask(None, method, path).status_code == 401, path
        words = ["submit", "train", "digits_paper", f"storage={folder}", "name=refused", "--address", url]
        refused = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *words],
            env=environment(other),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            cwd=ROOT,
        )
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.count("\n") == 1, refused.stderr
        assert "RAY_AUTH_TOKEN_PATH" in refused.stderr
        assert ask(TOKEN, "GET").json() == []
        accepted = ask(TOKEN)
        assert accepted.status_code == 200, accepted.text
        assert [job["submission_id"] for job in ask(TOKEN, "GET").json()] == [accepted.json()["submission_id"]]
