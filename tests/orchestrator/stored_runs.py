"""Runs and sweeps as training leaves them in storage, written by the same functions, with curves of known shape."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebm_core.config import to_tree
from ebm_core.manifest import describe, manifest_bytes
from orchestrator.records.rows import part_bytes, part_name
from orchestrator.settings.job import job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.commits import step_name
from orchestrator.storage.run_store import Run, RunStore
from workers.pictures import grid_png, strip_png
from workers.studies import ood

START = 1_760_000_000.0
"""Wall clock of step 0, seconds since 1970."""


def rows_of(num_steps: int, *, every: int = 10, rate: float = 5.0, broken: bool = False) -> list[dict[str, float]]:
    """Rows of a run at `rate` steps per second; a broken one slides down to a gap of -1."""
    rows = []
    for step in [1, *range(every, num_steps + 1, every)]:
        gap = (
            -1.0 / (1 + math.exp((num_steps / 2 - step) / 20))
            if broken
            else 0.05 * math.sin(step / 7) / (1 + step / 50)
        )
        terms = {"loss/cd": gap, "loss/opt": -0.02, "loss/entropy": 0.1 - step / 1e4, "loss/l2": 0.001 + gap**2}
        row = {"step": step, **terms, "loss": sum(terms.values()), "energy_gap": gap, "running_gap": gap / 2}
        row |= {"grad_norm": 0.1 + 0.3 / step, "buffer_fill": min(1.0, step / 100), "clamped_fraction": 0.4}
        row |= {"buffer_age": step / 2, "time": START + step / rate, "steps_per_s": rate}
        rows.append(row)
    return rows


def digits_grid(seed: int, count: int = 64, size: int = 8, channels: int = 1) -> bytes:
    """A grid of noise images, the worst for any compression."""
    rng = torch.Generator().manual_seed(seed)
    return grid_png(torch.randint(0, 256, (count, channels, size, size), generator=rng, dtype=torch.uint8))


def commit(run: Run, step: int, folder: Path) -> None:
    """A checkpoint that counts as one, with a file that says nothing."""
    attempt = run.new_attempt()
    (folder / "state.json").write_text("{}")
    run.put_checkpoint_file(step, attempt, folder / "state.json")
    run.commit(step, attempt, manifest_bytes(describe(folder, ["state.json"]), step))


def store_run(
    root: Path,
    name: str = "digits-0001",
    *,
    steps: int = 200,
    settings: Sequence[str] = (),
    broken: bool = False,
    studies: bool = True,
    launch: Mapping[str, Any] | None = None,
    grid_size: int = 8,
    channels: int = 1,
) -> Run:
    """A run of `steps` steps (a broken one diverged at the last) with grids and scores at each half."""
    job = override(
        job_preset("digits_paper"), [f"name={name}", f"storage={root}", f"train.num_steps={steps}", *settings]
    )
    run = RunStore(str(root)).run(name)
    run.write_config(to_tree(job))
    run.write_json("provenance.json", {"launches": [dict(launch or first_launch())]})
    rows = rows_of(steps, broken=broken)
    run.write_bytes(f"metrics/{part_name(rows)}", part_bytes(rows))
    scratch = root / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    for step in (steps // 2, steps):
        for suffix, seed in (("", step), ("-ema", step + 1)):
            run.write_bytes(f"samples/{step_name(step)}{suffix}.png", digits_grid(seed, 64, grid_size, channels))
        if not broken or step < steps:
            commit(run, step, scratch)
            document = {"value": 20.0 - step / 50, "heldout": 0.6, "noise": 34.0}
            run.write_json(f"evaluations/{step_name(step)}/fid_small.json", document)
    if broken:
        run.write_bytes(f"diverged/{step_name(steps)}/state.json", b"{}")
    elif studies:
        store_studies(run, steps)
    return run


def first_launch() -> dict[str, Any]:
    """What provenance holds of a launch."""
    return {
        "started": "2025-10-09T08:53:20+00:00",
        "command": ["ebm", "train", "digits_paper"],
        "python": "3.11.2",
        "packages": {"torch": "2.13.0"},
        "hardware": {"machine": "x86_64", "cpus": 4, "gpus": []},
        "data": {"name": "digits", "fingerprint": "0" * 16},
    }


def store_studies(run: Run, step: int) -> None:
    """Energies of three sets with their scores, and two kinds of long chains."""
    rng, folder = np.random.default_rng(0), f"evaluations/{step_name(step)}"
    names = {"heldout": 0.0, "interpolation": 0.4, "noise": 1.5}
    low = dict.fromkeys(ood.COLUMNS, np.zeros(300))
    columns = {name: low | {"energy": rng.normal(mean, 0.3, 300)} for name, mean in names.items()}
    out = io.BytesIO()
    import pyarrow.parquet as pq

    pq.write_table(ood.table(columns, {}), out)
    run.write_bytes(f"{folder}/ood-energies.parquet", out.getvalue())
    one = {"auroc": 0.83, "intervals": {"auroc": [0.8, 0.86]}, "published_auroc": 0.65, "num_images": 300}
    sets = {"interpolation": one, "noise": one | {"auroc": 1.0, "published_auroc": None}}
    run.write_json(f"{folder}/ood.json", {"value": 0.83, "num_inside": 300, "sets": sets})
    times = list(range(0, 210, 10))
    variants = {
        name: {
            "steps": times,
            "fid_small": [30 / (1 + t / 20) + shift for t in times],
            "energy": [-t / 100 for t in times],
        }
        for name, shift in (("plain", 0.0), ("test_time", 2.0))
    }
    run.write_json(f"{folder}/chains.json", {"value": 1.1, "num_chains": 16, "num_steps": 200, "variants": variants})
    states = torch.randint(0, 256, (4, 11, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for name in variants:
        run.write_bytes(f"{folder}/chains-{name}.png", strip_png(states))


def store_sweep(root: Path, name: str = "table2-digits", seeds: int = 2) -> Run:
    """A grid of three rows: the first unstable for every seed, the last unfinished for its last seed."""
    store = RunStore(str(root))
    folder = Run(store, name)

    def choices(opt: str, architecture: str) -> dict[str, str]:
        return {"L_opt": opt, "architecture": architecture}

    rows = [
        {"key": key, "label": label, "settings": [f"loss.kl_weight={kl}"], "choices": has, "paper": paper}
        for key, label, kl, has, paper in (
            ("plain", "none of them", 0, choices("no", "none of them"), {"fid": 253.1, "stable": False}),
            ("opt", "L_opt", 1, choices("yes", "layer normalisation"), {"fid": 59.8, "stable": True}),
            ("strong", "L_opt, twice", 2, choices("yes, twice", "spectral normalisation"), {}),
        )
    ]
    plan = {
        "version": 1,
        "name": name,
        "kind": "grid",
        "title": "Table 2: what each part adds",
        "preset": "digits",
    }
    plan |= {"base": to_tree(job_preset("digits_paper")), "metric": "fid_small", "mode": "min", "rows": rows}
    folder.write_json("sweep.json", plan | {"seeds": list(range(seeds)), "note": "fid_small is not FID."})
    index = 0
    for row in rows:
        for seed in range(seeds):
            trial = f"{row['key']}-s{seed}"
            planned = {"trial": trial, "run": f"{name}-{trial}", "index": index, "row": row["key"], "seed": seed}
            settings = [*row["settings"], f"seed={seed}"]
            folder.write_json(f"planned/{trial}.json", planned | {"settings": settings})
            index += 1
            if row["key"] == "strong" and seed == seeds - 1:
                folder.write_json(f"crashes/{trial}.json", {"reason": "OutOfMemory: no room", "time": "now"})
                continue
            broken = row["key"] == "plain"
            store_run(root, f"{name}-{trial}", steps=100, broken=broken, studies=False, settings=settings)
            folder.write_json(
                f"trials/{trial}.json", _result(trial, f"{name}-{trial}", broken, 10.0 + 4 * index + seed)
            )
    return folder


def _result(trial: str, run: str, broken: bool, value: float) -> dict[str, Any]:
    cost = {"started": "2025-10-09T08:53:20+00:00", "ended": "2025-10-09T08:54:20+00:00", "seconds": 3600.0}
    return {
        "version": 1,
        "trial": trial,
        "run": run,
        "state": "unstable" if broken else "finished",
        "step": 50 if broken else 100,
        "num_steps": 100,
        "reason": "diverged at step 100: lower optimizer.lr" if broken else "",
        "unstable_at": 100 if broken else None,
        "value": value,
        "best": {"step": 50, "value": value - 1},
        "cost": cost | {"train_seconds": 20.0, "cpus": 2, "gpus": 0, "attempts": 1},
    }


def hostile(run: Run, text: str) -> None:
    """Put `text` wherever a file of the run can carry text of a stranger's choice."""
    tree = run.read_config()
    tree["data"]["name"] = tree["storage"] = text
    tree["model"]["kind"] = text
    tree[text] = text
    run.write_config(tree)
    run.write_json(
        "provenance.json", {"launches": [{"command": [text], "packages": {text: text}, text: text, "x": [text]}]}
    )
    run.write_json(f"evaluations/{step_name(200)}/{'odd'}.json", {"value": 1.0, "heldout": text, "noise": text})
    chains = json.loads(run.read_bytes(f"evaluations/{step_name(200)}/chains.json"))
    chains["variants"][text] = chains["variants"]["plain"]
    run.write_json(f"evaluations/{step_name(200)}/chains.json", chains)
