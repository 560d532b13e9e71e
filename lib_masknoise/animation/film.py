"""What every format needs: the frames of an animation, their time, and the frames between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Frame = str | Image.Image  # a file's path, or an image in memory

INTERPOLATION = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1:scd=none"
_SMALLEST_SIDE = 32  # pixels: what the filter needs at least, two of its blocks


@dataclass(frozen=True)
class Format:
    """A kind of file: what `lib_masknoise.animation` must know of it."""

    ending: str
    """What follows the stem in the file name."""
    kind: str | None
    """Pillow's name for such files, None where it reads none."""
    needs_av_from: float
    """The `interpolate` from which on PyAV is needed: 1, 2 where only the frames between need it, or infinity."""
    write: Callable[[Path, Film, str | None], None]
    """Write the film into a new file, with a comment in ASCII."""
    reads: Callable[[Film], int]
    """How many frames `write` takes from the film, for the progress."""
    comment: Callable[[str], str]
    """The comment in a file of this kind, "" where there is none."""


@dataclass(frozen=True)
class Timing:
    """When each of the `shown` frames starts, in ticks of 1/rate s, and which of the `count` frames it is."""

    rate: int
    count: int
    shown: int
    ticks: int

    @classmethod
    def fit(cls, count: int, fps: int, rate: int, shortest: int) -> Timing:
        """Spread `count` frames at `fps` over whole ticks, none shorter than `shortest` ticks.

        Starts are rounded, not durations, so the error never adds up and the total is right to half a tick.
        Where frames would be shorter than `shortest`, some are left out at even distances: the animation
        keeps its length.
        """
        ticks = max(shortest, (2 * count * rate + fps) // (2 * fps))
        return cls(rate, count, min(count, ticks // shortest), ticks)

    @classmethod
    def exact(cls, count: int, fps: int) -> Timing:
        """Every frame for 1/fps s."""
        return cls(rate=fps, count=count, shown=count, ticks=count)

    def start(self, k: int) -> int:
        return self.ticks * k // self.shown

    def duration(self, k: int) -> int:
        return self.start(k + 1) - self.start(k)

    def source(self, k: int) -> int:
        return self.count * k // self.shown


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Film:
    """The frames' files (`paths`), the order in which they are played, their common size (width, height).

    `interpolate` frames are shown for each one played, so that there are `count` at `fps`; `loop`: after the last one
    comes the first. `tick` is called after each frame that a format takes.
    """

    paths: list[Frame]
    played: list[Frame]
    size: tuple[int, int]
    fps: int
    interpolate: int
    loop: bool
    tick: Callable[[], None] = _nothing

    @property
    def count(self) -> int:
        return len(self.played) * self.interpolate

    def images(self, paths: Iterable[Frame]) -> Iterator[Image.Image]:
        """The frames as RGB images, one read from a file in memory at a time."""
        for path in paths:
            yield _read_rgb(path, self.size)
            self.tick()

    def timed(self, timing: Timing) -> Iterator[tuple[Image.Image, int]]:
        """(image, index among the shown ones) of the frames that are shown."""
        sources = map(timing.source, range(timing.shown))
        images = self._between(sources) if self.interpolate > 1 else self.images(self.played[i] for i in sources)
        for k, image in enumerate(images):
            yield image, k

    def _between(self, sources: Iterable[int]) -> Iterator[Image.Image]:
        """Some of the interpolated frames, whose indices ascend."""
        images = enumerate(_interpolated(self))
        for source in sources:
            yield next(image for i, image in images if i == source)
            self.tick()


def size_of(frame: Frame) -> tuple[int, int]:
    with _opened(frame) as image:
        return image.size


def _read_rgb(frame: Frame, size: tuple[int, int]) -> Image.Image:
    with _opened(frame) as image:
        if image.size != size:
            name = "a frame" if isinstance(frame, Image.Image) else frame
            found, expected = (f"{width}x{height}" for width, height in (image.size, size))
            raise ValueError(f"{name}: this frame is {found} (width x height), the first is {expected}")
        if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")


def _opened(frame: Frame) -> AbstractContextManager[Image.Image]:
    return nullcontext(frame) if isinstance(frame, Image.Image) else Image.open(frame)


def _interpolated(film: Film) -> Iterator[Image.Image]:
    """The frames played, and after each one `interpolate` − 1 that lead to the next.

    The frames themselves stay as they are, and so does every pixel that is equal in both neighbours: the filter works
    in YUV, and its rounding would make anchored regions shimmer. Without `loop` the last frame leads to itself.
    """
    count, times = len(film.played), film.interpolate
    between = _Interpolator(film.size, film.fps // times, times)
    known: dict[int, np.ndarray] = {}
    for index in range(-1, count + 2):  # the filter looks at one frame more on both sides
        path = film.played[index % count if film.loop else min(max(index, 0), count - 1)]
        known[index] = np.asarray(_read_rgb(path, film.size))
        known.pop(index - 4, None)
        for place, guess in between.push(known[index]):
            before, part = divmod(place - times, times)
            if not 0 <= before < count:
                continue
            if part == 0:
                yield Image.fromarray(known[before])
            else:
                still = (known[before] == known[before + 1]).all(axis=-1, keepdims=True)
                yield Image.fromarray(np.where(still, known[before], guess))


class _Interpolator:
    """ffmpeg's minterpolate, fed with one frame after the other."""

    def __init__(self, size: tuple[int, int], fps: int, times: int) -> None:
        import av

        width, height = (max(side, _SMALLEST_SIDE) for side in size)
        self._margin = ((0, height - size[1]), (0, width - size[0]), (0, 0))
        self._ticks = fps * times
        self._pushed = 0
        self._times = times
        graph = av.filter.Graph()
        base = Fraction(1, self._ticks)
        self._source = graph.add_buffer(width=width, height=height, format="yuv444p", time_base=base)
        filter = graph.add("minterpolate", f"fps={self._ticks}:{INTERPOLATION}")
        self._sink = graph.add("buffersink")
        self._source.link_to(filter)
        filter.link_to(self._sink)
        graph.configure()
        self._graph = graph

    def push(self, rgb: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Take the next frame; give what follows from it: (place, in 1/times of a frame, RGB), ascending."""
        import av

        height, width, _ = rgb.shape
        frame = av.VideoFrame.from_ndarray(np.pad(rgb, self._margin, mode="edge"), format="rgb24")
        frame = frame.reformat(format="yuv444p")
        frame.pts, frame.time_base = self._pushed * self._times, Fraction(1, self._ticks)
        self._pushed += 1
        self._source.push(frame)
        while True:
            try:
                made = self._sink.pull()
            except BlockingIOError:  # it wants another frame first
                return
            yield round(made.pts * made.time_base * self._ticks), made.to_ndarray(format="rgb24")[:height, :width]


def interpolation_label(times: int, rendered: int) -> dict[str, Any]:
    by = f"ffmpeg minterpolate={INTERPOLATION}"
    return {"frames_rendered": rendered, "frames_played_for_each": times, "by": by}
