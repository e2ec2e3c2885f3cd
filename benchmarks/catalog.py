"""Seconds that `ebm runs` takes with 10,000 runs, on a folder and on moto's S3 server.

    python -m benchmarks.catalog [--runs 10000] [--uri s3://bucket/prefix]

The runs are as small as a run can be. They are written by threads, then read once without a catalogue (what a rebuild
costs), then listed from it. --uri takes a real server instead of the two.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ebm_core.config import to_tree
from orchestrator.records import catalogue
from orchestrator.records.rows import Row, part_bytes, part_name
from orchestrator.settings.job import job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import RunStore

THREADS = 16


def generate(store: RunStore, count: int) -> None:
    """Finished digits runs of different seeds, each with one part of metrics and one score."""
    base = job_preset("digits_paper")

    def one(index: int) -> None:
        name = f"run-{index:05d}"
        tree = to_tree(override(base, [f"name={name}", f"seed={index}"]))
        objects = store.objects
        steps = base.train.num_steps
        rows: list[Row] = [{"step": steps, "energy_gap": index / count, "time": 1.0, "steps_per_s": 1.0}]
        objects.put(f"{name}/config.json", json.dumps(tree).encode())
        objects.put(f"{name}/checkpoints/step-{steps:09d}/COMMITTED", b"{}")
        objects.put(f"{name}/metrics/{part_name(rows)}", part_bytes(rows))
        objects.put(f"{name}/evaluations/step-{steps:09d}/fid_small.json", b'{"value": %d}' % index)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(count)))


def measure(uri: str, count: int) -> dict[str, float]:
    """Seconds of each stage."""
    store, seconds = RunStore(uri), {}

    def timed(name: str, work: object) -> object:
        started = time.perf_counter()
        result = work()  # pyright: ignore[reportCallIssue]
        seconds[name] = round(time.perf_counter() - started, 2)
        print(f"{name}: {seconds[name]} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        return result

    timed("write the runs", lambda: generate(store, count))
    timed("rebuild the catalogue", lambda: catalogue.rebuild(store))
    table = timed("list from the catalogue", lambda: catalogue.select(catalogue.read(store), sort="-fid_small"))
    assert table.num_rows == count  # pyright: ignore[reportAttributeAccessIssue]
    timed("add one run and list again", lambda: (catalogue.update(store, ["run-00000"]), catalogue.read(store)))
    return seconds


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """A bucket on an S3 server in this process, which checks no signatures."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for each request
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="runs")
    yield f"s3://runs/many?endpoint_url=http://{host}:{port}"
    server.stop()


def main() -> None:
    """Print a line of JSON for each store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--uri", default=None)
    parser.add_argument("--only", choices=("folder", "moto"), default=None)
    asked = parser.parse_args()
    if asked.uri:
        print(json.dumps({"store": "given", "runs": asked.runs, **measure(asked.uri, asked.runs)}))
        return
    if asked.only != "moto":
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"store": "folder", "runs": asked.runs, **measure(folder, asked.runs)}), flush=True)
    if asked.only != "folder":
        with moto_server() as uri:
            print(json.dumps({"store": "moto", "runs": asked.runs, **measure(uri, asked.runs)}), flush=True)


if __name__ == "__main__":
    main()
