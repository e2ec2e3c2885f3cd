"""What a job of hundreds of workers asks of everything but its GPUs: a real Ray, our driver, workers that sleep.

    python -m benchmarks.control_plane [--ranks 8 64 256] [--stores folder s3] [--processes 16] [--json FILE]

Two parts, for each number of ranks. `actors`: so many bare actors in one placement group, which is what Ray's scheduler
has to do. `jobs`: our own supervisor (`driver._Supervisor`) and Ray Train's controller run workers whose steps are
sleep; what surrounds a step is the code of a real job: `Loop.log`, `Loop.news`, `Loop.save` with the files of a tiny
model, the mailbox, the store, the commit, the exporter.

What is replaced: a training step by sleep; gloo by files in a local folder (`FolderGroup`), so broadcasts cost nothing
here (`benchmarks.exchange` measures them); a process per rank by at most --processes processes whose threads are
ranks, for one of ours needs 0.3 GB. The S3 server is moto's, in its own process, one request at a time, on these cores.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any
from unittest import mock

import psutil
import ray
import ray.train
import torch
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ebm_core.rng import Shards
from ebm_core.trainer import TrainState, init_state
from orchestrator.cluster import connection, environment, ray_internals
from orchestrator.records import rows, runs
from orchestrator.settings.job import JobConfig, core_config, job_preset, parse
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import RunStore
from orchestrator.training import driver, worker
from orchestrator.training.group import Group

RATES: tuple[float | None, ...] = (10, 100, 1000, None)
"""Rows per second that rank 0 tries; None: as fast as it can."""
SHOWN = {
    "driver": "driver",
    "ray::TrainController": "Ray Train's controller",
    "ray::Mailbox": "mailbox",
    "gcs_server": "GCS",
    "raylet": "raylet",
}
"""Processes of the control plane, by the beginning of their title or the name of their program."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One simulated job."""

    ranks: int
    processes: int
    rung_s: float
    """Seconds at each of RATES."""
    saves: int
    folder: str
    """Where its ranks meet, and leave their figures."""
    counts_url: str | None
    """Tells how many requests the S3 server has had."""

    @property
    def ranks_each(self) -> int:
        return self.ranks // self.processes


@dataclasses.dataclass(frozen=True)
class FolderGroup(Group):
    """Exchanges of a save through files, in place of gloo. The news of each step stay with their rank."""

    folder: Path = Path()
    turns: list[int] = dataclasses.field(default_factory=lambda: [0])

    def from_first(self, value: Any) -> Any:
        """Rank 0's value: for a save, every rank waits for the name of the attempt."""
        if isinstance(value, tuple):
            return value
        self.turns[0] += 1
        path = self.folder / f"turn-{self.turns[0]}"
        if self.rank == 0:
            path.with_suffix(".draft").write_text(json.dumps(value))
            path.with_suffix(".draft").replace(path)
            return value
        wait_for(path.exists)
        return json.loads(path.read_text())

    def meet(self) -> None:
        """Until every rank is here, as the start of a process group has it."""
        (self.folder / f"here-{self.rank}").touch()
        wait_for(lambda: len(list(self.folder.glob("here-*"))) == self.size)


def wait_for(condition: Callable[[], bool]) -> None:
    """Ask ten times a second."""
    while not condition():
        time.sleep(0.1)


def simulated_loop(launch: dict[str, Any]) -> None:
    """What each Ray Train worker runs in place of `worker.train_loop_per_worker`: its ranks, in threads."""
    entered = time.time()
    environment.adopt(launch["environment"])
    torch.set_num_threads(1)
    plan = Plan(**launch["plan"])
    job = parse(launch["job"])
    run = RunStore(job.storage).run(str(job.name))
    first = ray.train.get_context().get_world_rank() * plan.ranks_each
    failed: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            simulated_rank(rank, job, run, launch["mailbox"], plan, entered)
        except BaseException as error:  # raised below, where Ray Train hears it
            failed.append(error)

    threads = [threading.Thread(target=one, args=(first + i,), daemon=True) for i in range(plan.ranks_each)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not failed:
        time.sleep(0.1)
    if failed:
        raise failed[0]


def simulated_rank(rank: int, job: JobConfig, run: Any, mailbox: Any, plan: Plan, entered: float) -> None:
    """Meet the others, log at each rate, save so many times; leave the figures."""
    cfg, folder = core_config(job), Path(plan.folder)
    state = init_state(cfg, shards=Shards.of_rank(rank, plan.ranks, cfg.buffer.num_shards))
    rng = torch.Generator().manual_seed(rank)
    state.buffer.add(torch.rand((8, *cfg.image_shape), generator=rng), rng)
    group = FolderGroup(rank, plan.ranks, folder)
    loop = worker.Loop(run, cfg, job, group, mailbox, rows.Recorder(0))
    group.meet()
    if rank == 0:
        mailbox.post.remote("started", 0)
    figures: dict[str, Any] = {"entered": entered, "together": time.time(), "rungs": [], "saves": []}
    for rate in RATES:
        began, step = time.time(), state.step
        while (now := time.time()) < began + plan.rung_s:
            pretended_step(loop, state)
            due = 0.0 if rate is None else began + (state.step - step) / rate - now
            if due > 0 or rank > 0:
                time.sleep(max(due, 0.05 if rank > 0 else 0.0))
        figures["rungs"].append({"rate": rate, "began": began, "ended": time.time(), "rows": state.step - step})
    state.step = 10**6  # the same for all ranks, and beyond what was logged
    for _ in range(plan.saves):
        figures["saves"].append(save_figures(loop, state, plan if rank == 0 else None))
    (folder / f"figures-{rank}.json").write_text(json.dumps(figures))


def pretended_step(loop: worker.Loop, state: TrainState) -> None:
    """What follows a real step."""
    state.step += 1
    loop.log(state.step, dict.fromkeys(rows.METRIC_NAMES.keys() & TERMS, 0.1), state.device)
    loop.news()


TERMS = {"loss", "energy_data", "energy_neg", "energy_gap", "grad_norm"} | {
    "loss/cd", "loss/opt", "loss/entropy", "loss/l2", "clamped_fraction", "buffer_fill", "buffer_age", "running_gap",
}  # fmt: skip
"""Columns that a real step has."""


def save_figures(loop: worker.Loop, state: TrainState, plan: Plan | None) -> dict[str, Any]:
    """Seconds of a save of this rank; of rank 0 (with `plan`) its parts and the store's requests too."""
    state.step = 1000 * (state.step // 1000 + 1)
    parts: dict[str, float] = {}

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args)
            finally:
                parts[name] = time.perf_counter() - began

        return call

    before = requests(plan.counts_url) if plan else {}  # nobody uploads before rank 0 has named the attempt
    with contextlib.ExitStack() as stack:
        if plan:
            stack.enter_context(mock.patch.object(worker, "gather", clocked("gather", worker.gather)))
            for name in ("commit", "retain"):
                stack.enter_context(mock.patch.object(loop.run, name, clocked(name, getattr(loop.run, name))))
        began = time.perf_counter()
        loop.save(state)
        loop.saver.wait()
    after = requests(plan.counts_url) if plan else {}
    made = {method: count - before.get(method, 0) for method, count in after.items()}
    return {"seconds": time.perf_counter() - began, **parts, "requests": made}


def requests(url: str | None) -> dict[str, int]:
    """Requests so far, by method."""
    if url is None:
        return {}
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


class Lag:
    """A display that remembers when each row arrived."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []
        """(when it was made, when it came) of each."""

    def row(self, row: rows.Row) -> None:
        self.rows.append((row["time"], time.time()))

    def note(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    def close(self) -> None: ...


class Sampler:
    """Seconds of processor time of the control plane's processes, every second, and the workers' memory."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, dict[str, float]]] = []
        self.worker_bytes: list[int] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        me = psutil.Process()
        while not self._end.wait(1):
            now = time.time()
            seconds = {"driver": sum(me.cpu_times()[:2]) - time.thread_time()}  # its own work is none of the driver's
            workers = []
            for process in me.children(recursive=True):
                with contextlib.suppress(psutil.Error, IndexError):
                    title = process.cmdline()[0]
                    if title.startswith("ray::RayTrainWorker"):
                        workers.append(process)
                    found = [key for key in SHOWN if title.startswith(key) or Path(title).name == key]
                    if found:
                        seconds[found[0]] = seconds.get(found[0], 0.0) + sum(process.cpu_times()[:2])
            self.samples.append((now, seconds))
            if workers and len(self.samples) % 10 == 0:  # reading it is dear
                with contextlib.suppress(psutil.Error):
                    self.worker_bytes = [process.memory_full_info().uss for process in workers[:4]]

    def shares(self, began: float, ended: float) -> dict[str, float]:
        """Processors that each of SHOWN used between two moments."""
        inside = [sample for sample in self.samples if began <= sample[0] <= ended]
        (start, first), (stop, last) = inside[0], inside[-1]
        return {SHOWN[key]: (last[key] - first.get(key, 0.0)) / (stop - start) for key in SHOWN if key in last}


class Simulation(driver._Supervisor):
    """Our supervisor, with workers that sleep."""

    def __init__(self, job: JobConfig, run: Any, display: Any, plan: Plan) -> None:
        super().__init__(job, run, display, driver.Watcher())
        self._plan = plan

    def _trainer(self, resources: dict[str, float], folder: str) -> Any:
        real = super()._trainer(resources, folder)
        return DataParallelTrainer(
            simulated_loop,
            train_loop_config={**(real.train_loop_config or {}), "plan": dataclasses.asdict(self._plan)},
            scaling_config=dataclasses.replace(real.scaling_config, num_workers=self._plan.processes),
            run_config=real.run_config,
        )


def simulate(plan: Plan, storage: str) -> dict[str, Any]:
    """Run one job; its figures."""
    settings = [
        "model.widths=4,8,8",
        f"buffer.num_shards={plan.ranks}",
        f"buffer.capacity={8 * plan.ranks}",
        f"train.batch_size={plan.ranks}",
        "train.log_every=1",
        f"train.num_steps={10**8}",
        "checkpoint.keep=2",
        "evaluation.every=0",
        "evaluation.metrics=",
        f"cluster.num_workers={plan.ranks}",
        "cluster.cpus_per_worker=1",
        f"name=simulated-{plan.ranks}",
        f"storage={storage}",
    ]
    job = override(job_preset("digits_paper"), settings)
    store = RunStore(storage)
    runs.create(store, job, {})
    display, launched = Lag(), time.time()
    shared = mock.patch.object(driver.connection, "is_shared", return_value=True)  # so that values go to the exporter
    with Sampler() as sampler, shared:
        Simulation(job, store.run(str(job.name)), display, plan).work({"CPU": 1})
    ranks = [json.loads(path.read_text()) for path in Path(plan.folder).glob("figures-*.json")]
    assert len(ranks) == plan.ranks, f"{len(ranks)} of {plan.ranks} ranks came to their end"
    first = json.loads((Path(plan.folder) / "figures-0.json").read_text())
    rungs = [rung | mail_figures(display, rung) for rung in first["rungs"]]
    return {
        "entered_s": max(rank["entered"] for rank in ranks) - launched,
        "together_s": max(rank["together"] for rank in ranks) - launched,
        "rungs": rungs,
        "saves": first["saves"],
        "cpu": sampler.shares(rungs[0]["began"], rungs[0]["ended"]),
        "worker_bytes": statistics.median(sampler.worker_bytes) if sampler.worker_bytes else None,
    }


def mail_figures(display: Lag, rung: dict[str, Any]) -> dict[str, float]:
    """How the rows of a rung came through."""
    mine = [(made, came) for made, came in display.rows if rung["began"] <= made <= rung["ended"]]
    lags = sorted(came - made for made, came in mine)
    passed = len(mine) / max(mine[-1][1] - rung["began"], 1e-9)
    return {"lag_median_s": statistics.median(lags), "lag_most_s": lags[-1], "passed_per_s": passed}


class Bare:
    """An actor that imports nothing of ours."""

    def process(self) -> int:
        return os.getpid()


def bare_actors(count: int) -> dict[str, float]:
    """Seconds to reserve and start so many actors in one placement group, and to call each of them once."""
    began = time.perf_counter()
    group = placement_group([{"CPU": 1}] * count)
    ray.get(group.ready())
    reserved = time.perf_counter() - began
    made: list[Any] = [
        ray.remote(Bare).options(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group, i)).remote()  # pyright: ignore[reportAttributeAccessIssue]
        for i in range(count)
    ]
    processes = ray.get([actor.process.remote() for actor in made])
    started = time.perf_counter() - began
    calls = []
    for _ in range(5):
        began = time.perf_counter()
        ray.get([actor.process.remote() for actor in made])
        calls.append(time.perf_counter() - began)
    held = statistics.median(psutil.Process(process).memory_full_info().uss for process in processes[:8])
    for actor in made:
        ray.kill(actor)
    remove_placement_group(group)
    return {"reserved_s": reserved, "started_s": started, "call_all_s": min(calls), "bytes": held}


@contextlib.contextmanager
def own_ray(cpus: int) -> Iterator[None]:
    """A Ray that believes in so many processors, with a folder of its own; it starts no worker in advance."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: a socket's path has at most 107 characters
    try:
        with ray_internals.loopback():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=200 * 2**20,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
                _system_config={"prestart_worker_first_driver": False},
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def serve() -> None:
    """moto's S3 server until standard input closes; it says its port, and at /-/counts its requests by method."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    moto, lock, counts = DomainDispatcherApplication(create_backend_app), threading.Lock(), Counter()

    def counted(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/-/counts":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(counts).encode()]
        with lock:  # moto looks for a key and stores it in two steps
            counts[environ["REQUEST_METHOD"]] += 1
            return list(moto(environ, start_response))

    class Quiet(MotoRequestHandler):
        def log(self, type: str, message: str, *args: object) -> None: ...

    server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


@contextlib.contextmanager
def opened(kind: str, folder: str) -> Iterator[tuple[str, str | None]]:
    """(URI of an empty store, URL of its counts or None)."""
    if kind == "folder":
        yield f"{folder}/runs", None
        return
    keys = {name: token_hex(16) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}  # moto checks none
    os.environ |= keys | {"AWS_REGION": "us-east-1"}
    words = [sys.executable, "-m", "benchmarks.control_plane", "--serve"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bench", method="PUT")).close()  # a bucket
        try:
            yield f"s3://bench/runs?endpoint_url={endpoint}", f"{endpoint}/-/counts"
        finally:
            server.stdin.close()


def measure(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """All figures for one number of ranks."""
    processes = next(n for n in range(min(count, options.processes), 0, -1) if count % n == 0)
    found: dict[str, Any] = {"ranks": count, "processes": processes, "load_before": os.getloadavg()[0], "jobs": {}}
    with own_ray(count + 8):
        if "actors" in options.parts:
            found["actors"] = bare_actors(count)
        for kind in options.stores if "jobs" in options.parts else ():
            with tempfile.TemporaryDirectory(prefix="ebm-bench-") as folder, opened(kind, folder) as (uri, counts):
                plan = Plan(count, processes, options.seconds, options.saves, folder, counts)
                found["jobs"][kind] = simulate(plan, uri)
    found["load_after"] = os.getloadavg()[0]
    return found


def print_tables(found: list[dict[str, Any]]) -> None:
    """Markdown, as docs/scaling.md has it."""
    print("\n| Ranks | Reserved, s | Started, s | ms an actor | All called, ms | MB an actor |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for one in found:
        if a := one.get("actors"):
            each = 1e3 * a["started_s"] / one["ranks"]
            cells = f"{a['reserved_s']:.1f} | {a['started_s']:.0f} | {each:.0f} | {1e3 * a['call_all_s']:.0f}"
            print(f"| {one['ranks']} | {cells} | {a['bytes'] / 1e6:.0f} |")
    jobs = [(one, kind, job) for one in found for kind, job in one["jobs"].items()]
    print("\n| Ranks in processes | Store | Start, s | Worker, MB | " + " | ".join(SHOWN.values()) + " |")
    print("| --- | --- | ---: | ---: |" + " ---: |" * len(SHOWN))
    for one, kind, job in jobs:
        shares = " | ".join(f"{100 * job['cpu'].get(name, 0.0):.1f} %" for name in SHOWN.values())
        held = f"{(job['worker_bytes'] or 0) / 1e6:.0f}"
        print(f"| {one['ranks']} in {one['processes']} | {kind} | {job['together_s']:.0f} | {held} | {shares} |")
    print("\n| Ranks | Store | Rows/s wanted | made | passed | Lag, median ms | most ms |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for one, kind, job in jobs:
        for rung in job["rungs"]:
            made = rung["rows"] / (rung["ended"] - rung["began"])
            lags = f"{1e3 * rung['lag_median_s']:.0f} | {1e3 * rung['lag_most_s']:.0f}"
            cells = f"{rung['rate'] or 'all'} | {made:.0f} | {rung['passed_per_s']:.0f} | {lags}"
            print(f"| {one['ranks']} | {kind} | {cells} |")
    print("\n| Ranks | Store | Save | Whole, s | gather | commit | retain | Requests | per s | by method |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for one, kind, job in jobs:
        for i, save in enumerate(job["saves"]):
            total = sum(save["requests"].values())
            parts = " | ".join(f"{save.get(name, 0.0):.2f}" for name in ("gather", "commit", "retain"))
            cells = f"{save['seconds']:.2f} | {parts}"
            methods = ", ".join(f"{name} {count}" for name, count in sorted(save["requests"].items()) if count)
            rate = f"{total} | {total / save['seconds']:.0f} | {methods}" if total else "- | - | -"
            print(f"| {one['ranks']} | {kind} | {i + 1} | {cells} | {rate} |")


def main() -> None:
    """Print the tables; with --json, write all figures as well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--stores", nargs="+", choices=("folder", "s3"), default=["folder", "s3"])
    parser.add_argument("--parts", nargs="+", choices=("actors", "jobs"), default=["actors", "jobs"])
    parser.add_argument("--processes", type=int, default=16, help="most processes whose threads are the ranks of a job")
    parser.add_argument("--seconds", type=float, default=10.0, help="at each rate of rows")
    parser.add_argument("--saves", type=int, default=4, help="from the third on, older checkpoints go")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= connection.QUIET_ENV | {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600"
    }  # two cores start few a second
    found = []
    for count in options.ranks:
        found.append(measure(count, options))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{count} ranks: load {found[-1]['load_before']:.1f} to {found[-1]['load_after']:.1f}", flush=True)
    print_tables(found)


if __name__ == "__main__":
    main()
