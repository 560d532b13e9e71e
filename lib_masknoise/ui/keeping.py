"""*Keep*: the last live picture of a page into the gallery. The canvas names its session and presses a hidden button
(`javascript/masknoise_7_live.js`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from lib_masknoise.ui.accordions import HIDDEN, QUIET, ElemId


def connect(elem_id: ElemId, keep: Callable[[str, list[Any]], list[Any]], outputs: Sequence[Any]) -> None:
    """Inside the current gradio block. elem_id: as for the accordions of the same canvas. keep: a session and the
    pictures kept before → what the outputs become, and the pictures with the new one."""
    session = gr.Textbox(label="Live session", elem_id=elem_id("live_session"), elem_classes=[HIDDEN])
    button = gr.Button("Keep the live picture", elem_id=elem_id("live_keep"), elem_classes=[HIDDEN])
    kept = gr.State([])
    button.click(keep, [session, kept], [*outputs, kept], **QUIET)
