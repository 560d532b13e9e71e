"""GIF: one palette for the whole animation, ordered dither, the delays rounded without adding up."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lib_masknoise.animation.film import Film, Format, Timing
from lib_masknoise.animation.video import encode, insert

if TYPE_CHECKING:
    import av


def _timing(film: Film) -> Timing:
    # Delays are in 1/100 s, and browsers show a frame of 1/100 s for 1/10 s.
    return Timing.fit(film.count, film.fps, rate=100, shortest=2)


def _write(target: Path, film: Film, comment: str | None) -> None:
    """One palette for the whole animation and ordered dither: equal pixels stay equal from frame to frame."""
    import av

    timing = _timing(film)
    palette = _global_palette(film.images(film.paths), film.size)
    nearest = _nearest_entries(palette)
    width, height = film.size
    dither = np.tile(_bayer(3), (math.ceil(height / 8), math.ceil(width / 8)))[:height, :width, None]

    def frames() -> Iterator[av.VideoFrame]:
        for image, k in film.timed(timing):
            shifted = np.clip(np.asarray(image, np.int16) + dither, 0, 255) >> 2
            red, green, blue = shifted.astype(np.int32).transpose(2, 0, 1)
            indices = nearest[red << 12 | green << 6 | blue]
            frame = av.VideoFrame.from_ndarray((indices, palette), format="pal8")
            frame.pts = timing.start(k)
            yield frame

    loop_for_ever = {"loop": "0", "final_delay": str(timing.duration(timing.shown - 1))}
    encode(target, "gif", "gif", "pal8", film.size, timing.rate, frames(), muxer=loop_for_ever)
    if comment is not None:
        insert(target, _comment_offset(target), _comment_block(comment.encode("ascii")))


def _global_palette(images: Iterator[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """[256, 4] uint8, ARGB: 255 colours for all images of a size (width, height), and one transparent entry.

    The transparent entry lets the encoder leave out what does not change.
    """
    import av

    graph = av.filter.Graph()
    width, height = size
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, 100))
    generator = graph.add("palettegen", "stats_mode=full:reserve_transparent=1")
    sink = graph.add("buffersink")
    source.link_to(generator)
    generator.link_to(sink)
    graph.configure()
    for image in images:
        rgb = np.asarray(image)
        # The filter remembers every colour it meets. 6 bits a channel (the high bits repeated below, so that
        # 0 and 255 stay) bound that at 2^18 however many frames there are.
        source.push(av.VideoFrame.from_ndarray(rgb & 0xFC | rgb >> 6, format="rgb24"))
        try:
            sink.pull()  # makes the filter take the frame now; there is nothing to get before the end
        except BlockingIOError:
            pass
    source.push(None)
    return sink.pull().to_ndarray(format="argb").reshape(256, 4)


def _nearest_entries(palette: np.ndarray) -> np.ndarray:
    """[2^18] uint8: for each colour of 6 bits a channel (red highest) the palette entry that looks nearest.

    A table of fixed size, because the filter itself caches every 24-bit colour that it ever meets.
    """
    import av

    graph = av.filter.Graph()
    colours = graph.add_buffer(width=512, height=512, format="rgb24", time_base=Fraction(1, 100))
    entries = graph.add_buffer(width=16, height=16, format="argb", time_base=Fraction(1, 100))
    mapper = graph.add("paletteuse", "dither=none")
    sink = graph.add("buffersink")
    colours.link_to(mapper, 0, 0)
    entries.link_to(mapper, 0, 1)
    mapper.link_to(sink)
    graph.configure()

    code = np.arange(1 << 18)
    six_bits = np.stack([code >> 12, code >> 6 & 63, code & 63], axis=-1).astype(np.uint8)
    rgb = (six_bits << 2 | six_bits >> 4).reshape(512, 512, 3)
    for context, pixels, layout in ((entries, palette.reshape(16, 16, 4), "argb"), (colours, rgb, "rgb24")):
        frame = av.VideoFrame.from_ndarray(pixels, format=layout)
        frame.pts = 0
        context.push(frame)
        context.push(None)
    indices, _ = sink.pull().to_ndarray()
    return indices.reshape(-1)


def _bayer(order: int) -> np.ndarray:
    """[2^order, 2^order] int16: Bayer's ordered-dither matrix, scaled to offsets from −8 to 7 levels."""
    matrix = np.zeros((1, 1), int)
    for _ in range(order):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return (matrix * 16 // matrix.size - 8).astype(np.int16)


def _comment_offset(path: Path) -> int:
    """Where a comment can go: after the global palette and the loop extension, before the first image."""
    with open(path, "rb") as file:
        header = file.read(13)
        has_palette, palette_bits = header[10] & 0x80, (header[10] & 7) + 1
        offset = len(header) + (3 << palette_bits if has_palette else 0)
        file.seek(offset)
        loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
        return offset + (len(loop) if file.read(len(loop)) == loop else 0)


def _comment_block(text: bytes) -> bytes:
    blocks = (text[start : start + 255] for start in range(0, len(text), 255))
    return b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def _comment(path: str) -> str:
    with Image.open(path) as image:
        return image.info.get("comment", b"").decode("latin-1")


FORMAT = Format(".gif", "GIF", 1, _write, lambda film: len(film.paths) + _timing(film).shown, _comment)
