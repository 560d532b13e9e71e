"""The axes in the X/Y/Z plot of A1111 and Forge.

The plot copies the job for each cell and lets its axes change the copy. Ours only note what was asked for, under
``OVERRIDES``; the extension's script makes the cell's scene of it (`lib_masknoise.axes.override`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib_masknoise.axes import Axis, axes, override
from lib_masknoise.hosts.webui.refusal import Refused
from lib_masknoise.presets import Presets
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.ui import inputs

TITLE = "MaskNoise"
"""The extension's script, by its title."""

OVERRIDES = "masknoise_overrides"
"""The job's attribute that holds what the axes ask for: a mapping of paths to values."""

PLANNED = "masknoise_axes"
"""The attribute of the plot's own job that holds the paths of all our axes in it."""


def register(presets: Presets) -> bool:
    """Add our axes to the plot, once. False where the host has no such plot.

    To be called when the host has loaded its scripts and has not built its user interface yet.
    """
    plot = _plot()
    if plot is None:
        return False
    known = {option.label for option in plot.axis_options}
    plot.axis_options += [_option(plot, axis, presets) for axis in axes(presets.names) if axis.label not in known]
    return True


def scene(job: Any, values: Sequence[Any], presets: Presets) -> Scene | None:
    """A job's scene, None where MaskNoise is off, and in a cell of a plot what its axes make of it: an axis of ours
    switches MaskNoise on. values: the script's arguments. Raises what `inputs.read` and `axes.override` raise."""
    changes = getattr(job, OVERRIDES, {})
    return override(inputs.described(values), changes, presets.load) if changes else inputs.read(values)


def _plot() -> Any:
    """The module of the host's own script, which is loaded from its file and has no name to import it by; or None."""
    from modules import scripts

    return next((data.module for data in scripts.scripts_data if Path(data.path).name == "xyz_grid.py"), None)


class _Number:
    """int or float as the plot knows it (it compares types, to read ranges such as `1-5`), which says of what is no
    number which axis it stands at."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis

    def __eq__(self, other: object) -> bool:
        return other is self.axis.type

    def __hash__(self) -> int:
        return hash(self.axis.type)

    def __call__(self, value: Any) -> Any:
        try:
            return self.axis.type(value)
        except ValueError:
            kind = "whole numbers" if self.axis.type is int else "numbers"
            raise _refused(f"expected {kind}, got {value}", self.axis) from None


def _option(plot: Any, axis: Axis, presets: Presets) -> Any:
    def apply(job: Any, value: Any, values: Sequence[Any]) -> None:
        path, value = axis.apply(value)
        # A new mapping: the cells' jobs are shallow copies that share what the first one holds.
        setattr(job, OVERRIDES, {**getattr(job, OVERRIDES, {}), path: value})
        if set(getattr(job, PLANNED, ())) <= set(getattr(job, OVERRIDES)):
            _check(job, presets)

    def confirm(job: Any, values: Sequence[Any]) -> None:
        try:
            for value in values:
                axis.apply(value)
        except ValueError as error:
            raise _refused(str(error).removeprefix(f"{axis.label}: "), axis) from None
        setattr(job, PLANNED, {*getattr(job, PLANNED, ()), axis.path})

    kind = axis.type if axis.type is str else _Number(axis)
    choices = axis.choices
    listed = None if choices is None else lambda: list(choices())
    return plot.AxisOption(axis.label, kind, apply, confirm=confirm, choices=listed)


def _check(job: Any, presets: Presets) -> None:
    """Refuse a cell that cannot be, where the plot lets an error through: what its job raises it would swallow."""
    scripts = getattr(getattr(job, "scripts", None), "alwayson_scripts", ())
    ours = next((script for script in scripts if script.title() == TITLE), None)
    if ours is None:
        return
    try:
        scene(job, job.script_args[ours.args_from : ours.args_to], presets)
    except SceneError as error:
        raise Refused(error.problems) from None


def _refused(message: str, axis: Axis) -> Refused:
    return Refused([Problem(axis.label, message)])
