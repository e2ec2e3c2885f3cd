import io

import numpy as np
import pytest
import torch
from PIL import Image

from ebm_core.errors import DataError
from workers.pictures import (
    GAP,
    LARGEST_SCALE,
    PADDING,
    PAGE_WIDTH,
    SLATE,
    curves_png,
    grid_png,
    grids_png,
    strip_png,
)


def decoded(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def levels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_every_image_is_in_the_grid_unchanged(channels):
    images = levels(5, channels, 4, 6)
    page = decoded(grid_png(images, columns=3, scale=2))
    assert page.shape == (2 * (4 * 2 + PADDING) + PADDING, 3 * (6 * 2 + PADDING) + PADDING, 3)
    covered = np.zeros(page.shape[:2], dtype=bool)
    for i in range(5):
        top, left = PADDING + (i // 3) * (8 + PADDING), PADDING + (i % 3) * (12 + PADDING)
        tile = page[top : top + 8, left : left + 12]
        for dy in (0, 1):
            for dx in (0, 1):
                expected = images[i].permute(1, 2, 0).expand(4, 6, 3).numpy()
                np.testing.assert_array_equal(tile[dy::2, dx::2], expected)
        covered[top : top + 8, left : left + 12] = True
    assert (page[~covered] == SLATE).all()  # padding, and the empty place of the last row


@pytest.mark.parametrize(("count", "size"), [(64, 8), (64, 32), (100, 28), (16, 128)])
def test_a_grid_of_small_images_is_about_as_wide_as_a_page(count, size):
    page = decoded(grid_png(torch.zeros(count, 1, size, size, dtype=torch.uint8)))
    columns = int(count**0.5)
    assert abs(page.shape[1] - PAGE_WIDTH) <= columns * size / 2 + 2 * PADDING
    assert abs(page.shape[0] - page.shape[1]) <= 2  # square


def test_a_few_images_are_not_blown_up_and_large_ones_not_shrunk():
    assert decoded(grid_png(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))).shape[1] == 8 * LARGEST_SCALE + 2 * PADDING
    assert decoded(grid_png(torch.zeros(16, 3, 256, 256, dtype=torch.uint8))).shape[1] == 4 * 258 + 2


def test_a_strip_has_a_row_for_each_chain_and_time_runs_to_the_right():
    time = torch.tensor([0, 100, 200], dtype=torch.uint8)
    values = time[None, :] + torch.tensor([[0], [50]], dtype=torch.uint8)
    chains = values[:, :, None, None, None].expand(2, 3, 1, 4, 4)
    page = decoded(strip_png(chains, scale=1))
    assert page.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    assert page[2::6, 2::6, 0].tolist() == [[0, 100, 200], [50, 150, 250]]


def test_grids_stand_side_by_side_with_a_white_gap():
    groups = [torch.full((4, 1, 4, 4), value, dtype=torch.uint8) for value in (10, 20, 30)]
    page = decoded(grids_png(groups))
    grid = decoded(grid_png(groups[0], scale=16))
    height, width = grid.shape[:2]
    assert page.shape == (height, 3 * width + 2 * GAP, 3)
    np.testing.assert_array_equal(page[:, :width], grid)
    assert (page[:, width : width + GAP] == 255).all()
    assert [int(page[height // 4, i * (width + GAP) + width // 4, 0]) for i in range(3)] == [10, 20, 30]
    for wrong in ([], [groups[0], groups[1][:3]]):
        with pytest.raises(DataError, match="grids of shapes"):
            grids_png(wrong)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(0, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 2, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_shape(images):
    with pytest.raises(DataError, match=r"images of shape \("):
        grid_png(images)


def test_bad_columns_scale_or_chains_are_refused():
    with pytest.raises(DataError, match="scale = -1"):
        grid_png(levels(2, 1, 8, 8), scale=-1)
    with pytest.raises(DataError, match="columns = -3"):
        grid_png(levels(2, 1, 8, 8), columns=-3)
    with pytest.raises(DataError, match="chains of shape"):
        strip_png(levels(2, 1, 8, 8))


def test_curves_are_drawn_at_a_fixed_size_with_gaps_where_values_are_missing():
    x = list(range(40))
    page = decoded(curves_png({"a": (x, x), "b": (x, [float("nan")] * 40)}, "title", "pixels", level=0))
    assert page.shape == (450, 800, 3)
    blue = (page == (31, 119, 180)).all(axis=2)
    orange = (page == (255, 127, 14)).all(axis=2)
    assert blue.sum() > 10 * max(1, orange.sum())  # the second curve shows in the legend only


def test_a_logarithmic_axis_turns_an_exponential_into_a_straight_line():
    x = np.arange(40)
    page = decoded(curves_png({"a": (x, 10.0 ** (x / 10))}, "t", "y", log_y=True))
    rows, columns = np.nonzero((page == (31, 119, 180)).all(axis=2))
    assert np.corrcoef(rows, columns)[0, 1] < -0.9999


def test_curves_leave_no_global_figure_behind():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    curves_png({"a": ([0, 1], [0, 1])}, "t", "y")
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("series", [{}, {"a": ([], [])}, {"a": ([1, 2], [1])}])
def test_curves_without_points_are_refused(series):
    with pytest.raises(DataError, match="curve"):
        curves_png(series, "title", "y")
