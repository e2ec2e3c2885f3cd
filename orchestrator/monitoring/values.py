"""What a run shows to Prometheus: names with their units, made from telemetry's lists, and the run's present values."""

import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

from orchestrator.records.rows import METRIC_NAMES, RUN_METRICS, MetricName, Row, about_column

Kind = Literal["gauge", "counter", "age"]
SEND_EVERY_S = 1.0
"""Rows come faster than anyone scrapes."""

_SUFFIX = {"": "", "energy": "", "fraction": "fraction", "steps": "steps", "s": "seconds", "bytes": "bytes"}
_SUFFIX |= {"1/s": "per_second", "total": "total"}


class Sample(NamedTuple):
    """One value of a run. The exporter knows no names of ours, so that one exporter serves runs of any version."""

    name: str
    help: str
    kind: Kind
    """`age`: the value is a time since 1970, and what is shown is the seconds that have passed since."""
    labels: dict[str, str]
    value: float


def exported_name(name: str) -> tuple[str, dict[str, str]]:
    """(name for Prometheus with its unit, labels) of a column of METRIC_NAMES or an entry of RUN_METRICS.

    Terms of the loss (`loss/<term>`) share one name, their gradient norms another: the label `term` tells them apart.
    Energies have no unit.
    """
    prefix, slash, term = name.partition("/")
    if slash:
        return f"ebm_{prefix}_term", {"term": term}
    if name == "steps_per_s":
        return "ebm_steps_per_second", {}
    suffix = _SUFFIX[_about(name).unit]
    return f"ebm_{name}" if not suffix or name.endswith(suffix) else f"ebm_{name}_{suffix}", {}


def _about(name: str) -> MetricName:
    return RUN_METRICS[name] if name in RUN_METRICS else about_column(name)


EXPORTED: tuple[str, ...] = tuple(
    dict.fromkeys(exported_name(name)[0] for name in (*METRIC_NAMES, *RUN_METRICS) if name != "time")
)
"""Every name that a run can have at the exporter."""


class Receiver(Protocol):
    """Where the values of a run go."""

    def send(self, run: str, samples: list[Sample]) -> None: ...
    def remove(self, run: str) -> None: ...


class Meter:
    """The present values of one run. Each time all of them are sent: a restarted exporter knows them again at once."""

    def __init__(self, run: str, num_steps: int, receiver: Receiver | None) -> None:
        """receiver None: nobody watches."""
        self._run, self._receiver = run, receiver
        now = time.time()
        self._row: Row = {}
        self._facts: dict[str, float] = {"step": 0, "target": num_steps, "row_age": now, "checkpoint_age": now}
        self._facts |= {"evaluation_failures": 0, "restarts": 0, "diverged": 0}
        self._scores: dict[str, float] = {}
        self._sent_at = 0.0

    def row(self, row: Row) -> None:
        """A logged step."""
        self._row = row
        self._facts |= {"step": row["step"], "row_age": row["time"]}

    def started(self, step: int) -> None:
        """The workers begin, or begin again, behind this step."""
        self._facts |= {"step": step, "row_age": time.time()}

    def checkpoint(self) -> None:
        """One was committed."""
        self._facts["checkpoint_age"] = time.time()

    def set(self, name: str, value: float) -> None:
        """A fact of RUN_METRICS."""
        self._facts[name] = value

    def scores(self, scores: Mapping[str, float]) -> None:
        """Headlines by score."""
        self._scores.update(scores)

    def tick(self) -> None:
        """Send what there is, if it is time to."""
        if self._receiver is not None and time.monotonic() - self._sent_at >= SEND_EVERY_S:
            self._sent_at = time.monotonic()
            self._receiver.send(self._run, self.samples())

    def close(self, diverged: bool) -> None:
        """The run has ended: its values go, but those of a diverged one stay a while for the alert."""
        if self._receiver is None:
            return
        if diverged:
            self._facts["diverged"] = 1
            self._receiver.send(self._run, self.samples())
        else:
            self._receiver.remove(self._run)

    def samples(self) -> list[Sample]:
        """All values, with the label `run`."""
        row = {name: value for name, value in self._row.items() if name not in ("step", "time")}
        facts = self._facts | {"report_age": time.time()}
        found = [self._sample(name, value) for name, value in (row | facts).items()]
        return found + [self._sample("score", value, {"metric": name}) for name, value in self._scores.items()]

    def _sample(self, name: str, value: float, labels: Mapping[str, str] = {}) -> Sample:
        exported, own = exported_name(name)
        is_age = name in RUN_METRICS and name.endswith("_age")
        kind: Kind = "counter" if exported.endswith("_total") else "age" if is_age else "gauge"
        help_ = _about(name).help
        return Sample(exported, help_, kind, {"run": self._run, **own, **labels}, value)


def scrape_config(temp_dir: str = "/tmp/ray", rules: str = "alerts.yml") -> str:
    """A Prometheus configuration that finds this Ray's nodes and its exporter by the files that they write."""
    jobs = {"ray": "prom_metrics_service_discovery.json", "ebm": "ebm_metrics_service_discovery.json"}
    lines = [
        "# Made by `ebm metrics config`.",
        "global:",
        "  scrape_interval: 10s",
        "  evaluation_interval: 10s",
        f"rule_files: [{rules}]",
        "scrape_configs:",
    ]
    for job, file in jobs.items():
        lines += [
            f"  - job_name: {job}",
            "    file_sd_configs:",
            f"      - files: [{temp_dir.rstrip('/')}/{file}]",
            "        refresh_interval: 10s",
        ]
    return "\n".join(lines) + "\n"


def described() -> list[dict[str, Any]]:
    """Every exported name once, with its meaning: for `ebm metrics list`."""
    names = [name for name in (*METRIC_NAMES, *RUN_METRICS) if name != "time"]
    texts: dict[str, list[str]] = {}
    for name in names:
        texts.setdefault(exported_name(name)[0], []).append(_about(name).help)
    return [{"name": name, "help": "; ".join(helps)} for name, helps in texts.items()]
