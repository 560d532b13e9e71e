"""What the host only logs: exceptions of hooks and callbacks. The job goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

logged: list[Exception] = []


def guarded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
        function(*args, **kwargs)
    except Exception as error:
        logged.append(error)
