"""What is wrong with a scene, where, and how a message quotes what was given."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Problem(NamedTuple):
    """What is wrong at one place of a scene. path: "concepts[1].mask.data", "" for the scene as a whole."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def under(self, place: str) -> Problem:
        """The same problem, seen from the part that holds this one at the path ``place``."""
        dot = "." if place and self.path and not self.path.startswith("[") else ""
        return Problem(f"{place}{dot}{self.path}", self.message)


class SceneError(ValueError):
    """A scene, or a part of one, that cannot be used; ``problems`` holds everything that is wrong with it, str() one a
    line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def path_of(steps: Iterable[object]) -> str:
    """The steps ``("concepts", 1, "mask")`` as the path ``concepts[1].mask``."""
    path = ""
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif isinstance(step, str) and re.fullmatch(r"[\w-]{1,100}", step):
            path += f".{step}" if path else step
        else:  # a key that would make the path unreadable
            path += f"[{shown(step)}]"
    return path


def shown(value: object, limit: int = 60) -> str:
    """A value as a message quotes it: as JSON, cut short."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, int) and abs(value) >= 10**limit:
        return "a huge integer"
    if value is not None and not isinstance(value, bool | int | float | str | list | tuple):
        return f"a value of type {type(value).__name__}"
    if isinstance(value, str):
        value = value if len(value) <= limit else value[:limit] + "…"
    text = json.dumps(value, ensure_ascii=False, default=lambda other: type(other).__name__)
    if isinstance(value, list | tuple) and len(text) > limit:
        return f"a list of {len(value)}"
    return text.encode("utf-8", "replace").decode("utf-8")


def number(value: float) -> str:
    """A number as a message quotes it: no more digits than one reads."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
