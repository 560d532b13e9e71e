"""OpenSimplex: smooth fields travel through its further dimensions; mixtures follow it along a line or a circle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lib_masknoise.motion.clock import revolution
from lib_masknoise.motion.kind import RandomKind
from lib_masknoise.motion.opensimplex import SimplexField
from lib_masknoise.seeded import generator

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion


class Simplex(RandomKind):
    """Components are OpenSimplex along ``path``."""

    def path(self, motion: Motion, frame: float, total: int) -> tuple[float, ...]:
        """``(s,)`` in OpenSimplex's units, or with ``loop`` a point on a circle.

        The path is 2π·cycles long and starts ``phase`` further along; a unit is about the distance at which the
        noise has forgotten itself. The circle's radius is ``cycles`` (at 1 the textbook's cos θ, sin θ), so that
        more cycles bring more motion and no repetition.
        """
        if motion.loop:
            theta = revolution(frame, total, loop=True) + motion.phase / motion.cycles
            return motion.cycles * math.cos(theta), motion.cycles * math.sin(theta)
        return (motion.cycles * revolution(frame, total, loop=False) + motion.phase,)

    def components(self, motion: Motion, frames: Sequence[float], total: int, count: int, seed: int) -> np.ndarray:
        rng = generator(seed, "motion/simplex")
        fields = [SimplexField.draw(2, rng) for _ in range(count)]
        path = np.array([(*self.path(motion, frame, total), 0.0)[:2] for frame in frames]).reshape(-1, 2)
        return np.stack([field.at(path[:, 0], path[:, 1]) for field in fields], axis=-1)
