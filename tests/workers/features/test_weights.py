"""Weights come from a file that is the right one, are never run as code, and are checked whenever they are used."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ebm_core.errors import DataError
from ebm_core.manifest import sha256_file
from workers.features.weights import INCEPTION_SHA256, INCEPTION_URL, Weights, default_cache


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_installed_is_what_the_file_holds_and_names_it(inception_file, deep_weights):
    installed = deep_weights.load("inception")
    held = torch.load(inception_file, weights_only=True)
    assert installed.tensors.keys() == held.keys()
    assert all(torch.equal(installed.tensors[name], value) for name, value in held.items())
    assert installed.source_sha256 == sha256_file(inception_file)
    assert installed.sha256 == sha256_file(deep_weights.cache / "weights" / "inception.safetensors")


def test_only_the_published_file_is_installed_and_nothing_that_a_person_sets_changes_that(
    inception_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("EBM_CACHE", str(tmp_path))
    weights = Weights.default()
    assert weights == Weights(tmp_path, INCEPTION_SHA256)
    assert INCEPTION_SHA256[:8] == INCEPTION_URL.rpartition("-")[2].removesuffix(".pth")  # as the publisher names it
    with pytest.raises(DataError, match=r"SHA-256 .* begins with 6726825d0af5f729: not the published file"):
        weights.install("inception", inception_file)
    assert files(tmp_path) == []


def test_weights_installed_under_another_digest_are_not_taken_for_the_published_ones(deep_weights):
    with pytest.raises(DataError, match="is not what was installed; run `ebm data inception --from FILE` again"):
        replace(deep_weights, inception_sha256=INCEPTION_SHA256).load("inception")


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"a": Evil(mark)}, path)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Evil(mark)))
    cache = tmp_path / "cache"
    for source in (path, plain):
        for kind in ("inception", "mobilenet"):
            with pytest.raises(DataError, match="cannot be read as the weights"):
                Weights(cache, inception_sha256=sha256_file(source)).install(kind, source)
    assert not mark.exists()
    assert not cache.exists()


def test_other_networks_and_other_files_are_refused_in_one_line(inception_file, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    weights = Weights(tmp_path / "cache")
    for source, said in (
        (tmp_path / "other.safetensors", "no state dict of MobileNetV2"),
        (inception_file, "no state dict of MobileNetV2"),
        (tmp_path / "list.pth", "cannot be read as the weights"),
        (tmp_path / "text.pth", "cannot be read as the weights"),
        (tmp_path / "text.safetensors", "cannot be read as the weights"),
        (tmp_path / "absent.pth", "no such file"),
    ):
        with pytest.raises(DataError, match=said) as error:
            weights.install("mobilenet", source)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_missing_weights_are_one_line_with_the_file_its_source_and_the_command(tmp_path):
    with pytest.raises(DataError) as error:
        Weights(tmp_path).load("inception")
    assert str(tmp_path / "weights" / "inception.safetensors") in str(error.value)
    assert INCEPTION_URL in str(error.value)
    assert str(error.value).endswith("then run `ebm data inception --from FILE`")


def copied(weights: Weights, folder: Path) -> tuple[Weights, Path, Path]:
    (folder / "weights").mkdir()
    for name in ("mobilenet.safetensors", "mobilenet.json"):
        (folder / "weights" / name).write_bytes((weights.cache / "weights" / name).read_bytes())
    return Weights(folder), folder / "weights" / "mobilenet.safetensors", folder / "weights" / "mobilenet.json"


@pytest.mark.parametrize("damage", ["bit", "note", "half", "swapped"])
def test_what_changed_after_it_was_installed_is_refused(deep_weights, tmp_path, damage):
    weights, tensors, note = copied(deep_weights, tmp_path)
    assert weights.load("mobilenet").sha256 == deep_weights.load("mobilenet").sha256
    if damage == "bit":
        data = bytearray(tensors.read_bytes())
        data[-5] ^= 1
        tensors.write_bytes(data)
    elif damage == "note":
        note.write_text("{")
    elif damage == "half":
        tensors.write_bytes(tensors.read_bytes()[:1000])
    else:
        save_file({name: value + 1 for name, value in load_file(tensors).items()}, tensors)
    with pytest.raises(DataError, match="is not what was installed"):
        weights.load("mobilenet")


def test_nothing_is_unpickled_when_weights_are_used(deep_weights, monkeypatch):
    monkeypatch.setattr(torch, "load", None)  # a call would fail
    assert len(deep_weights.load("inception").tensors) == 566


def test_the_cache_folder_is_that_of_the_variable_else_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("EBM_CACHE", "here")
    assert default_cache() == Path.cwd() / "here"
    monkeypatch.delenv("EBM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "confab-ebm"


def test_installing_again_replaces_both_files(deep_weights, tmp_path):
    weights, tensors, note = copied(deep_weights, tmp_path)
    other = {name: value * 2 if value.is_floating_point() else value for name, value in load_file(tensors).items()}
    save_file(other, tmp_path / "other.safetensors")
    assert weights.install("mobilenet", tmp_path / "other.safetensors") == tensors
    assert weights.load("mobilenet").source_sha256 == sha256_file(tmp_path / "other.safetensors")
    assert json.loads(note.read_bytes())["sha256"] == sha256_file(tensors)
    assert files(tmp_path / "weights") == ["mobilenet.json", "mobilenet.safetensors"]
