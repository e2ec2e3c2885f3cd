"""A small renderer: one shape on a floor, lit from the upper left, with a soft shadow.

A shape is a signed distance function, found by sphere tracing from a parallel camera that looks down on the floor, so
size and place in the image are independent of each other. Rays use +, -, x, / and square root alone, each exact to the
last bit: an image comes out the same in whatever batch it is rendered.

Rays are float32 arrays (3 n): x to the right, y up, z away from the viewer, in units of the object's size, from its
centre. A "pose" is the cosine and sine of the object's rotation for each ray, (2 n).
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Distance = Callable[[np.ndarray], np.ndarray]
"""Points (3 n) in the object's frame to their signed distances (n) from its surface, negative inside."""


def _unit(*parts: float) -> np.ndarray:
    return np.array([[part / math.hypot(*parts)] for part in parts], np.float32)


TILT = math.radians(32)
"""How far the camera looks down."""
LOOK = _unit(0.0, -math.sin(TILT), math.cos(TILT))
IMAGE_UP = _unit(0.0, math.cos(TILT), math.sin(TILT))
LIGHT = _unit(-0.62, 0.95, -0.48)
"""Towards the light."""
HALFWAY = _unit(*(LIGHT - LOOK)[:, 0].tolist())
"""Between the light and the viewer: surfaces that face it shine."""

PAINT = np.array([[0.78, 0.17, 0.07], [0.93, 0.74, 0.42]], np.float32)[:, :, None]
"""Linear RGB of the painted side and of the other: without paint, round shapes would hide their rotation."""
FLOOR = np.array([[0.46, 0.54, 0.62], [0.20, 0.27, 0.36]], np.float32)[:, :, None]
"""Linear RGB of the floor at the image's lower and upper edge."""
PENUMBRA = np.float32(5)
"""Sharpness of shadows: distance to the blocking edge over the width of the half shade."""
REACH = np.float32(1.24)
"""Radius around an object's centre that holds all of it."""
RAYS_AT_ONCE = 2**19


def _sphere(p: np.ndarray) -> np.ndarray:
    return _norm(p) - np.float32(0.9)


def _cube(p: np.ndarray) -> np.ndarray:
    return _box(np.abs(p) - np.float32(0.62)) - np.float32(0.06)


def _cylinder(p: np.ndarray) -> np.ndarray:
    return _box(np.stack([_norm(p[::2]) - np.float32(0.60), np.abs(p[1]) - np.float32(0.76)])) - np.float32(0.05)


def _cone(p: np.ndarray) -> np.ndarray:
    slope = np.array([1.8, 0.8], np.float32) / np.float32(math.hypot(1.8, 0.8))  # apex 1.8 above a base of radius 0.8
    slant = slope[0] * _norm(p[::2]) + slope[1] * (p[1] - np.float32(0.95))
    return np.maximum(slant, np.float32(-0.85) - p[1]) - np.float32(0.03)


def _torus(p: np.ndarray) -> np.ndarray:
    ring = _norm(p[:2]) - np.float32(0.62)  # it stands on its rim
    return _norm(np.stack([ring, p[2]])) - np.float32(0.28)


SHAPES: dict[str, tuple[Distance, float]] = {
    "sphere": (_sphere, 0.90),
    "cube": (_cube, 0.68),
    "cylinder": (_cylinder, 0.81),
    "cone": (_cone, 0.88),
    "torus": (_torus, 0.90),
}
"""Distance to each shape, and the height of its centre above the floor."""


def render(
    image_size: int,
    *,
    identity: Int64[Tensor, "b"],
    size: Float[Tensor, "b"],
    x: Float[Tensor, "b"],
    y: Float[Tensor, "b"],
    rotation: Float[Tensor, "b"],
) -> UInt8[Tensor, "b 3 h w"]:
    """RGB images of h = w = image_size pixels, antialiased by 9 rays a pixel (4 from 64 pixels up).

    identity: position in SHAPES; size, x (right), y (up): half image widths; rotation: degrees, as in `objects.py`.
    """
    rays_a_side = 3 if image_size < 64 else 2
    images = np.empty((len(identity), image_size, image_size, 3), np.uint8)
    for number, (distance, height) in enumerate(SHAPES.values()):
        rows = torch.nonzero(identity == number).flatten()
        for part in rows.split(max(1, RAYS_AT_ONCE // (image_size * rays_a_side) ** 2)):
            factors = [factor[part].numpy().astype(np.float32) for factor in (size, x, y, rotation)]
            images[part.numpy()] = _render_shape(distance, height, image_size, rays_a_side, *factors)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _render_shape(
    distance: Distance,
    height: float,
    image_size: int,
    rays_a_side: int,
    size: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    rotation: np.ndarray,
) -> np.ndarray:
    """Images (b h w 3) of one shape: the floor with its shadow, the object over it, the mean of each pixel's rays."""
    side = image_size * rays_a_side
    shape = (len(size), side, side)
    line = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side) - np.float32(1)
    right, up = line[None, None, :], -line[None, :, None]
    scale = (1 / size)[:, None, None]
    u = np.broadcast_to((right - x[:, None, None]) * scale, shape).reshape(-1)  # the ray's place in the image plane
    v = np.broadcast_to((up - y[:, None, None]) * scale, shape).reshape(-1)
    far = np.broadcast_to(np.float32(0.5) + np.float32(0.5) * up, shape).reshape(-1)
    angles = [math.radians(float(degrees)) for degrees in rotation]
    pose = np.array([[math.cos(a) for a in angles], [math.sin(a) for a in angles]], np.float32)
    pose = np.repeat(pose, side * side, axis=1)

    color = (FLOOR[0] + (FLOOR[1] - FLOOR[0]) * far) * _floor_light(distance, height, u, v, pose)
    near = np.nonzero(u * u + v * v < REACH * REACH)[0]
    hit, seen = _object(distance, u[near], v[near], _take(pose, near))
    color[:, near[hit]] = seen

    rays = np.clip(color, 0, 1).reshape(3, *shape)
    k = rays_a_side
    total = np.zeros((3, len(size), image_size, image_size), np.float32)
    for i in range(k):
        for j in range(k):
            total += rays[..., i::k, j::k]  # one by one: a sum's order would depend on the shape
    levels = np.sqrt(total * np.float32(1 / (k * k))) * np.float32(255) + np.float32(0.5)  # gamma 2
    return np.minimum(levels, np.float32(255)).astype(np.uint8).transpose(1, 2, 3, 0)


def _floor_light(distance: Distance, height: float, u: np.ndarray, v: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Light (n) on the floor under the rays (u, v): direct with a soft shadow, and less of the sky near the object."""
    plane = _plane(u, v)
    point = plane + (np.float32(height) + plane[1]) / -LOOK[1] * LOOK  # where y is -height
    lit, openness = np.ones_like(u), np.ones_like(u)
    toward = _dot(point, LIGHT)
    maybe = np.nonzero(_dot(point, point) - toward * toward < (REACH + np.float32(0.6)) ** 2)[0]
    lit[maybe] = _lit(distance, _take(point, maybe), _take(pose, maybe))
    close = np.nonzero(_dot(point[::2], point[::2]) < np.float32(2.2**2))[0]
    above = _take(point, close) + np.array([[0], [0.3], [0]], np.float32)
    openness[close] = _smooth(distance(_turn(above, _take(pose, close))) * np.float32(1 / 0.9) + np.float32(0.35))
    return np.float32(0.36) * openness + np.float32(0.64) * lit * (np.float32(0.6) + np.float32(0.4) * openness)


def _object(distance: Distance, u: np.ndarray, v: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rays (u, v) hit the object, as indices (m), and the linear RGB (3 m) that those see."""
    half = np.sqrt(np.maximum(REACH * REACH - u * u - v * v, np.float32(0)))  # half the way through the sphere of REACH
    origin = _turn(_plane(u, v) - half * LOOK, pose)
    look = _turn(LOOK, pose)
    travelled, active, missed = np.zeros_like(u), np.arange(len(u)), np.ones(len(u), bool)
    for _ in range(48):
        step = distance(_take(origin, active) + travelled[active] * _take(look, active))
        travelled[active] += step
        arrived = step <= np.float32(1e-3)
        missed[active[arrived]] = False
        active = active[~arrived & (travelled[active] <= 2 * half[active])]
    hit = np.nonzero(~missed)[0]
    point = _take(origin, hit) + travelled[hit] * _take(look, hit)
    return hit, _surface_color(distance, point, _take(pose, hit))


def _surface_color(distance: Distance, point: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Linear RGB (3 n) at points of the surface (object's frame): Lambert's law, light of the sky, and a highlight."""
    normal = _normal(distance, point)
    lambert = np.maximum(_dot(normal, _turn(LIGHT, pose)), np.float32(0))
    lambert = lambert * _lit(distance, _back(point + np.float32(0.03) * normal, pose), pose)
    shine = np.maximum(_dot(normal, _turn(HALFWAY, pose)), np.float32(0))
    for _ in range(5):
        shine = shine * shine  # to the 32nd power
    shine = shine * np.float32(0.45) * np.minimum(lambert * np.float32(4), np.float32(1))
    sky = np.float32(0.18) + np.float32(0.08) * normal[1]
    paint = np.where(point[0] > 0, PAINT[0], PAINT[1])
    return paint * (sky + np.float32(0.86) * lambert) + shine


def _lit(distance: Distance, point: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Direct light (n) at points of the scene: 1 free, 0 blocked, between where its way passes the object closely."""
    origin, light = _turn(point, pose), _turn(LIGHT, pose)
    free, travelled = np.ones_like(pose[0]), np.full_like(pose[0], 0.02)
    active = np.arange(len(free))
    for _ in range(40):
        gap = distance(_take(origin, active) + travelled[active] * _take(light, active))
        free[active] = np.minimum(free[active], PENUMBRA * gap / travelled[active])
        travelled[active] += np.clip(gap, np.float32(0.02), np.float32(0.35))
        active = active[(free[active] > 0) & (travelled[active] < np.float32(4.5))]
    return _smooth(free)


def _normal(distance: Distance, point: np.ndarray) -> np.ndarray:
    """Unit normals (3 n) by differences over the corners of a tetrahedron."""
    total = np.zeros_like(point)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        sign = np.array(corner, np.float32)[:, None]
        total += sign * distance(point + np.float32(2e-3) * sign)
    return total / np.maximum(_norm(total), np.float32(1e-12))


def _plane(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The point (3 n) of the image plane through the object's centre that is `u` right and `v` up."""
    return np.stack([u, v * IMAGE_UP[1], v * IMAGE_UP[2]])


def _turn(p: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """From the scene to the object's frame, whose x axis, the painted side, looks to (cos, 0, -sin) in the scene."""
    cos, sin = pose
    return np.stack([p[0] * cos - p[2] * sin, np.broadcast_to(p[1], cos.shape), p[0] * sin + p[2] * cos])


def _back(p: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """The inverse of `_turn`."""
    return _turn(p, np.stack([pose[0], -pose[1]]))


def _take(p: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.take(p, index, axis=1)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total = total + a[i] * b[i]
    return total


def _norm(p: np.ndarray) -> np.ndarray:
    return np.sqrt(_dot(p, p))


def _box(beyond: np.ndarray) -> np.ndarray:
    """Distance to a box from each coordinate's distance beyond its side."""
    outside = _norm(np.maximum(beyond, np.float32(0)))
    return outside + np.minimum(functools.reduce(np.maximum, beyond), np.float32(0))


def _smooth(t: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, 3 t^2 - 2 t^3 between."""
    t = np.clip(t, np.float32(0), np.float32(1))
    return t * t * (np.float32(3) - np.float32(2) * t)
