"""What every location weighs: the maps of a scene at a size, at any frames.

`Maps` is made once a job and size and handed to whatever needs maps there (both sides of the guidance, the visual
noise, previews), so that a mask that does not move is drawn once.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from lib_masknoise.maps.blending import coefficients, covered, pin
from lib_masknoise.maps.keyframes import Parts, Passage, at_frame, passage
from lib_masknoise.maps.raster import rasterize, weight_map
from lib_masknoise.maps.resample import Size, extent, feather, level_size, level_with, resize
from lib_masknoise.noise import amount
from lib_masknoise.scene import Concept, Mask, Problem, Scene
from lib_masknoise.window import WHOLE, Window

__all__ = [
    "Maps",
    "Size",
    "coefficients",
    "covered",
    "feather",
    "level_size",
    "level_with",
    "pin",
    "rasterize",
    "resize",
    "extent",
    "weight_map",
]

REMEMBERED_FRAMES = 64
"""Of a scene whose concepts move: enough for both sides and the noise of a batch to find them."""


LOOKS = 8
"""Frames at which moving masks are looked at for remarks, and keyframes besides."""


class Maps:
    """The maps of a scene at one size.

    scene: whose masks, without the concepts that are switched off; its `animation.frames` are the frames. size: (h, w)
    of the latent. factor: pixels drawn for each element and axis; None for up to 8, the image's own pixels. window: the
    part of the picture that the latent is of, where a pass makes a part only. Frames may be fractions. Every method
    gives a row for each frame, or one row where no concept moves, so that all frames share it.
    """

    def __init__(self, scene: Scene, size: Size, factor: int | None = None, window: Window = WHOLE) -> None:
        self.scene, self.size, self.factor, self.window = scene.acting, size, factor, window
        self._given = scene
        self.total = scene.animation.frames
        self.moving = any(concept.moves for concept in self.scene.concepts)
        self._still: dict[int, Tensor] = {}  # by the id of a mask of the scene, which keeps it alive
        self._rows: OrderedDict[float, Tensor] = OrderedDict()
        self.windowed = any(not concept.acts_at(0.0) or concept.end < 1 for concept in self.scene.concepts)
        self._whole: Maps | None = None  # of those at a part of the steps
        self._acting = (True,) * len(self.scene.concepts)
        self._parts: dict[tuple[bool, ...], Maps] = {}
        self._own = {id(mask) for concept in self.scene.concepts for mask in _masks(concept)}
        self._lock = threading.Lock()

    def at(self, position: float | None) -> Maps:
        """These maps at a fraction of the sampling steps, the same object for as long as the same concepts act: those
        that do not have weight maps of 0, and cover nothing. What is held and what is free is as in the whole. None:
        the whole."""
        if position is None or not self.windowed:
            return self
        acting = tuple(concept.acts_at(position) for concept in self.scene.concepts)
        if all(acting):
            return self
        if acting not in self._parts:
            part = copy.copy(self)
            part._whole, part._acting, part._rows = self, acting, OrderedDict()
            self._parts[acting] = part
        return self._parts[acting]

    def saying(self, scene: Scene) -> Maps:
        """The same maps of a scene that differs in what its concepts say alone; what is drawn is drawn for both."""
        if scene is self._given:
            return self
        other = copy.copy(self)
        other.scene, other._given, other._parts = scene.acting, scene, {}
        return other

    def passages(self, frames: Sequence[float]) -> list[list[Passage]]:
        """Where each of the N concepts is."""
        loop = self.scene.motion.loop
        return [
            [passage(concept, frame, self.total, loop) for concept in self.scene.concepts]
            for frame in (frames if self.moving else (0.0,))
        ]

    def weights(self, frames: Sequence[float] = (0,)) -> Tensor:
        """The weight maps of all concepts, float32 ``[B, N, h, w]`` in [0, 1]; with the overlap "top", what later
        concepts leave of them."""
        if not self.moving:
            return self._row(0.0)[None]
        return torch.stack([self._row(float(frame)) for frame in frames])

    def pins(self, frames: Sequence[float] = (0,)) -> Tensor:
        """How firmly each location is held, ``[B, h, w]`` in [0, 1]."""
        return torch.stack([pin(row) for row in (self._whole or self).weights(frames)])

    def amount(self, name: str, frames: Sequence[float] = (0,)) -> Tensor:
        """How much of a noise ("visual", "concept" or "feature") there is, ``[B, h, w]``."""
        noise = self.scene.noise
        return amount(self.pins(frames), getattr(noise, name).strength, noise.exponent)

    def remarks(self) -> tuple[Problem, ...]:
        """The scene's remarks (`Scene.remarks`), those about masks included: by some frames where concepts move."""
        keys = {key.frame for concept in self.scene.concepts for key in concept.keyframes if key.frame < self.total}
        evenly = {i * self.total // LOOKS for i in range(LOOKS)}
        return self._given.remarks(self.weights(sorted({*sorted(keys)[:LOOKS], *evenly})))

    def _row(self, frame: float) -> Tensor:
        """``[N, h, w]``."""
        with self._lock:
            if frame in self._rows:
                self._rows.move_to_end(frame)
                return self._rows[frame]
            (row,) = self.passages([frame])
            nothing = torch.zeros(self.size)
            maps = [
                self._combined(one.masks, frame) if acts else nothing
                for one, acts in zip(row, self._acting, strict=True)
            ]
            drawn = torch.stack(maps) if maps else torch.zeros(0, *self.size)
            self._rows[frame] = covered(drawn) if self.scene.blend.overlap == "top" else drawn
            if len(self._rows) > REMEMBERED_FRAMES:
                self._rows.popitem(last=False)
            return self._rows[frame]

    def _combined(self, parts: Parts, frame: float) -> Tensor:
        loop = self.scene.motion.loop
        stills = [(share, at_frame(mask, frame, self.total, loop)) for share, mask in parts]
        if len(stills) == 1:
            return self._drawn(stills[0][1])
        return torch.stack([share * self._drawn(mask) for share, mask in stills]).sum(0)

    def _drawn(self, mask: Mask) -> Tensor:
        """A mask of the scene once; one between two of them, which lasts for a frame, each time."""
        if id(mask) in self._still:
            return self._still[id(mask)]
        drawn = weight_map(mask, self.size, self.scene.blend.feather, self.factor, self.window)
        if id(mask) in self._own:
            self._still[id(mask)] = drawn
        return drawn


def _masks(concept: Concept) -> list[Mask]:
    own = [concept.mask, *(key.mask for key in concept.keyframes)]
    return [mask for mask in own if mask is not None]
