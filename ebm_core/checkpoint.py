"""TrainState <-> a folder of files: safetensors and JSON, checked by size and SHA-256, never a pickle.

model.safetensors  ema.safetensors  optimizer.safetensors  state.json      one writer (rank 0)
buffer-shard-0000.safetensors ...                                          each worker its own shards
MANIFEST.json                                                              names, sizes, digests of all others
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ebm_core.config import TrainConfig, from_tree, to_tree
from ebm_core.data import num_conditions
from ebm_core.errors import CheckpointError, first_line
from ebm_core.fast.engine import prepare
from ebm_core.manifest import Manifest, describe, manifest_bytes, verify
from ebm_core.models import EnergyModel, build_energy
from ebm_core.trainer import TrainState

FORMAT = 1
MANIFEST = "MANIFEST.json"
MAX_STATE_BYTES = 16 * 2**20
"""Of state.json: what is larger was not written by `write_shared`."""
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
"""What Adam keeps of a parameter from its first step on."""
MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"


def shard_file(shard: int) -> str:
    """Name of the buffer file: the past samples of one batch shard."""
    return f"buffer-shard-{shard:04d}.safetensors"


def own_files(state: TrainState) -> set[str]:
    """Names of the files that `load` reads into this state: what all workers share, and its own buffer files."""
    return {MODEL, EMA, OPTIMIZER, STATE, *map(shard_file, state.shards)}


def write_shared(state: TrainState, cfg: TrainConfig, folder: Path) -> list[str]:
    """Write what all workers have in common; returns the names of the files."""
    save_file(_on_cpu(state.model.state_dict()), folder / MODEL)
    save_file(_on_cpu(state.ema.state_dict()), folder / EMA)
    save_file(_on_cpu(_moments(state)), folder / OPTIMIZER)
    core = {name: value for name, value in to_tree(cfg).items() if name in TrainConfig.__dataclass_fields__}
    about = {
        "format": FORMAT,
        "step": state.step,
        "seed": state.seed,
        "num_shards": state.shards.total,
        "monitor": state.monitor.state(),
        "config": core,
    }
    (folder / STATE).write_text(json.dumps(about, indent=1, sort_keys=True))
    return [MODEL, EMA, OPTIMIZER, STATE]


def write_shards(state: TrainState, folder: Path) -> list[str]:
    """Write this worker's buffer files, one for each of its batch shards; returns their names."""
    for shard in state.shards:
        save_file(state.buffer.shard_state(shard), folder / shard_file(shard))
    return [shard_file(shard) for shard in state.shards]


def save(state: TrainState, cfg: TrainConfig, folder: Path) -> Manifest:
    """Write a whole checkpoint of a single worker into `folder`, MANIFEST.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    names = write_shared(state, cfg, folder) + write_shards(state, folder)
    entries = describe(folder, names)
    (folder / MANIFEST).write_bytes(manifest_bytes(entries, state.step))
    return verify(folder)


def load(state: TrainState, folder: Path) -> None:
    """Put a verified checkpoint into `state`, in place and exact; CheckpointError names what does not fit.

    A worker reads and verifies the shared files and its own shards, whichever worker wrote them; others' shards need
    not be there.
    """
    verify(folder, own_files(state))
    about = read_about(folder)
    if about["num_shards"] != state.shards.total:
        raise CheckpointError(
            f"{folder.name}: written with buffer.num_shards = {about['num_shards']}, this run has {state.shards.total}"
        )
    _fill(state.model, _tensors(folder / MODEL), MODEL)
    _fill(state.ema, _tensors(folder / EMA), EMA)
    _fill_moments(state, _tensors(folder / OPTIMIZER))
    for shard in state.shards:
        state.buffer.load_shard_state(shard, _tensors(folder / shard_file(shard)))
    state.monitor.load_state(about["monitor"])
    state.step, state.seed = about["step"], about["seed"]


def load_energy(folder: Path, which: str = "ema") -> tuple[EnergyModel, TrainConfig]:
    """The averaged (`ema`) or the raw (`model`) energy of a checkpoint, ready to evaluate, and its settings."""
    if which not in ("ema", "model"):
        raise CheckpointError(f"which = {which!r}: a checkpoint has 'ema' and 'model'")
    verify(folder)
    cfg = from_tree(TrainConfig, read_about(folder)["config"])
    conditions = num_conditions(cfg.data) if cfg.data.condition != "none" else 0
    name = EMA if which == "ema" else MODEL
    saved = _tensors(folder / name)
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that the file then replaces
        with torch.device("meta"):  # takes no memory: settings that lie about the model's size cost nothing
            _require_fit(build_energy(cfg.model, cfg.image_shape, conditions), saved, name)
        model = build_energy(cfg.model, cfg.image_shape, conditions)
    _fill(model, saved, name)
    return prepare(model, cfg.engine).requires_grad_(False), cfg


def read_about(folder: Path) -> dict[str, Any]:
    """state.json, with the types of its entries checked."""
    try:
        with (folder / STATE).open("rb") as file:
            about = json.loads(file.read(MAX_STATE_BYTES))
        sound = (
            about["format"] == FORMAT
            and all(type(about[k]) is int and about[k] >= 0 for k in ("step", "seed", "num_shards"))
            and all(isinstance(about[k], dict) for k in ("monitor", "config"))
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(f"{folder.name}/{STATE} is missing, unreadable or of another version")
    return about


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except MemoryError:
        raise
    except Exception as why:  # of a hostile header torch says what it happens to meet, with its own stack in C++
        raise CheckpointError(f"{path.parent.name}/{path.name} cannot be read: {first_line(why):.200}") from None


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _fill(model: EnergyModel, saved: dict[str, Tensor], name: str) -> None:
    _require_fit(model, saved, name)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_(saved[key])


def _require_fit(model: EnergyModel, saved: dict[str, Tensor], name: str) -> None:
    """CheckpointError unless names, shapes and types of the tensors are the model's."""
    own = model.state_dict()
    for key in sorted(own.keys() ^ saved.keys()):
        raise CheckpointError(f"{name}: tensor {key!r} is {'missing' if key in own else 'not part of this model'}")
    for key, tensor in own.items():
        if saved[key].shape != tensor.shape or saved[key].dtype != tensor.dtype:
            found = f"{tuple(saved[key].shape)} {saved[key].dtype}"
            raise CheckpointError(f"{name}: {key!r} is {found}, this model needs {tuple(tensor.shape)} {tensor.dtype}")


def _moments(state: TrainState) -> dict[str, Tensor]:
    """Adam's moments under their parameters' names; empty before the first step."""
    moments = {}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            moments[f"{name}/{key}"] = value
    return moments


def _fill_moments(state: TrainState, saved: dict[str, Tensor]) -> None:
    state.optimizer.state.clear()
    remaining = dict(saved)
    for name, parameter in state.model.named_parameters():
        own = {key.rpartition("/")[2]: key for key in saved if key.rpartition("/")[0] == name}
        if own and own.keys() != MOMENTS:
            raise CheckpointError(f"{OPTIMIZER}: {name!r} has {', '.join(sorted(own))}, needs {', '.join(MOMENTS)}")
        for kind, key in own.items():
            value, needed = remaining.pop(key), torch.Size() if kind == "step" else parameter.shape
            if value.shape != needed or not value.is_floating_point():
                found = f"{tuple(value.shape)} {value.dtype}"
                raise CheckpointError(f"{OPTIMIZER}: {key!r} is {found}, needs {tuple(needed)} floats")
            on_device = value if kind == "step" else torch.empty_like(parameter).copy_(value)
            state.optimizer.state[parameter][kind] = on_device
    for key in remaining:
        raise CheckpointError(f"{OPTIMIZER}: {key!r} belongs to no parameter of this model")
