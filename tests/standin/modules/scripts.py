"""AlwaysOn scripts, and their hooks. What a hook raises is logged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules import errors

AlwaysVisible = object()
folder = ""


def basedir() -> str:
    return folder


class Script:
    is_img2img: bool | None = None
    infotext_fields: Any = None
    paste_field_names: Any = None

    def elem_id(self, name: str) -> str:
        return f"script_{name}"


class ScriptRunner:
    """Scripts with each one's arguments, in the order in which their hooks are called."""

    def __init__(self, scripts: Sequence[tuple[Any, Sequence[Any]]]):
        self.scripts = list(scripts)

    def run(self, hook: str, p: Any, *given: Any, **named: Any) -> None:
        for script, values in self.scripts:
            function = getattr(script, hook, None)
            if function is not None:
                errors.guarded(function, p, *given, *values, **named)
