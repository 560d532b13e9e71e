"""WebP: still images of what has changed, in a container written here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageChops

from lib_masknoise.animation.film import Film, Format, Timing

_EXIF_IFD, _EXIF_USER_COMMENT = 0x8769, 0x9286
_EXIF_ASCII = b"ASCII\0\0\0"
_QUALITY = 90


def _timing(film: Film) -> Timing:
    # Delays are in ms, and browsers show a frame of 10 ms or less for 100 ms.
    return Timing.fit(film.count, film.fps, rate=1000, shortest=11)


def _write(target: Path, film: Film, comment: str | None) -> None:
    """Still images in RIFF chunks of our own: libwebp's animation encoder keeps the whole file in memory.

    Container: https://developers.google.com/speed/webp/docs/riff_container. Each frame holds only the
    rectangle that differs from the frame before it, so what stands still is not encoded again.
    """
    timing = _timing(film)
    animated, with_exif = 0x02, 0x08 if comment is not None else 0
    with open(target, "wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        width, height = film.size
        features = bytes([animated | with_exif, 0, 0, 0])
        file.write(_chunk(b"VP8X", features + _u24(width - 1) + _u24(height - 1)))
        file.write(_chunk(b"ANIM", struct.pack("<IH", 0, 0)))  # background; 0: loop for ever
        previous = None
        for image, k in film.timed(timing):
            file.write(_frame(image, previous, timing.duration(k)))
            previous = image
        if comment is not None:
            file.write(_chunk(b"EXIF", _exif(comment)))
        end = file.tell()
        file.seek(4)
        file.write(struct.pack("<I", end - 8))


def _frame(image: Image.Image, previous: Image.Image | None, duration: int) -> bytes:
    if previous is None:
        left, top, right, bottom = 0, 0, *image.size
    else:
        left, top, right, bottom = ImageChops.difference(image, previous).getbbox() or (0, 0, 1, 1)
    left, top = left & ~1, top & ~1  # the format stores half of them
    part = BytesIO()
    changed = image.crop((left, top, right, bottom))
    changed.save(part, "WEBP", quality=_QUALITY, icc_profile=b"", exif=b"")
    pixels = b"".join(_chunk(name, data) for name, data in _chunks(part.getvalue()) if name in (b"VP8 ", b"VP8L"))
    overwrite = b"\x02"
    place = _u24(left // 2) + _u24(top // 2) + _u24(right - left - 1) + _u24(bottom - top - 1)
    return _chunk(b"ANMF", place + _u24(duration) + overwrite + pixels)


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
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


def _comment(path: str) -> str:
    with Image.open(path) as image:
        text = image.getexif().get_ifd(_EXIF_IFD).get(_EXIF_USER_COMMENT, b"")
    return text.removeprefix(_EXIF_ASCII).decode("latin-1") if isinstance(text, bytes) else ""


FORMAT = Format(".webp", "WEBP", 2, _write, lambda film: _timing(film).shown, _comment)
