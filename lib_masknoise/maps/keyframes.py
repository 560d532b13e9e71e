"""Concepts that change over the frames: what stands at a frame between two keyframes.

At a keyframe a concept is a still one, `Concept.at_key`. Between two of them its weight moves evenly, its masks are
drawn between the two (`between_masks`), and its prompts pass into each other (`conditioning.passing`). Easing and loop
are those of `motion.keys.between`: with the scene's `motion.loop` the last keyframe leads back to the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lib_masknoise.motion.keys import between
from lib_masknoise.scene import (
    Concept,
    EllipseMask,
    GradientMask,
    ImageMask,
    Mask,
    Point,
    RectMask,
    SplitMask,
    Stamp,
    StrokesMask,
)

# A straight way between two gradients whose direction shrinks below this would turn them over through no gradient.
SHORTEST_GRADIENT = 0.01

Parts = list[tuple[float, Mask]]
"""Masks with their shares: their maps, each times its share, add up to one weight map."""


@dataclass(frozen=True)
class Passage:
    """Where a concept is at a frame: on its way (0 … 1) from one still concept to another."""

    before: Concept
    after: Concept
    way: float

    @property
    def weight(self) -> float:
        return self.before.weight + (self.after.weight - self.before.weight) * self.way

    @property
    def masks(self) -> Parts:
        return between_masks(self.before.mask, self.after.mask, self.way)


def passage(concept: Concept, frame: float, total: int, loop: bool) -> Passage:
    """Where a concept is at a frame (of ``total``, a fraction or whole). Without keyframes it is itself throughout."""
    if not concept.keyframes:
        return Passage(concept, concept, 0.0)
    before, after, way = between(concept.keyframes, frame, total, loop)
    return Passage(concept.at_key(before), concept.at_key(after), way)


def between_masks(first: Mask, second: Mask, way: float) -> Parts:
    """What is drawn between two masks, ``way`` (0 … 1) from the first to the second.

    Rectangles, strips along one axis, ellipses and gradients of one shape become one mask with the numbers in between:
    they move, grow and turn. So do two stills of one sequence, which runs from one picture to the other. All others
    cross-fade: both are drawn, with the shares 1 − way and way.
    """
    if first is second or way == 0:
        return [(1.0, first)]
    if way == 1:
        return [(1.0, second)]
    if not _alike(first, second):
        return [(1.0 - way, first), (way, second)]
    return [(1.0, _moved(first, second, way))]


def _alike(first: Mask, second: Mask) -> bool:
    """Whether there is a mask half-way between the two, and so all the way."""
    if isinstance(first, SplitMask) and isinstance(second, SplitMask):
        return first.axis == second.axis
    if isinstance(first, GradientMask) and isinstance(second, GradientMask):
        same = (first.shape, first.smooth) == (second.shape, second.smooth)
        return same and _closest_to_zero(_direction(first), _direction(second)) >= SHORTEST_GRADIENT
    if isinstance(first, ImageMask) and isinstance(second, ImageMask):
        return first.sequence == "still" and first.copy(update={"picture": second.picture}) == second
    return isinstance(first, RectMask | EllipseMask) and type(first) is type(second)


def _direction(mask: GradientMask) -> tuple[float, float]:
    return mask.to[0] - mask.from_[0], mask.to[1] - mask.from_[1]


def _closest_to_zero(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The distance from the origin to the segment from a to b."""
    along = (b[0] - a[0], b[1] - a[1])
    length = math.hypot(*along)
    t = min(max(-(a[0] * along[0] + a[1] * along[1]) / max(length, 1e-12) ** 2, 0.0), 1.0)
    return math.hypot(a[0] + t * along[0], a[1] + t * along[1])


def _moved(first: Mask, second: Mask, way: float) -> Mask:
    """A mask of the same kind whose numbers lie between those of two."""
    values: dict[str, Any] = {}
    feathers = [getattr(mask, "feather", 0.0) for mask in (first, second)]
    for name in first.__fields__:
        a, b = getattr(first, name), getattr(second, name)
        if isinstance(a, float) and name in _EDGES:
            a, b = _from_beyond(a, b, *feathers)
        if isinstance(a, float):
            values[name] = a + (b - a) * way
        elif isinstance(a, Point):
            values[name] = Point(x + (y - x) * way for x, y in zip(a, b, strict=True))
    return first.copy(update=values)


_EDGES = ("left", "top", "right", "bottom", "from_", "to")


def _from_beyond(a: float, b: float, feather_a: float, feather_b: float) -> tuple[float, float]:
    """The two places of a moving edge, with those on the image's border taken out of sight.

    An edge on the border is hard, one just inside it is soft: setting out, it would appear half-way through its
    softness all at once. So it comes from where its whole softness is outside, and one that stays on the border stays
    far outside.
    """
    if a == b and a in (0.0, 1.0):
        return 3 * a - 1, 3 * a - 1
    return _beyond(a, feather_a), _beyond(b, feather_b)


def _beyond(place: float, feather: float) -> float:
    return {0.0: -feather / 2, 1.0: 1 + feather / 2}.get(place, place)


def at_frame(mask: Mask, frame: float, total: int, loop: bool) -> Mask:
    """What a mask is at a frame: of a sequence (`ImageMask.at`) the picture there, also of those painted in strokes. A
    mask that does not move is itself."""
    if not mask.moves:
        return mask
    if isinstance(mask, ImageMask):
        return mask.at(frame, total, loop)
    assert isinstance(mask, StrokesMask)
    strokes = (
        entry.copy(update={"mask": at_frame(entry.mask, frame, total, loop)}) if isinstance(entry, Stamp) else entry
        for entry in mask.strokes
    )
    return mask.copy(update={"strokes": tuple(strokes)})


def texts(concept: Concept, name: str) -> list[str]:
    """The different prompts ("prompt" or "negative") that a concept has at its keyframes, or its own."""
    still = [concept.at_key(key) for key in concept.keyframes] or [concept]
    return list(dict.fromkeys(getattr(one, name) for one in still))
