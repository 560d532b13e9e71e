"""What a kind of motion is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion

Mixture = Sequence[float]

Mixtures = Sequence[Mixture] | np.ndarray
"""One for each of some frames, ``[B, K]``."""

# Components of a random mixture. The direction turns abruptly where all components are small at once, and
# with eight of them that practically never happens (a chi variable with 8 degrees of freedom is below 0.5 in
# 1 frame of 100,000).
COMPONENTS = 8


class Kind:
    """A kind of motion, by itself the one that does not move. Frames may be fractions."""

    def envelope(self, motion: Motion, frame: float, total: int) -> float:
        """The factor of the noise at a frame, in [-1, 1]."""
        return 1.0

    def mixtures(self, motion: Motion, frames: Sequence[float], total: int, seed: int) -> Mixtures:
        """How independent fields of variance 1 mix at each of some frames: K numbers of norm 1."""
        return [(1.0,) for _ in frames]

    def path(self, motion: Motion, frame: float, total: int) -> tuple[float, ...] | None:
        """Where a frame lies in the further dimensions of OpenSimplex through which smooth fields travel; None for a
        kind that mixes fields instead."""
        return None


class RandomKind(Kind):
    """A kind whose mixture is a random direction: independent components, divided by their norm, which is why it cannot
    diverge."""

    def components(
        self, motion: Motion, frames: Sequence[float], total: int, count: int, seed: int
    ) -> np.ndarray:  # pragma: no cover - each kind has its own
        """``count`` independent smooth random numbers of variance 1 at each frame: ``[B, count]``."""
        raise NotImplementedError

    def mixtures(self, motion: Motion, frames: Sequence[float], total: int, seed: int) -> np.ndarray:
        later = self._seam(motion, total, seed) if motion.loop else 0
        return self._directions(motion, [frame + later for frame in frames], total, seed)

    def _directions(self, motion: Motion, frames: Sequence[float], total: int, seed: int) -> np.ndarray:
        rows = self.components(motion, frames, total, COMPONENTS, seed)
        return rows / np.sqrt((rows**2).sum(axis=-1, keepdims=True))

    def _seam(self, motion: Motion, total: int, seed: int) -> int:
        """Where to cut a random loop: 0 or 1 frames after its own beginning, at the smaller of the two steps.

        The other is then inside the animation, so the closing step is never the largest.
        """
        last, first, second = self._directions(motion, [total - 1, 0, 1], total, seed)
        return int(((first - last) ** 2).sum() > ((second - first) ** 2).sum())
