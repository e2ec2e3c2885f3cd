"""Prepared sets: the same images and the same training as from the source; and what is damaged is said in one line."""

import importlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import ebm_core as ebm
from ebm_core.config import DataConfig
from ebm_core.data import batch_indices, labelled_batches, load, num_conditions, prepared, shards
from ebm_core.data.dataset import Dataset, limited
from ebm_core.errors import ConfigError, DataError
from orchestrator.training.prepare_data import prepare
from tests.faults import make_bucket, moto_server

DIGITS = ebm.presets.digits_paper().data
BATCHES = importlib.import_module("ebm_core.data.batches")  # a function hides the module of its name


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if digits were large: shards of 100 of them, and memory for four shards, which makes windows of two."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 100 * 64)
    for module in (shards, prepared):
        monkeypatch.setattr(module, "MEMORY_BYTES", 400 * 64)
    for module in (prepared, BATCHES):
        monkeypatch.setattr(module, "WINDOW", 2)


def prepared_digits(place: str | Path) -> Dataset:
    """The train split of digits, prepared at `place` and opened there."""
    prepare(DIGITS, str(place))
    return load(replace(DIGITS, root=str(place)))


def all_batches(data: Dataset, start: int = 0, stop: int = 40, size: int = 64) -> list[torch.Tensor]:
    return list(ebm.batches(data, size, seed=3, start=start, stop=stop))


@pytest.mark.parametrize(
    "cfg", [DIGITS, DataConfig(name="objects", image_size=16)], ids=["digits: labels", "objects: attributes, factors"]
)
def test_a_prepared_set_is_its_source(tmp_path, cfg):
    prepare(cfg, str(tmp_path / "place"))
    for split in ("train", "test"):
        source, copy = load(cfg, split), load(replace(cfg, root=str(tmp_path / "place")), split)
        numbers = torch.randperm(len(source))[:300]
        assert len(copy) == len(source)
        assert torch.equal(copy.fetch(numbers), source.fetch(numbers))
        assert torch.equal(copy.labels, source.labels)
        assert (copy.class_names, copy.attribute_names) == (source.class_names, source.attribute_names)
        assert source.attributes is None or torch.equal(copy.attributes, source.attributes)
        assert copy.factors.keys() == source.factors.keys()
        assert all(torch.equal(copy.factors[name], source.factors[name]) for name in source.factors)


def test_a_folder_of_classes_can_be_prepared_and_conditioned_on(tmp_path):
    for number in range(30):
        (tmp_path / "pictures" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png")
    folder = DataConfig(name="image_folder", root=str(tmp_path / "pictures"), image_size=16, condition="label")
    prepare(folder, str(tmp_path / "place"))
    place = replace(folder, root=str(tmp_path / "place"))
    assert num_conditions(place) == 2
    pairs = zip(labelled_batches(folder, 8, stop=6), labelled_batches(place, 8, stop=6), strict=True)
    for (x, condition), (x_copy, condition_copy) in pairs:
        assert torch.equal(x, x_copy)
        assert torch.equal(condition, condition_copy)


def test_training_from_a_prepared_set_is_training_from_the_files_bit_for_bit(tmp_path):
    for a, b in zip(all_batches(load(DIGITS)), all_batches(prepared_digits(tmp_path / "place")), strict=True):
        assert torch.equal(a, b)


def test_the_shards_open_in_other_tools(tmp_path):
    import pandas as pd

    prepare(DIGITS, str(tmp_path / "place"))
    frame = pd.read_parquet(tmp_path / "place" / "test-00000.parquet")
    source = load(DIGITS, "test")
    assert list(frame.label) == source.labels.tolist()
    assert bytes(frame.image[7]) == source.fetch(torch.tensor([7])).numpy().tobytes()


def test_an_epoch_of_a_large_set_shows_each_image_once_and_mixes_windows(large, tmp_path):
    data = prepared_digits(tmp_path / "place")
    assert data.shards == (100,) * 15
    numbers = batch_indices(len(data), 1500, 0, 0, data.shards)
    assert torch.equal(numbers.sort().values, torch.arange(1500))
    windows = [{n // 100 for n in window.tolist()} for window in numbers.split(200)]
    assert [len(window) for window in windows] == [2] * 7 + [1]
    assert any(abs(first - second) > 1 for first, second in windows[:-1])  # shards are drawn, not taken in turn
    assert all(len({n // 100 for n in window[:20].tolist()}) == 2 for window in numbers.split(200)[:-1])
    assert not torch.equal(numbers[:200] % 100, numbers[:200].sort().values % 100)
    assert not torch.equal(numbers, batch_indices(len(data), 1500, 0, 1, data.shards))


def test_a_large_set_is_stored_in_a_mixed_order_with_what_is_known_of_each_image(large, tmp_path):
    source, data = load(DIGITS), prepared_digits(tmp_path / "place")
    mixed = shards.preparation_order(source)
    assert not torch.equal(data.fetch(torch.arange(1500)), source.fetch(torch.arange(1500)))
    assert torch.equal(data.labels, source.labels[mixed])
    frame = pq.read_table(tmp_path / "place" / "train-00003.parquet")
    assert frame.column("number").to_pylist() == mixed[300:400].tolist()
    assert data.fetch(torch.tensor([311])).equal(source.fetch(mixed[311:312]))


def test_a_large_set_goes_on_at_the_exact_image(large, tmp_path):
    data = prepared_digits(tmp_path / "place")
    whole = all_batches(data)
    again = all_batches(load(data.cfg), start=17)
    assert all(torch.equal(a, b) for a, b in zip(whole[17:], again, strict=True))


def test_a_large_set_gives_the_same_batches_to_one_worker_and_to_two(large, tmp_path):
    data = prepared_digits(tmp_path / "place")
    halves = [
        list(ebm.batches(data, 64, seed=3, stop=30, shards=ebm.rng.Shards.of_rank(rank, 2, 2))) for rank in (0, 1)
    ]
    one = list(ebm.batches(data, 64, seed=3, stop=30, shards=ebm.rng.Shards(2, 0, 2)))
    assert all(torch.equal(x, torch.cat(parts)) for x, *parts in zip(one, *halves, strict=True))


def test_a_large_set_is_read_once_per_epoch_and_never_held_whole(large, tmp_path, monkeypatch):
    read: list[str] = []
    data = prepared_digits(tmp_path / "place")
    original = prepared.Place.verified
    monkeypatch.setattr(prepared.Place, "verified", lambda self, file: read.append(file.name) or original(self, file))
    reader = data.read.__self__
    for _ in ebm.batches(data, 50, seed=3, stop=30):  # one epoch
        assert len(reader._held) <= 4
    assert len(read) == len(set(read)) == 15


def test_the_next_window_is_read_before_it_is_needed(large, tmp_path, monkeypatch):
    data = prepared_digits(tmp_path / "place")
    reader = data.read.__self__
    late: list[int] = []
    original = reader._hold

    def hold(number: int):
        if threading.current_thread().name.startswith("ebm-batches") and number not in reader._held:
            late.append(number)
        return original(number)

    monkeypatch.setattr(reader, "_hold", hold)
    for _ in ebm.batches(data, 10, seed=3, stop=140):
        pass
    assert len(late) <= 2  # the first window alone


def test_a_limit_cuts_a_large_set(large, tmp_path):
    data = limited(prepared_digits(tmp_path / "place"), 250)
    assert (len(data), data.shards) == (250, (100, 100, 50))
    assert batch_indices(250, 250, 0, 0, data.shards).sort().values.tolist() == list(range(250))


def test_images_from_more_shards_than_memory_holds_come_all(large, tmp_path):
    source = load(DIGITS)
    data = prepared_digits(tmp_path / "place")
    order = shards.preparation_order(source)
    assert torch.equal(data.fetch(torch.arange(1500)), source.fetch(order))


def test_a_damaged_shard_is_found_when_it_is_read_and_again_after(tmp_path):
    data = prepared_digits(tmp_path / "place")
    shard = tmp_path / "place" / "train-00000.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-9] + bytes(9))
    for _ in range(2):
        with pytest.raises(DataError, match=r"train-00000.parquet: not what prepared.json describes"):
            data.fetch(torch.tensor([3]))
    shard.unlink()
    with pytest.raises(DataError, match="missing; prepare the set again"):
        data.fetch(torch.tensor([3]))
    shard.write_bytes(content)
    assert len(data.fetch(torch.tensor([3]))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(format=2), "format 2 is not 1"),
        (lambda tree: tree.pop("train"), "prepare it again"),
        (lambda tree: tree["train"]["shards"].clear(), "without images"),
        (lambda tree: tree["train"]["shards"][0].update(num_images=7), "another number of images"),
        (lambda tree: tree["train"]["shards"][0].update(name="../x"), "outside"),
        (lambda tree: tree.update(channels="one"), "must be of type int"),
        (lambda tree: tree.update(name="mnist"), "data.name = mnist, wanted is digits"),
        (lambda tree: tree.update(image_size=16), "data.image_size = 16, wanted is 8"),
    ],
)
def test_another_description_is_refused(tmp_path, change, message):
    prepare(DIGITS, str(tmp_path))
    tree = json.loads((tmp_path / "prepared.json").read_text())
    change(tree)
    (tmp_path / "prepared.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message):
        load(replace(DIGITS, root=str(tmp_path)))


def test_a_shard_of_another_length_is_refused(large, tmp_path):
    prepare(DIGITS, str(tmp_path))
    tree = json.loads((tmp_path / "prepared.json").read_text())
    for shard, num_images in zip(tree["train"]["shards"], (99, 101), strict=False):
        shard["num_images"] = num_images
    (tmp_path / "prepared.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"train-00000.parquet: 100 images, not the 99 of prepared.json"):
        load(replace(DIGITS, root=str(tmp_path))).fetch(torch.tensor([0]))


def test_a_place_on_a_server_is_the_same_from_everywhere_and_a_folder_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepared.absolute_root("s3://bucket/place") == "s3://bucket/place"
    assert prepared.absolute_root("place") == str(tmp_path / "place")


def test_a_table_of_another_length_is_refused(tmp_path):
    prepare(DIGITS, str(tmp_path))
    table = (tmp_path / "train-table.parquet").read_bytes()
    with pytest.raises(DataError, match=r"here: not the table of a prepared set \('1500 rows, not 7'\)"):
        shards.decoded_table(table, 7, (), "here")


def test_what_is_no_json_is_refused(tmp_path):
    for content in (b"", b"[1]", b"\xff\xfe", b'{"train": NaN}'):
        with pytest.raises(DataError, match="not the description of a prepared set"):
            shards.parse(content, "here")


def test_a_place_is_prepared_once(tmp_path):
    prepare(DIGITS, str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="a prepared set is there already"):
        prepare(DIGITS, str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_preparation_is_no_set_and_can_be_done_again(tmp_path, monkeypatch):
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(DIGITS, str(tmp_path), interrupt)
    assert not prepared.is_prepared(str(tmp_path))
    assert len(prepared_digits(tmp_path)) == 1500


@pytest.mark.parametrize(
    "root",
    [
        "s3://user:password@bucket/x",
        "s3://b/x",
        "gs://bucket/x",
        "s3://bucket/x?region=eu",
        "s3://bucket/x?endpoint_url=http://u@h",
    ],
)
def test_a_place_that_is_none_is_refused_and_not_repeated(root):
    with pytest.raises(ConfigError, match=r"data\.root: must name a folder or s3://") as refusal:
        DataConfig(root=root)
    assert "password" not in str(refusal.value).replace("without user or password", "")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with moto_server() as endpoint:
        make_bucket(endpoint, "datasets")
        yield f"s3://datasets/digits?endpoint_url={endpoint}"


def test_a_server_gives_what_a_folder_gives(bucket, large, tmp_path):
    for a, b in zip(all_batches(prepared_digits(bucket)), all_batches(prepared_digits(tmp_path)), strict=True):
        assert torch.equal(a, b)


def test_a_server_without_the_set_is_said_in_one_line(bucket):
    with pytest.raises(DataError, match=r"no prepared set in s3://datasets/none.*; make one: ebm data prepare"):
        load(replace(DIGITS, root=bucket.replace("/digits", "/none")))


@pytest.mark.full
def test_a_server_that_is_not_there_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(DataError, match=r"prepared.json: cannot be read \(") as refusal:
        load(replace(DIGITS, root="s3://datasets/digits?endpoint_url=http://127.0.0.1:9"))
    assert "\n" not in str(refusal.value)
