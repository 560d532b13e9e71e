"""Values at given frames, and the eased way between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from lib_masknoise.easing import EASINGS
from lib_masknoise.motion.kind import Kind

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion


class Key(Protocol):
    """What stands at a frame, and how it goes on to the next key."""

    @property
    def frame(self) -> int: ...

    @property
    def easing(self) -> str: ...


AnyKey = TypeVar("AnyKey", bound=Key)


def between(keys: Sequence[AnyKey], frame: float, total: int, loop: bool) -> tuple[AnyKey, AnyKey, float]:
    """The keys on both sides of a frame and the eased way from the first (0) to the second (1).

    A key's easing shapes the way from it to the next one, as in CSS animations. At a key's frame the first is
    that key and the way 0. Before the first and after the last key these hold. With ``loop`` the last key
    leads on to the first, ``total`` frames later, and keys at or beyond ``total`` are outside the loop and
    play no part (if all are, the first one holds). keys: at least one, their frames ascending.
    """
    places = [(key.frame, key) for key in keys]
    if loop:
        frame = frame % total
        places = [place for place in places if place[0] < total] or places[:1]
        (first, first_key), (last, last_key) = places[0], places[-1]
        places = [(last - total, last_key), *places, (first + total, first_key)]
    if frame <= places[0][0]:
        return places[0][1], places[0][1], 0.0
    for (start, key), (end, following) in itertools.pairwise(places):
        if start <= frame < end:
            return key, following, EASINGS[key.easing]((frame - start) / (end - start))
    return places[-1][1], places[-1][1], 0.0


class Keyframes(Kind):
    """The eased value between the keys on both sides."""

    def envelope(self, motion: Motion, frame: float, total: int) -> float:
        before, after, way = between(motion.keyframes, frame, total, motion.loop)
        return before.value + (after.value - before.value) * way
