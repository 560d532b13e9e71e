"""The axes in the X/Y/Z plot of A1111 and Forge.

The plot copies the job for each cell and lets its axes change the copy. Ours only note what was asked for, under
``OVERRIDES``; the extension's script makes the cell's scene of it (`lib_masknoise.axes.override`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_masknoise.axes import Axis, axes

OVERRIDES = "masknoise_overrides"
"""The job's attribute that holds them: a mapping of paths to values."""


def register(preset_names: Callable[[], Sequence[str]]) -> bool:
    """Add our axes to the plot, once. False where the host has no such plot.

    To be called when the host has loaded its scripts and has not built its user interface yet.
    """
    plot = _plot()
    if plot is None:
        return False
    known = {option.label for option in plot.axis_options}
    plot.axis_options += [_option(plot, axis) for axis in axes(preset_names) if axis.label not in known]
    return True


def overrides(job: Any) -> Mapping[str, Any]:
    """What the plot wants to vary in a job; nothing where it is no cell of a plot."""
    return getattr(job, OVERRIDES, {})


def _plot() -> Any:
    """The module of the host's own script, which is loaded from its file and has no name to import it by; or None."""
    from modules import scripts

    return next((data.module for data in scripts.scripts_data if Path(data.path).name == "xyz_grid.py"), None)


def _option(plot: Any, axis: Axis) -> Any:
    def apply(job: Any, value: Any, values: Sequence[Any]) -> None:
        path, value = axis.apply(value)
        # A new mapping: the cells' jobs are shallow copies that share what the first one holds.
        setattr(job, OVERRIDES, {**overrides(job), path: value})

    def confirm(job: Any, values: Sequence[Any]) -> None:
        try:
            for value in values:
                axis.apply(value)
        except ValueError as error:
            raise RuntimeError(str(error)) from None

    choices = axis.choices
    listed = None if choices is None else lambda: list(choices())
    return plot.AxisOptionTxt2Img(axis.label, axis.type, apply, confirm=confirm, choices=listed)
