"""A data set fetches what it is asked for, and its fingerprint changes with what it holds."""

import dataclasses

import pytest
import torch

from ebm_core.config import DataConfig
from ebm_core.data import dataset as module
from ebm_core.data.dataset import from_pixels, limited, remembered
from ebm_core.errors import DataError

CFG = DataConfig(name="mnist", image_size=8, channels=1)


def pixels(num: int = 10) -> torch.Tensor:
    return torch.arange(num, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8)


def test_fetch_returns_the_images_in_the_order_asked_for():
    data = from_pixels(pixels(), CFG, "train")
    assert (len(data), data.name, data.image_shape) == (10, "mnist", (1, 8, 8))
    assert data.fetch(torch.tensor([7, 0, 7]))[:, 0, 0, 0].tolist() == [7, 0, 7]
    assert data.fetch(torch.tensor([], dtype=torch.int64)).shape == (0, 1, 8, 8)


def test_images_of_another_size_are_brought_to_the_configs_shape():
    data = from_pixels(pixels(), dataclasses.replace(CFG, image_size=12, channels=3), "train")
    assert torch.equal(data.fetch(torch.tensor([4])), torch.full((1, 3, 12, 12), 4, dtype=torch.uint8))


@pytest.mark.parametrize("index", [-1, 10])
def test_an_image_out_of_range_is_refused_with_the_range(index):
    with pytest.raises(DataError, match=f"image {index} asked for; the train split has 0 to 9"):
        from_pixels(pixels(), CFG, "train").fetch(torch.tensor([3, index]))


def test_a_limit_keeps_the_first_images_with_all_that_is_known_of_them():
    data = from_pixels(pixels(), CFG, "train", torch.arange(10), tuple("abcdefghij"))
    data = dataclasses.replace(data, attributes=torch.eye(10), factors={"size": torch.arange(10.0)})
    few = limited(data, 4)
    assert (len(few), few.class_names) == (4, data.class_names)
    assert few.labels is not None
    assert few.attributes is not None
    assert few.labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(few.attributes, torch.eye(10)[:4])
    assert few.factors["size"].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="0 to 3"):
        few.fetch(torch.tensor([4]))
    assert len(limited(data, 99)) == 10


def test_equal_content_has_equal_fingerprints_and_any_change_another():
    def made(change: str = "") -> str:
        images, labels = pixels(), torch.arange(10)
        images[9, 0, 7, 7] += int(change == "a pixel")
        labels[9] -= int(change == "a label")
        cfg = dataclasses.replace(CFG, image_size=9 if change == "the size" else 8)
        split = "test" if change == "the split" else "train"
        data = from_pixels(images, cfg, split, labels, tuple("abcdefghij"))
        return (limited(data, 9) if change == "the limit" else data).fingerprint()

    assert made() == made()
    others = [made(change) for change in ("a pixel", "a label", "the size", "the split", "the limit")]
    assert len({made(), *others}) == 6


def test_a_remembered_image_is_made_once_and_stays_the_same():
    made: list[int] = []

    def read(index: torch.Tensor) -> torch.Tensor:
        made.extend(index.tolist())
        return pixels()[index]

    once = remembered(read, 10, (1, 8, 8))
    for asked in ([3, 1, 3], [1, 2], [3]):
        assert once(torch.tensor(asked))[:, 0, 0, 0].tolist() == asked
    assert sorted(made) == [1, 2, 3]


def test_a_set_that_does_not_fit_is_made_again_each_time(monkeypatch):
    monkeypatch.setattr(module, "MEMORY_BYTES", 639)  # ten images of 64 bytes are 640
    read = pixels().__getitem__
    assert remembered(read, 10, (1, 8, 8)) is read
