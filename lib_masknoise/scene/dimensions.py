"""The grammar of ``noise.feature.dimensions``: "all", "style" or "layout", indices and ranges such as "0-63,100", or a
list of indices."""

from __future__ import annotations

import itertools
import re

from lib_masknoise.scene.errors import shown
from lib_masknoise.scene.rules import Rule

FOUND = ("style", "layout")
"""Directions that are found by measuring what they do in a model; what its profile has of them is used."""

_EXPECTED = 'expected "all", "style", "layout", indices and ranges such as "0-63,100", or a list of indices'
_INDEX = Rule(int, 0, 10**9 - 1)
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def canonical(value: object) -> str:
    """The dimensions as text: "all", a name of `FOUND`, or indices and ranges without blanks; a list of indices
    becomes ranges.

    Raises ValueError where they are none.
    """
    if isinstance(value, list | tuple):
        if not value or not all(map(_INDEX.fits, value)):
            raise ValueError(f"{_EXPECTED} of at least 0, got {shown(value)}")
        runs = itertools.groupby(enumerate(sorted(set(map(int, value)))), key=lambda item: item[1] - item[0])
        ends = [(run[0][1], run[-1][1]) for run in (list(items) for _, items in runs)]
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
    if not isinstance(value, str):
        raise ValueError(f"{_EXPECTED}, got {shown(value)}")
    text = re.sub(r"\s*([,-])\s*", r"\1", value.strip())
    if text not in FOUND:
        ranges(text)
    return text


def ranges(text: str) -> list[range] | None:
    """The ranges of dimensions, as `canonical` writes them, in the order given; None for "all".

    Raises ValueError where the text is none of these.
    """
    return None if text == "all" else [_range(part, text) for part in text.split(",")]


def _range(part: str, text: str) -> range:
    match = _RANGE.fullmatch(part)
    if not match:
        raise ValueError(f"{_EXPECTED}, got {shown(text)}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"expected ascending ranges, got {shown(part)}")
    return range(first, last + 1)
