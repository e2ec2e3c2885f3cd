"""Two jobs of the same settings for hours: one in peace, one that is hurt every few minutes. They must end the same.

    python -m tests.soak [--minutes 120] [--seed 0] [--every 150]

Both store on one S3 server (moto) through proxies of their own. The faults: kill -9 of a worker, the controller, the
raylet or the driver, a stopped worker, 20 s in which the server answers 503, 20 s in which connections drop, a flipped
bit in the newest checkpoint with a kill after it. A driver that has ended is started again by the same command. Prints
a line for each fault and each minute, at last the verdict: digests of the last checkpoints, logged rows, and whether
memory, file handles, threads and temporary files of the undisturbed job stayed flat. Exit status 1 if anything differs.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ebm_core.profile import profile_step
from orchestrator.settings.job import core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.interface import StorageError
from tests.faults import FaultProxy, fault_proxy, moto_bucket
from tests.jobs import Job

SETTINGS = [
    "model.widths=8,16,16",
    "sampler.num_steps=10",
    "sampler.generate_steps=10",
    "loss.num_past=100",
    "buffer.capacity=1000",
    "train.batch_size=32",
    "train.log_every=50",
    "evaluation.metrics=energy_gap",
    "evaluation.num_images=16",
    "engine.num_threads=1",
    "cluster.cpus_per_worker=1",
    "cluster.max_failures=50",
]
OUTAGE_S = 20
FLAT = 1.10
"""Most that the last quarter's median may be of the second quarter's, beside a few of each."""


@dataclass
class Side(Job):
    """One of the two jobs, what it is called, and what it holds over time."""

    name: str = ""
    samples: list[dict[str, float]] = field(default_factory=list)

    def sample(self) -> None:
        """What the driver and the worker hold now."""
        row = {"time": time.monotonic()}
        for who, process in (("driver", self.driver and self.driver.pid), ("worker", self.one("ray::RayTrainWorker"))):
            with contextlib.suppress(OSError, KeyError):  # ended, or ending
                folder = Path(f"/proc/{process}")
                status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                row[f"{who} MiB"] = int(status["VmRSS"].split()[0]) / 1024
                row[f"{who} threads"] = int(status["Threads"])
                row[f"{who} handles"] = len(list((folder / "fd").iterdir()))
        row["temporary files"] = sum(1 for path in (self.folder / "t").rglob("*") if path.is_file())
        self.samples.append(row)


def kill(side: Side, *titles: str, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send the signal to such a process, if there is one."""
    process = side.one(*titles)
    with contextlib.suppress(ProcessLookupError):
        if process is not None:
            os.kill(process, number)
            return True
    return False


def kill_driver(side: Side) -> bool:
    """Kill -9 what supervises; the loop starts it again."""
    assert side.driver
    side.driver.kill()
    return True


def outage(proxy: FaultProxy, kind: int | str) -> bool:
    fault = proxy.inject(kind)
    time.sleep(OUTAGE_S)
    proxy.faults.remove(fault)
    return fault.hits > 0


def damage(side: Side, rng: random.Random) -> bool:
    """Flip a bit of a file of the newest checkpoint, and make the job read it."""
    run = side.run
    steps = run.checkpoints()
    if not steps:
        return False
    files = [
        info for info in run.list(f"checkpoints/step-{steps[-1]:09d}/") if info.key.endswith((".safetensors", ".json"))
    ]
    files = [info for info in files if "/attempt-" in info.key]
    chosen = rng.choice(files)
    data = bytearray(run.read_bytes(chosen.key))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    run.store.objects.put(f"run/{chosen.key}", bytes(data))
    return kill(side, "ray::RayTrainWorker")


def growth(samples: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """{what: its medians in the second and the last quarter of the time}."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[3 * quarter :]
    names = sorted({name for row in samples for name in row} - {"time"})
    medians = {}
    for name in names:
        a, b = ([row[name] for row in part if name in row] for part in (early, late))
        if a and b:
            medians[name] = (statistics.median(a), statistics.median(b))
    return medians


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, default=150, help="mean seconds between faults")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, counts = random.Random(asked.seed), Counter()
    root = Path(tempfile.mkdtemp(prefix="soak", dir="/tmp"))
    job = override(job_preset("digits_paper"), SETTINGS)
    torch.set_num_threads(1)
    step_s = profile_step(core_config(job), 20).step_seconds
    steps = max(600, int(0.6 * asked.minutes * 60 / step_s / 100) * 100)
    every = max(50, steps // 200 // 50 * 50)
    settings = [*SETTINGS, f"train.num_steps={steps}", f"checkpoint.every={every}", f"evaluation.every={20 * every}"]
    print(json.dumps({"steps": steps, "checkpoint_every": every, "step_ms": round(1000 * step_s, 1)}), flush=True)
    with moto_bucket("soak") as endpoint, fault_proxy(endpoint) as calm, fault_proxy(endpoint) as rough:
        sides = [
            Side(root / name, f"s3://soak/{name}?endpoint_url={proxy.url}", settings, name=name)
            for name, proxy in (("calm", calm), ("rough", rough))
        ]
        peace, hurt = sides
        faults = {
            "worker killed": lambda: kill(hurt, "ray::RayTrainWorker"),
            "worker stopped": lambda: kill(hurt, "ray::RayTrainWorker", number=signal.SIGSTOP),
            "controller killed": lambda: kill(hurt, "ray::TrainController"),
            "scorer killed": lambda: kill(hurt, "ray::ScoreActor"),
            "raylet killed": lambda: kill(hurt, "raylet"),
            "driver killed": lambda: kill_driver(hurt),
            "server answers 503": lambda: outage(rough, 503),
            "connections drop": lambda: outage(rough, "drop"),
            "bit flipped": lambda: damage(hurt, rng),
        }
        started = time.monotonic()
        try:
            for side in sides:
                side.launch()
            next_fault, minute = time.monotonic() + 60 + rng.expovariate(1 / asked.every), 0
            while any(side.driver and side.driver.poll() != 0 for side in sides):
                time.sleep(5)
                for side in sides:
                    if side.driver and side.driver.poll() is None:
                        side.sample()
                    if side.driver and side.driver.poll() not in (None, 0):
                        print(json.dumps({"ended": side.name, "status": side.driver.returncode}), flush=True)
                        side.launch()
                passed = time.monotonic() - started
                if passed / 60 >= minute + 1:
                    minute = int(passed / 60)
                    at = {side.name: max(side.run.checkpoints(), default=0) for side in sides if side.run.exists()}
                    print(json.dumps({"minute": minute, **at}), flush=True)
                if passed > 3 * asked.minutes * 60:
                    raise TimeoutError("three times the planned time has passed")
                if time.monotonic() >= next_fault and hurt.driver and hurt.driver.poll() is None:
                    name = rng.choice(list(faults))
                    with contextlib.suppress(StorageError):
                        if faults[name]():
                            counts[name] += 1
                            print(json.dumps({"fault": name, "s": round(passed)}), flush=True)
                    next_fault = time.monotonic() + 30 + rng.expovariate(1 / asked.every)
            same = peace.outcome(steps) == hurt.outcome(steps)
        finally:
            for side in sides:
                side.kill()
    medians = growth(peace.samples)
    flat = {name: bool(late <= FLAT * early + 8) for name, (early, late) in medians.items()}
    verdict = {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "faults": dict(counts),
        "launches": {side.name: side.launches for side in sides},
        "same": same,
        "medians of the second and the last quarter": {k: [round(x, 1) for x in v] for k, v in medians.items()},
        "flat": flat,
        "temporary files of the hurt job at its end": hurt.samples[-1]["temporary files"],
    }
    print(json.dumps(verdict, indent=1), flush=True)
    good = same and all(flat.values()) and sum(counts.values()) > 0
    if good:
        shutil.rmtree(root, ignore_errors=True)
    else:
        print(f"logs are in {root}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
