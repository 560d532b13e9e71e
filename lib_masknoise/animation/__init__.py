"""Frames → GIF, WebP, APNG, MP4 and a contact sheet.

Every format is encoded frame by frame from the frames' files, so the memory needed does not depend on how
many there are. docs/animation.md says of each what is exact, what is rounded and where the metadata lies.

A format is a module with a `Format`, and its entry in `FORMATS`. GIF, APNG and MP4 need PyAV (12 or later), WebP and
the sheet need Pillow alone.
"""

from __future__ import annotations

import json
import operator
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from lib_masknoise.animation import gif, sheet, video, webp
from lib_masknoise.animation.film import Film, Format, interpolation_label, size_of

if TYPE_CHECKING:
    from lib_masknoise.scene import Scene

Progress = Callable[[float, int], None]

FORMATS: dict[str, Format] = {
    "gif": gif.FORMAT,
    "webp": webp.FORMAT,
    "apng": video.APNG,
    "mp4": video.MP4,
    "sheet": sheet.FORMAT,
}
ENDINGS: dict[str, str] = {name: format.ending for name, format in FORMATS.items()}
"""What follows the stem in the file name, by format."""

_METADATA_KEY = "MaskNoise"
_PYAV = 12  # from this version on it has what is used here


def write_scene(
    scene: Scene,
    frames: Sequence[str | os.PathLike[str] | Image.Image],
    folder: str | os.PathLike[str],
    stem: str,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """`write` the frames of a scene, all or as many as were made, the way the scene asks for.

    The one rule for a seam: the last frame leads back to the first if the scene loops and no frame is missing.
    """
    asked = scene.animation
    return write(
        frames,
        folder,
        stem,
        asked.formats,
        asked.fps,
        asked.rubber_band,
        metadata,
        progress,
        interpolate=asked.interpolate,
        loop=scene.loops and len(frames) == asked.frames,
    )


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
    progress     called as progress(files, total) after each frame read: the files written, in fractions of those in
                 work, of all there will be
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
    fps, interpolate = operator.index(fps), operator.index(interpolate)
    for name, value in (("fps", fps), ("interpolate", interpolate)):
        if value < 1:
            raise ValueError(f"{name}: expected an integer of 1 or more, got {value}")
    require_encoders(formats, interpolate)
    if not stem or Path(stem).name != stem:
        raise ValueError(f"stem: expected a file name without a folder, got {stem!r}")
    if interpolate > 1 and len(paths) > 1:
        metadata = {**(metadata or {}), "interpolated": interpolation_label(interpolate, len(paths))}
    comment = None if metadata is None else json.dumps({_METADATA_KEY: metadata}, allow_nan=False)

    played = paths + paths[-2:0:-1] if rubber_band else paths
    between = interpolate if len(paths) > 1 else 1
    film = Film(paths, played, size_of(paths[0]), fps * between, between, loop or rubber_band)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{stem}{ENDINGS[name]}" for name in formats]
    # Inside the folder, so that os.replace stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=f".{stem}-", dir=folder) as scratch:
        for done, (name, target) in enumerate(zip(formats, targets, strict=True)):
            told = replace(film, tick=_counter(progress, done, FORMATS[name].reads(film), len(targets)))
            FORMATS[name].write(Path(scratch, target.name), told, comment)
        for target in targets:
            os.replace(Path(scratch, target.name), target)
    return targets


def require_encoders(formats: Sequence[str], interpolate: int = 1) -> None:
    """Raise ImportError, with what to do about it, where these formats need PyAV and there is none, or too old a one.

    To be asked before the frames are rendered: `write` finds out when they are. ValueError: an unknown or repeated
    format.
    """
    for index, name in enumerate(formats):
        if name not in FORMATS:
            raise ValueError(f"formats[{index}]: expected one of {', '.join(FORMATS)}, got {name!r}")
        if name in formats[:index]:
            raise ValueError(f"formats[{index}]: {name!r} is there twice")
    needing = [name for name in formats if interpolate >= FORMATS[name].needs_av_from]
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
            kind = image.format
    except UnidentifiedImageError:
        kind = None
    read = next((format.comment for format in FORMATS.values() if format.kind == kind), None)
    try:
        data = json.loads(read(os.fspath(path)) if read else "")
    except ValueError:
        return None
    metadata = data.get(_METADATA_KEY) if isinstance(data, dict) else None
    return metadata if isinstance(metadata, dict) else None


def _counter(progress: Progress | None, files: int, reads: int, total: int) -> Callable[[], None]:
    """Counts the frames that the next file takes, after some files of a total."""
    read = 0

    def tick() -> None:
        nonlocal read
        read += 1
        if progress is not None:
            progress(files + read / reads, total)

    return tick
