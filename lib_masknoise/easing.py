"""The ways from one keyframe to the next: 0 … 1 → 0 … 1, named as in CSS."""

from __future__ import annotations

from collections.abc import Callable

EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "ease-in": lambda t: t * t,
    "ease-out": lambda t: t * (2.0 - t),
    "ease-in-out": lambda t: t * t * (3.0 - 2.0 * t),
    "step": lambda t: 0.0,
}
