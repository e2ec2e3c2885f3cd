"""One exporter per cluster: a detached actor on the head node that shows the values of all runs to Prometheus.

It serves /metrics and keeps a service-discovery file beside Ray's own. A run's driver sends all of its values each
time and removes them at its end; those of a driver that died stay to be alerted on, and go after FORGET_S.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from orchestrator.monitoring.values import Sample

NAME, NAMESPACE = "ebm-exporter", "ebm"
SD_FILE = "ebm_metrics_service_discovery.json"
PORT_VARIABLE = "EBM_METRICS_PORT"
"""Port on the head node; unset: a free one, found through the service-discovery file."""
FORGET_S = 3600.0


class Exporter(Collector):
    """The values of all runs, over HTTP. Plain, so that tests need no cluster; `open_exporter` makes it an actor."""

    def __init__(self, folder: str, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listens on host:port (0: a free port), nowhere else, and writes `folder`/SD_FILE, which names it."""
        self._runs: dict[str, tuple[float, list[tuple[Any, ...]]]] = {}
        registry = CollectorRegistry()
        registry.register(self)
        self._server, self._thread = start_http_server(port, host, registry)
        self.target = f"{host}:{self._server.server_port}"
        self._file = Path(folder, SD_FILE)
        draft = self._file.with_name(f".{SD_FILE}-{os.getpid()}")
        draft.write_text(json.dumps([{"labels": {"job": "ebm"}, "targets": [self.target]}]))
        draft.replace(self._file)

    def update(self, run: str, samples: Iterable[tuple[Any, ...]]) -> None:
        """Replace all values of a run."""
        self._runs[run] = (time.time(), list(samples))

    def remove(self, run: str) -> None:
        """Forget a run."""
        self._runs.pop(run, None)

    def runs(self) -> list[str]:
        """Names of the runs that are shown."""
        return sorted(self._runs)

    def where(self) -> str:
        """HOST:PORT of /metrics."""
        return self.target

    def close(self) -> None:
        """Stop listening and take the service-discovery file away."""
        self._file.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """What a scrape sees: each name once, with the values of every run under it."""
        now = time.time()
        self._runs = {run: kept for run, kept in self._runs.items() if now - kept[0] < FORGET_S}
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for _, samples in list(self._runs.values()):
            for name, help_, kind, labels, value in samples:
                if name not in families:
                    family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                    families[name] = family(name.removesuffix("_total"), help_, labels=list(labels))
                shown = max(now - value, 0.0) if kind == "age" else value
                families[name].add_metric(list(labels.values()), shown)
        yield from families.values()


def open_exporter(find_folder: Callable[[], str]) -> Any:
    """The cluster's exporter: the one that is there, else a new one on the head node. Waits for nothing.

    find_folder: where Ray keeps its service-discovery file, asked on the head node.
    """
    return (
        ray.remote(_ExporterActor)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
            max_restarts=-1,
            scheduling_strategy="DEFAULT",  # a sweep's trial may ask: not within what it reserved
        )
        .remote(find_folder)
    )


class _ExporterActor(Exporter):
    """The exporter beside Ray's own service-discovery file."""

    def __init__(self, find_folder: Callable[[], str]) -> None:
        port = int(os.environ.get(PORT_VARIABLE) or 0)
        super().__init__(find_folder(), port, ray.util.get_node_ip_address())  # loopback, if Ray is there


def plain(samples: Iterable[Sample]) -> list[tuple[Any, ...]]:
    """The samples as they travel: an exporter runs on with the code that it was started with, which need not know our
    classes by our names for them."""
    return [tuple(sample) for sample in samples]


class Link:
    """What a driver holds of the exporter. Whatever goes wrong there costs the numbers, never the training."""

    def __init__(self, note: Callable[[str], None], find_folder: Callable[[], str]) -> None:
        self._note, self._actor, self._sent = note, None, None
        try:
            self._actor = open_exporter(find_folder)
        except Exception as why:
            self._lost(why)

    def send(self, run: str, samples: list[Sample]) -> None:
        """Pass on a run's values, without waiting. One that the exporter could not read is heard of at the next."""
        if self._actor is not None:
            try:
                if self._sent is None or ray.wait([self._sent], timeout=0)[0]:
                    earlier, self._sent = self._sent, self._actor.update.remote(run, plain(samples))
                    if earlier is not None:
                        ray.get(earlier)
                else:
                    self._actor.update.remote(run, plain(samples))
            except Exception as why:
                self._lost(why)

    def remove(self, run: str) -> None:
        """Take a run's values away, in the order of what was sent before."""
        if self._actor is not None:
            try:
                ray.get(self._actor.remove.remote(run), timeout=10)
            except Exception as why:
                self._lost(why)

    def _lost(self, why: Exception) -> None:
        from ebm_core.errors import kind_and_line  # here, for the exporter itself does without torch

        self._actor = None
        self._note(f"no metrics for Prometheus: {kind_and_line(why)}")
