import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from ebm_core.checkpoint import save
from ebm_core.config import to_tree
from ebm_core.errors import CheckpointError
from ebm_core.trainer import init_state
from workers.actor import evaluator_actor, give_way
from workers.calls import call
from workers.evaluator import Evaluator
from workers.pictures import grid_png


@pytest.fixture
def two_threads():
    """As many as the actor has: the number of threads can change the last bit of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.cluster
def test_an_actor_scores_a_step_as_an_evaluator_here_does_and_hands_errors_over(
    cluster, two_threads, tmp_path, make_settings
):
    cfg = make_settings(model={"widths": [4, 8]}, buffer={"capacity": 64}, engine={"num_threads": 1})
    save(init_state(cfg), cfg, tmp_path / "7")
    copies = tmp_path / "copies"

    def fetch(step: int, folder: str) -> Path:
        if not (tmp_path / str(step)).is_dir():
            raise CheckpointError(f"step {step} is not stored")
        copies.mkdir(exist_ok=True)
        (copies / Path(folder).name).touch()
        return Path(shutil.copytree(tmp_path / str(step), Path(folder) / "checkpoint"))

    actor = evaluator_actor(num_cpus=2).remote(fetch, to_tree(cfg.data))
    assert ray.get(actor.num_threads.remote()) == 2
    found = ray.get(actor.call.remote(7, call(Evaluator.score, ["energy_gap", "fid_small"], 70, 1)))
    png = ray.get(actor.call.remote(7, call(Evaluator.grid_png, 9, 1)))

    here = Evaluator.from_checkpoint(tmp_path / "7")
    assert found == here.score(["energy_gap", "fid_small"], 70, seed=1)
    assert png == grid_png(here.grid(9, seed=1))
    assert np.asarray(Image.open(io.BytesIO(png))).std() > 0
    (copied,) = copies.iterdir()
    assert not (Path(tempfile.gettempdir()) / copied.name).exists()

    with pytest.raises(CheckpointError, match="step 8 is not stored"):
        ray.get(actor.call.remote(8, call(Evaluator.score, ["energy_gap"], 8)))
    assert ray.get(actor.num_threads.remote()) == 2  # alive after an error


@pytest.mark.full
@pytest.mark.cluster
@pytest.mark.parametrize(("num_cpus", "policy"), [(1, "SCHED_OTHER"), (0, "SCHED_IDLE")])
def test_an_actor_beside_training_takes_only_what_training_leaves(cluster, num_cpus, policy):
    actor = evaluator_actor(num_cpus=num_cpus).remote(None)
    assert ray.get(actor.num_threads.remote()) == 1
    found = ray.get(actor.__ray_call__.remote(lambda self: os.sched_getscheduler(0)))
    assert found == getattr(os, policy)


def test_where_the_system_has_no_idle_threads_an_actor_keeps_its_own(monkeypatch):
    before = os.sched_getscheduler(0)
    monkeypatch.delattr(os, "SCHED_IDLE")
    give_way()
    assert os.sched_getscheduler(0) == before
