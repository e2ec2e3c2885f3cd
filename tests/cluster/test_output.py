"""What a command writes to its output is its own: Ray's warnings about the cluster do not come between."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray")]

CHILD = """
import threading
from ray._private import worker
from ray._private.utils import push_error_to_driver
from orchestrator.cluster.connection import start_ray

start_ray()
show, came = worker.print_worker_logs, threading.Event()

def watched(*args):
    show(*args)
    came.set()

worker.print_worker_logs = watched
for _ in range(120):  # who subscribes after a warning never hears it, and Ray subscribes in a thread of its own
    push_error_to_driver(worker.global_worker, "a_warning", "a warning by Ray")
    if came.wait(0.5):
        break
print("heard" if came.is_set() else "nothing came")
"""


@pytest.mark.full
def test_warnings_of_the_cluster_do_not_appear_on_our_output(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory(prefix="o", dir="/tmp") as folder:  # where no other Ray of this machine is found
        child = subprocess.run(
            [sys.executable, "-c", CHILD],
            env=environment | {"RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
    assert child.stdout == "heard\n"
