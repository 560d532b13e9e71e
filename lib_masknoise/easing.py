"""The easings of keyframes: how the way from one to the next is walked. One place for their names and their curves."""

from __future__ import annotations

from collections.abc import Callable

EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "ease-in": lambda t: t * t,
    "ease-out": lambda t: t * (2.0 - t),
    "ease-in-out": lambda t: t * t * (3.0 - 2.0 * t),
    "step": lambda t: 0.0,
}
"""Name → the way done (0 … 1) at a fraction t of the time, 0 ≤ t < 1."""
