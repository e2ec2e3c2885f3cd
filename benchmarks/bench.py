"""`make bench`: every figure is a ratio of two medians that were measured in turns in the same run.

The model is the paper's for CIFAR-10 with the published code's normalisation, batch 16. Rows that compile say what the
first call cost.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.baseline import PlainEnergy, PlainTrainer, plain_langevin_step
from benchmarks.roofline import ceilings, draw, layer_groups
from benchmarks.turns import Program, Window, seconds_by_turn, take_turns
from ebm_core.augment import apply_params, augment
from ebm_core.buffer import ReservoirBuffer
from ebm_core.config import BufferConfig, EngineConfig, TrainConfig
from ebm_core.fast.augment import load_native
from ebm_core.fast.engine import keep_freed_memory
from ebm_core.presets import cifar10, digits_paper
from ebm_core.profile import NETWORK, convolution_ceiling, langevin_flops, timed_parts
from ebm_core.rng import Shards, stream
from ebm_core.sampler import chain, langevin_step
from ebm_core.trainer import TrainState, init_state, train_step

ENGINES = {
    "float32": EngineConfig(),
    "float32 compiled": EngineConfig(compile=True, winograd=True),
    "bfloat16 compiled": EngineConfig(compile=True, precision="bfloat16"),
}
BATCH = 16
DIGITS = digits_paper().train
ENDLESS = 10**6


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` is compared with `target`, and with the recorded ratio by `--check`."""

    name: str
    ratio: float
    target: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> str:
        if self.target is None:
            return "-"
        return "yes" if (self.ratio <= self.target if self.at_most else self.ratio >= self.target) else "no"


def medians(rounds: int, *functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function, called in turns; the first call of each is not counted."""
    times: list[list[float]] = [[] for _ in functions]
    for i in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if i:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def published(engine: EngineConfig, **sections) -> TrainConfig:
    """The CIFAR-10 run with instance normalisation, batch 16, buffer of 1000."""
    cfg = cifar10()
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, norm="instance"),
        train=dataclasses.replace(cfg.train, batch_size=BATCH),
        buffer=BufferConfig(capacity=1000),
        engine=engine,
        **sections,
    )


def images(cfg: TrainConfig) -> torch.Tensor:
    """A batch of smooth random images: the time of a step does not depend on what they show."""
    return torch.rand((cfg.train.batch_size, *cfg.image_shape), generator=torch.Generator().manual_seed(0))


def langevin_and_steps(rounds: int) -> Iterator[Row]:
    """Langevin step, whole step, share outside the network and cost of the KL terms, per engine."""
    cfg = published(EngineConfig())
    x = images(cfg)
    trainer = PlainTrainer(cfg, init_state(cfg).model)
    noise = torch.randn(x.shape)
    ceiling = {precision: convolution_ceiling(torch.device("cpu"), precision) for precision in ("float32", "bfloat16")}
    for name, engine in ENGINES.items():
        cfg = published(engine)
        state = init_state(cfg)
        start = time.perf_counter()
        train_step(state, x, cfg)
        first = time.perf_counter() - start
        _, frozen = state.engine.chain_energies(None, "last")
        rng = torch.Generator().manual_seed(0)
        plain, ours = medians(
            max(rounds, 15),
            lambda: plain_langevin_step(trainer.energy, x, cfg.sampler, noise),
            lambda frozen=frozen, cfg=cfg: langevin_step(frozen, x, cfg.sampler, rng),
        )
        flops = langevin_flops(state, cfg)
        reached = flops / ours / ceiling[engine.precision]
        target = {"float32 compiled": 1.9, "bfloat16 compiled": 3.2}.get(name)
        note = f"{1e3 * plain:.0f} and {1e3 * ours:.0f} ms; {reached:.0%} of a convolution's rate"
        yield Row(f"Langevin step, {name}", plain / ours, target, note=note)

        no_kl = dataclasses.replace(cfg, loss=dataclasses.replace(cfg.loss, kl_weight=0.0, entropy_weight=0.0))
        state_off = init_state(no_kl)

        def ours_step(state: TrainState = state, cfg: TrainConfig = cfg) -> None:
            train_step(state, x, cfg)

        plain, ours, off = medians(
            rounds, lambda: trainer.step(x), ours_step, lambda s=state_off, c=no_kl: train_step(s, x, c)
        )
        parts = timed_parts(ours_step, rounds, state.device)
        target = {"float32 compiled": 1.8, "bfloat16 compiled": 2.9}.get(name)
        note = f"{plain:.2f} and {ours:.2f} s; first step {first:.0f} s"
        yield Row(f"whole step, {name}", plain / ours, target, note=note)
        outside = statistics.median(1 - sum(p[k] for k in NETWORK) / sum(p.values()) for p in parts)
        yield Row(f"share outside the network, {name}", outside, 0.03, at_most=True)
        yield Row(f"KL terms on against off, {name}", ours / off, 1.10, at_most=True)


def augmentation(rounds: int) -> Iterator[Row]:
    """Images a second at 32 x 32, as a multiple of the target's 40,000; for compiled engines it is in C++."""
    x, cfg, native = torch.rand(512, 3, 32, 32), cifar10().augment, load_native()
    python, cpp = medians(
        max(rounds, 31), *(lambda f=f: augment(x, cfg, stream(0, 0, "augment"), f) for f in (apply_params, native))
    )
    for name, seconds, target in (("compiled engines", cpp, 1.0), ("other engines", python, None)):
        rate = len(x) / seconds
        note = f"{rate:,.0f} images/s"
        yield Row(f"augmentation, in units of 40,000 images/s, {name}", rate / 40_000, target, note=note)


def against_torchebm(rounds: int) -> Iterator[Row]:
    """Its Langevin sampler on the same energy, steps and batch."""
    import warnings

    warnings.simplefilter("ignore")
    from torchebm import core, samplers

    class Wrapped(core.BaseModel):
        def __init__(self, energy: torch.nn.Module) -> None:
            super().__init__()
            self.energy = energy

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.energy(x)

    for name, target in (("float32 compiled", 1.5), ("bfloat16 compiled", 2.3)):
        cfg = published(ENGINES[name])
        state = init_state(cfg)
        state.engine.refresh()
        x, rng = images(cfg), torch.Generator().manual_seed(0)
        plain = Wrapped(PlainEnergy.copy_of(state.model, cfg.model))
        sampler = samplers.LangevinDynamics(plain, step_size=0.01, noise_scale=0.01, clamp=(0.0, 1.0))
        steps = dataclasses.replace(cfg.sampler, step_size=0.01, temperature=1e-4)
        other, ours = medians(
            rounds,
            lambda s=sampler, x=x: s.sample(x=x.clone(), n_steps=10),
            lambda e=state.engine.frozen, x=x, c=steps, r=rng: chain(e, x, c, r, num_steps=10),
        )
        yield Row(f"against torchebm's sampler, {name}", other / ours, target, note="10 steps")


def peak_memory(rounds: int) -> Iterator[Row]:
    """Memory that a step takes beyond what lay before it, each in a process of its own."""
    plain = _child("memory", "plain")["bytes"]
    for name in ENGINES:
        ours = _child("memory", name)["bytes"]
        note = f"{plain / 2**20:.0f} and {ours / 2**20:.0f} MiB"
        yield Row(f"peak memory of a step, {name}", ours / plain, 0.6, at_most=True, note=note)


def _child(what: str, argument: str, threads: int = 2) -> dict[str, float]:
    done = subprocess.run(_child_command(what, argument, threads), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _child_command(what: str, argument: str, threads: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.bench", "--threads", str(threads), "--child", what, argument]


def memory_child(name: str) -> dict[str, float]:
    """Peak of the resident set during the third step, above what was resident before it (Linux)."""
    import ctypes

    cfg = published(EngineConfig() if name == "plain" else ENGINES[name])
    state, x = init_state(cfg), images(cfg)
    trainer = PlainTrainer(cfg, state.model)
    cfg = dataclasses.replace(cfg, sampler=dataclasses.replace(cfg.sampler, num_steps=4))
    trainer.cfg = cfg

    def step() -> None:
        if name == "plain":
            trainer.step(x)
        else:
            train_step(state, x, cfg)

    step()
    step()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    step()
    return {"bytes": _status("VmHWM") - before}


def _status(key: str) -> float:
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(key)]
    return 1024 * float(line.split()[1])


def roofline(rounds: int) -> Iterator[Row]:
    """The rate of the convolutions as a fraction of a matrix product's, and a picture of every group of layers."""
    cfg, threads = published(EngineConfig()), torch.get_num_threads()
    torch.set_num_threads(1)
    groups, (flops, num_bytes) = layer_groups(init_state(cfg).model, images(cfg), rounds), ceilings(rounds)
    torch.set_num_threads(threads)
    draw(groups, flops, num_bytes, Path("docs/images/roofline.png"))
    for name, members, ceiling in (
        ("convolutions, of a product's or single convolution's rate", [g for g in groups if g.flops], flops),
        ("normalisation and swish, of the memory's rate", [g for g in groups if not g.flops], num_bytes),
    ):
        seconds = sum(g.count * g.seconds for g in members)
        reached = sum(g.count * (g.flops or g.num_bytes) for g in members) / seconds
        note = f"{reached / 1e9:.0f} of {ceiling / 1e9:.0f} G/s, {1e3 * seconds:.0f} ms of processor time, 1 thread"
        yield Row(f"roofline: {name}", reached / ceiling, note=note)


TURN_S, SETTLE_S = 14.0, 2.0


class Contestant(NamedTuple):
    """A program that trains the digits preset: its command, what it prints at its first steps, and its windows."""

    command: list[str]
    started: str
    read: Callable[[Path], list[Window]]


def ray_jobs(rounds: int) -> Iterator[Row]:
    """The digits preset as a job against the bare loop, and two workers against one, in turns of 14 s.

    With one thread Ray's own processes have a core to themselves, on a machine of two; with two they have not.
    """
    with tempfile.TemporaryDirectory(prefix="ebm-bench-") as temp:
        for threads in (2, 1):
            job, bare, start = _in_turns(rounds, _job(temp, 1, threads, 64), _bare(threads), Path(temp))
            name = f"Ray Train job against the bare loop, {threads} thread{'s' * (threads > 1)}"
            note = f"{_of_turns(job, bare)}; {start:.0f} s from launch to the first step"
            yield Row(name, _ratio(job, bare), 1.02, at_most=True, note=note)
        two, one, _ = _in_turns(rounds, _job(temp, 2, 1, 128), _job(temp, 1, 1, 64), Path(temp))
        yield Row("2 workers x 1 thread against 1 x 1, images/s", 2 / _ratio(two, one), 1.9, note=_of_turns(two, one))


def _in_turns(rounds: int, first: Contestant, second: Contestant, temp: Path) -> tuple[list[float], list[float], float]:
    """Seconds of a step in each turn, of the one and of the other; and the seconds that the first took to start."""
    logs = [temp / f"{time.monotonic_ns()}-{i}.log" for i in range(2)]
    with Program(first.command, logs[0]) as a:
        a.await_output(first.started)
        with Program(second.command, logs[1]) as b:
            b.await_output(second.started)
            take_turns(rounds, TURN_S, a, b)
    read = [contestant.read(log) for contestant, log in zip((first, second), logs, strict=True)]
    of_a, of_b = (
        [seconds / DIGITS.log_every for seconds in seconds_by_turn(program.turns, windows, SETTLE_S)]
        for program, windows in zip((a, b), read, strict=True)
    )
    return of_a, of_b, read[0][0].start - a.launched


def _ratio(first: list[float], second: list[float]) -> float:
    """Median of the ratios of neighbouring turns."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def _of_turns(first: list[float], second: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(first, second, strict=True))
    times = f"{1e3 * statistics.median(first):.0f} against {1e3 * statistics.median(second):.0f} ms a step"
    return f"{times}, {ratios[0]:.3f} to {ratios[-1]:.3f} in {len(ratios)} turns"


def bare_child(_: str) -> dict[str, float]:
    """Train without Ray, data included, until stopped, and print when each window of steps began and ended."""
    from ebm_core.data import labelled_batches, load

    cfg = digits_paper()
    state = init_state(cfg)
    start = time.time()
    for x, condition in labelled_batches(
        load(cfg.data, "train"), cfg.train.batch_size, seed=0, start=0, stop=ENDLESS, shards=state.shards
    ):
        train_step(state, x, cfg, condition=condition)
        if state.step % DIGITS.log_every == 0:
            print(f"window {start:.6f} {time.time():.6f}", flush=True)
            start = time.time()
    return {}


def _bare(threads: int) -> Contestant:
    def read(log: Path) -> list[Window]:
        lines = [line.split() for line in log.read_text().splitlines() if line.startswith("window ")]
        return [Window(float(start), float(end)) for _, start, end in lines]

    return Contestant(_child_command("bare", "", threads), "window ", read)


def _job(storage: str, workers: int, threads: int, batch: int) -> Contestant:
    name = f"w{workers}t{threads}-{time.monotonic_ns()}"
    settings = [
        f"train.num_steps={ENDLESS}",
        f"train.batch_size={batch}",
        f"cluster.num_workers={workers}",
        f"cluster.cpus_per_worker={threads}",
        "evaluation.every=0",
        f"checkpoint.every={ENDLESS}",
        f"storage={storage}",
        f"name={name}",
    ]

    def read(_: Path) -> list[Window]:
        from orchestrator.records.rows import read_parts
        from orchestrator.storage.run_store import RunStore

        run = RunStore(storage).run(name)
        rows = read_parts([run.read_bytes(info.key) for info in run.list("metrics/")]).to_pylist()
        ends = sorted((row["step"], row["time"], row["steps_per_s"]) for row in rows)[1:]  # the first is of one step
        return [Window(end - DIGITS.log_every / rate, end) for _, end, rate in ends]

    return Contestant([sys.executable, "-m", "orchestrator.cli", "train", "digits_paper", *settings], "step 1/", read)


def cost_curves(rounds: int) -> Iterator[Row]:
    """Exponents b of seconds = a n^b, by least squares on logarithms."""
    import numpy as np

    def exponent(sizes: list[int], seconds: list[float]) -> float:
        return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])

    def slope_seconds(batch: int = 8, size: int = 32, width: int = 32, steps: int = 1) -> float:
        cfg = cifar10()
        widths = (width, width, 2 * width, 4 * width, 8 * width)
        cfg = dataclasses.replace(
            cfg,
            data=dataclasses.replace(cfg.data, image_size=size),
            model=dataclasses.replace(cfg.model, widths=widths),
            train=dataclasses.replace(cfg.train, batch_size=batch),
        )
        state = init_state(cfg)
        x, rng = images(cfg), torch.Generator().manual_seed(0)
        return medians(rounds, lambda: chain(state.engine.frozen, x, cfg.sampler, rng, num_steps=steps))[0]

    curves = {
        "batch": ([4, 8, 16, 32], lambda n: slope_seconds(batch=n)),
        "image size": ([16, 32, 64, 128], lambda n: slope_seconds(batch=2, size=n)),
        "width": ([16, 32, 64, 128], lambda n: slope_seconds(width=n)),
        "Langevin steps": ([2, 4, 8, 16], lambda n: slope_seconds(width=16, steps=n)),
    }
    for name, (sizes, seconds) in curves.items():
        measured = [seconds(n) for n in sizes]
        note = ", ".join(f"{n}: {1e3 * s:.0f} ms" for n, s in zip(sizes, measured, strict=True))
        yield Row(f"exponent of a chain's time in {name}", exponent(sizes, measured), note=note)

    sizes, measured = [10**3, 10**4, 10**5, 10**6], []
    for capacity in sizes:
        buffer = ReservoirBuffer(capacity, (3, 32, 32), Shards())
        full = {"levels": torch.zeros(capacity, 3, 32, 32, dtype=torch.uint8), "born": torch.zeros(capacity).long()}
        buffer.load_shard_state(
            0, {**full, "conditions": torch.zeros(capacity, 0), "num_seen": torch.tensor([capacity])}
        )
        del full
        x, step = torch.rand(128, 3, 32, 32), iter(range(10**6))

        def use(buffer: ReservoirBuffer = buffer, x: torch.Tensor = x, step: Iterator[int] = step) -> None:
            buffer.num_seen = [2 * buffer.num_slots]  # half of a batch enters, whatever the capacity
            buffer.add(x, stream(0, next(step), "insert"))
            buffer.draw(128, stream(0, next(step), "draw"))

        measured.append(medians(max(rounds, 51), use)[0])
    note = ", ".join(f"{n}: {1e3 * s:.2f} ms" for n, s in zip(sizes, measured, strict=True))
    yield Row("exponent of a buffer operation's time in capacity", exponent(sizes, measured), 0.05, True, note)


SECTIONS = (augmentation, cost_curves, langevin_and_steps, against_torchebm, peak_memory, roofline, ray_jobs)


def main() -> None:
    """Print the table; write JSON; with --check compare with a recorded file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    names = [section.__name__ for section in SECTIONS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    parser.add_argument("--check", type=Path, help="list of reports: fail where a ratio is more than 10 %% worse")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # both sides of every ratio profit
    if options.child:
        print(json.dumps({"memory": memory_child, "bare": bare_child}[options.child[0]](options.child[1])))
        return
    record = recorded(options.check, parser) if options.check else {}
    rows: list[Row] = []
    machine = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "cpu": kind_of_cpu(),
        "torch": torch.__version__,
        "rounds": options.rounds,
    }
    for section in SECTIONS:
        if section.__name__ not in options.only:
            continue
        rows += print_rows(section(options.rounds))
        report = {**machine, "rows": [dataclasses.asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")  # a later section may be stopped
    if options.check:
        sys.exit(check(rows, record["rows"]))


def kind_of_cpu() -> str:
    """What decides the ratios: the widest vectors that PyTorch uses here, and what there is for bfloat16."""
    has = torch.cpu.get_capabilities()
    for_bfloat16 = " with AMX" if has.get("amx_bf16") else " with bfloat16" if has.get("avx512_bf16") else ""
    return torch.backends.cpu.get_cpu_capability() + for_bfloat16


def recorded(path: Path, parser: argparse.ArgumentParser) -> dict:
    """The report of a CPU of this kind among those in `path`, each as `--json` writes it; without one exit status 2."""
    reports = {report["cpu"]: report for report in json.loads(path.read_text())}
    if kind_of_cpu() not in reports:
        parser.error(
            f"{path} has no record of a CPU with {kind_of_cpu()}, only of {', '.join(reports)}: nothing to check"
        )
    return reports[kind_of_cpu()]


def print_rows(measured: Iterable[Row]) -> list[Row]:
    """Each row as a line as soon as it is there; returns them all."""
    rows = []
    for row in measured:
        rows.append(row)
        goal = "" if row.target is None else f"{'<=' if row.at_most else '>='} {row.target:g}"
        print(f"{row.name:<58} {row.ratio:6.3f}  {goal:<8} {row.met:<4} {row.note}", flush=True)
    return rows


def check(rows: list[Row], recorded: list[dict]) -> int:
    """1 if a ratio is more than 10 % worse than the recorded one of that name, or is missing; says which."""
    found, failed = {row.name: row for row in rows}, 0
    for old in recorded:
        row = found.get(old["name"])
        if row is None:
            print(f"missing: {old['name']}")
            failed = 1
        elif row.target is not None:
            worse = row.ratio > 1.1 * old["ratio"] if row.at_most else row.ratio < 0.9 * old["ratio"]
            if worse:
                print(f"worse: {row.name}: {row.ratio:.3f}, recorded {old['ratio']:.3f}")
                failed = 1
    return failed


if __name__ == "__main__":
    main()
