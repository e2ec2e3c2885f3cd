"""Kill -9 the driver of a small sweep at random moments, and compare what is left with a sweep that nobody killed.

    python -m benchmarks.sweep_kills [--kills 10] [--seed 0]

One sweep runs in peace. Then the same sweep is started again and again in another folder of the same path (which is a
setting, data.root); its driver is killed after a random part of the time that the first took, until it has ended. If
kills are left then, a third folder follows, and so on. All results but their costs, and the digests of all last
checkpoints, must be the same, and no process may stay: 30 s after a kill only Ray's two agents, which wait 60 s for
their dead node before they leave, and in the end none.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ebm_core import checkpoint
from ebm_core.manifest import parse_manifest
from orchestrator.records.sweeps import SweepRecord, without_cost
from orchestrator.storage.run_store import RunStore

SWEEP = """
preset: digits_paper
name: kills
metric: energy_gap
mode: min
settings:
  model.widths: [4, 8, 8]
  sampler.num_steps: 3
  sampler.generate_steps: 4
  loss.num_past: 20
  buffer.capacity: 40
  train.batch_size: 8
  train.log_every: 5
  train.num_steps: 400
  checkpoint.every: 40
  evaluation.every: 200
  evaluation.metrics: [energy_gap]
  evaluation.num_images: 8
  engine.num_threads: 1
seeds: 2
rows:
- {key: plain}
- {key: diverges, settings: {train.energy_limit: 1.0e-9}}
"""
"""Two trials that finish, and two that diverge at their first step."""


def launch(folder: Path) -> subprocess.Popen[bytes]:
    """`ebm sweep` in a process of its own, which starts a Ray of its own."""
    (folder / "kills.yaml").write_text(SWEEP)
    environment = os.environ | {"RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "kills.yaml", f"storage={folder}/runs"]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def outcome(folder: Path) -> dict[str, object]:
    """{trial: its result without cost, and the digests of its last checkpoint's files}."""
    store = RunStore(str(folder / "runs"))
    found: dict[str, object] = {}
    for trial in SweepRecord(store, "kills").read().trials:
        assert trial.result is not None, trial
        run, digests = store.run(trial.planned.run), {}
        if steps := run.checkpoints():
            with tempfile.TemporaryDirectory() as temporary:
                fetched = run.fetch_checkpoint(steps[-1], Path(temporary))
                manifest = parse_manifest((fetched / checkpoint.MANIFEST).read_bytes())
                digests = {entry.name: entry.sha256 for entry in manifest.files}
        found[trial.planned.trial] = {"result": dict(without_cost(trial.result)), "files": digests}
    return found


AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def left_behind(session: int) -> list[str]:
    """Titles of the processes of the session of a driver that is no more."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
    return found


def wait_until_gone(session: int, seconds: float, but: tuple[str, ...] = ()) -> None:
    """Until nothing of the session is left but processes of these titles; AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while left := [title for title in left_behind(session) if title not in but]:
        assert time.monotonic() < deadline, f"{seconds:.0f} s after the driver there are still {left}"
        time.sleep(0.2)


def killed_once(folder: Path, after_s: float) -> tuple[bool | None, int]:
    """Start the sweep and kill its driver: True; False: it ended before in peace, None: otherwise; and its session."""
    process = launch(folder)
    try:
        code = process.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until_gone(process.pid, 30, but=AGENTS)
        return True, process.pid
    return (False if code == 0 else None), process.pid


def main() -> None:
    """Print a line for each launch and a verdict; exit status 1 if anything differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, kills, rounds = random.Random(asked.seed), 0, 0
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        folder = Path(temporary, "sweep")
        folder.mkdir()
        started = time.monotonic()
        assert launch(folder).wait() == 0, (folder / "log.txt").read_text()
        took = time.monotonic() - started
        expected = outcome(folder)
        print(f"in peace: {took:.0f} s, {len(expected)} trials", flush=True)
        while kills < asked.kills:
            rounds += 1
            shutil.rmtree(folder)
            folder.mkdir()
            ended, sessions = False, []
            while not ended:
                after = rng.uniform(0.1, 0.9) * took if kills < asked.kills else 3600.0
                state, session = killed_once(folder, after)
                sessions.append(session)
                kills += state is True
                ended = state is False
                print(f"round {rounds}: {'killed after' if state else 'ended before'} {after:.1f} s", flush=True)
                assert state is not None, (folder / "log.txt").read_text()
            for session in sessions:
                wait_until_gone(session, 120)
            same = outcome(folder) == expected
            print(json.dumps({"round": rounds, "kills so far": kills, "same": same}), flush=True)
            if not same:
                for trial, found in outcome(folder).items():
                    if found != expected[trial]:
                        print(json.dumps({"expected": expected[trial], "found": found}, indent=1, default=str))
                sys.exit(1)
    print(f"{kills} kills in {rounds} sweeps: all results and checkpoints are those of the sweep in peace")


if __name__ == "__main__":
    main()
