"""A head and a worker that are started by the commands of deploy/compose are one cluster, for who has the token.

`ebm train` with `cluster.num_workers=4` trains on both.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from ebm_core import checkpoint
from orchestrator.storage.run_store import RunStore

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray")]

SERVICES = yaml.safe_load((Path(__file__).parents[2] / "deploy/compose/compose.yaml").read_text())["services"]
BIN = Path(sys.executable).parent
COUNT = """
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
nodes = [node for node in ray.nodes() if node["Alive"]]
print(len(nodes), int(ray.cluster_resources()["CPU"]))
"""


def command(service: str, ports: dict[str, int], folder: str) -> list[str]:
    """The service's command with other ports, on loopback; the options that it has stay, each of them."""
    words = list(SERVICES[service]["command"])
    assert words[:2] == ["ray", "start"]
    own = {
        "--port": f"{ports['gcs']}",
        "--address": f"127.0.0.1:{ports['gcs']}",
        "--dashboard-port": f"{ports['dashboard']}",
        "--dashboard-host": "127.0.0.1",
        "--metrics-export-port": f"{ports[f'{service} metrics']}",
    }
    if service == "head":
        own["--num-cpus"] = "2"  # the file keeps one for it; with the worker's two there is room for four on both
    changed = [f"{name}={own[name]}" if (name := word.partition("=")[0]) in own else word for word in words[1:]]
    more = ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
    more += [f"--dashboard-agent-listen-port={ports[f'{service} agent']}"]
    more += [f"--ray-client-server-port={ports['client']}"] if service == "head" else []
    more += [f"--temp-dir={folder}"] if service == "head" else []
    return [str(BIN / "ray"), *changed, *more]


def free_ports(*names: str) -> dict[str, int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: s.getsockname()[1] for name, s in zip(names, sockets, strict=True)}
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="two", dir="/tmp"))  # sockets have short names only
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Nodes:
    """The nodes of one cluster, ended with the block."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._ports = free_ports(
            "gcs", "dashboard", "head metrics", "worker metrics", "head agent", "worker agent", "client"
        )
        self.address = f"127.0.0.1:{self._ports['gcs']}"
        self._running: list[subprocess.Popen] = []

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._running):
            node.send_signal(signal.SIGTERM)
        for node in reversed(self._running):
            node.wait(timeout=60)

    def start(self, service: str) -> None:
        """Start a node and wait until it is part of the cluster. Ray gives up on itself after 30 s: three attempts."""
        said = ""
        for attempt in range(3):
            log = self._folder / f"{service}-{attempt}.log"
            words = command(service, self._ports, str(self._folder / "r"))
            with log.open("w") as out:
                node = subprocess.Popen(
                    words, env=self._environment, stdout=out, stderr=out, start_new_session=True, text=True
                )
            deadline = time.monotonic() + 90
            while node.poll() is None and time.monotonic() < deadline:
                if "block forever" in log.read_text():
                    self._running.append(node)
                    return
                time.sleep(0.3)
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()
            said = log.read_text()
        raise AssertionError(said)


TINY = [
    "model.widths=4,8,8",
    "sampler.num_steps=3",
    "loss.num_past=20",
    "buffer.capacity=40",
    "train.batch_size=8",
    "train.log_every=1",
    "train.num_steps=2",
    "evaluation.every=0",
    "evaluation.metrics=",
    "engine.num_threads=1",
    "cluster.cpus_per_worker=1",
]


def train_on_both(folder: Path, environment: dict[str, str]) -> None:
    """The command of one machine, with four workers of one CPU each on two nodes of two."""
    words = [
        str(BIN / "ebm"),
        "train",
        "digits_paper",
        *TINY,
        "cluster.num_workers=4",
        f"storage={folder}/runs",
        "name=four",
    ]
    quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    done = subprocess.run(words, env=environment | quick, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    run = RunStore(f"{folder}/runs").run("four")
    stored = checkpoint.read_about(run.fetch_checkpoint(2, folder / "into"))
    assert (stored["step"], stored["num_shards"]) == (2, 8)
    shards = [load_file(path) for path in (folder / "into").rglob("buffer-shard-*")]
    assert [int(shard["num_seen"]) for shard in shards] == [2] * 8  # one sample a shard and step: all workers sampled


@pytest.mark.full
@pytest.mark.timeout(600)
def test_head_and_worker_of_the_compose_file_are_one_cluster_for_who_has_the_token(folder: Path):
    (folder / "token").write_text("0123456789abcdef" * 4)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_AUTH_MODE"] = SERVICES["head"]["environment"]["RAY_AUTH_MODE"]
    environment["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")
    environment["RAY_worker_niceness"] = "0"  # four workers import PyTorch beside whatever else the machine does
    environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"

    def ask(**changes: str) -> subprocess.CompletedProcess[str]:
        own = environment | {"RAY_ADDRESS": nodes.address} | changes
        return subprocess.run(
            [sys.executable, "-c", COUNT], env=own, capture_output=True, text=True, timeout=100, check=False
        )

    with Nodes(folder, environment) as nodes:
        nodes.start("head")
        nodes.start("worker")
        answer = ask()
        assert answer.stdout.split() == ["2", "4"], answer.stderr
        person = {name: value for name, value in environment.items() if name != "RAY_AUTH_MODE"}
        train_on_both(folder, person | {"RAY_ADDRESS": nodes.address})  # has a token and has told nobody to use it
        (folder / "other").write_text("f" * 64)
        stranger = ask(RAY_AUTH_TOKEN_PATH=str(folder / "other"))
        assert stranger.returncode != 0
        assert stranger.stdout == ""
