"""Which conditioning each row of a denoiser call gets, in hosts that denoise a batch of images with rows of their own.

A WebUI's denoiser call has a row for each part of each image's prompt (`a cat AND a dog` has two) and one for each
image's negative prompt. Its prompts may change from step to step. `Rows` turns what the host has encoded for a step
into location conditionings, each made once for as long as its prompts last. Knows no host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from lib_masknoise import keyframes
from lib_masknoise.conditioning import Encoded, LocationConditioning, condition, condition_negative
from lib_masknoise.masks import Size
from lib_masknoise.noise import amount
from lib_masknoise.noise.latent import visual
from lib_masknoise.scene import Scene

CACHED = 64
"""Conditionings kept. Prompts that are edited at some steps need a few; another extension that changes the prompt at
every step must not fill the memory."""

Parts = Sequence[Encoded]
"""A prompt at one step: its parts, each with its weight; the same objects for as long as the prompt stays the same."""


class Picture(NamedTuple):
    """One image of a batch: the frame it shows and the seed of its noise."""

    frame: int
    seed: int


class Row(NamedTuple):
    """What one row of a denoiser call is conditioned on: one row of a location conditioning."""

    conditioning: LocationConditioning
    index: int

    @property
    def pooled(self) -> torch.Tensor | None:
        return self._of(self.conditioning.pooled)

    @property
    def weight(self) -> torch.Tensor | None:
        return self._of(self.conditioning.weight)

    def _of(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        return None if rows is None else rows[min(self.index, len(rows) - 1)]


@dataclass(frozen=True)
class Share:
    """The rows of one U-Net call that have a conditioning in common; picks: which of its rows each takes."""

    rows: tuple[int, ...]
    conditioning: LocationConditioning
    picks: tuple[int, ...]

    @property
    def span(self) -> slice | list[int]:
        """The rows as an index: a slice, which copies nothing, where they follow each other."""
        first, last = self.rows[0], self.rows[-1]
        return slice(first, last + 1) if last - first + 1 == len(self.rows) else list(self.rows)


def shares(rows: Sequence[Row]) -> tuple[Share, ...]:
    """Rows that have a conditioning in common, together."""
    found: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(id(row.conditioning), []).append(place)
    return tuple(
        Share(tuple(places), rows[places[0]].conditioning, tuple(rows[place].index for place in places))
        for places in found.values()
    )


class Rows:
    """The conditionings of one sampling pass.

    scene: the job's. pictures: the images of the batch. total: frames of the animation. size: (h, w) of the latent.
    """

    def __init__(self, scene: Scene, pictures: Sequence[Picture], total: int, size: Size):
        self.scene, self.pictures, self.total, self.size = scene, tuple(pictures), total, size
        noise = scene.noise
        self._seed_matters = bool(noise.concept.strength or noise.feature.strength)
        self._known: dict[tuple, tuple[LocationConditioning, tuple]] = {}
        self._silent: dict[int, tuple[Encoded, Encoded]] = {}

    def part_count(self, bases: Sequence[Parts], concepts: Sequence[Parts]) -> int:
        """How many rows each image needs: as many as the prompt with the most parts has."""
        return max(len(parts) for parts in (*bases, *concepts))

    def widened(self, parts: Parts, count: int) -> Parts:
        """A prompt with `count` parts, of which those it does not have count nothing."""
        return [self._part(parts, k) for k in range(count)]

    def _part(self, parts: Parts, k: int) -> Encoded:
        """The k-th part of a prompt. One that has fewer takes part with its first, whose guidance counts nothing."""
        if k < len(parts):
            return parts[k]
        first = parts[0]
        if id(first) not in self._silent:
            if len(self._silent) >= CACHED:
                self._silent.clear()
            self._silent[id(first)] = first, replace(first, weight=0.0)
        return self._silent[id(first)][1]

    def positive(self, bases: Sequence[Parts], concepts: Sequence[Parts]) -> list[Row]:
        """The rows of the images' prompts, image by image and part by part.

        bases: one prompt for each image, all with as many parts as the batch has rows for each (`widened`). concepts:
        one for each of `keyframes.prompts(scene)`.
        """
        rows: list[Row | None] = [None] * sum(map(len, bases))
        places: dict[tuple, list[tuple[int, int]]] = {}
        place = 0
        for image, parts in enumerate(bases):
            for k, base in enumerate(parts):
                seed = self.pictures[image].seed if self._seed_matters else 0
                places.setdefault((id(base), k, seed), []).append((place, image))
                place += 1
        for (_, k, seed), members in places.items():
            base = bases[members[0][1]][k]
            frames = [self.pictures[image].frame for _, image in members]
            of_part = [self._part(parts, k) for parts in concepts]
            made = self._made(("positive", k, seed, tuple(frames)), base, of_part, seed, frames)
            for index, (place, _) in enumerate(members):
                rows[place] = Row(made, index)
        return rows

    def negative(self, bases: Sequence[Encoded], concepts: Sequence[Encoded | None]) -> list[Row]:
        """The rows of the images' negative prompts. concepts: one for each of `keyframes.negatives(scene)`, None where
        that is empty."""
        rows: list[Row | None] = [None] * len(bases)
        places: dict[int, list[int]] = {}
        for image, base in enumerate(bases):
            places.setdefault(id(base), []).append(image)
        for members in places.values():
            frames = [self.pictures[image].frame for image in members]
            made = self._made(("negative", tuple(frames)), bases[members[0]], concepts, None, frames)
            for index, image in enumerate(members):
                rows[image] = Row(made, index)
        return rows

    def visual(self, noise: torch.Tensor) -> torch.Tensor:
        """The initial noise of the batch with the visual noise in it: `[B, C, h, w]` → a tensor like it."""
        options = self.scene.noise.visual
        if not options.strength:
            return noise
        frames = [picture.frame for picture in self.pictures]
        pins = keyframes.pins(keyframes.weight_maps(self.scene, self.size, frames, self.total))
        free = amount(pins, options.strength, self.scene.noise.exponent).expand(len(frames), -1, -1)
        motion = options.motion or self.scene.motion
        moved = [
            visual(one, free[i], motion, [picture.frame], self.total, picture.seed)
            for i, (one, picture) in enumerate(zip(noise, self.pictures, strict=True))
        ]
        return torch.cat(moved)

    def _made(
        self,
        key: tuple,
        base: Encoded,
        concepts: Sequence[Encoded | None],
        seed: int | None,
        frames: Sequence[int],
    ) -> LocationConditioning:
        prompts = (base, *concepts)
        key = (*key, *map(id, prompts))
        if key not in self._known:
            if len(self._known) >= CACHED:
                self._known.pop(next(iter(self._known)))
            if seed is None:
                made = condition_negative(self.scene, base, concepts, self.size, frames, self.total)
            else:
                made = condition(self.scene, base, concepts, self.size, seed, frames, self.total)
            self._known[key] = made, prompts  # the prompts stay alive, so that no other object gets their id
        return self._known[key][0]
