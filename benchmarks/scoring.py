"""`make bench-scoring`: what scoring costs, as ratios of figures measured in turns in one run, one thread a process."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench import Row, medians, print_rows
from ebm_core import checkpoint
from ebm_core.config import from_tree
from ebm_core.data import load
from ebm_core.manifest import describe, manifest_bytes
from ebm_core.trainer import init_state
from orchestrator.records import runs
from orchestrator.settings.job import JobConfig, core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import RunStore
from workers.evaluator import Evaluator
from workers.features.small import SmallFeatures
from workers.metrics.stats import FeatureStats, frechet_distance


def frechet(rounds: int) -> Iterator[Row]:
    """Our distance through symmetric eigendecompositions against the matrix square root that FID code mostly takes."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2048, 2048)) / 45
    a, b = (FeatureStats.from_features(rng.normal(size=(5000, 2048)) @ mixing + shift) for shift in (0.0, 0.1))

    def plain() -> float:
        cov_a, cov_b = a.covariance(), b.covariance()
        root = np.real(sqrtm(cov_a @ cov_b))
        return float(((a.mean - b.mean) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))

    apart = abs(frechet_distance(a, b) / plain() - 1)
    other, ours = medians(rounds, plain, lambda: frechet_distance(a, b))
    note = f"{other:.2f} and {ours:.2f} s at 2,048 dimensions; relative difference {apart:.1e}, to be at most 1e-8"
    yield Row("Frechet distance against scipy.linalg.sqrtm", other / ours, 4.0, note=note)
    yield Row("difference of the two, in units of 1e-8", apart / 1e-8, 1.0, at_most=True)


def merging(rounds: int) -> Iterator[Row]:
    """Folding a shard's statistics into those before it, against the features of that shard."""
    shape = (500, 3, 32, 32)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = SmallFeatures(3)
    part = FeatureStats.from_features(extractor.features(images))
    features, merge = medians(rounds, lambda: extractor.features(images), lambda: part.merge(part))
    note = f"{1e3 * features:.0f} and {1e3 * merge:.2f} ms a shard of 500, the cheapest extractor"
    yield Row("merging a shard against its features", merge / features, 0.01, at_most=True, note=note)


def actors(rounds: int) -> Iterator[Row]:
    """The same request by two actors of one thread and by one, on a warm Ray, actors already open."""
    import ray

    from orchestrator.cluster.connection import start_ray
    from orchestrator.cluster.environment import storage_environment
    from orchestrator.cluster.pool import Pool, PoolRunner
    from orchestrator.evaluation.actors import FetchCheckpoint, new_actor
    from orchestrator.evaluation.evaluate import Evaluation, score
    from orchestrator.settings.job import EvaluationConfig
    from workers.features.weights import Weights

    with tempfile.TemporaryDirectory(prefix="ebm-bench-") as folder:
        job = stored_run(folder, "sampler.generate_steps=20")
        store = RunStore(folder)
        start_ray()
        request = EvaluationConfig(metrics=("fid_small",), num_images=2000)
        fetch = FetchCheckpoint(store.uri, "bench", storage_environment())
        make = partial(
            new_actor, fetch, request, Weights.default(), num_cpus=0
        )  # three on two CPUs; two work at a time
        with Pool(make, 1) as one, Pool(make, 2) as two:
            checkpoint = {"run": store.run("bench"), "step": 1, "trained": job.data}
            runners = [PoolRunner(pool, (1,)) for pool in (one, two)]
            asked = [Evaluation(request=request, seed=0, runner=runner, **checkpoint) for runner in runners]
            alone, together = medians(rounds, lambda: score(asked[0]), lambda: score(asked[1]))
        ray.shutdown()
    note = f"{alone:.1f} and {together:.1f} s for 2,000 digits of 20 steps"
    yield Row("two actors against one, images/s", alone / together, 1.8, note=note)


def memory(rounds: int) -> Iterator[Row]:
    """Largest resident set of a process that scores 10,000 and 1,000 images."""
    peaks = {count: child("memory", str(count))["bytes"] for count in (1000, 10_000)}
    note = ", ".join(f"{count:,} images: {peak / 2**20:.0f} MiB" for count, peak in peaks.items())
    yield Row("memory of scoring 10,000 images against 1,000", peaks[10_000] / peaks[1000], 1.05, True, note)


def beside_training(rounds: int) -> Iterator[Row]:
    """Milliseconds a step of the digits job with one thread, with a scorer on the other core and without."""
    with tempfile.TemporaryDirectory(prefix="ebm-bench-") as folder:
        alone = job_seconds(folder, "alone", "evaluation.every=0")
        scored = job_seconds(folder, "scored", "evaluation.every=50", "evaluation.num_images=1000")
    note = f"{1e3 * alone:.0f} and {1e3 * scored:.0f} ms a step; 1,000 images every 50 steps"
    yield Row("training with scoring beside it against training alone", scored / alone, 1.05, True, note)


def job_seconds(folder: str, name: str, *settings: str) -> float:
    """Median seconds a step of a job's logged rows."""
    common = [
        "train.num_steps=500",
        "train.log_every=10",
        "checkpoint.every=50",
        "cluster.cpus_per_worker=1",
        "evaluation.metrics=energy_gap,fid_small",
    ]
    words = ["train", "digits_paper", f"storage={folder}", f"name={name}", *common, *settings]
    subprocess.run([sys.executable, "-m", "orchestrator.cli", *words], check=True, stdout=subprocess.DEVNULL)
    rows = runs.read_metrics(RunStore(folder).run(name)).to_pylist()
    return float(np.median([1 / row["steps_per_s"] for row in rows[3:]]))


def stored_run(folder: str, *settings: str) -> JobConfig:
    """A run with a checkpoint of an untrained digits energy at step 1, whose samples cost what a trained one's do."""
    job = override(job_preset("digits_paper"), [f"storage={folder}", "name=bench", *settings])
    cfg, run = core_config(job), RunStore(folder).run("bench")
    runs.create(run.store, job, {})
    state = init_state(cfg)
    state.step = 1
    with tempfile.TemporaryDirectory() as temp:
        names = checkpoint.write_shared(state, cfg, Path(temp)) + checkpoint.write_shards(state, Path(temp))
        attempt = run.new_attempt()
        for name in names:
            run.put_checkpoint_file(1, attempt, Path(temp) / name)
        run.commit(1, attempt, manifest_bytes(describe(Path(temp), names), 1))
    return from_tree(JobConfig, run.read_config())


def memory_child(count: str) -> dict[str, float]:
    """Score `count` images of one-step chains with an untrained energy."""
    cfg = core_config(override(job_preset("digits_paper"), ["sampler.generate_steps=1"]))
    evaluator = Evaluator(init_state(cfg).ema, cfg, load(cfg.data, "train"), load(cfg.data, "test"), "none")
    evaluator.score(("fid_small", "energy_gap", "kid_small"), int(count))
    status = Path("/proc/self/status").read_text()  # getrusage's figure starts at the parent's
    return {"bytes": 1024.0 * int(status.split("VmHWM:")[1].split()[0])}


def child(what: str, argument: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scoring", "--child", what, argument]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


SECTIONS = (frechet, merging, actors, memory, beside_training)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="sections: " + ", ".join(s.__name__ for s in SECTIONS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        print(json.dumps(memory_child(options.child[1])))
        return
    start = time.monotonic()
    for section in SECTIONS:
        if not options.only or section.__name__ in options.only:
            print_rows(section(options.rounds))
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
