"""What one value of a scene must be. Raises ValueError, saying what was expected and what was given."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lib_masknoise.scene.errors import number, shown


class Rule(NamedTuple):
    """What a scalar must be; ``kind`` is bool, int, float or str."""

    kind: type
    low: float | None = None
    high: float | None = None
    choices: tuple[object, ...] = ()

    @property
    def expected(self) -> str:
        if self.choices:
            return _any_of(self.choices)
        name = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}[self.kind]
        if self.low is not None and self.high is not None:
            return f"{name} from {number(self.low)} to {number(self.high)}"
        return name

    def check(self, value: object) -> Any:
        """The value as ``kind``, exactly: no truth value is a number, no text either, and 1.0 is an integer."""
        if isinstance(value, str) and self.kind is str and not _encodable(value):
            raise ValueError(f"expected valid Unicode text, got {shown(value)}")
        if not self.fits(value):
            hint = suggestion(value, self.choices) if isinstance(value, str) and self.kind is str else ""
            raise ValueError(f"expected {self.expected}, got {shown(value)}{hint}")
        return self.kind(value)

    def fits(self, value: object) -> bool:
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str) and (not self.choices or value in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and (not math.isfinite(value) or self.kind is int and not value.is_integer()):
            return False
        if self.choices:
            return value in self.choices
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


def suggestion(given: object, choices: Sequence[object]) -> str:
    """What was probably meant, as the end of a message; "" where nothing is near."""
    close = difflib.get_close_matches(str(given)[:100], list(map(str, choices)), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def check_list(value: object, least: int, most: int) -> list[Any] | tuple[Any, ...]:
    """The value, if it is a list of ``least`` to ``most`` entries."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, got {shown(value)}")
    if len(value) > most:
        raise ValueError(f"expected at most {most:,} entries, got {len(value):,}")
    if len(value) < least:
        raise ValueError(f"expected at least {least} entry, got an empty list")
    return value


def _any_of(choices: tuple[object, ...]) -> str:
    *most, last = map(shown, choices)
    return f"{', '.join(most)} or {last}" if most else last


def _encodable(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can hold and no tokenizer or file can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
