"""A part of a picture: what a pass that makes only a part of it sees of masks and fields."""

from __future__ import annotations

Window = tuple[float, float, float, float]
"""Top, left, bottom and right in fractions of the picture; beyond 0 and 1 is outside."""

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


def whole_size(size: tuple[int, int], window: Window) -> tuple[int, int]:
    """The size of the picture of which a window is (h, w) large, rounded to whole elements, 1 at least."""
    top, left, bottom, right = window
    return max(1, round(size[0] / (bottom - top))), max(1, round(size[1] / (right - left)))
