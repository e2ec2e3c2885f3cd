"""`ebm sample`: images from the averaged model of a stored run."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ebm_core.checkpoint import load_energy
from ebm_core.data import condition_table, load, num_conditions
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.types import Pixels
from orchestrator.records.scores import find_step
from orchestrator.storage.commits import step_name
from orchestrator.storage.find import open_run
from workers.generate import generate_images
from workers.pictures import grid_png


def draw_grid(
    run_name: str,
    *,
    storage: str = "./runs",
    count: int = 64,
    out: Path | None = None,
    seed: int = 0,
    step: str | int | None = None,
    num_steps: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a PNG grid of `count` samples and return its path.

    `run_name` is a name below `storage`, a folder of a run, or its URI; `step` a stored checkpoint (`best`: by its
    scores; None: the newest sound one); `num_steps` replaces sampler.generate_steps. `say` hears of damaged
    checkpoints. Raises ConfigError for an unknown run or step, CheckpointError when it has no checkpoint.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"`out` {out}: the folder {out.absolute().parent} does not exist")
    run = open_run(run_name, storage)
    with tempfile.TemporaryDirectory(prefix="ebm-sample-") as temp:

        def fetch(at: int) -> tuple[int, Path]:
            return at, run.fetch_checkpoint(at, Path(temp))

        found = run.newest_sound(Path(temp), say) if step is None else fetch(find_step(run, step))
        if found is None:
            raise CheckpointError(f"run {run.uri} has no checkpoint yet")
        png = grid_png(sample_checkpoint(found[1], count, seed, num_steps))
    path = out or Path(f"{run.name}-{step_name(found[0])}.png")
    try:
        path.write_bytes(png)
    except OSError as why:
        raise ConfigError(f"`out` {path}: cannot be written: {why.strerror}") from None
    return path


def sample_checkpoint(folder: Path, count: int, seed: int, num_steps: int | None = None) -> Pixels:
    """`count` images (count c h w), uint8, of a checkpoint's averaged model: the first that its scores judge.

    Data files are read only by a model that is conditional on attributes, whose combinations they give.
    """
    model, cfg = load_energy(folder, "ema")
    if num_steps is not None:
        cfg = replace(cfg, sampler=replace(cfg.sampler, generate_steps=num_steps))
    rows = None
    if cfg.data.condition == "label":
        rows = torch.eye(num_conditions(cfg.data))
    elif cfg.data.condition == "attributes":
        rows = condition_table(load(cfg.data, "train"), cfg.data)
    return generate_images(model, cfg, seed=seed, count=count, rows=rows)
