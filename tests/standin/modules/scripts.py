"""AlwaysOn scripts, and their hooks. What a hook raises is logged."""

from __future__ import annotations

import functools
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

    inputs: Sequence[Any] = ()
    alwayson_scripts: Sequence[Any] = ()

    def __init__(self, scripts: Sequence[tuple[Any, Sequence[Any] | None]]):
        """A script whose arguments are None has those that the job brings along."""
        self.scripts = list(scripts)

    def __getattr__(self, hook: str) -> Any:
        if hook.startswith("_"):
            raise AttributeError(hook)
        return functools.partial(self.run, hook)

    def run(self, hook: str, p: Any, *given: Any, **named: Any) -> None:
        for script, values in self.scripts:
            function = getattr(script, hook, None)
            if function is not None:
                own = p.script_args[script.args_from : script.args_to] if values is None else values
                errors.guarded(function, p, *given, *own, **named)


scripts_txt2img: Any = None
"""The runner of the txt2img tab."""
