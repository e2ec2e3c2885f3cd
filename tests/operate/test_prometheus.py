"""A real Prometheus server with the generated configuration: it finds an exporter by itself, and its alerts fire."""

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.monitoring.exporter import Exporter
from orchestrator.monitoring.values import EXPORTED, scrape_config
from tests.orchestrator.monitoring.test_exporter import ROOT, busy_meter, expressions

pytestmark = [pytest.mark.prometheus, pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prometheus")


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Asks a server of its own, whose configuration is ours but for an interval of one second."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "prometheus.yml").write_text(scrape_config(str(folder)).replace("10s", "1s"))
    (folder / "alerts.yml").write_bytes((ROOT / "deploy/prometheus/alerts.yml").read_bytes())
    words = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*words, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)

    def query(expression: str) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]["result"]
        except OSError:
            assert server.poll() is None, (folder / "log").read_text()
            return []

    wait_for(lambda: listens(port) or server.poll() is not None)  # or the exporter may be given this port
    yield query
    server.terminate()
    server.wait(30)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def exporter(folder: Path, ask: object) -> Iterator[Exporter]:
    """Begins after the server, as an exporter does that the first run of a cluster starts."""
    shown = Exporter(str(folder), host="127.0.0.1")
    yield shown
    shown.close()


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return found


def test_the_server_finds_the_exporter_and_has_every_metric_of_a_run(exporter: Exporter, ask: Callable):
    busy_meter(exporter, "first")
    wait_for(lambda: ask('ebm_step{run="first"}'))
    for name in EXPORTED:
        assert ask(f'{name}{{run="first", job="ebm"}}'), name


def test_every_query_of_the_dashboard_that_is_about_runs_has_an_answer(exporter: Exporter, ask: Callable):
    busy_meter(exporter, "shown")
    wait_for(lambda: ask('ebm_step{run="shown"}'))
    queries = {title: query for title, query in expressions().items() if "$run" in query}
    assert len(queries) >= 20
    for title, query in queries.items():
        assert ask(query.replace("$run", "shown")), title


def test_an_alert_fires_for_the_run_that_diverged_and_for_no_other(exporter: Exporter, ask: Callable):
    busy_meter(exporter, "sound")
    busy_meter(exporter, "lost").close(diverged=True)
    firing = 'ALERTS{alertname="EbmDiverged", alertstate="firing"}'
    assert [alert["metric"]["run"] for alert in wait_for(lambda: ask(firing))] == ["lost"]


def test_the_values_of_a_run_that_ended_are_gone_within_two_scrapes(exporter: Exporter, ask: Callable):
    meter = busy_meter(exporter, "ended")
    wait_for(lambda: ask('ebm_step{run="ended"}'))
    meter.close(diverged=False)
    wait_for(lambda: not ask('ebm_step{run="ended"}'))


def test_the_rules_pass_their_own_tests():
    for words in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        answer = subprocess.run(
            ["promtool", *words], cwd=ROOT / "deploy/prometheus", capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
