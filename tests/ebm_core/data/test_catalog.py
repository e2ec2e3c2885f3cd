"""Names lead to data sets, conditions come from labels and attributes, and every missing file has a remedy."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from ebm_core.config import DataConfig
from ebm_core.data import (
    DATASETS,
    archives,
    check_files,
    condition_table,
    default_config,
    download,
    load,
    num_conditions,
)
from ebm_core.data import catalog as module
from ebm_core.data.catalog import Source
from ebm_core.data.files import MD5
from ebm_core.data.vision import torchvision
from ebm_core.errors import ConfigError, DataError
from ebm_core.presets import PRESETS

DIGITS = DataConfig(name="digits", image_size=8, channels=1)
OBJECTS = DataConfig(name="objects", image_size=16)
DOWNLOADED = ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "textures"]
FILES = [name for name in DATASETS if name not in ("digits", "objects")]


def test_every_data_set_of_a_preset_is_known():
    assert {make().data.name for make in PRESETS.values()} <= set(DATASETS)
    assert set(DATASETS) == {
        *("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"),
        *("textures", "celeba_hq", "lsun_bedroom", "image_folder", "objects"),
    }


def test_a_set_with_files_says_where_they_come_from_and_a_set_without_needs_nothing():
    for name, source in DATASETS.items():
        assert (name in FILES) == (source.check is not None) == bool(source.torchvision or source.elsewhere), name
        assert not (source.torchvision and source.elsewhere), name
        assert source.torchvision is None or hasattr(torchvision().datasets, source.torchvision), name
    assert [name for name, source in DATASETS.items() if source.torchvision] == DOWNLOADED
    for cfg, conditions in ((DIGITS, "label"), (OBJECTS, "label"), (OBJECTS, "attributes")):
        told = dataclasses.replace(cfg, condition=conditions)
        source, images = DATASETS[cfg.name], load(cfg)
        assert images.attribute_names == source.attributes
        wanted = source.num_classes if conditions == "label" else len(source.attributes)
        assert num_conditions(told) == wanted
        assert len(images.labels.unique()) == source.num_classes


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known():
    with pytest.raises(
        ConfigError, match=r"'cifar': unknown data set; known: digits, mnist.*; did you mean cifar10\?$"
    ):
        load(DataConfig(name="cifar"))
    for look in (num_conditions, check_files):
        with pytest.raises(ConfigError, match="unknown data set; known: digits"):
            look(DataConfig(name="qqq"))


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="split = 'valid': must be train or test"):
        load(DIGITS, "valid")


def test_a_limit_cuts_the_training_split_alone():
    cfg = dataclasses.replace(DIGITS, limit=20)
    assert (len(load(cfg)), len(load(cfg, "test"))) == (20, 297)
    assert torch.equal(load(cfg).fetch(torch.arange(20)), load(DIGITS).fetch(torch.arange(20)))


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_told_in_one_line_with_folder_and_remedy(name, tmp_path):
    root = tmp_path / "nothing"
    cfg = dataclasses.replace(default_config(name), root=str(root))
    for look in (check_files, load, lambda c: load(c, "test")):
        with pytest.raises(DataError) as caught:
            look(cfg)
        line = str(caught.value)
        assert str(root) in line
        assert "\n" not in line
        if name != "image_folder":
            assert f"ebm data download {name} data.root={root}" in line


def test_sets_that_need_no_files_lack_none(tmp_path):
    for cfg in (DIGITS, OBJECTS):
        check_files(dataclasses.replace(cfg, root=str(tmp_path / "nothing")))


def test_default_settings_are_the_presets_or_fit_the_set():
    assert default_config("mnist") == PRESETS["mnist"]().data
    assert (default_config("svhn").image_size, default_config("svhn").channels) == (32, 3)
    with pytest.raises(ConfigError, match="unknown data set"):
        default_config("nothing")


# --- conditions


def test_labels_become_one_hot_conditions():
    cfg = dataclasses.replace(DIGITS, condition="label")
    data = load(cfg)
    table = condition_table(data, cfg)
    assert table is not None
    assert data.labels is not None
    assert table.shape == (1500, num_conditions(cfg) == 10 and 10)
    assert torch.equal(table.argmax(1), data.labels)
    assert torch.equal(table.sum(1), torch.ones(1500))
    assert table.dtype == torch.float32


def test_without_a_condition_there_is_no_table():
    assert num_conditions(DIGITS) == 0
    assert condition_table(load(DIGITS), DIGITS) is None


def test_chosen_attributes_become_columns_in_the_order_chosen():
    cfg = dataclasses.replace(OBJECTS, condition="attributes", attributes=("left", "shape=cone"))
    data = load(cfg)
    table = condition_table(data, cfg)
    assert table is not None
    assert num_conditions(cfg) == 2
    assert torch.equal(table[:, 0] == 1, data.factors["x"] < 0)
    assert torch.equal(table[:, 1] == 1, data.factors["identity"] == data.class_names.index("cone"))


def test_no_choice_of_attributes_means_all_of_them():
    cfg = dataclasses.replace(OBJECTS, condition="attributes")
    table = condition_table(load(cfg), cfg)
    assert table is not None
    assert table.shape == (10_000, num_conditions(cfg))
    assert num_conditions(DataConfig(name="celeba_hq", condition="attributes")) == 40


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("lsun_bedroom", {"condition": "label"}, "lsun_bedroom has no class labels"),
        ("celeba_hq", {"condition": "label"}, "set data.condition=attributes"),
        ("cifar10", {"condition": "attributes"}, "cifar10 has no attributes; celeba_hq and objects have some"),
        ("objects", {"condition": "attributes", "attributes": ("huge",)}, "no attribute 'huge'; known: shape=sphere, "),
        ("celeba_hq", {"condition": "attributes", "attributes": ("Smile",)}, "no attribute 'Smile'; known: 5_o_Clock"),
        ("objects", {"condition": "attributes", "attributes": ("left", "left")}, "'left' is named twice"),
    ],
)
def test_a_condition_that_a_set_cannot_give_is_refused_before_files_are_looked_for(name, settings, complaint, tmp_path):
    cfg = DataConfig(name=name, root=str(tmp_path), **settings)
    for look in (num_conditions, load):
        with pytest.raises(ConfigError, match=complaint):
            look(cfg)


@pytest.mark.parametrize(("name", "number"), [("cifar10", 10), ("cifar100", 100), ("textures", 47), ("objects", 5)])
def test_the_number_of_classes_is_known_without_files(name, number):
    assert num_conditions(DataConfig(name=name, root="nowhere", condition="label")) == number


def test_an_image_folders_classes_are_its_sub_folders(tmp_path):
    cfg = DataConfig(name="image_folder", root=str(tmp_path), condition="label")
    (tmp_path / "loose.png").touch()
    with pytest.raises(ConfigError, match="one sub-folder per class"):
        num_conditions(cfg)
    (tmp_path / "loose.png").unlink()
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    assert num_conditions(cfg) == 3


# --- download


@pytest.fixture
def web_server(tmp_path, monkeypatch):
    """A folder, and its address while a web server on this machine serves it."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_a_download_through_torchvision_ends_in_files_that_can_be_loaded(tmp_path, monkeypatch, web_server):
    # the published server is replaced by one with small files, the published sums by theirs
    server, address = web_server
    resources = []
    for part, num in (("train", 12), ("t10k", 6)):
        for kind, shape in (("images-idx3", (num, 28, 28)), ("labels-idx1", (num,))):
            array = np.zeros(shape, np.uint8)
            name = f"{part}-{kind}-ubyte.gz"
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *shape)
            (server / name).write_bytes(gzip.compress(head + array.tobytes()))
            md5 = hashlib.md5((server / name).read_bytes()).hexdigest()
            resources.append((name, md5))
            monkeypatch.setitem(MD5, f"MNIST/raw/{name}", md5)
    kind = torchvision().datasets.MNIST
    monkeypatch.setattr(kind, "mirrors", [address])
    monkeypatch.setattr(kind, "resources", resources)
    root = tmp_path / "new" / "data"
    assert download("mnist", root) == f"mnist: files are in {root}"
    cfg = dataclasses.replace(default_config("mnist"), root=str(root))
    check_files(cfg)
    assert (len(load(cfg)), len(load(cfg, "test"))) == (12, 6)


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_download_without_a_network_fails_in_one_line(name, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(DataError, match=f"{name}: download to {tmp_path} failed") as caught:
        download(name, tmp_path)
    assert "\n" not in str(caught.value)


def archive(*members: tuple[str, dict[str, object]]) -> bytes:
    """A packed tar archive with members of two bytes, each with these attributes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, attributes in members:
            member = tarfile.TarInfo(name)
            member.size = 2
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            tar.addfile(member, io.BytesIO(b"no") if member.isreg() else None)
    return packed.getvalue()


class Answer(io.BytesIO):
    """What urlopen returns."""

    url = None
    length = None
    headers: ClassVar[dict[str, str]] = {}


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_downloaded_file_that_is_not_the_published_one_is_neither_unpacked_nor_read(name, tmp_path, monkeypatch):
    content, unpacked = archive(("evil", {})), []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_args, **_kwargs: Answer(content))
    monkeypatch.setattr(tarfile, "open", lambda *args, **_: unpacked.append(args))
    monkeypatch.setattr(gzip, "open", lambda *args, **_: unpacked.append(args))
    with pytest.raises(DataError, match=f"{name}: download to {tmp_path} failed"):
        download(name, tmp_path)
    assert unpacked == []


@pytest.mark.parametrize(
    "member",
    [
        ("../outside", {}),
        ("a/../../outside", {}),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "../../outside"}),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "../../outside"}),
        ("pipe", {"type": tarfile.FIFOTYPE}),
        ("device", {"type": tarfile.CHRTYPE}),
    ],
    ids=lambda member: f"{member[0]} {member[1].get('linkname', '')}",
)
def test_an_archive_that_reaches_outside_is_refused_though_its_sum_is_right(member, tmp_path, monkeypatch):
    content = archive(("cifar-10-batches-py/readme", {}), member)
    serve_cifar(content, monkeypatch)
    root = tmp_path / "deep" / "root"
    with pytest.raises(DataError, match=r"cifar10: download to .* failed") as caught:
        download("cifar10", root)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["root"]
    assert all(path.is_dir() or (path.is_file() and not path.is_symlink()) for path in root.rglob("*"))


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_has(tmp_path, monkeypatch):
    content = archive(*((f"file-{number}", {}) for number in range(10)))
    serve_cifar(content, monkeypatch)
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 9)
    with pytest.raises(DataError, match="unpacks to more than"):
        download("cifar10", tmp_path)
    assert len(list(tmp_path.glob("file-*"))) <= 4


def test_the_filter_is_for_downloads_alone():
    before = tarfile.TarFile.extraction_filter
    with archives.filtered_archives():
        assert tarfile.TarFile.extraction_filter is not before
    assert tarfile.TarFile.extraction_filter is before


def serve_cifar(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's server now has this archive, and its sum counts as published."""
    monkeypatch.setattr(torchvision().datasets.CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_args, **_kwargs: Answer(content))


@pytest.mark.parametrize("name", ["celeba_hq", "lsun_bedroom", "image_folder"])
def test_what_torchvision_does_not_fetch_says_where_it_is(name, tmp_path):
    with pytest.raises(DataError, match=r"not available through torchvision; (get .* https://|set data\.root)"):
        download(name, tmp_path)


def test_sets_without_files_need_no_download(tmp_path):
    assert "nothing to download" in download("digits", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "file"
    path.touch()
    for name in FILES:
        with pytest.raises(DataError, match=str(path)):
            load(dataclasses.replace(default_config(name), root=str(path)))
    with pytest.raises(DataError, match=f"download to {path} failed"):
        download("svhn", path)


def test_a_folder_that_cannot_be_read_is_a_data_error(tmp_path, monkeypatch):
    def forbidden(cfg: DataConfig, split: str):
        raise PermissionError(13, "Permission denied", str(Path(cfg.root) / "images"))

    monkeypatch.setitem(module.DATASETS, "textures", Source(build=forbidden))
    with pytest.raises(DataError, match=f"textures: cannot read {tmp_path}/images: Permission denied"):
        load(DataConfig(name="textures", root=str(tmp_path)))
