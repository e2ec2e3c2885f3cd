"""A small job with secrets in its environment, and then all that this Ray tells about itself, as text on a file.

python secrets_child.py FOLDER STORAGE
"""

import sys
from pathlib import Path
from typing import Any

import ray
from ray._private import state as ray_state
from ray._private import worker
from ray.train.v2._internal.state.state_actor import get_state_actor

from orchestrator.cli import app
from tests.cluster.test_train_job import TINY

NAMESPACES = (None, b"fun", b"cls", b"session", b"job", b"cluster", b"dashboard", b"actor", b"runtime_env", b"package")


def ebm(*words: str) -> None:
    """One command of ours, in this process, on the Ray that it holds."""
    sys.argv = ["ebm", *words]
    app.app(list(words), prog_name="ebm", standalone_mode=False)


def told() -> list[Any]:
    """Jobs, actors, nodes, runtime environments, Train's own account of its runs, the internal key-value store."""
    gcs = worker.global_worker.gcs_client
    kept = {
        (space, key): gcs.internal_kv_get(key, space)
        for space in NAMESPACES
        for key in gcs.internal_kv_keys(b"", space)
    }
    runs = ray.get(get_state_actor().get_train_runs.remote())
    assert runs, "Train says nothing of its runs, so there is nothing to search"
    context = ray.get_runtime_context()
    return [
        [run.model_dump_json() for run in runs.values()],
        ray_state.jobs(),
        ray_state.actors(),
        ray.nodes(),
        context.get_runtime_env_string(),
        worker.global_worker.runtime_env,
        kept,
    ]


def main(folder: Path, storage: str) -> None:
    """Prepare data on the server, train from it, score, report, list; then write what Ray tells."""
    data = storage.replace("/runs", "/data")
    ebm("data", "prepare", "digits", "--to", data)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder / "r"),
    )
    ebm(
        "train",
        "digits",
        *TINY,
        f"storage={storage}",
        f"data.root={data}",
        "name=run",
        "evaluation.every=6",
        "evaluation.metrics=energy_gap",
    )
    ebm("evaluate", "run", "--metrics", "energy_gap", "--storage", storage)
    ebm("report", "run", "--storage", storage, "--out", str(folder / "report.html"))
    ebm("runs", "--storage", storage)
    (folder / "told").write_text(repr(told()))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
