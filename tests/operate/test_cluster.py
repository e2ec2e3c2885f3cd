"""A run's life on a real cluster with token, S3 and Prometheus: submitted, watched, stopped, resumed, remembered."""

import base64
import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.records import provenance
from orchestrator.storage.run_store import RunStore
from tests.browser.conftest import chromium
from tests.cluster.test_train_job import TINY

pytestmark = [
    pytest.mark.operate,
    pytest.mark.timeout(900),  # three jobs; each has taken minutes on a machine that had much else to do
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]

STORAGE = "s3://runs/here"
ENDLESS = [*TINY, "train.num_steps=1000000", "checkpoint.every=900000"]


def ebm(*words: str, status: int = 0, command: str = "ebm") -> str:
    """The output of a command, which must end with this status; what else it said is shown when it does not."""
    answer = subprocess.run([command, *words], capture_output=True, text=True, timeout=400, check=False)
    assert answer.returncode == status, f"{words}: {answer.returncode}\n{answer.stdout}\n{answer.stderr}"
    assert "Traceback" not in answer.stderr
    return answer.stdout


def wait_for(what: Callable[[], Any], seconds: float = 300.0) -> Any:
    """What the call returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"waited {seconds} s"
        time.sleep(1.0)
    return found


def query(expression: str) -> list[dict[str, Any]]:
    """What Prometheus answers now."""
    url = f"{os.environ['PROMETHEUS_URL']}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


@pytest.fixture(scope="module")
def job() -> str:
    """A submitted run, `endless`, that trains; its job's id."""
    settings = [*ENDLESS, f"storage={STORAGE}", "name=endless"]
    return json.loads(ebm("submit", "train", "digits_paper", *settings, "--json"))["job"]


def test_a_submitted_job_is_in_our_list_and_in_that_of_ray(job: str):
    (line,) = [line for line in json.loads(ebm("jobs", "--json")) if line["run"] == "endless"]
    assert line["job"] == job
    assert line["status"] in ("PENDING", "RUNNING")
    assert job in ebm("job", "list", "--address", os.environ["RAY_API_SERVER_ADDRESS"], command="ray")


def test_prometheus_finds_the_run_by_itself_and_its_steps_grow(job: str):
    def steps() -> float:
        return max((float(r["value"][1]) for r in query('ebm_step{run="endless"}')), default=0.0)

    before = wait_for(steps)
    wait_for(lambda: steps() > before)
    assert query('ebm_energy_gap{run="endless"}')
    assert float(query('ebm_device_memory_bytes{run="endless"}')[0]["value"][1]) > 10e6
    assert query("ray_resources")  # the nodes' own metrics come by the same configuration
    assert all(float(up["value"][1]) == 1 for up in query('up{job="ebm"}'))


def test_grafana_has_our_dashboard_and_reaches_prometheus(job: str):
    """On the real one where it installs; otherwise on `grafana_stand_in.py`, which reads the same files."""
    folder = Path(cluster(), "grafana")
    password = (folder / "password").read_text()

    def ask(path: str, password: str = password) -> Any:
        login = base64.b64encode(f"admin:{password}".encode()).decode()
        url = f"{os.environ['GRAFANA_URL']}{path}"
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"Authorization": f"Basic {login}"}), timeout=10
        ) as answer:
            return json.load(answer)

    assert wait_for(lambda: ask("/api/search?query=energy"), 60)[0]["uid"] == "ebm"
    (source,) = ask("/api/datasources")
    assert source["url"] == os.environ["PROMETHEUS_URL"]
    assert ask(f"/api/datasources/uid/{source['uid']}/health")["status"] == "OK"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask("/api/search", "admin")
    assert (folder / "password").stat().st_mode & 0o077 == 0


def test_stop_stores_a_checkpoint_within_a_minute_and_takes_the_values_away(job: str):
    started = time.monotonic()
    assert "STOPPED" in ebm("stop", "endless")
    assert time.monotonic() - started < 75  # 60, and what the command itself takes to start on a busy machine
    run = RunStore(STORAGE).run("endless")
    (step,) = run.checkpoints()
    assert step > 0
    assert f"stopped at step {step} of" in ebm("logs", "endless")
    assert [launch["job"] for launch in provenance.launches(run)] == [job]
    assert "is over already" in ebm("stop", "endless")
    wait_for(lambda: not query('ebm_step{run="endless"}'))


def test_a_stopped_run_resumes_as_a_job_and_its_end_is_the_exit_status_of_follow(job: str):
    run = RunStore(STORAGE).run("endless")
    (step,) = run.checkpoints()
    ebm("resume", "endless", f"train.num_steps={step + 4}", "--storage", STORAGE, "--address", address(), "--follow")
    assert max(run.checkpoints()) == step + 4
    first, second = (launch["job"] for launch in provenance.launches(run))
    assert first == job != second


def test_a_browser_shows_the_page_of_the_run_and_its_job_on_the_dashboard(job: str, tmp_path: Path):
    run = RunStore(STORAGE).run("endless")
    (tmp_path / "page.html").write_bytes(run.read_bytes("report/index.html"))
    with chromium(tmp_path / "profile") as browser:
        browser.get(f"file://{tmp_path}/page.html")
        assert "endless" in browser.title
        assert f"{max(run.checkpoints()):,}" in browser.find_element("tag name", "body").text
        loaded = browser.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth > 0)")
        assert loaded
        assert all(loaded)

        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        browser.get(f"{address()}/#/jobs")
        (field,) = wait_for(lambda: browser.find_elements("css selector", "[role=dialog] input"), 60)
        assert job not in browser.page_source
        field.send_keys(token)
        browser.find_element("xpath", "//*[@role='dialog']//button[normalize-space()='Submit']").click()
        wait_for(lambda: job in browser.page_source, 60)


def test_a_job_that_fails_says_why_and_hands_its_status_on(job: str):
    words = ["resume", "nothing", "--storage", STORAGE, "--address", address()]
    answer = subprocess.run(["ebm", *words, "-f"], capture_output=True, text=True, timeout=400, check=False)
    assert answer.returncode == 2
    assert "ebm: run 'nothing' is not in s3://runs/here" in answer.stderr


def test_a_cluster_without_history_leaves_what_storage_remembers(job: str):
    ebm("job", "delete", job, "--address", address(), command="ray")
    assert job not in ebm("jobs", "--json")
    (lost,) = [j for j in json.loads(ebm("jobs", "--storage", STORAGE, "--json")) if j["status"] == "LOST"]
    assert (lost["run"], lost["job"]) == ("endless", job)


def test_without_the_token_nothing_is_told(job: str):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    answer = subprocess.run(["ebm", "jobs"], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "RAY_AUTH_TOKEN_PATH" in answer.stderr


def test_the_secret_of_the_store_is_nowhere_in_what_the_cluster_shows(job: str):
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert secret not in ebm("job", "list", "--address", address(), command="ray")
    assert secret not in ebm("logs", "endless")
    assert not any(secret in path.read_text(errors="replace") for path in Path(cluster(), "log").glob("*.log"))


def address() -> str:
    return os.environ["RAY_API_SERVER_ADDRESS"]


def cluster() -> str:
    return os.environ["EBM_CLUSTER"]
