"""A head and a worker that are started by the commands of deploy/compose are one cluster, for who has the token."""

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


def test_head_and_worker_of_the_compose_file_are_one_cluster_for_who_has_the_token(folder: Path):
    (folder / "token").write_text("0123456789abcdef" * 4)
    ports = free_ports("gcs", "dashboard", "head metrics", "worker metrics", "head agent", "worker agent", "client")
    environment = os.environ | {
        "RAY_AUTH_MODE": SERVICES["head"]["environment"]["RAY_AUTH_MODE"],
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ADDRESS": f"127.0.0.1:{ports['gcs']}",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    nodes: list[subprocess.Popen] = []

    def start(service: str) -> None:
        own = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
        with (folder / f"{service}.log").open("w") as log:
            words = command(service, ports, str(folder / "r"))
            nodes.append(subprocess.Popen(words, env=own, stdout=log, stderr=log, start_new_session=True))

    def ask(**changes: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", COUNT]
        own = environment | changes
        return subprocess.run(words, env=own, capture_output=True, text=True, timeout=100, check=False)

    try:
        start("head")
        wait_for_words(folder / "head.log", nodes[0])
        start("worker")
        wait_for_words(folder / "worker.log", nodes[1])
        answer = ask()
        assert answer.stdout.split() == ["2", "3"], answer.stderr  # one CPU of the head, two of the worker
        (folder / "other").write_text("f" * 64)
        stranger = ask(RAY_AUTH_TOKEN_PATH=str(folder / "other"))
        assert stranger.returncode != 0
        assert stranger.stdout == ""
    finally:
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
        for node in reversed(nodes):
            node.wait(timeout=60)


def wait_for_words(log: Path, node: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while "block forever" not in log.read_text():
        assert node.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)
