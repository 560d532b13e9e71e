"""JSON text as Python's types, strictly: Python's own reader keeps the last of two equal keys in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lib_masknoise.scene.errors import Problem, SceneError, path_of


def read_json(text: str | bytes | bytearray) -> tuple[Any, list[Problem]]:
    """What the text describes, and a problem for each key that was given more than once.

    Raises SceneError where the text is no JSON.
    """
    try:
        if isinstance(text, str):
            text = text.removeprefix("\ufeff")
        data = json.loads(text, object_pairs_hook=_object)
        return data, list(_repeated(data, ()))
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except RecursionError:
        message = "not a scene: the JSON is nested too deeply"
    except ValueError as error:  # not Unicode, or a number of thousands of digits
        message = f"not valid JSON: {error}"
    raise SceneError([Problem("", message)]) from None


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys were given more than once."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        result.repeated = tuple(key for key in result if keys.count(key) > 1)
    return result


def _repeated(node: Any, steps: tuple[str | int, ...]) -> Iterator[Problem]:
    if isinstance(node, _Object):
        yield from (Problem(path_of((*steps, key)), "given more than once") for key in node.repeated)
        for key, child in node.items():
            yield from _repeated(child, (*steps, key))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _repeated(child, (*steps, i))
