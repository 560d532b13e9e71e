"""The circular walk and the great circle from A to B: two fields, whose norm stays 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lib_masknoise.motion.clock import angle, revolution
from lib_masknoise.motion.kind import Kind, Mixture

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion


class Circle(Kind):
    """(cos θ, sin θ), θ = 2π·cycles·frame/total + phase."""

    def mixtures(self, motion: Motion, frames: Sequence[float], total: int, seed: int) -> Sequence[Mixture]:
        return [_on_circle(angle(motion, frame, total)) for frame in frames]


class Linear(Kind):
    """The great circle from A to B, and with ``loop`` back again."""

    def mixtures(self, motion: Motion, frames: Sequence[float], total: int, seed: int) -> Sequence[Mixture]:
        return [_on_circle(math.pi / 2 * _progress(frame, total, motion.loop)) for frame in frames]


def _on_circle(theta: float) -> tuple[float, float]:
    return math.cos(theta), math.sin(theta)


def _progress(frame: float, total: int, loop: bool) -> float:
    """How far from A to B: 0 to 1 over the frames; with ``loop`` there and back, 1 half-way through."""
    if loop:
        return 1.0 - abs(1.0 - revolution(frame, total, loop) / math.pi)
    return min(frame / max(total - 1, 1), 1.0)
