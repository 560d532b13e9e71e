"""The grammar of ``noise.concept.layers`` and ``noise.feature.layers``: which cross-attention layers see a noise.

"all", or some of: the groups "coarse", "middle" and "fine", by the resolution at which a layer works, and blocks of the
U-Net by the names that its first implementation gave them: "in4" (``input_blocks.4``), "mid", "out3", "out3-5". A layer
is known here by its tags: the name of its block, and its group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lib_masknoise.scene.errors import Problem, SceneError, shown

ALL = "all"
GROUPS = ("coarse", "middle", "fine")
_EXPECTED = 'expected "all", or some of coarse, middle, fine and blocks such as "in4", "mid" or "out3-5"'
_BLOCKS = re.compile(r"(in|out)([0-9]{1,3})(?:-([0-9]{1,3}))?")

Tags = frozenset[str]
NAMELESS: Tags = frozenset()


def canonical(value: object) -> str:
    """The layers as text, in small letters and without blanks. Raises ValueError where they are none."""
    if not isinstance(value, str):
        raise ValueError(f"{_EXPECTED}, got {shown(value)}")
    text = re.sub(r"\s*([,-])\s*", r"\1", value.strip().lower())
    named(text)
    return text


def named(text: str) -> frozenset[str] | None:
    """The tags that the text names; None for "all". Raises ValueError where it names nothing."""
    if text == ALL:
        return None
    return frozenset(tag for part in text.split(",") for tag in _tags(part, text))


def _tags(part: str, text: str) -> list[str]:
    if part in GROUPS or part == "mid":
        return [part]
    match = _BLOCKS.fullmatch(part)
    if not match:
        raise ValueError(f"{_EXPECTED}, got {shown(text)}")
    first, last = int(match[2]), int(match[3] or match[2])
    if last < first:
        raise ValueError(f"expected ascending ranges, got {shown(part)}")
    return [f"{match[1]}{number}" for number in range(first, last + 1)]


def opened(text: str, tags: Tags) -> bool:
    """Whether a layer with these tags is among those that the text names."""
    chosen = named(text)
    return chosen is None or not chosen.isdisjoint(tags)


def tags_of(levels: Mapping[str, int]) -> dict[str, Tags]:
    """The tags of every block of a U-Net that sees the text. levels: how many times its latent has been halved, by the
    block's name.

    Fine is the first level at which a network looks at its text, coarse the last one and the middle block, middle what
    lies between: Stable Diffusion 1 and 2 have all three, XL has no middle.
    """
    sides = [level for block, level in levels.items() if block != "mid"] or list(levels.values())
    finest, coarsest = min(sides, default=0), max(sides, default=0)

    def groups(level: int) -> set[str]:
        found = {"fine"} if level == finest else set()
        found |= {"coarse"} if level >= coarsest else set()
        return found or {"middle"}

    return {block: frozenset({block, *groups(level)}) for block, level in levels.items()}


def check(noise: Any, tags: Iterable[Tags]) -> None:
    """Raises SceneError where a noise that acts is for layers that a model does not have.

    noise: a scene's. tags: of each of the model's layers; none where they have no levels and no names (transformers).
    """
    there: frozenset[str] = frozenset().union(*tags)
    has = f"which are {', '.join(sorted(there, key=_order))}" if there else "whose layers have no names"
    problems = []
    for name in ("concept", "feature"):
        own = getattr(noise, name)
        missing = sorted((named(own.layers) or frozenset()) - there, key=_order)
        if own.strength and missing:
            message = f'expected "all" or layers of this model, {has}; got {shown(", ".join(missing))}'
            problems.append(Problem(f"noise.{name}.layers", message))
    if problems:
        raise SceneError(problems)


def _order(tag: str) -> tuple[int, int, str]:
    """Groups first, then blocks in the order in which they are run through."""
    if tag in GROUPS:
        return 0, GROUPS.index(tag), tag
    match = _BLOCKS.fullmatch(tag)
    return (2, 0, tag) if match is None else (1 if match[1] == "in" else 3, int(match[2]), tag)
