"""Folders of image files: classes from sub-folders, splits, DTD's lists and CelebA-HQ's table of attributes."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ebm_core.config import DataConfig
from ebm_core.data.folders import (
    ATTRIBUTE_FILE,
    CELEBA_ATTRIBUTES,
    celeba_hq,
    class_folders,
    held_out,
    image_folder,
    list_images,
    textures,
)
from ebm_core.data.vision import torchvision
from ebm_core.errors import DataError


def paint(path: Path, level: int, size: tuple[int, int] = (12, 10)) -> None:
    """An image of one gray level, so that a test sees which file it got."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


def config(name: str, root: Path) -> DataConfig:
    return DataConfig(name=name, root=str(root), image_size=8, channels=1)


def levels(data) -> list[int]:
    """The gray level of each image of a data set."""
    images = data.fetch(torch.arange(len(data)))
    assert images.shape == (len(data), 1, 8, 8)
    return images.flatten(1).float().mean(1).round().int().tolist()


# --- any folder


def test_images_come_in_the_order_of_their_names_with_numbers_by_value(tmp_path):
    for number in (10, 2, 1):
        paint(tmp_path / f"{number}.png", number)
    paint(tmp_path / "b.PNG", 98)
    paint(tmp_path / ".hidden.png", 1)
    paint(tmp_path / ".hidden" / "x.png", 1)
    (tmp_path / "notes.txt").write_text("not an image")
    data = image_folder(config("image_folder", tmp_path), "train")
    assert levels(data) == [1, 2, 10, 98]
    assert data.labels is None


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    for name, level in (("dog/x.png", 3), ("cat/a.png", 1), ("cat/deep/b.png", 2)):
        paint(tmp_path / name, level)
    data = image_folder(config("image_folder", tmp_path), "train")
    assert data.class_names == ("cat", "dog") == class_folders(config("image_folder", tmp_path))
    assert data.labels is not None
    assert dict(zip(levels(data), data.labels.tolist(), strict=True)) == {1: 0, 2: 0, 3: 1}


def test_an_image_outside_of_the_sub_folders_leaves_no_classes(tmp_path):
    paint(tmp_path / "cat/a.png", 1)
    paint(tmp_path / "loose.png", 2)
    assert class_folders(config("image_folder", tmp_path)) == ()
    assert image_folder(config("image_folder", tmp_path), "train").labels is None


def test_folders_train_and_test_are_the_splits(tmp_path):
    for level in range(3):
        paint(tmp_path / f"train/{'ab'[level % 2]}/{level}.png", level)
    paint(tmp_path / "test/b/9.png", 9)
    train, test = (image_folder(config("image_folder", tmp_path), split) for split in ("train", "test"))
    assert (sorted(levels(train)), levels(test)) == ([0, 1, 2], [9])
    assert train.class_names == test.class_names == ("a", "b")
    assert test.labels is not None
    assert test.labels.tolist() == [1]
    paint(tmp_path / "test/new/1.png", 1)
    with pytest.raises(DataError, match=r"has the class 'new', which .*train lacks"):
        image_folder(config("image_folder", tmp_path), "test")


@pytest.mark.parametrize("num", [10, 11, 25, 30_000])
def test_every_tenth_image_is_held_out_and_none_is_lost(num):
    train, test = held_out(num, "train"), held_out(num, "test")
    assert len(test) == num // 10
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(num))


def test_a_handful_of_images_is_in_both_splits():
    assert held_out(9, "train").tolist() == held_out(9, "test").tolist() == list(range(9))


def test_a_corrupt_image_is_named_when_it_is_fetched(tmp_path):
    paint(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    data = image_folder(config("image_folder", tmp_path), "train")
    assert data.fetch(torch.tensor([0])).float().mean() == 1
    with pytest.raises(DataError, match=rf"{tmp_path}/2\.png: cannot be read as an image"):
        data.fetch(torch.tensor([1]))


def test_a_folder_without_images_and_one_that_is_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match=f"no images .* in {tmp_path}"):
        image_folder(config("image_folder", tmp_path), "train")
    with pytest.raises(DataError, match=f"no folder {tmp_path}/none; set data.root"):
        image_folder(config("image_folder", tmp_path / "none"), "train")
    with pytest.raises(DataError, match=f"no images .* in {tmp_path}"):
        list_images(config("image_folder", tmp_path), tmp_path)


def test_the_fingerprint_changes_with_a_files_name_and_size_and_stays_elsewhere(tmp_path):
    def fingerprint(folder: str, **files: int) -> str:
        for name, width in files.items():
            paint(tmp_path / folder / f"{name}.bmp", 1, (width, 10))
        return image_folder(config("image_folder", tmp_path / folder), "train").fingerprint()

    assert fingerprint("one", a=8, b=9) == fingerprint("two", a=8, b=9)
    assert len({fingerprint("one"), fingerprint("three", a=8, c=9), fingerprint("four", a=8, b=40)}) == 3


# --- textures


def write_textures(folder: Path) -> None:
    lists = {"train1": ["banded/1.jpg", "zigzagged/2.jpg"], "val1": ["banded/3.jpg"], "test1": ["zigzagged/4.jpg"]}
    (folder / "labels").mkdir(parents=True)
    for name, lines in lists.items():
        (folder / "labels" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            paint(folder / "images" / line, 10 * int(Path(line).stem), (30, 40))


@pytest.mark.parametrize("folder", ["dtd/dtd", "dtd"])
def test_textures_train_on_the_lists_train_and_val_and_test_on_test(tmp_path, folder):
    write_textures(tmp_path / folder)
    train, test = (textures(config("textures", tmp_path), split) for split in ("train", "test"))
    assert (levels(train), levels(test)) == ([10, 20, 30], [40])
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0], [1])
    assert train.class_names == ("banded", "zigzagged")


def test_textures_agree_with_torchvisions_reader(tmp_path):
    write_textures(tmp_path / "dtd/dtd")
    theirs = torchvision().datasets.DTD(tmp_path, split="train")
    ours = textures(config("textures", tmp_path), "train")
    assert ours.labels is not None
    for i in range(len(theirs)):
        image, label = theirs[i]
        assert ours.labels[i] == label
        assert abs(levels(ours)[i] - image.getpixel((0, 0))[0]) <= 1


def test_a_texture_that_its_list_names_but_the_folder_lacks_is_named(tmp_path):
    write_textures(tmp_path / "dtd/dtd")
    (tmp_path / "dtd/dtd/images/banded/3.jpg").unlink()
    with pytest.raises(DataError, match=r"no 3\.jpg in .*images/banded; get .* ebm data download textures"):
        textures(config("textures", tmp_path), "train")


# --- CelebA-HQ


def write_faces(images: Path, table: Path, num: int = 12) -> None:
    """Image i has attribute k where bit k of i + 1 is set (k < 4), and no other."""
    rows = []
    for i in range(num):
        paint(images / f"{i}.jpg", 10 * i, (16, 16))
        values = ["1" if k < 4 and (i + 1) >> k & 1 else "-1" for k in range(40)]
        rows.append(f"{i}.jpg  {' '.join(values)}")
    table.write_text("\n".join([str(num), " ".join(CELEBA_ATTRIBUTES), *rows]) + "\n")


@pytest.mark.parametrize(
    ("images", "table"),
    [("celeba_hq", "celeba_hq"), ("celeba_hq/images", "celeba_hq"), ("CelebAMask-HQ/CelebA-HQ-img", "CelebAMask-HQ")],
)
def test_faces_come_with_their_attributes(tmp_path, images, table):
    write_faces(tmp_path / images, tmp_path / table / ATTRIBUTE_FILE)
    train, test = (celeba_hq(config("celeba_hq", tmp_path), split) for split in ("train", "test"))
    assert levels(train) == [10 * i for i in range(12) if i != 9]
    assert levels(test) == [90]
    assert train.attribute_names == CELEBA_ATTRIBUTES
    assert train.attributes is not None
    assert test.attributes is not None
    assert test.attributes[0].tolist() == [0, 1, 0, 1] + 36 * [0]  # 9 + 1 = 0b1010
    assert train.attributes[-1].tolist() == [0, 0, 1, 1] + 36 * [0]  # 11 + 1 = 0b1100


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda lines: [], "line 2 must name"),
        (lambda lines: [lines[0], lines[1].replace("Bald", "Bold"), *lines[2:]], "line 2 must name"),
        (lambda lines: [*lines[:4], lines[4][:-3], *lines[5:]], "line 5 must be a file and 40 values"),
        (lambda lines: [*lines[:4], lines[4].replace(" 1 ", " 0 ", 1), *lines[5:]], "line 5 must be a file"),
        (lambda lines: lines[:-1], "11 rows where line 1 promises 12"),
        (lambda lines: ["11", *lines[1:-1]], r"no row for the image 11\.jpg \(1 of 12"),
    ],
)
def test_a_damaged_table_of_attributes_is_refused_with_its_line(tmp_path, damage, complaint):
    table = tmp_path / "celeba_hq" / ATTRIBUTE_FILE
    write_faces(tmp_path / "celeba_hq", table)
    table.write_text("\n".join(damage(table.read_text().splitlines())))
    with pytest.raises(DataError, match=complaint) as caught:
        celeba_hq(config("celeba_hq", tmp_path), "train")
    assert str(table) in str(caught.value)
