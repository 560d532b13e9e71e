"""The grammar of ``noise.visual.seeds``: seeds such as "12, 7", or a list of them."""

from __future__ import annotations

import re

from lib_masknoise.controls import control
from lib_masknoise.scene.errors import shown
from lib_masknoise.scene.rules import Rule

MOST = 64


def canonical(value: object) -> str:
    """The seeds as text, separated by ", ". Raises ValueError where they are none."""
    if isinstance(value, str):
        value = [
            int(part) if re.fullmatch(r"[0-9]{1,19}", part) else part for part in re.split(r"[\s,;]+", value) if part
        ]
    high = control("noise.seed").high
    if not isinstance(value, list | tuple) or not all(Rule(int, 0, high).fits(seed) for seed in value):
        raise ValueError(f'expected seeds from 0 to 2^63 - 1 such as "12, 7", or a list of them, got {shown(value)}')
    if len(value) > MOST:
        raise ValueError(f"expected at most {MOST} seeds, got {len(value)}")
    return ", ".join(str(int(seed)) for seed in value)


def listed(text: str) -> tuple[int, ...]:
    """The seeds in a text, as `canonical` writes it."""
    return tuple(map(int, filter(None, text.split(", "))))
