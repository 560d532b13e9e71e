"""A frame index as an angle."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion


def revolution(frame: float, total: int, loop: bool) -> float:
    """The animation's own angle: 0 at frame 0, 2π at frame ``total`` or, with ``loop``, 0 again there.

    Raises ValueError when ``total`` is below 1.
    """
    if total < 1:
        raise ValueError(f"expected at least one frame, got {total}")
    return 2.0 * math.pi * ((frame % total if loop else frame) / total)


def angle(motion: Motion, frame: float, total: int) -> float:
    """2π·cycles·frame/total + phase in radians, less whole turns, taken off as integers: exactly periodic."""
    return revolution(motion.cycles * frame, total, loop=True) + motion.phase
