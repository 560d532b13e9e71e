"""Places in a scene's JSON by their path, to be given another value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lib_masknoise.scene.errors import Problem, SceneError

_STEP = re.compile(r"(\w+)(?:\[(\d*)\])?")


def put_all(data: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Give the places at some paths other values: ``{"concepts[0].weight": 0.5, "animation.frames": 24}``.

    ``concepts[].weight`` means the weight of every concept. Raises SceneError for what is no path or has no such entry.
    """
    wrong = []
    for path, value in changes.items():
        try:
            _put(data, _steps(path), value)
        except ValueError as error:
            wrong.append(Problem(path, str(error)))
    if wrong:
        raise SceneError(wrong)


def _steps(path: str) -> list[str | int | None]:
    """ "concepts[0].weight" -> ["concepts", 0, "weight"]; None stands for every entry."""
    steps: list[str | int | None] = []
    for part in path.split("."):
        match = _STEP.fullmatch(part)
        if not match:
            raise ValueError("not a path such as blend.mode or concepts[0].weight")
        name, index = match.groups()
        steps.append(name)
        if index is not None:
            steps.append(int(index) if index else None)
    return steps


def _put(node: Any, steps: list[str | int | None], value: Any) -> None:
    head, *rest = steps
    if isinstance(head, str):
        if not isinstance(node, dict):
            raise ValueError(f'no such field "{head}"')
        if not rest:
            node[head] = value
        else:
            if node.get(head) is None:  # absent, or a part that may be null
                node[head] = {}
            _put(node[head], rest, value)
        return
    entries = list(range(len(node))) if head is None and isinstance(node, list) else [head or 0]
    if not isinstance(node, list) or not entries or entries[-1] >= len(node):
        raise ValueError(f"no such entry; there are {len(node) if isinstance(node, list) else 0}")
    for i in entries:
        if rest:
            _put(node[i], rest, value)
        else:
            node[i] = value
