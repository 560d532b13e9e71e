"""Soft edges, averaged over pixels. All in pixels.

Every soft edge is the same smoothstep S(t) = 3t² − 2t³, its width centred on the edge. An edge that lies on
the image's border stays hard: there is nothing beyond it to pass into.
"""

from __future__ import annotations

import numpy as np

from lib_masknoise.maps.resample import Size

Array = np.ndarray
TINY = 1e-6


def smoothstep_integral(t: Array) -> Array:
    """∫ S from 0 to t, where S is 0 below 0, 3t² − 2t³, and 1 above 1."""
    inside = np.clip(t, 0, 1)
    return inside**3 * (1 - 0.5 * inside) + np.maximum(t - 1, 0)


def rise(x: Array, width: float, box: float = 1.0) -> Array:
    """An edge from 0 to 1 at x = 0, ``width`` wide, averaged over x ± box/2. All in pixels."""
    if width < TINY:
        return np.clip(x / box + 0.5, 0, 1)
    high, low = (x + box / 2) / width + 0.5, (x - box / 2) / width + 0.5
    return (smoothstep_integral(high) - smoothstep_integral(low)) * (width / box)


def strip(n: int, low: float, high: float, width: float) -> Array:
    """[n]: 1 between two edges (fractions of the axis), exactly averaged over pixels; width in pixels.

    Edges beyond the border, where a moving mask may have them, are as soft as those inside.
    """
    if low >= high:
        return np.zeros(n)
    x = np.arange(n) + 0.5
    up = rise(x - low * n, width) if low != 0 else np.ones(n)
    return up - rise(x - high * n, width) if high != 1 else up


def centres(size: Size) -> tuple[Array, Array]:
    """x [1, W] and y [H, 1] of the pixels' centres."""
    return np.arange(size[1])[None, :] + 0.5, np.arange(size[0])[:, None] + 0.5


def offsets(samples: int) -> list[tuple[float, float]]:
    """Where samples × samples points lie in a pixel, from its centre."""
    places = (np.arange(samples) + 0.5) / samples - 0.5
    return [(dx, dy) for dy in places for dx in places]
