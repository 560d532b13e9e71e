"""What stands between two prompts, and beyond them: pictures along the straight line through both contexts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise

from PIL import Image

from lib_masknoise import smoothness
from lib_masknoise.explore.model import Model, Report
from lib_masknoise.scene import Animation, Concept, ConceptKeyframe, GradientMask, Motion, RectMask, Scene
from lib_masknoise.settings import Settings

Stage = Callable[[str, int, str], AbstractContextManager[Report]]
"""What is being done, how much of it there is, and of what: a context in which a `Report` hears of it."""

EVEN = 0.9
"""Evenness that stops of equal distances are to have: 1 − Gini coefficient of the distances between neighbours."""
AIM, TRIES = 0.95, 8

REACH = 1
"""How far beyond either end a stop may lie, in distances between the two."""

BEYOND_STEP = 0.25


class Line:
    """The way from `settings.prompt` (t = 0) to another prompt (t = 1): context `(1 − t)·A + t·B`, the same seed.

    Pictures that have been made are kept, so that going back costs nothing. Below 0 and above 1 it is extrapolation.
    """

    def __init__(self, model: Model, settings: Settings, to: str, stage: Stage) -> None:
        self.model, self.settings, self.stage = model, settings, stage
        self.scene = line_scene(to)
        self._made: dict[float, Image.Image] = {}
        self._features: dict[float, smoothness.Features] = {}
        self._kept: list[float] | None = None

    @property
    def kept(self) -> list[float]:
        """The stops that were decided on; until then all that there are."""
        return sorted(self._made) if self._kept is None else self._kept

    def keep(self, stops: Sequence[float]) -> None:
        self._kept = list(stops)

    def images(self, stops: Sequence[float]) -> list[Image.Image]:
        """The pictures at some stops, those that are missing rendered in one batch."""
        missing = [t for t in dict.fromkeys(stops) if t not in self._made]
        if missing:
            frames = [t + REACH for t in missing]
            with self.stage("sampling", len(missing), "stops") as report:
                images = self.model.rendered(self.scene, self.settings, frames, report)
                for t, image in zip(missing, images, strict=True):
                    self._made[t] = image
        return [self._made[t] for t in stops]

    def distances(self, stops: Sequence[float]) -> list[float]:
        """The perceptual distances between neighbours."""
        for t, image in zip(stops, self.images(stops), strict=True):
            if t not in self._features:
                self._features[t] = smoothness.features(image)
        return [smoothness.perceptual_distance(self._features[a], self._features[b]) for a, b in pairwise(stops)]


def line_scene(to: str) -> Scene:
    """A scene in which the prompt of the image becomes another one over its frames: t = frame − 1."""
    keys = [ConceptKeyframe(frame=0, weight=-REACH), ConceptKeyframe(frame=1 + 2 * REACH, weight=1 + REACH)]
    return Scene(
        concepts=[Concept(prompt=to, mask=RectMask(), keyframes=keys)],
        motion=Motion(loop=False),
        animation=Animation(frames=2 + 2 * REACH),
    )


def refined(line: Line, count: int, first: int | None = None) -> list[float]:
    """`count` stops from 0 to 1: evenly spaced ones first, the others each half-way where neighbours are farthest
    apart, as many at a time as there are such gaps."""
    first = max(2, min(count, first or (count + 1) // 2))
    stops = [i / (first - 1) for i in range(first)]
    while len(stops) < count:
        gaps = sorted(zip(line.distances(stops), pairwise(stops), strict=True), reverse=True)
        longest = [ends for distance, ends in gaps if distance >= gaps[0][0] / 2]
        added = [(a + b) / 2 for a, b in longest[: count - len(stops)]]
        stops = sorted([*stops, *added])
    line.images(stops)
    return stops


def even(line: Line, count: int) -> list[float]:
    """`count` stops from 0 to 1 between which the picture changes by equal perceptual distances, as nearly as a few
    tries get: stops are moved along the way that the last ones measured, until their evenness is enough."""
    stops = [i / (count - 1) for i in range(count)]
    best, most = stops, -math.inf
    for _ in range(TRIES):
        distances = line.distances(stops)
        evenness = smoothness.evenness(distances)
        if evenness > most:
            best, most = stops, evenness
        if evenness >= AIM:
            break
        # Where nothing moves at an end, any time near it would do: the ends stay the two prompts themselves.
        stops = [0.0, *smoothness.even_times(stops, distances, count, loop=False)[1:-1], 1.0]
    return best


def beyond(reach: float) -> tuple[list[float], list[float]]:
    """Stops before 0 and after 1, as far as `reach` (at most 1), every quarter of the way."""
    steps = [BEYOND_STEP * i for i in range(1, int(reach / BEYOND_STEP + 1e-9) + 1)]
    return [-step for step in reversed(steps)], [1 + step for step in steps]


def keyframed(first: str, second: str, frames: int = 48) -> Scene:
    """The passage as an animation: one concept over the whole picture that becomes another and comes back."""
    keys = [
        ConceptKeyframe(frame=0, easing="ease-in-out", prompt=first),
        ConceptKeyframe(frame=frames // 2, easing="ease-in-out", prompt=second),
    ]
    return Scene(
        concepts=[Concept(prompt=first, mask=RectMask(), keyframes=keys)],
        motion=Motion(loop=True),
        animation=Animation(frames=frames),
    )


def graded(first: str, second: str) -> Scene:
    """The passage across one picture: the first prompt on the left fades as the second comes from the right."""
    return Scene(
        concepts=[
            Concept(prompt=first, mask=GradientMask(from_=(0.15, 0.5), to=(0.85, 0.5))),
            Concept(prompt=second, mask=GradientMask(from_=(0.85, 0.5), to=(0.15, 0.5))),
        ],
    )
