"""Brush strokes, stamps and filters, painted one after the other."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lib_masknoise.maps import shapes
from lib_masknoise.maps.edges import TINY, Array, smoothstep_integral
from lib_masknoise.maps.resample import Size, feather
from lib_masknoise.scene import Filter, Operation, Stamp, Stroke, StrokesMask

_TILE = 8
_SEGMENTS = 256
_PAIRS = 256


def draw(mask: StrokesMask, size: Size) -> Array:
    """A strokes mask at ``size``, ``[H, W]``."""
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
    _compose(canvas, shapes.draw(stamp.mask, canvas.shape) * stamp.opacity, stamp.erase)


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
    places = np.arange(0, along[-1] + TINY, spacing)
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
    nearest = np.maximum(distance - margin, 0) / np.maximum(np.maximum(r, r + growth), TINY)
    farthest = (distance + margin) / np.maximum(np.minimum(r, r + growth), TINY)
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
        return d - width * smoothstep_integral((d - inner) / width)

    near = distance - 0.5
    return np.clip(integral(distance + 0.5) - np.sign(near) * integral(np.abs(near)), 0, 1)


_APPLY: dict[type, Callable[[Array, Any], None]] = {Stroke: _paint, Stamp: _stamp, Filter: _filter}
