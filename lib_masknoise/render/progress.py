"""How far a part of a render is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PERIOD = 5.0  # seconds between two lines at least, but for a part's first and last one

Update = Callable[[float], object]
"""Takes how much more is done, in frames or files, fractions too."""


@contextmanager
def progress(what: str, total: int, initial: int = 0, unit: str = "frames") -> Iterator[Update]:
    """Show on standard error how many there are of `total`, how fast, how long to go, until the block ends."""
    if not sys.stderr.isatty():
        lines = _Lines(what, total, initial, unit)
        try:
            yield lines.update
        finally:
            lines.show()
        return
    from tqdm import tqdm

    counts = f"{{n:.1f}}/{{total}} {unit}, {{rate_noinv_fmt}}, {{elapsed}} gone, {{remaining}} to go"
    bar_format = "{desc}: {percentage:3.0f}% |{bar}| " + counts
    with tqdm(total=total, initial=initial, desc=what, unit=f" {unit}", bar_format=bar_format, leave=False) as bar:
        yield bar.update


class _Lines:
    def __init__(self, what: str, total: int, initial: float, unit: str) -> None:
        self.what, self.total, self.initial, self.unit = what, total, initial, unit
        self.done = initial
        self.start = time.monotonic()
        self.show()

    def update(self, more: float) -> None:
        self.done += more
        if time.monotonic() - self.shown >= PERIOD:
            self.show()

    def show(self) -> None:
        self.shown = time.monotonic()
        gone = self.shown - self.start
        text = f"{self.what}: {round(self.done, 1):g}/{self.total} {self.unit}"
        if (made := self.done - self.initial) > 0:
            to_go = gone * (self.total - self.done) / made
            text += f", {_minutes(gone)} gone, {_minutes(to_go)} to go"
        print(text, file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"
