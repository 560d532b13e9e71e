"""APNG and MP4, by ffmpeg's encoders (PyAV); what GIF and the sheet share with them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin

from lib_masknoise.animation.film import Film, Format, Timing

if TYPE_CHECKING:
    import av

_KEYWORD = "Comment"  # of the text in a PNG file
_MP4_CRF = 17  # visually lossless for H.264


def _write_apng(target: Path, film: Film, comment: str | None) -> None:
    """Lossless, every frame for exactly 1/fps s."""
    frames = _video_frames(film, lambda image: np.asarray(image))
    codec = {"pred": "mixed"}
    encode(target, "apng", "apng", "rgb24", film.size, film.fps, frames, codec=codec, muxer={"plays": "0"})
    if comment is not None:
        signature_and_header = 8 + 25  # bytes; IHDR must be the first chunk
        insert(target, signature_and_header, _text_chunk(comment))


def _write_mp4(target: Path, film: Film, comment: str | None) -> None:
    """H.264, 4:2:0, BT.709, the index in front so that it plays while it loads.

    4:2:0 needs even sides: an odd one gets its last row or column twice, which leaves every pixel as it was
    where scaling would blur all of them and cropping would lose some.
    """
    from av.video.reformatter import VideoReformatter

    width, height = film.size
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    rgb = _video_frames(film, lambda image: np.pad(np.asarray(image), odd, mode="edge"))
    even = (width + width % 2, height + height % 2)
    reformatter: Any = VideoReformatter()  # its annotations know colour spaces by number only
    yuv = (reformatter.reformat(frame, format="yuv420p", dst_colorspace="ITU709") for frame in rgb)
    bt709 = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
    encode(
        target,
        "mp4",
        "libx264",
        "yuv420p",
        even,
        film.fps,
        yuv,
        codec={"crf": str(_MP4_CRF), **bt709},
        muxer={"movflags": "+faststart"},
        comment=comment,
    )


def _video_frames(film: Film, pixels: Callable[[Image.Image], np.ndarray]) -> Iterator[av.VideoFrame]:
    import av

    for image, k in film.timed(Timing.exact(film.count, film.fps)):
        frame = av.VideoFrame.from_ndarray(pixels(image), format="rgb24")
        frame.pts = k
        yield frame


def encode(
    target: Path,
    container_name: str,
    codec_name: str,
    pixel_format: str,
    size: tuple[int, int],
    rate: int,
    frames: Iterable[av.VideoFrame],
    codec: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    comment: str | None = None,
) -> None:
    """Encode frames of `size` (width, height), whose pts count ticks of 1/rate s."""
    import av

    with av.open(str(target), "w", format=container_name, options=muxer or {}) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream(codec_name, rate=rate, options=codec or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, rate)
        for frame in frames:
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def png_info(comment: str | None) -> PngImagePlugin.PngInfo:
    """The comment as Pillow takes it."""
    info = PngImagePlugin.PngInfo()
    if comment is not None:
        info.add_itxt(_KEYWORD, comment)
    return info


def png_comment(path: str) -> str:
    with Image.open(path) as image:
        return str(image.info.get(_KEYWORD, ""))


def _text_chunk(comment: str) -> bytes:
    chunk = BytesIO()
    for name, data, *_ in png_info(comment).chunks:
        PngImagePlugin.putchunk(chunk, name, data)
    return chunk.getvalue()


def insert(path: Path, offset: int, data: bytes) -> None:
    """Put `data` into the file at `offset`."""
    copy = path.with_name(f"{path.name}.copy")
    with open(path, "rb") as source, open(copy, "wb") as target:
        target.write(source.read(offset))
        target.write(data)
        shutil.copyfileobj(source, target)
    os.replace(copy, path)


def _mp4_comment(path: str) -> str:
    import av

    try:
        with av.open(path) as container:
            return container.metadata.get("comment", "")
    except av.error.FFmpegError:
        return ""  # no video either


APNG = Format(".apng", "PNG", 1, _write_apng, lambda film: film.count, png_comment)
MP4 = Format(".mp4", None, 1, _write_mp4, lambda film: film.count, _mp4_comment)
