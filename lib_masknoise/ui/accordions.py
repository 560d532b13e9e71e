"""The accordions: one component for each control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_masknoise.controls import Control
from lib_masknoise.ui import inputs


@dataclass(frozen=True)
class Accordions:
    """inputs: the components whose values make a job, in the order of `inputs.defaults()`."""

    inputs: list[Any]


def build(elem_id: Callable[[str], str], *, enable: Any = None, presets: Any = None) -> Accordions:
    scene = gr.Textbox("", label="Scene", visible=False, elem_id=elem_id("scene"))
    with enable(False, label="MaskNoise", elem_id=elem_id("enabled")) as enabled:
        painting = gr.Textbox(inputs.NO_PAINTING, label="Painting", elem_id=elem_id("painting"))
        controls = [_component(entry, elem_id(entry.path.replace(".", "_"))) for entry in inputs.SHOWN]
    return Accordions([scene, enabled, painting, *controls])


def _component(entry: Control, elem_id: str) -> Any:
    common = dict(label=entry.label, info=entry.help, elem_id=elem_id)
    if entry.numeric:
        return gr.Slider(entry.low, entry.high, entry.default, step=entry.step, **common)
    if isinstance(entry.default, bool):
        return gr.Checkbox(entry.default, **common)
    if isinstance(entry.default, tuple):
        return gr.CheckboxGroup(list(entry.choices), value=list(entry.default), **common)
    if entry.choices:
        return gr.Dropdown(list(entry.choices), value=entry.default, **common)
    return gr.Textbox(entry.default, **common)
