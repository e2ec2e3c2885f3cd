"""A checkpoint is exact, whole, and says what is wrong with it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ebm_core.checkpoint import load, load_energy, save, write_shards, write_shared
from ebm_core.config import BufferConfig, LossConfig, ModelConfig
from ebm_core.errors import CheckpointError
from ebm_core.manifest import describe, manifest_bytes
from ebm_core.rng import Shards
from ebm_core.trainer import fingerprint, init_state, train_step
from tests.ebm_core.tiny import batch, step_together, tiny_config


def advance(state, cfg, num_steps):
    return [train_step(state, batch(state.step, cfg), cfg) for _ in range(num_steps)]


@pytest.fixture
def saved(tmp_path):
    cfg = tiny_config()
    state = init_state(cfg)
    advance(state, cfg, 4)
    save(state, cfg, tmp_path / "checkpoint")
    return cfg, state, tmp_path / "checkpoint"


def test_resuming_is_bit_identical_to_never_stopping(saved):
    cfg, state, folder = saved
    resumed = init_state(cfg, seed=99)  # whatever it held is replaced
    load(resumed, folder)
    assert fingerprint(resumed) == fingerprint(state)
    assert advance(resumed, cfg, 4) == advance(state, cfg, 4)
    assert fingerprint(resumed) == fingerprint(state)


def test_an_untrained_state_can_be_saved_and_loaded(tmp_path):
    cfg = tiny_config()
    state, again = init_state(cfg), init_state(cfg, seed=5)
    save(state, cfg, tmp_path / "zero")
    load(again, tmp_path / "zero")
    assert fingerprint(again) == fingerprint(state)


def test_shards_move_whole_between_world_sizes(tmp_path):
    cfg = tiny_config()
    one = init_state(cfg)
    advance(one, cfg, 4)
    save(one, cfg, tmp_path / "one")
    two = [init_state(cfg, shards=Shards.of_rank(rank, 2, 4)) for rank in range(2)]
    for worker in two:
        load(worker, tmp_path / "one")
    together = tmp_path / "two"
    together.mkdir()
    names = write_shared(two[0], cfg, together) + [n for worker in two for n in write_shards(worker, together)]
    (together / "MANIFEST.json").write_bytes(manifest_bytes(describe(together, names), 4))
    again = init_state(cfg)
    load(again, together)
    assert fingerprint(again) == fingerprint(one)


def elastic(cfg, plan, folder):
    """The state, on one worker, after `plan`: (workers, steps) pairs with a checkpoint between them."""
    folder.mkdir()
    step, stored = 0, None
    for index, (size, num_steps) in enumerate(plan):
        workers = [init_state(cfg, shards=Shards.of_rank(rank, size, cfg.buffer.num_shards)) for rank in range(size)]
        for worker in workers:
            if stored is not None:
                load(worker, stored)
        for _ in range(num_steps):
            step_together(workers, batch(step, cfg), cfg)
            step += 1
        stored = folder / str(index)
        stored.mkdir()
        names = write_shared(workers[0], cfg, stored) + [n for worker in workers for n in write_shards(worker, stored)]
        (stored / "MANIFEST.json").write_bytes(manifest_bytes(describe(stored, names), step))
    state = init_state(cfg)
    load(state, stored)
    return state


def test_an_elastic_run_is_the_run_of_one_worker_but_for_rounding_and_repeats_exactly(tmp_path):
    # Without L_ent, whose past samples are each worker's own: everything else is a mean over the global batch.
    cfg = tiny_config(loss=LossConfig(entropy_weight=0.0))
    plan = [(2, 2), (1, 2), (4, 1), (2, 2)]
    moved = elastic(cfg, plan, tmp_path / "moved")
    assert fingerprint(elastic(cfg, plan, tmp_path / "again")) == fingerprint(moved)
    still = elastic(cfg, [(1, 7)], tmp_path / "still")
    assert moved.step == still.step == 7
    assert moved.buffer.num_seen == still.buffer.num_seen  # nothing dropped, nothing counted twice
    for ours, theirs in zip(moved.model.parameters(), still.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    for shard in range(cfg.buffer.num_shards):
        ours, theirs = (
            load_file(folder / f"buffer-shard-{shard:04d}.safetensors")
            for folder in (tmp_path / "moved" / "3", tmp_path / "still" / "0")
        )
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            apart = (tensor.double() - theirs[name].double()).abs()
            assert (apart > 1).sum() <= 1e-3 * apart.numel(), (shard, name)  # levels of 0 to 255, ages, counts


def test_every_damaged_or_missing_file_is_named(saved, tmp_path):
    cfg, _, folder = saved
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) == 4 + 4 + 1  # shared, buffer shards, manifest
    for name in names:
        for damage in ("flip", "truncate", "delete"):
            copy = tmp_path / f"{name}-{damage}"
            shutil.copytree(folder, copy)
            content = bytearray((copy / name).read_bytes())
            if damage == "flip":
                content[len(content) // 2] ^= 1
                (copy / name).write_bytes(content)
            elif damage == "truncate":
                (copy / name).write_bytes(content[:-1])
            else:
                (copy / name).unlink()
            state = init_state(cfg)
            before = fingerprint(state)
            with pytest.raises(CheckpointError) as caught:
                load(state, copy)
            assert name in str(caught.value) or name == "MANIFEST.json"
            assert fingerprint(state) == before


@pytest.mark.parametrize("which", ["ema", "model"])
def test_an_energy_can_be_loaded_alone(saved, which):
    _, state, folder = saved
    energy, cfg = load_energy(folder, which)
    x = batch(0, cfg)
    torch.testing.assert_close(energy(x), getattr(state, which)(x).detach(), rtol=0, atol=0)
    assert not any(p.requires_grad for p in energy.parameters())


def test_another_model_or_shard_count_is_refused(saved):
    _, _, folder = saved
    wider = ModelConfig(
        kind="plain", widths=(4, 8, 16), norm="none", attention=False, multiscale=False, standardize_weights=False
    )
    with pytest.raises(CheckpointError, match="this model needs"):
        load(init_state(tiny_config(model=wider)), folder)
    with pytest.raises(CheckpointError, match=r"buffer.num_shards = 4, this run has 2"):
        load(init_state(tiny_config(buffer=BufferConfig(capacity=40, num_shards=2))), folder)


@pytest.mark.parametrize("change", [{"format": 2}, {"step": -1}, {"step": "4"}, {"monitor": None}, {"config": []}])
def test_a_state_file_of_another_form_is_refused(saved, change):
    cfg, _, folder = saved
    about = json.loads((folder / "state.json").read_text()) | change
    (folder / "state.json").write_text(json.dumps(about))
    names = [p.name for p in folder.iterdir() if p.name != "MANIFEST.json"]
    (folder / "MANIFEST.json").write_bytes(manifest_bytes(describe(folder, names), 4))
    with pytest.raises(CheckpointError, match=r"state.json is missing, unreadable or of another version"):
        load(init_state(cfg), folder)
