"""Up and down: one field, times a sine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lib_masknoise.motion.clock import angle
from lib_masknoise.motion.kind import Kind

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion


class Sine(Kind):
    """sin(2π·cycles·frame/total + phase)."""

    def envelope(self, motion: Motion, frame: float, total: int) -> float:
        return math.sin(angle(motion, frame, total))
