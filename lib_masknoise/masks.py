"""Masks of a Scene as weight maps, their sizes at the levels of a U-Net, and the coefficients made from them.

A size is (height, width) in elements. Coordinates of a mask run 0 to 1 over the image, x to the right and y
down; inside this module they become pixels, where the centre of pixel i lies at i + 0.5. A pixel's value is
the mask's mean over the pixel, not a sample of it, so that a mask drawn large and averaged down equals one
drawn small (strokes: as nearly as their width in pixels allows).

Every soft edge is the same smoothstep S(t) = 3t² − 2t³, its width centred on the edge. An edge that lies on
the image's border stays hard: there is nothing beyond it to pass into.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .scene import (
    EllipseMask,
    Filter,
    GradientMask,
    ImageMask,
    Mask,
    Operation,
    RectMask,
    Scene,
    SplitMask,
    Stamp,
    Stroke,
    StrokesMask,
)
from .scene.pictures import mask_values

Size = tuple[int, int]
Array = np.ndarray

WORKING_FACTOR = 8
"""Masks are drawn at this many times the latent's size: the image's own pixels."""
WORKING_SIDE = 1024
"""… but not beyond this side, unless the latent itself is longer: no level of a U-Net shows such detail."""


def rasterize(mask: Mask, size: Size) -> Tensor:
    """One mask drawn at ``size``: float32 [H, W] in [0, 1].

    Feathers are the width of the smoothstep from 1 to 0: a fraction of the axis for a split, of the image's
    shorter side for the others. A feather wider than the shape leaves its middle below 1, as a blur would.
    For strokes see ``_paint``; a gradient is 1 at ``from``, 0 at ``to``, straight or around ``from``,
    measured in pixels, so that its contours are at right angles to the line between the two, or circles, at
    any aspect.
    """
    drawn = _DRAW[type(mask)](mask, size)
    return torch.from_numpy(drawn.astype(np.float32)).clamp_(0, 1)


def weight_maps(scene: Scene, size: Size) -> Tensor:
    """The weight maps m_i of all concepts at a latent's size: float32 [N, h, w] in [0, 1].

    These are the concepts' own masks; ``keyframes.weight_maps`` has them at a frame.
    """
    maps = [weight_map(concept.mask, size, scene.blend.feather) for concept in scene.concepts]
    return torch.stack(maps) if maps else torch.zeros(0, *size)


def weight_map(mask: Mask, size: Size, softness: float) -> Tensor:
    """One mask at a latent's size, [h, w]: drawn at up to 8 times that size, softened by ``softness`` (see
    ``feather``) and averaged down."""
    factor = max(1, min(WORKING_FACTOR, WORKING_SIDE // max(size)))
    working = (size[0] * factor, size[1] * factor)
    return resize(feather(rasterize(mask, working), softness), size)


def feather(maps: Tensor, amount: float) -> Tensor:
    """Blur maps [..., H, W] so that a hard edge becomes a smoothstep ``amount`` of the shorter side wide.

    The kernel is the smoothstep's derivative 6t(1 − t) along each axis. Beyond the border a map goes on as it
    ends.
    """
    width = amount * min(maps.shape[-2:])
    if width <= 0:
        return maps
    rows, columns = (_blur_matrix(n, width).to(maps) for n in maps.shape[-2:])
    return (rows @ maps @ columns.T).clamp_(0, 1)


def resize(maps: Tensor, size: Size) -> Tensor:
    """Maps [..., H, W] at another size [..., h, w], same dtype and device; each axis on its own.

    A shrinking axis takes exact area averages, whatever the ratio, so the mean is kept; a growing one
    Catmull-Rom splines. Values stay within the range of their own input map. Never nearest: a soft edge must
    stay soft.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    exact = maps if maps.dtype == torch.float64 else maps.float()
    low, high = exact.amin((-2, -1), keepdim=True), exact.amax((-2, -1), keepdim=True)
    rows, columns = (_resize_matrix(n, m).to(exact) for n, m in zip(maps.shape[-2:], size, strict=True))
    return (rows @ exact @ columns.T).clamp(low, high).to(maps.dtype)


def level_size(size: Size, level: int) -> Size:
    """The size of a U-Net level: each of ``level`` halvings rounds up, which is ceil(n / 2^level)."""
    return -(-size[0] >> level), -(-size[1] >> level)


def level_with(size: Size, locations: int) -> Size:
    """The size of the U-Net level with that many locations, of a latent of ``size`` (h, w).

    A layer sees its queries as a list; their number alone would not tell the height from the width. Raises ValueError
    when no level has as many.
    """
    for level in range(8):
        height, width = level_size(size, level)
        if height * width == locations:
            return height, width
    raise ValueError(f"no level of a {size[0]}×{size[1]} latent has {locations} locations")


def pin(maps: Tensor) -> Tensor:
    """How firmly each location is held: the largest of the weight maps [N, H, W] -> [H, W]; 0 without
    concepts."""
    return maps.amax(0) if len(maps) else maps.new_zeros(maps.shape[1:])


def coefficients(maps: Tensor, weights: Sequence[float] | Tensor, mode: str, scale: float) -> Tensor:
    """What the base (first) and each concept contribute at each location: weight maps [N, H, W] -> [N + 1, H,
    W].

    a_i = scale · w_i · m_i. In mode "add" the base's coefficient is 1 throughout. In mode "interpolate" it is
    1 − Σ a_i, so that all sum to 1; where masks overlap and the positive a_i sum to more than both 1 and the
    largest of them, these are scaled down to that bound: overlapping concepts share the location, while one
    weight above 1 may still extrapolate. Coefficients are continuous in the maps.
    """
    if mode not in ("interpolate", "add"):
        raise ValueError(f'expected mode "interpolate" or "add", got {mode!r}')
    weights = torch.as_tensor(weights, dtype=maps.dtype, device=maps.device)
    parts = scale * weights[:, None, None] * maps
    if mode == "add":
        return torch.cat([maps.new_ones(1, *maps.shape[1:]), parts])
    positive = parts.clamp(min=0)
    total, bound = positive.sum(0), pin(positive).clamp(min=1)
    parts = torch.where(parts > 0, parts * (bound / torch.maximum(total, bound)), parts)
    return torch.cat([1 - parts.sum(0, keepdim=True), parts])


# --- Matrices along one axis


def _resize_matrix(n: int, m: int) -> Tensor:
    """[m, n] float64: area averages where the axis shrinks, Catmull-Rom splines where it grows."""
    if m <= n:
        edges = torch.arange(m + 1, dtype=torch.float64)[:, None] * (n / m)
        covered = (edges - torch.arange(n)).clamp(0, 1)  # of each input element, up to each output edge
        return covered.diff(dim=0) / (n / m)
    places = (torch.arange(m, dtype=torch.float64) + 0.5) * (n / m) - 0.5
    first = places.floor().long()
    t = (places - first)[:, None]
    taps = torch.cat(  # Catmull & Rom 1974, as the cubic convolution of Keys 1981 with a = -1/2
        [
            ((-0.5 * t + 1) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1,
            ((-1.5 * t + 2) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ],
        1,
    )
    sources = (first[:, None] + torch.arange(-1, 3)).clamp(0, n - 1)
    return torch.zeros(m, n, dtype=torch.float64).scatter_add_(1, sources, taps)


def _blur_matrix(n: int, width: float) -> Tensor:
    """[n, n] float64: the kernel's share of each element, its tails beyond the border given to the
    outermost."""
    edges = torch.arange(1, n, dtype=torch.float64) - 0.5
    t = ((edges - torch.arange(n)[:, None]) / width + 0.5).clamp(0, 1)
    shares = torch.nn.functional.pad(t * t * (3 - 2 * t), (1, 0))
    return torch.nn.functional.pad(shares, (0, 1), value=1.0).diff(dim=1)


# --- Soft edges


def _smoothstep_integral(t: Array) -> Array:
    """∫ S from 0 to t, where S is 0 below 0, 3t² − 2t³, and 1 above 1."""
    inside = np.clip(t, 0, 1)
    return inside**3 * (1 - 0.5 * inside) + np.maximum(t - 1, 0)


def _rise(x: Array, width: float, box: float = 1.0) -> Array:
    """An edge from 0 to 1 at x = 0, ``width`` wide, averaged over x ± box/2. All in pixels."""
    if width < _TINY:
        return np.clip(x / box + 0.5, 0, 1)
    high, low = (x + box / 2) / width + 0.5, (x - box / 2) / width + 0.5
    return (_smoothstep_integral(high) - _smoothstep_integral(low)) * (width / box)


def _strip(n: int, low: float, high: float, width: float) -> Array:
    """[n]: 1 between two edges (fractions of the axis), exactly averaged over pixels; width in pixels.

    Edges beyond the border, where a moving mask may have them, are as soft as those inside.
    """
    if low >= high:
        return np.zeros(n)
    x = np.arange(n) + 0.5
    up = _rise(x - low * n, width) if low != 0 else np.ones(n)
    return up - _rise(x - high * n, width) if high != 1 else up


def _centres(size: Size) -> tuple[Array, Array]:
    """x [1, W] and y [H, 1] of the pixels' centres."""
    return np.arange(size[1])[None, :] + 0.5, np.arange(size[0])[:, None] + 0.5


def _offsets(samples: int) -> list[tuple[float, float]]:
    """Where samples × samples points lie in a pixel, from its centre."""
    places = (np.arange(samples) + 0.5) / samples - 0.5
    return [(dx, dy) for dy in places for dx in places]


_SAMPLES = 4
_TINY = 1e-6


# --- Shapes


def _draw_rect(mask: RectMask, size: Size) -> Array:
    width = mask.feather * min(size)
    rows = _strip(size[0], mask.top, mask.bottom, width)
    return rows[:, None] * _strip(size[1], mask.left, mask.right, width)


def _draw_split(mask: SplitMask, size: Size) -> Array:
    n = size[1] if mask.axis == "x" else size[0]
    strip = _strip(n, mask.from_, mask.to, mask.feather * n)
    return np.broadcast_to(strip if mask.axis == "x" else strip[:, None], size)


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

    x, y = np.broadcast_arrays(*_centres(size))
    from_edge = distance(x, y)
    drawn = 1 - _rise(from_edge, edge)
    if edge < _SAMPLES:
        near = np.abs(from_edge) < edge / 2 + 1
        x, y = x[near], y[near]
        samples = [1 - _rise(distance(x + dx, y + dy), edge, 1 / _SAMPLES) for dx, dy in _offsets(_SAMPLES)]
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

    x, y = _centres(size)
    return sum(value(x + dx, y + dy) for dx, dy in _offsets(_SAMPLES)) / _SAMPLES**2


# --- Pictures


def _draw_image(mask: ImageMask, size: Size) -> Array:
    values = torch.tensor(mask_values(mask.data))  # a copy: NumPy's is not to be written to
    drawn = resize(values, size).numpy()
    return 1 - drawn if mask.invert else drawn


# --- Strokes

_TILE = 8
_SEGMENTS = 256
_PAIRS = 256


def _draw_strokes(mask: StrokesMask, size: Size) -> Array:
    if max(size) > _REMEMBERED_SIDE:
        return _apply_all(np.zeros(size), mask.strokes)
    keys = _prefix_keys(size, mask.strokes)
    known, canvas = _remembered(keys, size)
    _apply_all(canvas, mask.strokes[known:])
    if known < len(keys):
        _remember(keys[-1], canvas.copy())
    return canvas


def _apply_all(canvas: Array, operations: Sequence[Operation]) -> Array:
    for operation in operations:
        _APPLY[type(operation)](canvas, operation)
    return canvas


# While one paints, each preview has the strokes of the last one and one more: small maps are remembered by what was
# painted on them, and only what is new is drawn. The same strokes are the same map, whoever painted them.
_REMEMBERED_SIDE = 256
_REMEMBERED_MAPS = 64
_memory: OrderedDict[bytes, Array] = OrderedDict()
_memory_lock = threading.Lock()


def _prefix_keys(size: Size, operations: Sequence[Operation]) -> list[bytes]:
    """A key for the first operation, the first two, …"""
    digest = hashlib.blake2b(repr(size).encode(), digest_size=16)
    keys = []
    for operation in operations:
        digest.update(repr(operation).encode())
        keys.append(digest.digest())
    return keys


def _remembered(keys: list[bytes], size: Size) -> tuple[int, Array]:
    """How many operations the longest remembered beginning has, and a copy of its map."""
    with _memory_lock:
        for i in range(len(keys), 0, -1):
            if keys[i - 1] in _memory:
                _memory.move_to_end(keys[i - 1])
                return i, _memory[keys[i - 1]].copy()
    return 0, np.zeros(size)


def _remember(key: bytes, canvas: Array) -> None:
    with _memory_lock:
        _memory[key] = canvas
        while len(_memory) > _REMEMBERED_MAPS:
            _memory.popitem(last=False)


def _stamp(canvas: Array, stamp: Stamp) -> None:
    """Paint a whole mask on ``canvas`` in place, composed as a stroke is."""
    _compose(canvas, rasterize(stamp.mask, canvas.shape).numpy() * stamp.opacity, stamp.erase)


def _filter(canvas: Array, filter: Filter) -> None:
    """Change everything painted so far, in place: invert is 1 − m, blur that of ``feather``."""
    if filter.filter == "invert":
        canvas[:] = 1 - canvas
    else:
        canvas[:] = feather(torch.from_numpy(canvas), filter.amount).numpy()


def _compose(canvas: Array, covered: Array, erase: bool) -> None:
    """Painting m ← m + c (1 − m), erasing m ← m (1 − c), in place."""
    if erase:
        canvas *= 1 - covered
    else:
        canvas += covered * (1 - canvas)


def _paint(canvas: Array, stroke: Stroke) -> None:
    """Paint one stroke on ``canvas`` [H, W] in place: what a brush means, here and in a browser's canvas.

    With R = radius · min(H, W) and h = hardness, a point at distance d from the polyline is covered by

        f(d) = 1 − S((d − h r) / (r − h r)),    S(t) = 3t² − 2t³ on [0, 1], r = R · pressure

    where pressure runs linearly along each segment and counts at the segment's nearest point: 1 up to h r, 0
    from r. A pixel gets the mean of f over one pixel's width across the stroke (which smooths hard edges); of
    several segments the best covering one counts, times opacity: c. Strokes are composed in their order,
    painting m ← m + c (1 − m), erasing m ← m (1 − c).

    A stroke with a flow φ below 1 is made of dabs R/4 apart along the polyline instead, the first at its first point;
    each covers φ f of what the others have left: c = opacity · (1 − Π (1 − φ f)).
    """
    height, width = canvas.shape
    points = np.array([point[:2] for point in stroke.points]) * (width, height)
    radii = np.array([point[2] if len(point) > 2 else 1.0 for point in stroke.points])
    radii *= stroke.radius * min(height, width)
    if len(points) == 1:
        points, radii = np.repeat(points, 2, 0), np.repeat(radii, 2)

    reach = radii.max() + 1
    left, top = np.maximum(np.floor(points.min(0) - reach), 0).astype(int)
    right, bottom = np.minimum(np.ceil(points.max(0) + reach), (width, height)).astype(int)
    tiles = np.zeros((-(-(bottom - top) // _TILE), -(-(right - left) // _TILE), _TILE, _TILE), np.float32)
    points, radii = (points - (left, top)).astype(np.float32), radii.astype(np.float32)
    if stroke.flow < 1:
        covered = _dabbed((bottom - top, right - left), points, radii, stroke, min(height, width))
    else:
        for first in range(0, len(points) - 1, _SEGMENTS):
            run = slice(first, first + _SEGMENTS + 1)
            _cover(tiles, points[run], radii[run], stroke.hardness)
        covered = tiles.swapaxes(1, 2).reshape(tiles.shape[0] * _TILE, -1)[: bottom - top, : right - left]
    covered *= stroke.opacity
    _compose(canvas[top:bottom, left:right], covered, stroke.erase)


_DABS_PER_RADIUS = 4


def _dabbed(size: Size, points: Array, radii: Array, stroke: Stroke, shorter: int) -> Array:
    """1 − Π (1 − φ f) over the dabs of a stroke with flow, float32 ``size``: points [n, 2] and radii [n] in pixels;
    shorter: the image's shorter side."""
    lengths = np.hypot(*np.diff(points, axis=0).T).astype(np.float64)
    along = np.concatenate([[0.0], lengths.cumsum()])
    spacing = stroke.radius * shorter / _DABS_PER_RADIUS
    places = np.arange(0, along[-1] + _TINY, spacing)
    x, y, r = (np.interp(places, along, values) for values in (*points.T, radii))
    free = np.ones(size, np.float32)
    for cx, cy, radius in zip(x, y, r, strict=True):
        left, top = (max(math.floor(c - radius - 1), 0) for c in (cx, cy))
        right, bottom = (min(math.ceil(c + radius + 1), n) for c, n in ((cx, size[1]), (cy, size[0])))
        if left < right and top < bottom:
            columns = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - cx)
            rows = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - cy)
            distance = np.sqrt(columns * columns + rows * rows)
            free[top:bottom, left:right] *= 1 - stroke.flow * _coverage(distance, np.float32(radius), stroke.hardness)
    return 1 - free


def _cover(tiles: Array, points: Array, radii: Array, hardness: float) -> None:
    """Raise ``tiles`` [Ty, Tx, 8, 8] to the coverage of a polyline: points [n, 2] and radii [n] in pixels.

    A segment is computed only on the tiles where it can be the best one. Coverage falls with distance ÷
    radius, which the distance to the tile's centre bounds from both sides over the whole tile, so most
    segments of a long stroke drop out.
    """
    first_tile = np.maximum((points.min(0) - radii.max() - 1) // _TILE, 0).astype(int)
    last_tile = np.minimum((points.max(0) + radii.max() + 1) // _TILE, np.array(tiles.shape[1::-1]) - 1).astype(int)
    columns, rows = (np.arange(a, b + 1) for a, b in zip(first_tile, last_tile, strict=True))
    rows, columns = np.repeat(rows, len(columns)), np.tile(columns, len(rows))

    start, along = points[:-1], np.diff(points, axis=0)
    r, growth = radii[:-1], np.diff(radii)
    x, y = (columns[:, None] + 0.5) * _TILE, (rows[:, None] + 0.5) * _TILE
    distance, _ = _segment_distance(x, y, *start.T, *along.T)
    margin = (_TILE - 1) / math.sqrt(2) + 0.5  # to the outermost centre, and half a pixel's width on
    nearest = np.maximum(distance - margin, 0) / np.maximum(np.maximum(r, r + growth), _TINY)
    farthest = (distance + margin) / np.maximum(np.minimum(r, r + growth), _TINY)
    bound = farthest.min(1)
    full = bound <= hardness
    tiles[rows[full], columns[full]] = 1
    pair_tile, pair_segment = np.nonzero((nearest < np.minimum(bound, 1)[:, None]) & ~full[:, None])

    inside = np.arange(_TILE, dtype=np.float32) + np.float32(0.5)
    lefts, tops = (places.astype(np.float32)[:, None] * _TILE for places in (columns, rows))
    for first in range(0, len(pair_tile), _PAIRS):
        tile, segment = pair_tile[first : first + _PAIRS], pair_segment[first : first + _PAIRS]
        x, y = (lefts[tile] + inside)[:, None, :], (tops[tile] + inside)[:, :, None]
        ends = np.hstack([start, along])[segment].T[..., None, None]
        distance, t = _segment_distance(x, y, *ends)
        radius = r[segment, None, None] + t * growth[segment, None, None]
        starts = np.flatnonzero(np.diff(tile, prepend=-1))
        best = np.maximum.reduceat(_coverage(distance, radius, hardness), starts)
        at = rows[tile[starts]], columns[tile[starts]]
        tiles[at] = np.maximum(tiles[at], best)


def _segment_distance(x: Array, y: Array, x0: Array, y0: Array, dx: Array, dy: Array) -> tuple[Array, Array]:
    """Distance from (x, y) to the segment (x0, y0) + t (dx, dy), t in [0, 1], and the t of its nearest
    point."""
    x, y = x - x0, y - y0
    t = np.clip((x * dx + y * dy) / np.maximum(dx * dx + dy * dy, 1e-12), 0, 1)
    x, y = x - t * dx, y - t * dy
    return np.sqrt(x * x + y * y), t


def _coverage(distance: Array, radius: Array, hardness: float) -> Array:
    """The brush's f(d), see ``_paint``, averaged over distance ± ½ on a line through the brush's centre."""
    width = np.maximum(radius * (1 - hardness), 1e-3)
    inner = radius - width

    def integral(d: Array) -> Array:
        """∫ f from 0 to d."""
        return d - width * _smoothstep_integral((d - inner) / width)

    near = distance - 0.5
    return np.clip(integral(distance + 0.5) - np.sign(near) * integral(np.abs(near)), 0, 1)


_APPLY: dict[type, Callable[[Array, Any], None]] = {Stroke: _paint, Stamp: _stamp, Filter: _filter}

_DRAW: dict[type[Mask], Callable[..., Array]] = {
    RectMask: _draw_rect,
    SplitMask: _draw_split,
    EllipseMask: _draw_ellipse,
    GradientMask: _draw_gradient,
    ImageMask: _draw_image,
    StrokesMask: _draw_strokes,
}
