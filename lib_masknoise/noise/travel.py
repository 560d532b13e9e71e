"""The way of the initial noise through chosen seeds, on great circles from one to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lib_masknoise.motion.clock import angle
from lib_masknoise.motion.keys import between

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion


def place(motion: Motion, frame: float, total: int) -> float:
    """How far along the way a frame is, from 0 (the image's own seed) to 1 (the last seed; with ``loop`` the image's
    own again, once round).

    ``none`` stays at its beginning. ``sine`` goes there and back, slower at the ends: (1 − cos)/2 of its angle.
    ``keyframes`` gives the place itself, its value without its sign. All others go evenly, ``cycles`` times: with
    ``loop`` round and round, without there and, where it is more than once, there again.
    """
    if motion.kind == "none":
        return 0.0
    if motion.kind == "keyframes":
        before, after, way = between(motion.keyframes, frame, total, motion.loop)
        return abs(before.value + (after.value - before.value) * way)
    if motion.kind == "sine":
        return (1.0 - math.cos(angle(motion, frame, total))) / 2.0
    if motion.loop:
        return angle(motion, frame, total) / (2.0 * math.pi) % 1.0
    along = motion.cycles * frame / max(total - 1, 1)
    return 1.0 if along and along % 1.0 == 0.0 else along % 1.0


def mixture(count: int, place: float, loop: bool) -> Sequence[float]:
    """How much of the noise of each seed there is at a place of the way: ``1 + count`` numbers of norm 1, the first for
    the image's own. Each stretch of the way is a quarter of a great circle from one to the next (K. Shoemake's slerp,
    of noises at right angles, as independent ones are on average).

    count: of the seeds to go to. loop: whether the way leads back from the last to the first.
    """
    stops = count + 1
    along = place * (stops if loop else count)
    start = min(int(along), stops - 1 if loop else count - 1)
    theta = math.pi / 2.0 * (along - start)
    found = [0.0] * stops
    found[start] += math.cos(theta)
    found[(start + 1) % stops] += math.sin(theta)
    return [0.0 if abs(share) < 1e-12 else share for share in found]
