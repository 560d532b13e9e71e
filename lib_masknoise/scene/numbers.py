"""The grammar of `noise.initial.inject.times` and `.weights`: numbers with commas between them, or a list of them."""

from __future__ import annotations

from lib_masknoise.scene.errors import number, shown
from lib_masknoise.scene.rules import Rule


def canonical(value: object, rule: Rule, example: str) -> str:
    """The numbers as text, "900,700"; empty for none. rule: what each must be.

    Raises ValueError where they are none.
    """
    if isinstance(value, str):
        parts = [_read(part) for part in value.split(",")] if value.strip() else []
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        parts = [value]
    if not all(map(rule.fits, parts)):
        expected = rule.expected.removeprefix("a ").removeprefix("an ")
        raise ValueError(f'expected {expected}, one or several as in "{example}" or a list, got {shown(value)}')
    return ",".join(number(rule.kind(part)) for part in parts)


def numbers(text: str) -> list[float]:
    """Those of a text as `canonical` writes it."""
    return [float(part) for part in text.split(",") if part]


def _read(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text
