"""Ray nodes with addresses of their own, in network namespaces on one bridge, to be killed, cut off and slowed down.

Needs root and the `ip` and `tc` of iproute2. The nodes share the file system, so a folder serves as their storage.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
HEAD = "head"
GCS = "10.77.0.10:6379"
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "12",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "10",
}
"""The health checks are those of deploy/kuberay; the two limits of Ray Train are shorter than its own and ours."""
LIST_NODES = """
import json, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(json.dumps({node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}))
"""


def sh(*words: str, check: bool = True) -> str:
    """Standard output of a command; CalledProcessError when it fails."""
    return subprocess.run(words, check=check, capture_output=True, text=True).stdout


class Lab:
    """A head without CPUs for training; workers come and go. Everything ends with the block."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))  # short: a socket's path has 107 characters
        self._tag = f"e{os.getpid() % 100000}"
        self._bridge = f"{self._tag}b"
        self._numbers: dict[str, int] = {}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        token = self.folder / "token"
        token.write_text("0123456789abcdef" * 4)
        own = {
            "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": GCS,
            "OMP_NUM_THREADS": "1",
        }
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | HEALTH | own | {"PATH": path, "PYTHONPATH": str(ROOT)}

    def __enter__(self) -> "Lab":
        sh("ip", "link", "add", self._bridge, "type", "bridge")
        sh("ip", "link", "set", self._bridge, "up")
        try:
            self.start(HEAD, cpus=0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._numbers):
            self.kill(name)
            sh("ip", "netns", "del", self._space(name), check=False)
        sh("ip", "link", "del", self._bridge, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str, cpus: int = 1) -> None:
        """Start a node, in its old place if it had one, and wait until it is part of the cluster."""
        if name not in self._numbers:
            self._plug_in(name)
        address = f"10.77.0.{10 + self._numbers[name]}"
        words = ["ray", "start", "--block", "--disable-usage-stats", f"--node-ip-address={address}"]
        words += [f"--num-cpus={cpus}", "--object-store-memory=100000000"]
        if name == HEAD:
            words += ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self.folder}/r"]
        else:
            words += [f"--address={GCS}"]
        log = self.folder / f"{name}.log"
        said = ""
        for _ in range(3):  # on a busy machine Ray gives up on itself after 30 s
            with log.open("wb") as out:
                environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
                self._nodes[name] = subprocess.Popen(
                    self._inside(name, words), env=environment, stdout=out, stderr=out, start_new_session=True
                )
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: "block forever" in log.read_text() or self.has_ended(name), 90)
            said = log.read_text()
            if "block forever" in said:
                return
            self.kill(name)
        raise AssertionError(said)

    def has_ended(self, name: str) -> bool:
        """Whether the node's `ray start` has gone, as it does when the cluster has given the node up."""
        return name not in self._nodes or self._nodes[name].poll() is not None

    def kill(self, name: str) -> None:
        """Kill -9 everything that runs on the node, at once, and wait for its end."""
        while found := sh("ip", "netns", "pids", self._space(name), check=False).split():
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            time.sleep(0.1)
        if node := self._nodes.pop(name, None):
            node.wait()

    def processes(self, title: str) -> list[int]:
        """Ids of those whose title begins with this, or whose program is called so, node by node."""
        found = []
        for name in self._numbers:
            for process in sh("ip", "netns", "pids", self._space(name), check=False).split():
                with contextlib.suppress(OSError):
                    program = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0].decode()
                    if program.startswith(title) or Path(program).name == title:
                        found.append(int(process))
        return found

    def cut(self, name: str) -> None:
        """Take the node's cable out: packets are lost in both directions, connections stay open."""
        sh("ip", "link", "set", self._cable(name), "down")

    def heal(self, name: str) -> None:
        """Put the cable back."""
        sh("ip", "link", "set", self._cable(name), "up")

    def slow(self, name: str, rate: str = "2mbit") -> None:
        """So much per second from and to the node, with up to 400 ms in the queue."""
        shape = ["root", "tbf", "rate", rate, "burst", "16kbit", "latency", "400ms"]
        sh("tc", "qdisc", "add", "dev", self._cable(name), *shape)
        sh("tc", "-n", self._space(name), "qdisc", "add", "dev", "eth0", *shape)

    def fast(self, name: str) -> None:
        """End of `slow`."""
        sh("tc", "qdisc", "del", "dev", self._cable(name), "root")
        sh("tc", "-n", self._space(name), "qdisc", "del", "dev", "eth0", "root")

    def drain(self, name: str, seconds: int) -> None:
        """Tell Ray that the node will be taken away after so many seconds, as a cloud's preemption notice does."""
        address = f"10.77.0.{10 + self._numbers[name]}"
        nodes = json.loads(self.on_head("python", "-c", LIST_NODES).splitlines()[-1])
        node = nodes[address]
        self.on_head(
            *("ray", "drain-node", "--address", GCS, "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)),
        )

    def on_head(self, *words: str) -> str:
        """Standard output of a command on the head."""
        done = subprocess.run(
            self._inside(HEAD, words), env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def popen(self, words: list[str], log: Path) -> "subprocess.Popen[bytes]":
        """A command on the head, in the background."""
        with log.open("wb") as out:
            return subprocess.Popen(
                self._inside(HEAD, words), env=self.environment, stdout=out, stderr=out, cwd=self.folder
            )

    def _plug_in(self, name: str) -> None:
        self._numbers[name] = number = len(self._numbers)
        space, cable = self._space(name), self._cable(name)
        sh("ip", "netns", "add", space)
        sh("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        sh("ip", "link", "set", cable, "master", self._bridge, "up")
        sh("ip", "-n", space, "addr", "add", f"10.77.0.{10 + number}/24", "dev", "eth0")
        sh("ip", "-n", space, "link", "set", "eth0", "up")
        sh("ip", "-n", space, "link", "set", "lo", "up")

    def _inside(self, name: str, words: "list[str] | tuple[str, ...]") -> list[str]:
        return ["ip", "netns", "exec", self._space(name), *words]

    def _space(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _cable(self, name: str) -> str:
        return f"{self._tag}v{self._numbers[name]}"


def wait_until(holds: Callable[[], object], seconds: float, why: Callable[[], str] = lambda: "") -> float:
    """Seconds until it held; TimeoutError with `why` if it did not."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > seconds:
            raise TimeoutError(why())
        time.sleep(0.1)
    return time.monotonic() - started
