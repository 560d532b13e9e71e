"""Many numbers over frames as few keyframes."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from lib_masknoise.scene.model import MAX_KEYFRAMES, MAX_VALUES

Array = np.ndarray[Any, Any]

TOLERANCE = 0.02
"""By how much the way between two keyframes may miss a number, of a range of 1."""


def keyframes(
    values: Array, low: float = 0.0, high: float = 1.0, field: str = "value", tolerance: float = TOLERANCE
) -> list[dict[str, float]]:
    """Numbers over frames as a scene's keyframes, `simplified`: ``[{"frame": 0, "value": 0.25}, …]``.

    values: ``[F]`` in [0, 1], of which 0 becomes ``low`` and 1 ``high``. field: "value" for a motion, "weight" for a
    concept, which takes 1000 at most.
    """
    kept = simplified(values, tolerance, MAX_KEYFRAMES if field == "weight" else MAX_VALUES)
    return [{"frame": frame, field: round(float(low + (high - low) * values[frame]), 4)} for frame in kept]


def simplified(values: Array, tolerance: float = TOLERANCE, most: int = MAX_VALUES) -> list[int]:
    """The frames to keep, so that straight lines between them miss no number by more than the tolerance.

    As Ramer (1972), and Douglas and Peucker (1973), but with the distance in the value alone, as time must not shift,
    and the largest miss first: where ``most`` frames (2 or more) do not suffice, those kept are the ones that matter.
    values: ``[F]``. Ascending; the first and the last frame are always there.
    """
    kept = [0, len(values) - 1] if len(values) > 1 else [0]
    spans = [_worst(values, *kept)] if len(kept) == 2 else []
    while spans and len(kept) < most:
        miss, at, first, last = heapq.heappop(spans)
        if -miss <= tolerance:
            break
        kept.append(at)
        heapq.heappush(spans, _worst(values, first, at))
        heapq.heappush(spans, _worst(values, at, last))
    return sorted(kept)


def _worst(values: Array, first: int, last: int) -> tuple[float, int, int, int]:
    """The frame that the line from one frame to another misses most: minus the miss, the frame, and the two."""
    line = np.linspace(values[first], values[last], last - first + 1)
    misses = np.abs(values[first : last + 1] - line)
    misses[[0, -1]] = 0  # but for rounding they are
    at = int(misses.argmax())
    return -float(misses[at]), first + at, first, last
