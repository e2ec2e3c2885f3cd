"""What Prometheus sees of a run: names with units, all of them documented, shown on the dashboard, gone at the end."""

import json
import pickle
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.monitoring import exporter as exporter_module
from orchestrator.monitoring.exporter import SD_FILE, Exporter, plain
from orchestrator.monitoring.values import (
    EXPORTED,
    SEND_EVERY_S,
    Meter,
    Sample,
    described,
    exported_name,
    scrape_config,
)
from orchestrator.records.rows import METRIC_NAMES, RUN_METRICS, Row

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")

ROOT = Path(__file__).parents[3]


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    shown = Exporter(str(tmp_path), host="127.0.0.1")
    yield shown
    shown.close()


class Direct:
    """What Link is, without an actor between."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def send(self, run: str, samples: list[Sample]) -> None:
        self._exporter.update(run, samples)

    def remove(self, run: str) -> None:
        self._exporter.remove(run)


def whole_row(step: int = 40) -> Row:
    return {"step": step, **{name: float(i) for i, name in enumerate(METRIC_NAMES, 1)}, "time": time.time()}


def busy_meter(exporter: Exporter, run: str = "run") -> Meter:
    """A meter of a run that has had everything a run can have."""
    meter = Meter(run, 100, Direct(exporter))
    meter.row(whole_row())
    meter.set("checkpoint_duration", 1.5)
    meter.checkpoint()
    meter.scores({"fid_small": 12.5})
    meter.tick()
    return meter


def scrape(exporter: Exporter) -> dict[str, list[tuple[dict[str, str], float]]]:
    """{name: [(labels, value)]} as Prometheus reads it."""
    with urllib.request.urlopen(f"http://{exporter.where()}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def test_every_metric_of_the_lists_reaches_the_exporter_and_nothing_else_does(exporter: Exporter):
    busy_meter(exporter)
    assert sorted(scrape(exporter)) == sorted(EXPORTED)
    assert sorted(line["name"] for line in described()) == sorted(EXPORTED)


def test_units_are_in_the_names():
    endings = {"s": "_seconds", "bytes": "_bytes", "fraction": "_fraction", "steps": "_steps", "1/s": "_per_second"}
    for name, metric in (METRIC_NAMES | RUN_METRICS).items():
        if metric.unit in endings and name != "time":
            assert exported_name(name)[0].endswith(endings[metric.unit]), name


def test_values_terms_scores_and_ages_are_what_the_run_said(exporter: Exporter):
    meter = Meter("run", 100, Direct(exporter))
    meter.row(
        {
            "step": 40,
            "energy_gap": -0.25,
            "loss/cd": 1.0,
            "loss/opt": 2.0,
            "grad_norm/cd": 3.0,
            "time": time.time() - 50,
        }
    )
    meter.scores({"fid_small": 12.5, "energy_gap": 0.5})
    meter.tick()
    seen = scrape(exporter)
    assert seen["ebm_energy_gap"] == [({"run": "run"}, -0.25)]
    assert seen["ebm_loss_term"] == [({"run": "run", "term": "cd"}, 1.0), ({"run": "run", "term": "opt"}, 2.0)]
    assert seen["ebm_grad_norm_term"] == [({"run": "run", "term": "cd"}, 3.0)]
    assert ({"run": "run", "metric": "fid_small"}, 12.5) in seen["ebm_score"]
    assert [seen[name][0][1] for name in ("ebm_step", "ebm_target_steps", "ebm_restarts_total")] == [40, 100, 0]
    ((_, age),) = seen["ebm_row_age_seconds"]
    assert 50 <= age < 110  # it grows by itself until the next row


def test_runs_share_names_and_one_that_ends_takes_its_values_away(exporter: Exporter):
    first, second = busy_meter(exporter, "first"), busy_meter(exporter, "second")
    assert [labels["run"] for labels, _ in scrape(exporter)["ebm_energy_gap"]] == ["first", "second"]
    first.close(diverged=False)
    assert {labels["run"] for values in scrape(exporter).values() for labels, _ in values} == {"second"}
    second.close(diverged=True)  # stays, for the alert
    assert scrape(exporter)["ebm_diverged"] == [({"run": "second"}, 1.0)]


def test_a_run_that_nobody_speaks_for_is_forgotten_in_the_end(exporter: Exporter, monkeypatch: pytest.MonkeyPatch):
    busy_meter(exporter)
    monkeypatch.setattr(exporter_module, "FORGET_S", 0.0)
    assert scrape(exporter) == {}
    assert exporter.runs() == []


def test_rows_come_faster_than_they_are_sent(exporter: Exporter, monkeypatch: pytest.MonkeyPatch):
    sent: list[int] = []
    receiver = Direct(exporter)
    monkeypatch.setattr(receiver, "send", lambda run, samples: sent.append(len(samples)))
    meter = Meter("run", 100, receiver)
    for step in range(50):
        meter.row(whole_row(step))
        meter.tick()
    assert len(sent) <= 2  # the loop takes milliseconds, a busy machine a second


def test_prometheus_finds_the_exporter_by_its_file_which_goes_with_it(tmp_path: Path):
    shown = Exporter(str(tmp_path), host="127.0.0.7")  # as a node of this address
    (entry,) = json.loads((tmp_path / SD_FILE).read_text())
    assert entry["targets"] == [f"127.0.0.7:{shown._server.server_port}"]
    assert shown._server.server_address[0] == "127.0.0.7"  # and on no other address
    shown.close()
    assert list(tmp_path.iterdir()) == []


def test_the_deployed_scrape_configuration_is_the_generated_one():
    assert (ROOT / "deploy/prometheus/prometheus.yml").read_text() == scrape_config()
    assert f"/tmp/ray/{SD_FILE}" in scrape_config()
    assert f"/other/{SD_FILE}" in scrape_config("/other/")


def expressions() -> dict[str, str]:
    """{title: query} of the dashboard, and the expressions of the alerts by name."""
    board = json.loads((ROOT / "deploy/grafana/ebm.json").read_text())
    queries = {f"{p['title']} {t['refId']}": t["expr"] for p in board["panels"] for t in p["targets"]}
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    return queries | dict(re.findall(r"alert: (\w+)\n(?:\s*#.*\n)*\s*expr: (.*)", alerts))


def test_the_dashboard_and_the_alerts_ask_for_names_that_exist_and_leave_none_out(exporter: Exporter):
    busy_meter(exporter)
    live = set(scrape(exporter))
    asked = {title: set(re.findall(r"\bebm_\w+", query)) for title, query in expressions().items()}
    assert len(asked) >= 25
    for title, names in asked.items():
        assert names <= live, title
    assert set().union(*asked.values()) == live


def test_each_alert_has_a_test_of_its_own_and_a_place_in_the_runbook():
    alerts = {name for name in expressions() if re.fullmatch(r"Ebm[A-Za-z]+", name)}
    assert len(alerts) == 7
    tests = (ROOT / "deploy/prometheus/alerts_test.yml").read_text()
    runbook = (ROOT / "docs/operate.md").read_text()
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\s+exp_alerts:\n", tests), alert
        assert f"### {alert}" in runbook


def test_an_unwatched_run_costs_nothing():
    meter = Meter("run", 100, None)
    meter.row(whole_row())
    meter.tick()
    meter.close(diverged=True)
    assert SEND_EVERY_S > 0


def test_values_travel_without_a_class_of_ours_so_that_an_exporter_with_older_code_reads_them(exporter):
    sent = plain(busy_meter(exporter).samples())
    assert len(sent) > 20
    assert {type(sample) for sample in sent} == {tuple}
    assert b"orchestrator" not in pickle.dumps(sent)
    exporter.update("run", sent)
    assert scrape(exporter)["ebm_step"]


class Deaf:
    """An exporter's actor that cannot read what it is sent."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[object, ...]]] = []
        self.update = self

    def remote(self, run: str, samples: list[tuple[object, ...]]) -> int:
        self.sent.append(samples)
        return len(self.sent) - 1


def test_what_an_exporter_could_not_read_is_said_once_and_ends_the_sending(monkeypatch):
    def refused(reference: int) -> None:
        raise ModuleNotFoundError("No module named 'orchestrator.metrics'\nand more")

    actor, notes = Deaf(), []
    monkeypatch.setattr(exporter_module, "open_exporter", lambda find_folder: actor)
    monkeypatch.setattr(exporter_module.ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(exporter_module.ray, "get", refused)
    link = exporter_module.Link(notes.append, lambda: "/nowhere")
    for _ in range(4):
        link.send("run", [])
    assert notes == ["no metrics for Prometheus: ModuleNotFoundError: No module named 'orchestrator.metrics'"]
    assert len(actor.sent) == 2, "the first failure is known when the second is sent"


def test_a_slow_exporter_keeps_nobody_waiting(monkeypatch):
    actor, notes = Deaf(), []
    monkeypatch.setattr(exporter_module, "open_exporter", lambda find_folder: actor)
    monkeypatch.setattr(exporter_module.ray, "wait", lambda refs, timeout: ([], refs))
    monkeypatch.setattr(exporter_module.ray, "get", lambda reference: pytest.fail("waited"))
    link = exporter_module.Link(notes.append, lambda: "/nowhere")
    for _ in range(3):
        link.send("run", [])
    assert len(actor.sent) == 3
    assert notes == []
