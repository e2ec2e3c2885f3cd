"""Pictures of any kind become uint8 pixels of the wanted size and channels."""

import numpy as np
import pytest
import torch
from PIL import Image

from ebm_core.data.images import decode, fit
from ebm_core.errors import DataError


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def as_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def test_images_of_the_wanted_shape_come_back_unchanged():
    levels = noise(2, 3, 16, 16)
    assert torch.equal(fit(levels, 16, 3), levels)


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (33, 33), (8, 11)])
def test_resize_and_crop_agree_with_pillow_to_a_level(size):
    levels = noise(1, 3, *size)
    height, width = size
    scale = 16 / min(size)
    resized = as_pillow(levels[0]).resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = (resized.width - 16) // 2, (resized.height - 16) // 2
    expected = np.asarray(resized.crop((left, top, left + 16, top + 16))).astype(int)
    found = fit(levels, 16, 3)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1


def test_a_fine_checkerboard_shrinks_to_its_mean_because_the_filter_antialiases():
    board = (torch.arange(64)[:, None] + torch.arange(64)[None, :]) % 2 * 254
    small = fit(board.to(torch.uint8)[None, None], 8, 1)
    assert (small.int() - 127).abs().max() <= 2


def test_gray_is_pillows_luma_exactly():
    levels = noise(1, 3, 32, 32)
    assert np.array_equal(fit(levels, 32, 1)[0, 0].numpy(), np.asarray(as_pillow(levels[0]).convert("L")))


def test_gray_images_become_rgb_with_three_equal_channels():
    levels = noise(2, 1, 8, 8)
    assert torch.equal(fit(levels, 8, 3), levels.repeat(1, 3, 1, 1))


def test_files_keep_their_pixels_whether_gray_or_rgb(tmp_path):
    for channels in (1, 3):
        levels = noise(channels, 9, 12)
        as_pillow(levels).save(tmp_path / "image.png")
        assert torch.equal(decode(tmp_path / "image.png", "image"), levels)
        assert torch.equal(decode((tmp_path / "image.png").read_bytes(), "image"), levels)


def test_a_palette_image_shows_its_palettes_colors(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "palette.png")
    assert decode(tmp_path / "palette.png", "p").flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]


def test_transparent_parts_show_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "clear_gray.png")
    assert decode(tmp_path / "clear.png", "clear").unique().tolist() == [255]
    assert decode(tmp_path / "clear_gray.png", "clear").unique().tolist() == [255]


def test_the_cameras_orientation_is_applied(tmp_path):
    upright = noise(3, 4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image must be turned by 90 degrees clockwise to be seen upright
    stored = as_pillow(upright).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(decode(tmp_path / "turned.png", "turned"), upright)


def test_sixteen_bits_become_the_upper_eight(tmp_path):
    levels = np.array([[0, 255, 256, 65535]] * 4, np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", "deep")[0, 0].tolist() == [0, 0, 1, 255]


def test_ink_becomes_light(tmp_path):
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "black.jpg")
    assert decode(tmp_path / "black.jpg", "black").max() <= 2


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "float"])
def test_a_damaged_image_is_named_in_one_line(tmp_path, damage):
    path = tmp_path / "bad.png"
    as_pillow(noise(3, 64, 64)).save(path)
    content = {"empty": b"", "text": b"no image", "cut": path.read_bytes()[:3000], "float": b""}[damage]
    path.write_bytes(content)
    if damage == "float":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path, format="TIFF")
    with pytest.raises(DataError) as caught:
        decode(path, str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_thread_of_pixels_is_refused(tmp_path):
    Image.new("L", (1, 500)).save(tmp_path / "thread.png")
    with pytest.raises(DataError, match="1 x 500 pixels"):
        decode(tmp_path / "thread.png", "thread.png")


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb\.png"):
        decode(tmp_path / "bomb.png", "bomb.png")
