"""The renderer puts what it is told where it is told, lights it from the upper left, and casts its shadow."""

import numpy as np
import pytest
import torch

from ebm_core.data.render import REACH, SHAPES, render

NAMES = list(SHAPES)


def picture(name: str, image_size: int = 48, **factors: float) -> torch.Tensor:
    """One image (3 h w), float."""
    given = {"size": 0.4, "x": 0.0, "y": 0.0, "rotation": 60.0} | factors
    pose = {factor: torch.tensor([value]) for factor, value in given.items()}
    return render(image_size, identity=torch.tensor([NAMES.index(name)]), **pose)[0].float()


def on_object(image: torch.Tensor) -> torch.Tensor:
    """Pixels that are warm: the paint is, floor and shadow are not."""
    return image[0] > image[2] + 12


@pytest.mark.parametrize("name", NAMES)
def test_distances_fit_their_shapes(name):
    # negative inside, positive outside, and it changes by no more than one moves, so a ray never steps through
    distance, height = SHAPES[name]
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 3, 20_000)).astype(np.float32)
    there, here = distance(points[0]), distance(points[1])
    assert (np.abs(there - here) <= np.linalg.norm(points[0] - points[1], axis=0) + 1e-5).all()
    outside = np.linalg.norm(points[0], axis=0) > REACH
    assert there[outside].min() > 0, "the whole object lies within REACH of its centre"
    assert there.min() < 0
    lowest = points[0][1][there < 0].min()
    assert lowest == pytest.approx(-height, abs=0.1), "it stands on the floor"
    assert lowest > -height - 0.02, "it does not reach through the floor"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("x", "y"), [(-0.4, 0.3), (0.35, -0.4)])
def test_position_moves_the_object_by_as_much_of_the_image(name, x, y):
    # 48 pixels span 2 units, so a position moves the picture's centre of mass by 24 pixels a unit
    rows, columns = torch.nonzero(on_object(picture(name))).float().mean(0)
    moved_rows, moved_columns = torch.nonzero(on_object(picture(name, x=x, y=y))).float().mean(0)
    assert (moved_columns - columns).item() == pytest.approx(24 * x, abs=0.4)
    assert (moved_rows - rows).item() == pytest.approx(-24 * y, abs=0.4)


@pytest.mark.parametrize("name", NAMES)
def test_area_grows_with_the_square_of_the_size(name):
    small, large = (on_object(picture(name, 96, size=size)).sum().item() for size in (0.26, 0.52))
    assert large / small == pytest.approx(4, rel=0.1)


def test_a_sphere_is_a_disk_of_its_radius():
    area = on_object(picture("sphere", 96, size=0.5)).sum().item()
    assert area == pytest.approx(np.pi * (0.9 * 0.5 * 48) ** 2, rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_rotation_turns_the_painted_side_from_right_to_left(name):
    def center_of_paint(rotation: float) -> float:
        image = picture(name, rotation=rotation)
        painted = on_object(image) & (image[1] < 0.6 * image[0])  # red, the other side is cream
        return torch.nonzero(painted)[:, 1].float().mean().item()

    assert center_of_paint(15.0) > center_of_paint(90.0) > center_of_paint(165.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_shadow_falls_to_the_right_and_is_soft(name):
    image = picture(name, 96, size=0.35)
    empty = picture(name, 96, size=0.35, x=50.0)  # the object is far outside: bare floor
    darker = (empty.sum(0) - image.sum(0)).masked_fill(on_object(image), 0)
    rows, columns = torch.nonzero(darker > 30, as_tuple=True)
    object_columns = torch.nonzero(on_object(image))[:, 1].float()
    assert columns.float().mean() > object_columns.mean(), "light comes from the left"
    assert columns.max() > object_columns.max(), "the shadow reaches beyond the object"
    half_shade = ((darker > 30) & (darker < 120)).sum()
    assert half_shade > 0.2 * len(rows), "part of it is half shade"


def test_light_from_the_upper_left_makes_that_side_of_a_sphere_brighter():
    image = picture("sphere", 96, rotation=90.0).sum(0)  # one paint all over the visible side
    assert image[34:46, 34:46].mean() > 1.3 * image[50:62, 50:62].mean()


@pytest.mark.parametrize("name", NAMES)
def test_edges_are_antialiased(name):
    # a pixel is the mean light of all that it covers; with one ray a pixel the error is 0.017 to 0.022
    coarse, fine = ((picture(name, size) / 255).square() for size in (32, 256))
    error = coarse - torch.nn.functional.avg_pool2d(fine, 8)
    assert error.square().mean().sqrt() < 0.008


def test_an_image_does_not_depend_on_the_batch_it_is_rendered_in():
    num = 15
    generator = torch.Generator().manual_seed(1)
    factors = {
        "identity": torch.arange(num) % len(NAMES),
        "size": 0.3 + 0.2 * torch.rand(num, generator=generator),
        "x": torch.rand(num, generator=generator) - 0.5,
        "y": torch.rand(num, generator=generator) - 0.5,
        "rotation": 180 * torch.rand(num, generator=generator),
    }
    together = render(32, **factors)
    for i in range(num):
        alone = render(32, **{name: values[i : i + 1] for name, values in factors.items()})
        assert torch.equal(alone[0], together[i])
