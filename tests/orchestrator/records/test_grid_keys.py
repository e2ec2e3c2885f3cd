"""Where sample grids lie: one way to write the step of a key, and one to read it."""

from pathlib import Path

from orchestrator.records.scores import chains_grid_key, ema_grid_key
from orchestrator.reports.pictures import grid_steps
from orchestrator.storage.run_store import RunStore


def test_grids_are_found_under_the_keys_that_are_written(tmp_path: Path):
    run = RunStore(str(tmp_path)).run("r")
    assert (chains_grid_key(500), ema_grid_key(500)) == ("samples/step-000000500.png", "samples/step-000000500-ema.png")
    for step in (1000, 500):
        run.write_bytes(chains_grid_key(step), b"png")
    run.write_bytes(ema_grid_key(500), b"png")
    for stranger in ("step-7.png", "step-000000500.txt", "step-000000900-other.png", "notes.png"):
        run.write_bytes(f"samples/{stranger}", b"x")
    assert grid_steps(run) == ([500, 1000], [500])
