"""Points in a space of many dimensions, laid out in the plane that holds most of them, and the way back.

The plane is that of the two first principal components. A projection is linear, so a place in the plane can be reached
exactly: by blending the three points at the corners of the Delaunay triangle around it, with the place's barycentric
coordinates for weights. Outside the hull of all points some of these are negative: that is extrapolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

GRID = 2**13 - 1
"""Corners of the triangulation are rounded to a grid of so many steps: small enough for its tests to be exact in 64-bit
integers, where rounding would let a triangulation overlap itself. The weights use the points as they are."""

AT_INFINITY = -1
Triangle = tuple[int, int, int]


class Blend(NamedTuple):
    """Which points a place is blended of, and by which weights; they add up to 1. One below 0 is extrapolation."""

    points: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def extrapolates(self) -> bool:
        return min(self.weights) < -1e-9


@dataclass(frozen=True, eq=False)
class Plane:
    """mean `[D]`, axes `[2, D]` (orthonormal), explained: the share of the variance that each axis holds. points
    `[N, 2]`, triangles `[M, 3]`: of some of the points, those that no two others coincide with."""

    mean: np.ndarray
    axes: np.ndarray
    explained: tuple[float, float]
    points: np.ndarray
    triangles: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, corners: Sequence[int] | None = None) -> Plane:
        """The plane of some vectors `[N, D]`. corners: which of them it is fitted to and blends are made of; all when
        None. Raises ValueError where these do not span a plane."""
        vectors = np.asarray(vectors, dtype=np.float64)
        chosen = np.arange(len(vectors)) if corners is None else np.asarray(corners, dtype=np.int64)
        if len(chosen) < 3:
            raise ValueError(f"expected at least three points, got {len(chosen)}")
        mean, axes, explained = principal(vectors[chosen], 2)
        points = (vectors - mean) @ axes.T
        triangles = chosen[delaunay(points[chosen])]
        if not len(triangles):
            raise ValueError(f"expected points in more than one direction, got {len(chosen)} on one line")
        return cls(mean, axes, (float(explained[0]), float(explained[1])), points, triangles)

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """`[…, D]` → `[…, 2]`."""
        return (np.asarray(vectors, dtype=np.float64) - self.mean) @ self.axes.T

    def place(self, blend: Blend) -> tuple[float, float]:
        """Where a blend of the points lies."""
        x, y = np.asarray(blend.weights) @ self.points[list(blend.points)]
        return float(x), float(y)

    def weights(self, x: float, y: float) -> Blend:
        """The three points whose blend lies at (x, y): the corners of the triangle around it, or outside the hull of
        the one that reaches there with the least negative weight."""
        a, b, c = (self.points[self.triangles[:, i]] for i in range(3))
        across, along, to = b - a, c - a, np.array([x, y]) - a
        area = _cross(across, along)
        with np.errstate(divide="ignore", invalid="ignore"):
            v, w = _cross(to, along) / area, _cross(across, to) / area
        shares = np.stack([1 - v - w, v, w], axis=1)
        worst = np.where(np.isfinite(shares).all(1), shares.min(1), -np.inf)
        best = int(worst.argmax())
        return Blend(tuple(int(i) for i in self.triangles[best]), tuple(float(s) for s in shares[best]))


def principal(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean `[D]`, the first principal components `[count, D]` and the share of the variance each holds `[count]`.

    The largest entry of a component is positive, so that the same vectors give the same picture everywhere. Components
    that the vectors do not have are zero.
    """
    mean = vectors.mean(0)
    _, singular, rows = np.linalg.svd(vectors - mean, full_matrices=False)
    axes, explained = np.zeros((count, vectors.shape[1])), np.zeros(count)
    total = float((singular**2).sum())
    for i in range(min(count, len(rows))):
        if singular[i] > 1e-12 * max(1.0, singular[0]):
            axes[i] = rows[i] * np.sign(rows[i][np.abs(rows[i]).argmax()])
            explained[i] = singular[i] ** 2 / total
    return mean, axes, explained


def delaunay(points: np.ndarray) -> np.ndarray:
    """The Delaunay triangulation of points `[N, 2]`: their indices, `[M, 3]`, anticlockwise. Empty where all lie on one
    line. Of points that coincide on the grid, the first is a corner.

    Bowyer (1981) and Watson (1981): a point is added by taking away every triangle whose circumcircle it lies in, and
    joining it to the rim of the hole. Beyond the hull are triangles with a corner at infinity, whose "circle" is the
    half-plane outside.
    """
    grid = _on_grid(points)
    _, first = np.unique(grid, axis=0, return_index=True)
    order = np.sort(first)
    start = _first_triangle(grid, order.tolist())
    if start is None:
        return np.zeros((0, 3), dtype=np.int64)
    a, b, c = start
    triangles = np.array([start, (b, a, AT_INFINITY), (c, b, AT_INFINITY), (a, c, AT_INFINITY)])
    for point in order:
        if point not in start:
            triangles = _with_point(triangles, grid, int(point))
    return triangles[(triangles != AT_INFINITY).all(1)]


def _on_grid(points: np.ndarray) -> np.ndarray:
    low = points.min(0)
    extent = float((points.max(0) - low).max()) or 1.0
    return np.round((points - low) / extent * GRID).astype(np.int64)


def _first_triangle(grid: np.ndarray, order: Sequence[int]) -> Triangle | None:
    if len(order) < 3:
        return None
    a, b = int(order[0]), int(order[1])
    turns = _turn(grid[a], grid[b], grid[order])
    (found,) = np.nonzero(turns)
    if not len(found):
        return None
    c = int(order[found[0]])
    return (a, b, c) if turns[found[0]] > 0 else (b, a, c)


def _with_point(triangles: np.ndarray, grid: np.ndarray, point: int) -> np.ndarray:
    inside = _in_circle(triangles, grid, grid[point])
    edges = np.concatenate([triangles[inside][:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    known = {(int(u), int(v)) for u, v in edges}
    rim = [(u, v) for u, v in known if (v, u) not in known]
    made = []
    for u, v in rim:
        corners = (u, v, point)
        # The corner at infinity stands last, so that the half-plane is that of the first two.
        turn = corners.index(AT_INFINITY) + 1 if AT_INFINITY in corners else 0
        made.append(corners[turn:] + corners[:turn])
    return np.concatenate([triangles[~inside], np.array(made)])


def _in_circle(triangles: np.ndarray, grid: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Whether a point lies in each triangle's circumcircle, `[M]`."""
    a, b, c = (grid[triangles[:, i]] - p for i in range(3))
    lifted = [(t * t).sum(1) for t in (a, b, c)]
    minors = [_cross(b, c), _cross(c, a), _cross(a, b)]
    inside = sum(one * minor for one, minor in zip(lifted, minors, strict=True)) > 0
    at_infinity = triangles[:, 2] == AT_INFINITY
    turn = _cross(a, b)  # of the edge as seen from the point: positive on its left, which is outside
    on_edge = (turn == 0) & ((a * b).sum(1) < 0)
    return np.where(at_infinity, (turn > 0) | on_edge, inside)


def _turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return _cross(b - a, c - a)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
