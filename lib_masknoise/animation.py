"""Frames → GIF, WebP, APNG, MP4 and a contact sheet.

Every format is encoded frame by frame from the frames' files, so the memory needed does not depend on how
many there are. docs/animation.md says of each what is exact, what is rounded and where the metadata lies.

GIF, APNG and MP4 need PyAV (12 or later), WebP and the sheet need Pillow alone.
"""

from __future__ import annotations

import json
import math
import operator
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, PngImagePlugin, UnidentifiedImageError

if TYPE_CHECKING:
    import av

Progress = Callable[[int, int], None]
Frame = str | Image.Image  # a file's path, or an image in memory

_METADATA_KEY = "MaskNoise"
_PNG_KEYWORD = "Comment"
_EXIF_IFD, _EXIF_USER_COMMENT = 0x8769, 0x9286
_EXIF_ASCII = b"ASCII\0\0\0"

_PYAV = 12  # from this version on it has what is used here
_OF_PYAV = ("gif", "apng", "mp4")

_WEBP_QUALITY = 90
_MP4_CRF = 17  # visually lossless for H.264

_INTERPOLATION = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1:scd=none"
_INTERPOLATION_SIDE = 32  # pixels: what the filter needs at least, two of its blocks

_SHEET_FRAMES = 24
_SHEET_GAP = 4  # pixels
_SHEET_SIDE = 4096  # pixels, at most
_SHEET_BACKGROUND = (32, 32, 32)


def write(
    frames: Iterable[str | os.PathLike[str] | Image.Image],
    folder: str | os.PathLike[str],
    stem: str,
    formats: Sequence[str],
    fps: int,
    rubber_band: bool = False,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    *,
    interpolate: int = 1,
    loop: bool = False,
) -> list[Path]:
    """Write the frames as one animation in each of `formats`; return the files in the order of `formats`.

    frames       images or image files in order, all of one size; what is not RGB is converted (transparency is dropped)
    folder       where the files go; made if it is missing
    stem         the file name up to the ending (see `ENDINGS`)
    formats      of "gif", "webp", "apng", "mp4", "sheet", each once
    fps          frames a second, an integer of 1 or more
    rubber_band  play 0 … F−1 and back over F−2 … 1, so that any sequence loops (the sheet shows a frame once)
    metadata     a JSON object to embed in every file; `read_metadata` gives it back
    progress     called as progress(done, total) after each frame read, over all formats
    interpolate  how many frames are played for each one given, so many times `fps` a second: those between are
                 ffmpeg's guess (motion-compensated, `minterpolate`). Above 1 the metadata say so under "interpolated"
    loop         the last frame leads back to the first: interpolate there, too (a rubber band always does)

    The files appear under their names only when all of them are complete. On any exception, KeyboardInterrupt
    included, the files that were there stay as they were and nothing is left beside them (but a folder made).

    ValueError: no frames; frames of different sizes (names the file); an unknown or repeated format; fps or interpolate
    below 1; a stem with a folder in it; metadata with NaN or an infinity. TypeError: fps or interpolate is not an
    integer; metadata that JSON cannot hold. OSError: a frame that cannot be read or a file that cannot be written.
    ImportError: see `require_encoders`.
    """
    paths = [frame if isinstance(frame, Image.Image) else os.fspath(frame) for frame in frames]
    if not paths:
        raise ValueError("an animation needs at least one frame, got none")
    _check_formats(formats)
    fps, interpolate = operator.index(fps), operator.index(interpolate)
    for name, value in (("fps", fps), ("interpolate", interpolate)):
        if value < 1:
            raise ValueError(f"{name}: expected an integer of 1 or more, got {value}")
    require_encoders(formats, interpolate)
    if not stem or Path(stem).name != stem:
        raise ValueError(f"stem: expected a file name without a folder, got {stem!r}")
    if interpolate > 1 and len(paths) > 1:
        metadata = {**(metadata or {}), "interpolated": _interpolation_label(interpolate, len(paths))}
    comment = None if metadata is None else json.dumps({_METADATA_KEY: metadata}, allow_nan=False)

    size = _size(paths[0])
    played = paths + paths[-2:0:-1] if rubber_band else paths
    between = interpolate if len(paths) > 1 else 1
    count, fps = len(played) * between, fps * between
    total = sum(_FORMATS[name].reads(paths, count, fps) for name in formats)
    film = _Film(paths, played, size, fps, _counter(progress, total), between, loop or rubber_band)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{stem}{ENDINGS[name]}" for name in formats]
    # Inside the folder, so that os.replace stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=f".{stem}-", dir=folder) as scratch:
        for name, target in zip(formats, targets, strict=True):
            _FORMATS[name].write(Path(scratch, target.name), film, comment)
        for target in targets:
            os.replace(Path(scratch, target.name), target)
    return targets


def require_encoders(formats: Sequence[str], interpolate: int = 1) -> None:
    """Raise ImportError, with what to do about it, where these formats need PyAV and there is none, or too old a one.

    To be asked before the frames are rendered: `write` finds out when they are.
    """
    needing = [name for name in formats if name in _OF_PYAV or interpolate > 1 and name == "webp"]
    if not needing:
        return
    try:
        import av
    except ImportError as error:
        found = f"it cannot be imported ({error})"
    else:
        if int(av.__version__.split(".")[0]) >= _PYAV:
            return
        found = f"version {av.__version__} is installed"
    wanted = f"{', '.join(needing)}{' with interpolated frames' if interpolate > 1 else ''}"
    raise ImportError(
        f'{wanted}: this needs PyAV {_PYAV} or later, but {found}; pip install "av>={_PYAV}", or choose other formats',
        name="av",
    )


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata that `write` embedded in the file, whatever its ending; None where there is none.

    OSError where the file cannot be opened.
    """
    try:
        with Image.open(path) as image:
            text = _image_comment(image)
    except UnidentifiedImageError:
        text = _video_comment(path)
    try:
        data = json.loads(text)
    except ValueError:
        return None
    metadata = data.get(_METADATA_KEY) if isinstance(data, dict) else None
    return metadata if isinstance(metadata, dict) else None


# Reading and timing


@dataclass(frozen=True)
class _Timing:
    """When each of the `shown` frames starts, in ticks of 1/rate s, and which of the `count` frames it is."""

    rate: int
    count: int
    shown: int
    ticks: int

    @classmethod
    def fit(cls, count: int, fps: int, rate: int, shortest: int) -> _Timing:
        """Spread `count` frames at `fps` over whole ticks, none shorter than `shortest` ticks.

        Starts are rounded, not durations, so the error never adds up and the total is right to half a tick.
        Where frames would be shorter than `shortest`, some are left out at even distances: the animation
        keeps its length.
        """
        ticks = max(shortest, (2 * count * rate + fps) // (2 * fps))
        return cls(rate, count, min(count, ticks // shortest), ticks)

    def start(self, k: int) -> int:
        return self.ticks * k // self.shown

    def duration(self, k: int) -> int:
        return self.start(k + 1) - self.start(k)

    def source(self, k: int) -> int:
        return self.count * k // self.shown


def _gif_timing(count: int, fps: int) -> _Timing:
    # Delays are in 1/100 s, and browsers show a frame of 1/100 s for 1/10 s.
    return _Timing.fit(count, fps, rate=100, shortest=2)


def _webp_timing(count: int, fps: int) -> _Timing:
    # Delays are in ms, and browsers show a frame of 10 ms or less for 100 ms.
    return _Timing.fit(count, fps, rate=1000, shortest=11)


def _exact_timing(count: int, fps: int) -> _Timing:
    return _Timing(rate=fps, count=count, shown=count, ticks=count)


@dataclass(frozen=True)
class _Film:
    """The frames' files (`paths`), the order in which they are played, their common size (width, height).

    `interpolate` frames are shown for each one played, so that there are `count` at `fps`; `loop`: after the last one
    comes the first.
    """

    paths: list[Frame]
    played: list[Frame]
    size: tuple[int, int]
    fps: int
    tick: Callable[[], None]
    interpolate: int
    loop: bool

    @property
    def count(self) -> int:
        return len(self.played) * self.interpolate

    def images(self, paths: Iterable[Frame]) -> Iterator[Image.Image]:
        """The frames as RGB images, one read from a file in memory at a time."""
        for path in paths:
            yield _read_rgb(path, self.size)
            self.tick()

    def timed(self, timing: _Timing) -> Iterator[tuple[Image.Image, int]]:
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


def _size(frame: Frame) -> tuple[int, int]:
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


def _interpolated(film: _Film) -> Iterator[Image.Image]:
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

        width, height = (max(side, _INTERPOLATION_SIDE) for side in size)
        self._margin = ((0, height - size[1]), (0, width - size[0]), (0, 0))
        self._ticks = fps * times
        self._pushed = 0
        self._times = times
        graph = av.filter.Graph()
        base = Fraction(1, self._ticks)
        self._source = graph.add_buffer(width=width, height=height, format="yuv444p", time_base=base)
        filter = graph.add("minterpolate", f"fps={self._ticks}:{_INTERPOLATION}")
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


def _interpolation_label(times: int, rendered: int) -> dict[str, Any]:
    by = f"ffmpeg minterpolate={_INTERPOLATION}"
    return {"frames_rendered": rendered, "frames_played_for_each": times, "by": by}


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def _check_formats(formats: Sequence[str]) -> None:
    for index, name in enumerate(formats):
        if name not in _FORMATS:
            raise ValueError(f"formats[{index}]: expected one of {', '.join(_FORMATS)}, got {name!r}")
        if name in formats[:index]:
            raise ValueError(f"formats[{index}]: {name!r} is there twice")


# GIF


def _write_gif(target: Path, film: _Film, comment: str | None) -> None:
    """One palette for the whole animation and ordered dither: equal pixels stay equal from frame to frame."""
    import av

    timing = _gif_timing(film.count, film.fps)
    palette = _global_palette(film.images(film.paths))
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
    _encode(target, "gif", "gif", "pal8", film.size, timing.rate, frames(), muxer=loop_for_ever)
    if comment is not None:
        _insert(target, _gif_comment_offset(target), _gif_comment(comment.encode("ascii")))


def _global_palette(images: Iterator[Image.Image]) -> np.ndarray:
    """[256, 4] uint8, ARGB: 255 colours for all the images together, and one transparent entry.

    The transparent entry lets the encoder leave out what does not change.
    """
    import av

    graph = source = sink = None
    for image in images:
        if graph is None:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=image.width, height=image.height, format="rgb24", time_base=Fraction(1, 100)
            )
            generator = graph.add("palettegen", "stats_mode=full:reserve_transparent=1")
            sink = graph.add("buffersink")
            source.link_to(generator)
            generator.link_to(sink)
            graph.configure()
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


def _gif_comment_offset(path: Path) -> int:
    """Where a comment can go: after the global palette and the loop extension, before the first image."""
    with open(path, "rb") as file:
        header = file.read(13)
        has_palette, palette_bits = header[10] & 0x80, (header[10] & 7) + 1
        offset = len(header) + (3 << palette_bits if has_palette else 0)
        file.seek(offset)
        loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
        return offset + (len(loop) if file.read(len(loop)) == loop else 0)


def _gif_comment(text: bytes) -> bytes:
    blocks = (text[start : start + 255] for start in range(0, len(text), 255))
    return b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


# WebP


def _write_webp(target: Path, film: _Film, comment: str | None) -> None:
    """Still images in RIFF chunks of our own: libwebp's animation encoder keeps the whole file in memory.

    Container: https://developers.google.com/speed/webp/docs/riff_container. Each frame holds only the
    rectangle that differs from the frame before it, so what stands still is not encoded again.
    """
    timing = _webp_timing(film.count, film.fps)
    animated, with_exif = 0x02, 0x08 if comment is not None else 0
    with open(target, "wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        width, height = film.size
        features = bytes([animated | with_exif, 0, 0, 0])
        file.write(_riff_chunk(b"VP8X", features + _u24(width - 1) + _u24(height - 1)))
        file.write(_riff_chunk(b"ANIM", struct.pack("<IH", 0, 0)))  # background; 0: loop for ever
        previous = None
        for image, k in film.timed(timing):
            file.write(_webp_frame(image, previous, timing.duration(k)))
            previous = image
        if comment is not None:
            file.write(_riff_chunk(b"EXIF", _exif(comment)))
        end = file.tell()
        file.seek(4)
        file.write(struct.pack("<I", end - 8))


def _webp_frame(image: Image.Image, previous: Image.Image | None, duration: int) -> bytes:
    if previous is None:
        left, top, right, bottom = 0, 0, *image.size
    else:
        left, top, right, bottom = ImageChops.difference(image, previous).getbbox() or (0, 0, 1, 1)
    left, top = left & ~1, top & ~1  # the format stores half of them
    part = BytesIO()
    changed = image.crop((left, top, right, bottom))
    changed.save(part, "WEBP", quality=_WEBP_QUALITY, icc_profile=b"", exif=b"")
    pixels = b"".join(
        _riff_chunk(name, data) for name, data in _riff_chunks(part.getvalue()) if name in (b"VP8 ", b"VP8L")
    )
    overwrite = b"\x02"
    place = _u24(left // 2) + _u24(top // 2) + _u24(right - left - 1) + _u24(bottom - top - 1)
    return _riff_chunk(b"ANMF", place + _u24(duration) + overwrite + pixels)


def _riff_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _riff_chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 12
    while offset < len(file):
        name, length = struct.unpack_from("<4sI", file, offset)
        yield name, file[offset + 8 : offset + 8 + length]
        offset += 8 + length + length % 2


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _exif(comment: str) -> bytes:
    exif = Image.Exif()
    exif[_EXIF_IFD] = {_EXIF_USER_COMMENT: _EXIF_ASCII + comment.encode("ascii")}
    return exif.tobytes().removeprefix(b"Exif\0\0")


# APNG, MP4


def _write_apng(target: Path, film: _Film, comment: str | None) -> None:
    """Lossless, every frame for exactly 1/fps s."""
    frames = _video_frames(film, lambda image: np.asarray(image))
    codec = {"pred": "mixed"}
    _encode(target, "apng", "apng", "rgb24", film.size, film.fps, frames, codec=codec, muxer={"plays": "0"})
    if comment is not None:
        signature_and_header = 8 + 25  # bytes; IHDR must be the first chunk
        _insert(target, signature_and_header, _png_text(comment))


def _write_mp4(target: Path, film: _Film, comment: str | None) -> None:
    """H.264, 4:2:0, BT.709, the index in front so that it plays while it loads.

    4:2:0 needs even sides: an odd one gets its last row or column twice, which leaves every pixel as it was
    where scaling would blur all of them and cropping would lose some.
    """
    from av.video.reformatter import VideoReformatter

    width, height = film.size
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    rgb = _video_frames(film, lambda image: np.pad(np.asarray(image), odd, mode="edge"))
    even = (width + width % 2, height + height % 2)
    reformatter = VideoReformatter()
    yuv = (reformatter.reformat(frame, format="yuv420p", dst_colorspace="ITU709") for frame in rgb)
    bt709 = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
    _encode(
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


def _video_frames(film: _Film, pixels: Callable[[Image.Image], np.ndarray]) -> Iterator[av.VideoFrame]:
    import av

    for image, k in film.timed(_exact_timing(film.count, film.fps)):
        frame = av.VideoFrame.from_ndarray(pixels(image), format="rgb24")
        frame.pts = k
        yield frame


def _encode(
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


def _png_text(comment: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(_PNG_KEYWORD, comment)
    chunk = BytesIO()
    for name, data, *_ in info.chunks:
        PngImagePlugin.putchunk(chunk, name, data)
    return chunk.getvalue()


def _insert(path: Path, offset: int, data: bytes) -> None:
    """Put `data` into the file at `offset`."""
    copy = path.with_name(f"{path.name}.copy")
    with open(path, "rb") as source, open(copy, "wb") as target:
        target.write(source.read(offset))
        target.write(data)
        shutil.copyfileobj(source, target)
    os.replace(copy, path)


# Contact sheet


def _write_sheet(target: Path, film: _Film, comment: str | None) -> None:
    """At most 24 evenly chosen frames, first to last, in rows; shrunk so that no side exceeds 4096 pixels."""
    chosen = _sheet_choice(len(film.paths))
    root = math.ceil(math.sqrt(len(chosen)))
    columns = min((root, root + 1), key=lambda columns: -len(chosen) % columns)  # fewer empty cells
    rows = math.ceil(len(chosen) / columns)

    width, height = film.size
    axes = ((columns, width), (rows, height))
    shrink = min(1.0, *((_SHEET_SIDE - _SHEET_GAP * (cells - 1)) / (cells * side) for cells, side in axes))
    cell = max(1, int(width * shrink)), max(1, int(height * shrink))
    step = (cell[0] + _SHEET_GAP, cell[1] + _SHEET_GAP)
    sheet = Image.new("RGB", (columns * step[0] - _SHEET_GAP, rows * step[1] - _SHEET_GAP), _SHEET_BACKGROUND)
    for place, image in enumerate(film.images(film.paths[index] for index in chosen)):
        if image.size != cell:
            image = image.resize(cell, Image.Resampling.LANCZOS)
        sheet.paste(image, (place % columns * step[0], place // columns * step[1]))

    info = PngImagePlugin.PngInfo()
    if comment is not None:
        info.add_itxt(_PNG_KEYWORD, comment)
    sheet.save(target, "PNG", pnginfo=info)


def _sheet_choice(count: int) -> list[int]:
    if count <= _SHEET_FRAMES:
        return list(range(count))
    return [round(place * (count - 1) / (_SHEET_FRAMES - 1)) for place in range(_SHEET_FRAMES)]


# Metadata


def _image_comment(image: Image.Image) -> str:
    if image.format == "GIF":
        return image.info.get("comment", b"").decode("latin-1")
    if image.format == "WEBP":
        text = image.getexif().get_ifd(_EXIF_IFD).get(_EXIF_USER_COMMENT, b"")
        return text.removeprefix(_EXIF_ASCII).decode("latin-1") if isinstance(text, bytes) else ""
    return str(image.info.get(_PNG_KEYWORD, ""))


def _video_comment(path: str | os.PathLike[str]) -> str:
    import av

    try:
        with av.open(os.fspath(path)) as container:
            return container.metadata.get("comment", "")
    except av.error.FFmpegError:
        return ""  # no video either


@dataclass(frozen=True)
class _Format:
    ending: str
    write: Callable[[Path, _Film, str | None], None]
    reads: Callable[[list[str], int, int], int]  # of files, for the progress: from (paths, frames shown, fps)


_FORMATS = {
    "gif": _Format(".gif", _write_gif, lambda paths, count, fps: len(paths) + _gif_timing(count, fps).shown),
    "webp": _Format(".webp", _write_webp, lambda paths, count, fps: _webp_timing(count, fps).shown),
    "apng": _Format(".apng", _write_apng, lambda paths, count, fps: count),
    "mp4": _Format(".mp4", _write_mp4, lambda paths, count, fps: count),
    "sheet": _Format("-sheet.png", _write_sheet, lambda paths, count, fps: len(_sheet_choice(len(paths)))),
}
ENDINGS: dict[str, str] = {name: format.ending for name, format in _FORMATS.items()}
"""What follows the stem in the file name, by format."""
