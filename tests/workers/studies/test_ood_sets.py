"""Sets of Table 3 whose images are known: which of them a protocol reads, how, and what gives a set away."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from ebm_core.config import DataConfig
from ebm_core.data import Dataset, dequantize, from_pixels, load
from ebm_core.data.files import MD5
from ebm_core.errors import ConfigError, DataError
from orchestrator.training.prepare_data import prepare
from workers.studies import ood_sets
from workers.studies.ood_sets import ImageSet, SetReader, image_set

CIFAR = DataConfig(image_size=32, channels=3)


@pytest.fixture
def heldout() -> Dataset:
    """300 random images in the place of CIFAR-10's test split."""
    levels = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return from_pixels(levels, CIFAR, "test")


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """SVHN's files: 7 images of level 10 to train on, 400 of level 20 to test."""
    for split, level, count in (("train", 10, 7), ("test", 20, 400)):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": np.full((32, 32, 3, count), level, np.uint8), "y": np.ones((count, 1), np.uint8)})
        monkeypatch.setitem(MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())
    return tmp_path


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """DTD's layout: five pictures of 96 x 64, black but for a white corner of 40 x 40 at the top left."""
    lists = {"train1": ["a/1.png", "b/2.png"], "val1": ["a/3.png", "b/4.png"], "test1": ["a/5.png"]}
    (tmp_path / "dtd/labels").mkdir(parents=True)
    for name, lines in lists.items():
        (tmp_path / "dtd/labels" / f"{name}.txt").write_text("\n".join(lines))
        for line in lines:
            path = tmp_path / "dtd/images" / line
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = np.zeros((64, 96, 3), np.uint8)
            picture[:40, :40] = 255
            Image.fromarray(picture).save(path)
    return tmp_path


def everything(which: ImageSet, heldout: Dataset) -> tuple[SetReader, torch.Tensor, torch.Tensor]:
    """The reader, its images as stored and as the energy takes them, checked as the evaluator does."""
    reader = SetReader(which, heldout)
    images, x = reader.images(0, reader.num_images)
    ood_sets.check_alike(which, x, heldout.image_shape)
    return reader, images, x


def test_strict_reads_svhns_test_split_whole_and_paper_code_its_training_split(svhn, heldout):
    reader, images, x = everything(image_set(f"svhn={svhn}", CIFAR), heldout)
    assert (reader.num_images, set(images.unique().tolist())) == (400, {20})
    assert x.unique().tolist() == [20.5 / 256]
    reader, images, x = everything(image_set(f"svhn={svhn}", CIFAR, protocol="paper_code"), heldout)
    assert (reader.num_images, set(images.unique().tolist())) == (7, {10})
    assert 10 / 256 <= x.min() < 10.1 / 256
    assert 10.9 / 256 < x.max() < 11 / 256
    assert x.mean().item() * 256 == pytest.approx(10.5, abs=0.01)  # standard error 0.002


def test_paper_code_takes_one_image_for_each_held_out_one(svhn, heldout):
    few = from_pixels(heldout.fetch(torch.arange(5)), CIFAR, "test")
    how = {"protocol": "paper_code"}
    first = SetReader(image_set(f"svhn={svhn}", CIFAR, **how), few)
    assert first.num_images == 5
    assert len(set(first.image_numbers.tolist())) == 5
    other = SetReader(image_set(f"svhn={svhn}", CIFAR, seed=1, **how), few)
    assert not torch.equal(first.image_numbers, other.image_numbers)  # another shuffle
    assert SetReader(image_set(f"svhn={svhn}", CIFAR), few).num_images == 400


def test_strict_offers_textures_resized_and_cropped_and_reads_all_of_them(textures, heldout):
    reader, images, _ = everything(image_set(f"textures={textures}", CIFAR), heldout)
    assert reader.num_images == 5
    assert 0 < images.float().mean() < 0.25 * 255  # a corner of the centre of the resized picture
    reader, images, x = everything(image_set(f"textures_crop={textures}", CIFAR), heldout)
    assert reader.num_images == 5
    assert set(images.unique().tolist()) == {255}
    assert x.unique().tolist() == [255.5 / 256]


def test_paper_code_lists_textures_twice_crops_them_and_scales_them_by_255(textures, heldout):
    which = image_set(f"textures={textures}", CIFAR, protocol="paper_code")
    reader, images, x = everything(which, heldout)
    assert reader.image_numbers.bincount().tolist() == [2] * 5
    assert set(images.unique().tolist()) == {255}
    assert x.max() > 1  # beyond every other set's range
    assert (x - 1).abs().max() <= 0.5 / 256
    assert (x - 1).mean().abs() < 1e-4


def test_pictures_too_small_to_crop_are_named(textures, heldout):
    Image.new("RGB", (40, 31)).save(textures / "dtd/images/a/5.png")
    reader = SetReader(image_set(f"textures_crop={textures}", CIFAR), heldout)
    with pytest.raises(DataError, match=r"5\.png: too small to cut 32 x 32"):
        reader.images(0, reader.num_images)


def test_strict_interpolation_mixes_each_image_with_one_other_by_a_fixed_permutation(heldout):
    reader, mixed, x = everything(ImageSet("interpolation", seed=5), heldout)
    assert reader.num_images == len(heldout)
    partners = reader._partners
    assert sorted(partners.tolist()) == list(range(300))
    assert not torch.any(partners == torch.arange(300))
    real = heldout.fetch(torch.arange(300)).double()
    assert (mixed - (real + real[partners]) / 2).abs().max() <= 0.5
    assert torch.equal(x, dequantize(mixed))
    assert torch.equal(SetReader(ImageSet("interpolation", seed=6), heldout)._partners, partners)


def test_paper_code_mixes_neighbours_of_a_shuffled_batch_with_two_dithers(heldout):
    reader, mixed, x = everything(ImageSet("interpolation", protocol="paper_code"), heldout)
    order, partners = reader.image_numbers, reader._partners
    assert sorted(order.tolist()) == list(range(300))
    for first, last in ((0, 128), (128, 256), (256, 300)):
        assert torch.equal(partners[first:last], order[first:last].roll(-1))
    real = heldout.fetch(torch.arange(300)).double()
    exact = (real[order] + real[partners]) / 2
    assert (mixed - exact).abs().max() <= 0.5
    dither = x.double() * 256 - exact  # the mean of two uniform ones: half the variance of one
    assert dither.mean() == pytest.approx(0.5, abs=1e-3)
    assert dither.var() == pytest.approx(1 / 24, rel=0.01)
    _, _, plain = everything(ImageSet("heldout", protocol="paper_code"), heldout)
    assert (plain.double() * 256 - real).var() == pytest.approx(1 / 12, rel=0.01)


def test_the_cifar100_fault_is_one_image_in_many_dithers(heldout, monkeypatch):
    monkeypatch.setattr(ood_sets, "open_source", lambda which: heldout)
    sound = image_set("cifar100", CIFAR, protocol="paper_code")
    _, images, _ = everything(sound, heldout)
    assert len(images.unique(dim=0)) == 300
    reader, images, x = everything(ood_sets.stuck(sound), heldout)
    assert reader.num_images == 300
    assert torch.equal(images.unique(dim=0), heldout.fetch(torch.tensor([0])))
    assert len(x.unique(dim=0)) == 300


def test_any_folder_of_images_is_a_set_whole_and_in_the_models_shape(tmp_path, heldout):
    for i in range(25):
        Image.new("L" if i % 2 else "RGB", (50 + i, 40), 10 * i if i % 2 else (10 * i,) * 3).save(tmp_path / f"{i}.png")
    reader, images, _ = everything(image_set(f"my.photos-1={tmp_path}", CIFAR), heldout)
    assert sorted(images.float().mean((1, 2, 3)).tolist()) == [10 * i for i in range(25)]
    assert [reader.source.files[i].name for i in reader.image_numbers[[0, -1]].tolist()] == ["0.png", "19.png"]
    assert reader.source.fingerprint() != load(image_set(f"x={tmp_path}", CIFAR).data, "train").fingerprint()


def test_below_ten_images_none_is_read_twice_and_one_is_refused(tmp_path, heldout):
    for i in range(3):
        Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / f"{i}.png")
    assert SetReader(image_set(f"few={tmp_path}", CIFAR), heldout).num_images == 3
    (tmp_path / "one").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "one/0.png")
    with pytest.raises(DataError, match=r"one: 1 image\(s\) in it"):
        SetReader(image_set(f"one={tmp_path / 'one'}", CIFAR), heldout)


def test_a_folder_with_a_published_split_gives_its_test_images(tmp_path, heldout):
    for split, count in (("train", 4), ("test", 2)):
        (tmp_path / split).mkdir()
        for i in range(count):
            Image.new("RGB", (32, 32)).save(tmp_path / split / f"{i}.png")
    assert SetReader(image_set(f"mine={tmp_path}", CIFAR), heldout).num_images == 2


def test_sets_do_not_depend_on_the_cut_and_a_limit_thins_evenly(digits):
    _, heldout = digits
    for text in ("interpolation", "digits", "objects"):
        which = image_set(text, heldout.cfg, limit=50)
        reader, images, _ = everything(which, heldout)
        assert images.shape == (50, *heldout.image_shape)
        assert torch.equal(images, torch.cat([reader.images(0, 20)[0], reader.images(20, 50)[0]]))
    assert SetReader(ImageSet("digits", limit=3), heldout).image_numbers.tolist() == [0, 99, 198]


@pytest.mark.parametrize(
    "text",
    ["cifar11", "noise=here", "=x", "", "x=", "svhn=", "heldout", "heldout=x", "a b=x", "a/b=x", "x" * 50 + "=y"],
)
def test_an_unknown_set_lists_the_known_ones(text):
    with pytest.raises(ConfigError, match="known are interpolation, noise, digits"):
        image_set(text, CIFAR)


def test_missing_files_and_folders_are_named(tmp_path, heldout):
    with pytest.raises(DataError, match=str(tmp_path)):
        SetReader(image_set(f"svhn={tmp_path}", CIFAR), heldout)
    with pytest.raises(DataError, match=f"no images .* in {tmp_path}"):
        SetReader(image_set(f"mine={tmp_path}", CIFAR), heldout)
    with pytest.raises(DataError, match="no folder"):
        SetReader(image_set(f"mine={tmp_path / 'gone'}", CIFAR), heldout)


def test_defaults_are_table_3_for_cifar10_and_need_no_files_elsewhere():
    for protocol in ood_sets.PROTOCOLS:
        assert {*ood_sets.TABLE_3} - {*ood_sets.default_sets(CIFAR, protocol)} == set()
        assert ood_sets.default_sets(replace(CIFAR, name="mnist"), protocol) == ("interpolation", "noise")
    assert "textures_crop" in ood_sets.default_sets(CIFAR, "strict")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: x * 255, r"values from 0\.\d+ to 25\d"),
        (lambda x: 2 * x - 1, r"values from -\d"),
        (lambda x: x * 256 / 255, "every set must lie in"),
        (lambda x: x.double(), "torch.float64"),
        (lambda x: x[:, :1], r"\(1, 32, 32\)"),
        (lambda x: x[..., :-1], r"\(3, 32, 31\)"),
        (lambda x: x.clamp(0.1, 0.9), "between the levels"),
        (lambda x: (x * 256 - 0.5) / 255 * 0.99 + 0.002, "between the levels"),
        (lambda x: torch.where(x > 0.9, torch.nan, x), "values from nan"),
    ],
)
def test_a_set_of_another_range_type_or_shape_is_caught(heldout, spoil, said):
    which = ImageSet("heldout")
    _, x = SetReader(which, heldout).images(0, 100)
    ood_sets.check_alike(which, x, heldout.image_shape)
    with pytest.raises(DataError, match=f"heldout: .*{said}"):
        ood_sets.check_alike(which, spoil(x), heldout.image_shape)


def test_a_run_from_a_prepared_set_asks_for_the_files_of_other_sets(tmp_path: Path):
    digits = DataConfig(name="digits", image_size=8, channels=1)
    prepare(digits, str(tmp_path))
    trained = replace(digits, root=str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"ood.sets = svhn: not in .*, which holds the prepared digits; say svhn=FOLDER"
    ):
        image_set("svhn", trained)
    with pytest.raises(DataError, match="holds a prepared set; give the folder that it was made from"):
        ood_sets.open_source(image_set(f"mine={tmp_path}", trained))
    made = ood_sets.open_source(image_set("objects", trained))
    assert (made.name, made.image_shape) == ("objects", (1, 8, 8))
