"""What a worker reads of a checkpoint when it resumes: rank 0 all of it, the others what they need."""

import dataclasses
import tempfile
from pathlib import Path

import pytest

from ebm_core import checkpoint
from ebm_core.config import BufferConfig
from ebm_core.errors import CheckpointError
from ebm_core.manifest import describe, manifest_bytes
from ebm_core.rng import Shards
from ebm_core.trainer import TrainState, fingerprint, init_state, train_step
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.training.group import Group
from orchestrator.training.worker import restore
from tests.ebm_core.tiny import batch, tiny_config

WORKERS = 8
CFG = dataclasses.replace(tiny_config(), buffer=BufferConfig(capacity=40, num_shards=WORKERS))
SHARED = {checkpoint.MODEL, checkpoint.EMA, checkpoint.OPTIMIZER, checkpoint.STATE}


class Counting(FolderStore):
    """A folder that remembers which files were downloaded."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetched: list[str] = []

    def get_file(self, key: str, path: Path) -> None:
        self.fetched.append(key.rpartition("/")[2])
        super().get_file(key, path)


@dataclasses.dataclass(frozen=True)
class Told(Group):
    """A rank that hears this from rank 0."""

    step: int | None = None

    def from_first(self, value):
        return self.step


def stored(folder: Path) -> tuple[Run, Counting, TrainState]:
    """A run with one checkpoint, of a state that has made three steps."""
    state = init_state(CFG)
    for step in range(3):
        train_step(state, batch(step, CFG), CFG)
    objects = Counting(folder)
    run, attempt = RunStore(objects).run("run"), Run.new_attempt()
    with tempfile.TemporaryDirectory() as temp:
        names = checkpoint.write_shared(state, CFG, Path(temp)) + checkpoint.write_shards(state, Path(temp))
        for name in names:
            run.put_checkpoint_file(3, attempt, Path(temp) / name)
        run.commit(3, attempt, manifest_bytes(describe(Path(temp), names), 3))
    return run, objects, state


def resumed(run: Run, rank: int) -> TrainState:
    state = init_state(CFG, seed=99, shards=Shards.of_rank(rank, WORKERS, WORKERS))
    restore(run, state, Told(rank, WORKERS, 3), pytest.fail)
    return state


def test_rank_0_reads_all_files_and_the_others_the_shared_ones_and_their_own(tmp_path: Path):
    run, objects, state = stored(tmp_path / "runs")
    for rank in range(WORKERS):
        objects.fetched.clear()
        again = resumed(run, rank)
        shards = range(WORKERS) if rank == 0 else [rank]
        assert sorted(objects.fetched) == sorted(SHARED | {checkpoint.shard_file(shard) for shard in shards})
        assert again.buffer.num_seen == state.buffer.num_seen[rank : rank + 1]
        again.buffer = state.buffer
        again.shards = state.shards
        assert fingerprint(again) == fingerprint(state)


def test_what_a_rank_needs_is_verified_and_what_it_does_not_need_may_be_anything(tmp_path: Path):
    run, _, _ = stored(tmp_path / "runs")
    (damaged,) = (tmp_path / "runs").rglob(checkpoint.shard_file(5))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    resumed(run, 6)
    with pytest.raises(CheckpointError, match=r"buffer-shard-0005\.safetensors"):
        resumed(run, 5)
