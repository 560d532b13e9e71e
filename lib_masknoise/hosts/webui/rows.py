"""Which conditioning each row of a denoiser call gets, in hosts that denoise a batch of images with rows of their own.

A WebUI's denoiser call has a row for each part of each image's prompt (`a cat AND a dog` has two) and one for each
image's negative prompt. Its prompts may change from step to step. `Rows` turns what the host has encoded for a step
into location conditionings, each made once for as long as its prompts last. Knows no host.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from lib_masknoise.attention import Row
from lib_masknoise.conditioning import Encoded, LocationConditioning, condition, condition_negative
from lib_masknoise.maps import Maps
from lib_masknoise.noise.feature import Subspaces
from lib_masknoise.noise.latent import visual

CACHED = 64
"""Conditionings kept. Prompts that are edited at some steps need a few; another extension that changes the prompt at
every step must not fill the memory."""

Parts = Sequence[Encoded]
"""A prompt at one step: its parts, each with its weight; the same objects for as long as the prompt stays the same."""


class Picture(NamedTuple):
    """One image of a batch: the frame it shows, whole or a fraction, and the seed of its noise."""

    frame: float
    seed: int
    maps: Maps | None = None
    """Its own, where the images of a batch are different parts of one picture."""
    fields: int | None = None
    """The seed of its moving fields, where it is another: those of a picture's parts go on into each other."""


class Rows:
    """The conditionings of one sampling pass.

    maps: of the job's scene at the latent's size. pictures: the images of the batch; those with maps of their own see
    these. subspaces: what is known of the model. draw: the host's own noise of a seed, `[C, h, w]`, for scenes that
    travel through seeds.
    """

    def __init__(
        self,
        maps: Maps,
        pictures: Sequence[Picture],
        subspaces: Subspaces | None = None,
        draw: Callable[[int], torch.Tensor] | None = None,
    ):
        self.subspaces = subspaces or {}
        self._draw = draw
        self.maps, self.pictures = maps, tuple(pictures)
        self.scene, self.size = maps.scene, maps.size
        self._known: dict[Hashable, tuple[LocationConditioning, tuple[Encoded, ...]]] = {}
        self._silent: dict[int, tuple[Encoded, Encoded]] = {}
        self.position: float | None = None
        """The fraction of the steps that are made at the coming call of the denoiser; None before the first."""

    def maps_of(self, image: int) -> Maps:
        """What holds at `position`."""
        return (self.pictures[image].maps or self.maps).at(self.position)

    @property
    def frames(self) -> list[float]:
        return [picture.frame for picture in self.pictures]

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

    def positive(self, bases: Sequence[Parts], concepts: Mapping[str, Parts]) -> list[Row]:
        """The rows of the images' prompts, image by image and part by part.

        bases: one prompt for each image, all with as many parts as the batch has rows for each (`widened`). concepts:
        one for each of `conditioning.prompts(scene)`.
        """
        rows: dict[int, Row] = {}
        groups: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        places = ((image, k, base) for image, parts in enumerate(bases) for k, base in enumerate(parts))
        for place, (image, k, base) in enumerate(places):
            groups.setdefault((id(base), k, id(self.maps_of(image))), []).append((place, image))
        for (_, k, _), members in groups.items():
            images = [image for _, image in members]
            of_part = {text: self._part(parts, k) for text, parts in concepts.items()}
            made = self._made(("positive", k), bases[images[0]][k], of_part, images)
            rows |= {place: Row(made, index) for index, (place, _) in enumerate(members)}
        return [rows[place] for place in range(len(rows))]

    def negative(self, bases: Sequence[Encoded], concepts: Mapping[str, Encoded]) -> list[Row]:
        """The rows of the images' negative prompts. concepts: one for each of `conditioning.negatives(scene)`."""
        rows: dict[int, Row] = {}
        groups: dict[tuple[int, int], list[int]] = {}
        for image, base in enumerate(bases):
            groups.setdefault((id(base), id(self.maps_of(image))), []).append(image)
        for images in groups.values():
            made = self._made(("negative",), bases[images[0]], concepts, images)
            rows |= {image: Row(made, index) for index, image in enumerate(images)}
        return [rows[image] for image in range(len(bases))]

    def visual(self, noise: torch.Tensor) -> torch.Tensor:
        """The initial noise of the batch with the visual noise in it: `[B, C, h, w]` → a tensor like it."""
        options = self.scene.noise.visual
        if not options.strength:
            return noise
        motion = options.motion or self.scene.motion
        others = [self._draw(seed) for seed in options.stops] if self._draw else []
        moved = []
        for i, (one, picture) in enumerate(zip(noise, self.pictures, strict=True)):
            (free,) = self.maps_of(i).amount("visual", [picture.frame])
            moved.append(visual(one, free, motion, [picture.frame], self.maps.total, picture.seed, others))
        return torch.cat(moved)

    def _made(
        self, key: tuple[Hashable, ...], base: Encoded, concepts: Mapping[str, Encoded], images: Sequence[int]
    ) -> LocationConditioning:
        """The conditioning of some images, of which each is a row."""
        prompts = (base, *concepts.values())
        maps = self.maps_of(images[0])
        key = (*key, id(maps), *images, *map(id, prompts))
        if key not in self._known:
            if len(self._known) >= CACHED:
                self._known.pop(next(iter(self._known)))
            frames = [self.pictures[image].frame for image in images]
            if key[0] == "negative":
                made = condition_negative(maps, base, concepts, frames)
            else:
                own = [self.pictures[image] for image in images]
                seeds = [picture.seed if picture.fields is None else picture.fields for picture in own]
                made = condition(maps, base, concepts, frames, seeds, self.subspaces)
            self._known[key] = made, prompts  # the prompts stay alive, so that no other object gets their id
        return self._known[key][0]
