"""The axes of an X/Y/Z plot: which settings may vary from cell to cell, and a scene with some of them varied.

A cell's overrides are a mapping of paths to values: {"blend.scale": 0.5, "concepts[1].weight": 2.0, PRESET: "sea"}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib_masknoise.controls import CONTROLS, Control
from lib_masknoise.scene import Problem, Scene, SceneError

PRESET = "preset"
"""Stands for a path: the whole scene is that preset's."""

NUMBERED_CONCEPTS = 4
"""How many concepts have axes of their own, beside the one that varies all of them."""


@dataclass(frozen=True)
class Axis:
    """One setting that may vary.

    label: its name in the plot. path: its place in the scene, or PRESET. type: int, float or str, what the plot makes
    of the text between two commas. choices: the values to choose from, None where any number within low and high
    (inclusive) will do.
    """

    label: str
    path: str
    type: type
    low: float | None = None
    high: float | None = None
    choices: Callable[[], Sequence[str]] | None = None

    def apply(self, value: Any) -> tuple[str, Any]:
        """The override that a value of this axis is. Raises ValueError, naming the axis, for one it cannot have."""
        if self.choices is not None:
            known = list(self.choices())
            if value not in known:
                raise ValueError(
                    f"{self.label}: expected one of {', '.join(known) or 'none, there are none'}, got {value}"
                )
        elif not self.low <= value <= self.high:
            raise ValueError(f"{self.label}: expected {self.low} to {self.high}, got {value}")
        return self.path, value


def axes(preset_names: Callable[[], Sequence[str]]) -> list[Axis]:
    """All axes, in the order of the controls: every number and every choice, and the presets by name.

    A concept's setting has one axis for all concepts together and one for each of the first four.
    """
    presets = Axis("[MaskNoise] Preset", PRESET, str, choices=preset_names)
    return [presets, *(axis for entry in CONTROLS if entry.axis for axis in _axes_of(entry, entry.axis))]


def _axes_of(entry: Control, label: str) -> list[Axis]:
    choices = (lambda: entry.choices) if entry.choices else None
    whole = Axis(label, entry.path, type(entry.default), entry.low, entry.high, choices)
    if "[]" not in entry.path:
        return [whole]
    numbered = [
        replace(
            whole,
            label=whole.label.replace("Concept", f"Concept {i + 1}", 1),
            path=whole.path.replace("[]", f"[{i}]"),
        )
        for i in range(NUMBERED_CONCEPTS)
    ]
    return [whole, *numbered]


def override(scene: Scene | None, overrides: Mapping[str, Any], load: Callable[[str], Scene]) -> Scene | None:
    """The scene of a plot's cell: the job's own (None: the extension is off), or a preset where PRESET is overridden,
    with the other overrides on top. load: the preset of a name, `Presets.load`.

    Raises SceneError, with the paths, for what does not fit the scene, such as a concept that it does not have, and
    for overrides of no scene; and what ``load`` raises.
    """
    changes = dict(overrides)
    preset = changes.pop(PRESET, None)
    if preset is not None:
        scene = load(preset)
    if not changes:
        return scene
    if scene is None:
        message = "cannot be varied while MaskNoise is off"
        raise SceneError(tuple(Problem(path, message) for path in changes))
    return scene.replace(changes)
