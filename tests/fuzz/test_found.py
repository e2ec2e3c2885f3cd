"""What fuzzing has shown, or reading beside it, once each: all of it ended in a traceback, or was taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from ebm_core import checkpoint
from ebm_core.errors import CheckpointError
from ebm_core.manifest import describe, manifest_bytes
from orchestrator.records import runs
from tests.readers import Targets


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Targets:
    return Targets(tmp_path_factory.mktemp("found"))


def refused(targets: Targets, name: str, data: bytes, folder: Path) -> str:
    """What is said of a checkpoint with these bytes as one of its files, under a manifest that is true to them."""
    for path in targets.whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(data)
    (folder / checkpoint.MANIFEST).write_bytes(manifest_bytes(describe(folder, targets.names), 1))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(targets.state, folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def changed(targets: Targets, change: Callable[[dict[str, Any]], object]) -> bytes:
    about = json.loads((targets.whole / checkpoint.STATE).read_bytes())
    change(about)
    return json.dumps(about).encode()


def test_brackets_without_end_in_state_json(targets: Targets, tmp_path: Path):
    refused(targets, checkpoint.STATE, b'{"a":' * 100_000, tmp_path)


def test_an_infinite_count_in_the_monitors_state(targets: Targets, tmp_path: Path):
    data = changed(targets, lambda about: about["monitor"].update(num_below=float("inf")))
    assert "monitor" in refused(targets, checkpoint.STATE, data, tmp_path)


def test_a_shape_beyond_64_bits_in_a_safetensors_header(targets: Targets, tmp_path: Path):
    head = json.dumps({"x": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}).encode()
    refused(targets, checkpoint.MODEL, len(head).to_bytes(8, "little") + head, tmp_path)


def test_moments_that_lack_a_part_or_are_no_floats(targets: Targets, tmp_path: Path):
    moments = load((targets.whole / checkpoint.OPTIMIZER).read_bytes())
    key = next(name for name in moments if name.endswith("/exp_avg_sq"))
    without = {name: value for name, value in moments.items() if name != key}
    assert "needs" in refused(targets, checkpoint.OPTIMIZER, save(without), tmp_path)
    whole_numbers = moments | {key: moments[key].to(torch.int64)}
    assert "int64" in refused(targets, checkpoint.OPTIMIZER, save(whole_numbers), tmp_path)


def test_a_buffer_that_has_seen_two_numbers_of_samples(targets: Targets, tmp_path: Path):
    name = checkpoint.shard_file(0)
    shard = load((targets.whole / name).read_bytes()) | {"num_seen": torch.tensor([1, 2])}
    assert "how many samples" in refused(targets, name, save(shard), tmp_path)


def test_settings_that_lie_about_the_size_of_the_model_cost_no_memory(
    targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for path in targets.whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = changed(targets, lambda about: about["config"]["model"].update(widths=[4, 8192, 8192]))
    (tmp_path / checkpoint.STATE).write_bytes(data)
    (tmp_path / checkpoint.MANIFEST).write_bytes(manifest_bytes(describe(tmp_path, targets.names), 1))
    build, devices = checkpoint.build_energy, []

    def noted(*arguments: Any) -> Any:
        assert torch.empty(0).device.type == "meta", "a model of 5 GB is about to be built"
        devices.append("meta")
        return build(*arguments)

    monkeypatch.setattr(checkpoint, "build_energy", noted)
    with pytest.raises(CheckpointError, match="this model needs"):
        checkpoint.load_energy(tmp_path)
    assert devices == ["meta"]


@pytest.mark.parametrize("value", ["Infinity", "1e999", "NaN"])
def test_a_run_with_infinitely_many_steps_is_listed_as_damaged(targets: Targets, value: str):
    targets.run.write_bytes("config.json", b'{"data": {"name": "x"}, "train": {"num_steps": ' + value.encode() + b"}}")
    assert runs.summarise(targets.run.store, "r").state == "damaged"
