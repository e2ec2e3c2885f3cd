"""`ebm sample`: images from the averaged model of a stored run."""

import tempfile
from pathlib import Path

from ebm_core.errors import CheckpointError, ConfigError
from orchestrator.storage import RunStore
from workers.evaluator import Evaluator
from workers.pictures import grid_png


def draw_grid(
    run_name: str, *, storage: str = "./runs", count: int = 64, out: Path | None = None, seed: int = 0, step: int | None = None
) -> Path:
    """Write a PNG grid of `count` samples and return its path.

    `run_name` is a name below `storage`, a folder of a run, or its URI; `step` a stored checkpoint (None: the newest
    sound one). Raises ConfigError for an unknown run, CheckpointError when it has no such checkpoint.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.absolute().parent} does not exist")
    run = open_run(run_name, storage)
    with tempfile.TemporaryDirectory(prefix="ebm-sample-") as temp:
        found = run.newest_sound(Path(temp)) if step is None else run.fetch(step, Path(temp))
        if found is None:
            raise CheckpointError(f"run {run.name} has no sound checkpoint yet")
        png = grid_png(Evaluator(found.folder).grid(count, seed))
    path = out or Path(f"{run.name}-step-{found.step:09d}.png")
    try:
        path.write_bytes(png)
    except OSError as why:
        raise ConfigError(f"--out {path}: cannot be written: {why.strerror}") from None
    return path


def open_run(name: str, storage: str):
    """The run of that name below `storage`, or at that folder or URI; ConfigError lists what there is."""
    if "://" in name or "/" in name or (not (Path(storage) / name).exists() and Path(name, "config.json").exists()):
        storage, _, name = name.rstrip("/").rpartition("/")
        storage = storage or ("." if "://" not in name else storage)
    store = RunStore(storage)
    known = store.runs()
    if name not in known:
        shown = f"there are {', '.join(sorted(known)[:8])}" if known else "it has no runs"
        raise ConfigError(f"run {name!r} is not in {storage}: {shown}")
    return store.run(name)
