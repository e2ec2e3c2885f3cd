"""The checksums are the published ones, and a missing or altered file is named."""

import hashlib

import pytest

from ebm_core.config import DataConfig
from ebm_core.data.files import MD5, read_checked, require_files
from ebm_core.data.vision import torchvision
from ebm_core.errors import DataError


def test_checksums_are_those_that_torchvision_checks():
    sets = torchvision().datasets
    expected = {}
    for kind in (sets.MNIST, sets.FashionMNIST):
        expected |= {f"{kind.__name__}/raw/{name}": md5 for name, md5 in kind.resources}
    for kind in (sets.CIFAR10, sets.CIFAR100):
        listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        expected |= {f"{kind.base_folder}/{name}": md5 for name, md5 in listed}
    expected |= {sets.SVHN.split_list[split][1]: sets.SVHN.split_list[split][2] for split in ("train", "test")}
    assert expected == MD5


def test_a_missing_file_names_the_folder_and_the_command_even_with_spaces(tmp_path):
    root = tmp_path / "my data"
    with pytest.raises(DataError) as caught:
        require_files(DataConfig(root=str(root)), ["folder/file"])
    assert str(caught.value) == (
        f"cifar10: no file in {root}/folder; get the files with: ebm data download cifar10 data.root='{root}'"
    )


def test_content_is_returned_only_when_its_checksum_is_as_published(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    good = hashlib.md5(b"content").hexdigest()
    assert read_checked(DataConfig(), path, good) == b"content"
    assert read_checked(DataConfig(), path, None) == b"content"
    path.write_bytes(b"conten")
    with pytest.raises(DataError, match=f"{path}: MD5 sum .* is not the published {good}"):
        read_checked(DataConfig(), path, good)


def test_a_path_that_is_no_file_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: cannot be read"):
        read_checked(DataConfig(), tmp_path, None)
