"""Where prompts live: a map of them by the model's own encoder, on which every place can be reached by a blend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from lib_masknoise import ASSETS, conditioning
from lib_masknoise.conditioning import Encoded
from lib_masknoise.explore import model as models
from lib_masknoise.explore.model import Model, Report
from lib_masknoise.explore.plane import Blend, Plane
from lib_masknoise.presets import PresetError, Presets
from lib_masknoise.scene import Concept, RectMask, Scene, SceneError
from lib_masknoise.scene.errors import Problem
from lib_masknoise.settings import Settings

BUILT_IN = ASSETS / "explore" / "prompts.txt"
ENCODED_TOGETHER = 16
MAX_PROMPTS = 5000
FURTHEST = 4.0
"""The largest weight of a concept that a scene may have, in both directions."""


class Entry(NamedTuple):
    """A prompt of a list, and the heading it stands under."""

    prompt: str
    group: str


@dataclass(frozen=True, eq=False)
class PromptMap:
    """Prompts in a plane: `plane.points[i]` is that of `entries[i]`. heard: which of them say something to the model;
    blends are made of these."""

    entries: list[Entry]
    heard: list[bool]
    encoded: Mapping[str, Encoded]
    plane: Plane

    def blended(self, blend: Blend) -> Encoded:
        """The context of a blend."""
        chosen = [self.encoded[self.entries[i].prompt] for i in blend.points]
        return models.blend(chosen, blend.weights)


class Place(NamedTuple):
    """A picture of a place on the map that is no prompt's own."""

    x: float
    y: float
    blend: Blend
    image: Image.Image


def read_prompts(path: Path) -> list[Entry]:
    """A list of prompts from a text file (UTF-8): one a line; a line that begins with # is a heading, empty ones are
    passed over, and so is a prompt that has been there. Raises SceneError where it cannot be read or has too many."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise SceneError([Problem("", f"cannot read {path}: {error.strerror or error}")]) from None
    except UnicodeDecodeError as error:
        raise SceneError([Problem("", f"{path}: not a text file (byte {error.start} is no UTF-8)")]) from None
    found = entries(text.splitlines())
    if not found:
        raise SceneError([Problem("", f"{path}: no prompts in it; expected one a line")])
    return found


def entries(lines: Sequence[str]) -> list[Entry]:
    found: dict[str, Entry] = {}
    group = ""
    for line in map(str.strip, lines):
        if line.startswith("#"):
            group = line.lstrip("#").strip()
        elif line:
            found.setdefault(line, Entry(line, group))
    if len(found) > MAX_PROMPTS:
        raise SceneError([Problem("prompts", f"expected at most {MAX_PROMPTS:,}, got {len(found):,}")])
    return list(found.values())


def preset_prompts(presets: Presets) -> list[str]:
    """The prompts of all saved presets, each once. A preset that cannot be read has none."""
    found: dict[str, None] = {}
    for name in presets.names():
        with suppress(SceneError, PresetError):
            found |= dict.fromkeys(conditioning.prompts(presets.load(name)))
    return list(found)


def encode(model: Model, prompts: Sequence[Entry], report: Callable[[float], object]) -> dict[str, Encoded]:
    """Each prompt encoded. Raises SceneError for those of more than one chunk, which no blend could mix with others
    token by token."""
    long = [(entry.prompt, n) for entry in prompts if (n := model.tokens(entry.prompt)) > model.longest]
    if long:
        raise SceneError(
            Problem("prompts", f"expected at most {model.longest} tokens each, got {count} in {prompt!r}")
            for prompt, count in long
        )
    encoded: dict[str, Encoded] = {}
    for start in range(0, len(prompts), ENCODED_TOGETHER):
        some = [entry.prompt for entry in prompts[start : start + ENCODED_TOGETHER]]
        encoded |= model.encode(some)
        report(len(some))
    return encoded


def lay_out(prompts: Sequence[Entry], encoded: Mapping[str, Encoded], nothing: Encoded) -> PromptMap:
    """The plane of the contexts' averages over their tokens. nothing: the context of an empty prompt. Raises SceneError
    where there is no plane."""
    vectors = [models.average(encoded[entry.prompt]) for entry in prompts]
    known = models.heard(torch.stack(vectors), models.average(nothing)).tolist() if vectors else []
    try:
        plane = (
            Plane.of(np.stack([vector.numpy() for vector in vectors]), np.flatnonzero(known).tolist())
            if vectors
            else None
        )
        if plane is None:
            raise ValueError("there are none")
    except ValueError as error:
        message = f"expected at least three prompts that the model tells apart: {error}"
        raise SceneError([Problem("prompts", message)]) from None
    return PromptMap(list(prompts), known, encoded, plane)


def lattice(plane: Plane, columns: int) -> list[tuple[float, float]]:
    """Places in even rows and columns over the map's extent, those that no blend within a scene's weights reaches left
    out. From the bottom left, row by row."""
    if columns < 1:
        return []
    low, high = plane.points.min(0), plane.points.max(0)
    step = (high[0] - low[0]) / columns
    rows = max(1, min(2 * columns, round((high[1] - low[1]) / step)))
    xs = low[0] + (np.arange(columns) + 0.5) * step
    ys = low[1] + (np.arange(rows) + 0.5) * (high[1] - low[1]) / rows
    places = [(float(x), float(y)) for y in ys for x in xs]
    return [place for place in places if max(map(abs, plane.weights(*place).weights)) <= FURTHEST]


def pictures(
    model: Model, chart: PromptMap, places: Sequence[tuple[float, float]], settings: Settings, report: Report
) -> Iterator[Place]:
    """What the model draws at some places, `settings.batch_size` of them at a time."""
    size = settings.batch_size or len(places)
    for start in range(0, len(places), size):
        some = places[start : start + size]
        blends = [chart.plane.weights(*place) for place in some]
        contexts = [chart.blended(blend) for blend in blends]
        images = model.blended(contexts, [settings.seed] * len(some), settings, report)
        for place, blend, image in zip(some, blends, images, strict=True):
            yield Place(*place, blend, image)


def scene_of(prompts: Sequence[str], weights: Sequence[float]) -> tuple[str, Scene]:
    """A blend of whole-picture prompts as a base prompt and a scene of the others.

    The base is the prompt of the largest weight: the concepts' weights say what they take from it, so that none is
    scaled down however far the blend extrapolates.
    """
    order = sorted(range(len(prompts)), key=lambda i: -weights[i])
    concepts = [
        Concept(prompt=prompts[i], weight=weights[i], mask=RectMask()) for i in order[1:] if abs(weights[i]) > 1e-6
    ]
    return prompts[order[0]], Scene(concepts=concepts)
