"""Shapes and pictures, drawn at a size.

A size is (height, width) in pixels. Coordinates of a mask run 0 to 1 over the image, x to the right and y down; here
they become pixels, where the centre of pixel i lies at i + 0.5. A pixel's value is the mask's mean over the pixel, not
a sample of it, so that a mask drawn large and averaged down equals one drawn small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lib_masknoise.maps.edges import Array, centres, offsets, rise, strip
from lib_masknoise.maps.resample import Size, resize
from lib_masknoise.scene import EllipseMask, GradientMask, ImageMask, Mask, RectMask, SplitMask
from lib_masknoise.scene.pictures import colour_values, mask_values

_SAMPLES = 4


def draw(mask: Mask, size: Size) -> Array:
    """A shape or a picture at ``size``: float32 ``[H, W]`` in [0, 1].

    Feathers are the width of the smoothstep from 1 to 0: a fraction of the axis for a split, of the image's shorter
    side for the others. A feather wider than the shape leaves its middle below 1, as a blur would. A gradient is 1 at
    ``from``, 0 at ``to``, straight or around ``from``, measured in pixels, so that its contours are at right angles to
    the line between the two, or circles, at any aspect.
    """
    return SHAPES[type(mask)](mask, size).astype(np.float32).clip(0, 1)


def _draw_rect(mask: RectMask, size: Size) -> Array:
    width = mask.feather * min(size)
    rows = strip(size[0], mask.top, mask.bottom, width)
    return rows[:, None] * strip(size[1], mask.left, mask.right, width)


def _draw_split(mask: SplitMask, size: Size) -> Array:
    n = size[1] if mask.axis == "x" else size[0]
    along = strip(n, mask.from_, mask.to, mask.feather * n)
    return np.broadcast_to(along if mask.axis == "x" else along[:, None], size)


def _draw_ellipse(mask: EllipseMask, size: Size) -> Array:
    """The edge's smoothstep follows the true distance to the ellipse. Only pixels that a narrow edge crosses
    are sampled more than once: everywhere else one distance says enough."""
    height, width = size
    a, b = mask.rx * width, mask.ry * height
    cos, sin = math.cos(math.radians(mask.angle)), math.sin(math.radians(mask.angle))
    edge = mask.feather * min(size)

    def distance(x: Array, y: Array) -> Array:
        x, y = x - mask.x * width, y - mask.y * height
        return _ellipse_distance(x * cos + y * sin, y * cos - x * sin, a, b)

    x, y = np.broadcast_arrays(*centres(size))
    from_edge = distance(x, y)
    drawn = 1 - rise(from_edge, edge)
    if edge < _SAMPLES:
        near = np.abs(from_edge) < edge / 2 + 1
        x, y = x[near], y[near]
        samples = [1 - rise(distance(x + dx, y + dy), edge, 1 / _SAMPLES) for dx, dy in offsets(_SAMPLES)]
        drawn[near] = np.mean(samples, axis=0)
    return drawn


def _ellipse_distance(x: Array, y: Array, a: float, b: float) -> Array:
    """Signed distance (negative inside) to the ellipse with half axes a along x and b along y.

    Each round takes the nearest point on the circle that osculates the ellipse at the last guess
    (C. Chatfield, "Simple method for distance to ellipse", 2017).
    """
    x, y = np.abs(x), np.abs(y)
    tx = ty = np.full(np.broadcast(x, y).shape, math.sqrt(0.5))
    for _ in range(4):
        ex, ey = (a * a - b * b) * tx**3 / a, (b * b - a * a) * ty**3 / b  # centre of curvature
        stretch = np.hypot(a * tx - ex, b * ty - ey) / np.maximum(np.hypot(x - ex, y - ey), 1e-9)
        tx = np.clip(((x - ex) * stretch + ex) / a, 0, 1)
        ty = np.clip(((y - ey) * stretch + ey) / b, 0, 1)
        norm = np.maximum(np.hypot(tx, ty), 1e-9)
        tx, ty = tx / norm, ty / norm
    outside = (x / a) ** 2 + (y / b) ** 2 >= 1
    return np.where(outside, 1, -1) * np.hypot(x - a * tx, y - b * ty)


def _draw_gradient(mask: GradientMask, size: Size) -> Array:
    height, width = size
    start = mask.from_[0] * width, mask.from_[1] * height
    along = mask.to[0] * width - start[0], mask.to[1] * height - start[1]
    length = math.hypot(*along)

    def value(x: Array, y: Array) -> Array:
        x, y = (x - start[0]) / length, (y - start[1]) / length
        way = np.hypot(x, y) if mask.shape == "radial" else (x * along[0] + y * along[1]) / length
        t = np.clip(1 - way, 0, 1)
        return t * t * (3 - 2 * t) if mask.smooth else t

    x, y = centres(size)
    return sum((value(x + dx, y + dy) for dx, dy in offsets(_SAMPLES)), start=np.zeros(size)) / _SAMPLES**2


def _draw_image(mask: ImageMask, size: Size) -> Array:
    index, way = divmod(mask.picture, 1)
    drawn = _draw_picture(mask, int(index), size)
    if way:  # after the last picture the first, as in a loop
        drawn = drawn + (_draw_picture(mask, int(index + 1) % mask.count, size) - drawn) * np.float32(way)
    return 1 - drawn if mask.invert else drawn


def _draw_picture(mask: ImageMask, index: int, size: Size) -> Array:
    if mask.colour:
        values = colour_values(mask.data, mask.colour, mask.tolerance, index)
    else:
        values = mask_values(mask.data, index).copy()  # NumPy's is not to be written to
    return resize(torch.from_numpy(values), size).numpy()


SHAPES: dict[type[Mask], Callable[[Any, Size], Array]] = {
    RectMask: _draw_rect,
    SplitMask: _draw_split,
    EllipseMask: _draw_ellipse,
    GradientMask: _draw_gradient,
    ImageMask: _draw_image,
}
