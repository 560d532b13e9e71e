from __future__ import annotations

import contextlib


def without_autocast(disable: bool = False) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
