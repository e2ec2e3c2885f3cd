"""What a sweep costs over its jobs: 8 trials one at a time, and the same 8 jobs one after another, on one warm Ray.

    python -m benchmarks.sweep_overhead [--trials 8] [--steps 600]

Both sides train the same settings from the same seeds, score the last checkpoint, leave pages and catalogue entries,
and run in this process. Half of the jobs come before the sweep and half after it, so that a load that changes slowly
weighs on both sides; one job beforehand warms Ray up and does not count. `ratio` is the figure.

The rest says where the time goes, and hardly depends on the load: `trial_s` sums the trials from their start in their
process to their result, `outside_s` is what the sweep took beside them, `fit` is the median between a trial's first and
last row, `between` from one trial's result to the next one's start.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.cluster import connection
from orchestrator.records import runs
from orchestrator.records.sweeps import StoredSweep, SweepPlan
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import RunStore
from orchestrator.sweeps.driver import run_sweep
from orchestrator.sweeps.plan import SweepRequest, make_plan
from orchestrator.sweeps.search import trial_of_row
from orchestrator.training.driver import run_training
from orchestrator.training.start import resolved

SETTINGS = (
    "model.widths=8,16,16",
    "sampler.num_steps=10",
    "sampler.generate_steps=20",
    "train.batch_size=32",
    "checkpoint.every=100000",  # at the last step alone
    "evaluation.every=100000",
    "evaluation.metrics=energy_gap,fid_small",
    "evaluation.num_images=64",
    "engine.num_threads=1",
    "cluster.cpus_per_worker=1",
)
TARGET = 1.10


def planned(folder: Path, trials: int, steps: int) -> tuple[SweepPlan, JobConfig]:
    """A sweep of one row and so many seeds."""
    file = folder / "overhead.yaml"
    file.write_text("preset: digits_paper\nname: overhead\nmetric: fid_small\nrows:\n- {key: row}\n")
    settings = (*SETTINGS, f"train.num_steps={steps}", f"storage={folder}/runs", f"data.root={folder}")
    return make_plan(str(file), SweepRequest(settings=settings, seeds=trials))


def time_jobs(plan: SweepPlan, base: JobConfig, storage: Path, which: range) -> list[float]:
    """Seconds of each of these jobs, one after another."""
    seconds = []
    for index in which:
        trial = trial_of_row(plan, index)
        job = override(base, [*trial.settings, f"name={trial.run}", f"storage={storage}"])
        started = time.perf_counter()
        run_training(resolved(job))
        seconds.append(time.perf_counter() - started)
    return seconds


def time_sweep(plan: SweepPlan, base: JobConfig, storage: Path) -> tuple[float, StoredSweep]:
    """Seconds of the sweep, and what it stored."""
    started = time.perf_counter()
    stored, number = run_sweep(plan, replace(base, storage=str(storage)), max_concurrent=1)
    assert number is None
    assert all(trial.state == "finished" for trial in stored.trials), stored.trials
    return time.perf_counter() - started, stored


def parts(stored: StoredSweep, storage: Path) -> dict[str, float]:
    """Where the trials' seconds went."""
    store = RunStore(str(storage))
    costs: list[dict[str, Any]] = [trial.result.cost for trial in stored.trials if trial.result]
    begun = [datetime.fromisoformat(cost["started"]).timestamp() for cost in costs]
    ended = [datetime.fromisoformat(cost["ended"]).timestamp() for cost in costs]
    fits = []
    for trial in stored.trials:
        times = runs.read_metrics(store.run(trial.planned.run))["time"].to_pylist()
        fits.append(times[-1] - times[0])
    between = [start - end for end, start in zip(ended, begun[1:], strict=False)]
    found = {"trial_s": math.fsum(cost["seconds"] for cost in costs), "fit": statistics.median(fits)}
    return found | ({"between": statistics.median(between)} if between else {})


def main() -> None:
    """Print a line of JSON, and whether the target is met."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    half = asked.trials // 2
    with tempfile.TemporaryDirectory(prefix="overhead-") as temporary:
        folder = Path(temporary)
        plan, base = planned(folder, asked.trials, asked.steps)
        with connection.ray_session():
            time_jobs(plan, override(base, ["train.num_steps=20"]), folder / "warm", range(1))
            loads = [os.getloadavg()[0]]
            jobs = time_jobs(plan, base, folder / "jobs", range(half))
            loads.append(os.getloadavg()[0])
            whole, stored = time_sweep(plan, base, folder / "sweep")
            loads.append(os.getloadavg()[0])
            jobs += time_jobs(plan, base, folder / "jobs", range(half, asked.trials))
            loads.append(os.getloadavg()[0])
        seconds = {"jobs_s": math.fsum(jobs), "sweep_s": whole} | parts(stored, folder / "sweep")
    ratio = seconds["sweep_s"] / seconds["jobs_s"]
    seconds |= {"outside_s": whole - seconds["trial_s"], "ratio": ratio}
    print(json.dumps({name: round(value, 3) for name, value in seconds.items()} | {"loads": loads}))
    met = "met" if ratio <= TARGET else "not met"
    print(f"a sweep of {asked.trials} trials takes {ratio:.3f} of the time of its jobs; at most {TARGET}: {met}")


if __name__ == "__main__":
    main()
