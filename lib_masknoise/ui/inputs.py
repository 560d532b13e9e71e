"""What the user interface sends along with a job, as a scene, and a scene as what the user interface shows.

A job has one flat list of values, the WebUI's script arguments (`args` in its API):

    scene      the whole scene at once, an object or its JSON text; what a script sends. Empty in the user interface.
    enabled    whether the accordion is switched on
    painting   JSON text: the part of the scene that no scalar control shows (concepts with their masks and keyframes,
               a noise's own motion, `motion.keyframes`), kept by the painting canvas
    …          one value for each of SHOWN

Either the first is given and the others are left at their defaults, or the first is empty.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lib_masknoise.controls import CONTROLS, Control
from lib_masknoise.scene import Problem, Scene, SceneError

SHOWN: tuple[Control, ...] = tuple(
    entry for entry in CONTROLS if entry.path != "enabled" and not entry.path.startswith("concepts[]")
)
"""The controls that have a component of their own, in the order of their values."""

NO_PAINTING = "{}"


def defaults() -> list[Any]:
    """The values of a job that does not use the extension: scene, enabled, painting, controls."""
    return ["", False, NO_PAINTING, *(_component_value(entry.first) for entry in SHOWN)]


def read(values: Sequence[Any]) -> Scene | None:
    """The scene that a job's values describe, None when the extension is switched off.

    values: as listed above; those missing at the end take their defaults. Raises SceneError with every problem, also
    where a whole scene comes together with other values, one of which would be ignored.
    """
    whole, enabled, painting, *settings = [*values, *defaults()[len(values) :]]
    if whole not in ("", None):
        return _whole(whole, [enabled, painting, *settings])
    if not enabled:
        return None
    merged = _painting(painting)
    for entry, value in zip(SHOWN, settings, strict=False):
        *parents, name = entry.path.split(".")
        place = merged
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return Scene.parse({**merged, "enabled": True})


def described(values: Sequence[Any]) -> Scene:
    """The scene that a job's values describe, switched on: also where the extension is switched off."""
    whole, _, *others = [*values, *defaults()[len(values) :]]
    scene = read([whole, not whole, *others])
    assert scene is not None  # it is enabled
    return scene if scene.enabled else scene.replace({"enabled": True})


def show(scene: Scene) -> list[Any]:
    """The values that describe a scene, for the components of the user interface: the inverse of `read`."""
    painting = scene.to_dict(defaults=False)
    full = scene.to_dict()
    settings = []
    for entry in SHOWN:
        *parents, name = entry.path.split(".")
        settings.append(_component_value(_at(full, [*parents, name])))
        _remove(painting, [*parents, name])
    for name in ("version", "enabled"):
        painting.pop(name, None)
    return ["", scene.enabled, json.dumps(painting, ensure_ascii=False), *settings]


def _whole(scene: Any, others: Sequence[Any]) -> Scene:
    names = ["enabled", "painting", *(entry.path for entry in SHOWN)]
    given = [name for name, value, usual in zip(names, others, defaults()[1:], strict=False) if value != usual]
    if given:
        listed = ", ".join(given)
        raise SceneError((Problem("args", f"expected the scene alone, got it together with values for {listed}"),))
    return Scene.parse(scene)


def _painting(text: Any) -> dict[str, Any]:
    if isinstance(text, Mapping):
        return copy.deepcopy(dict(text))
    try:
        painting = json.loads(text or NO_PAINTING)
    except (TypeError, ValueError) as error:
        raise SceneError((Problem("painting", f"expected JSON text, got {error}"),)) from None
    if not isinstance(painting, dict) or not all(isinstance(painting.get(k, {}), dict) for k in ("noise", "motion")):
        raise SceneError((Problem("painting", "expected an object with fields of a scene"),))
    return painting


def _component_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _remove(tree: dict[str, Any], path: Sequence[str]) -> None:
    """Take a value out, and every object that becomes empty with it."""
    name, *rest = path
    if rest and isinstance(tree.get(name), dict):
        _remove(tree[name], rest)
        if tree[name]:
            return
    if not rest or tree.get(name) == {}:
        tree.pop(name, None)
