"""The pictures that a mask can be: read strictly, decoded once, known by the digest of their text.

A scene is parsed again at every change of a slider, drawn at every size, and often stamps one picture many times. What
has been decoded is therefore remembered, up to a bound, by what it is made of, so that the same picture is the same
wherever it comes from.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lib_masknoise.scene import colours
from lib_masknoise.scene.errors import number, shown

MAX_IMAGE_BYTES = 16 * 2**20
MAX_IMAGE_SIDE = 4096
MAX_UNPACKED_BYTES = 64 * 2**20
"""Of the pixels of all different pictures in one scene: as much as one of 4096 × 4096 with colours and alpha."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""AVIF where Pillow can read it, from 11.3 on."""

Value = TypeVar("Value")
Levels = np.ndarray[Any, Any]


class Memory(Generic[Value]):
    """The values used last, by their keys, of at most so many bytes in all. May be used from several threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._entries: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Value | None:
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: bytes, value: Value, size: int) -> None:
        """Remember a value of ``size`` bytes, and forget those not used for longest where it gets too many."""
        with self._lock:
            self._held += size - self._entries.pop(key, (value, 0))[1]
            self._entries[key] = value, size
            while self._held > self._most:
                _, (_, freed) = self._entries.popitem(last=False)
                self._held -= freed

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._held = 0


_levels: Memory[Levels] = Memory(2 * MAX_UNPACKED_BYTES)
_colour_maps: Memory[colours.ColourMap] = Memory(2 * MAX_UNPACKED_BYTES)
_unpacked: Memory[int] = Memory(2**20)  # of pictures that could be decoded: how many bytes their pixels are
_ENTRY_BYTES = 256  # about what such an entry takes: the key, the number, its place in the order


def check(data: str) -> None:
    """Raise ValueError, saying what is wrong, where `decode_picture` would; a picture known as good costs nothing."""
    if _unpacked.get(_digest(data)) is None:
        _levels_of(data)


def mask_values(data: str) -> np.ndarray[Any, Any]:
    """What a picture is as a mask: float32 [H, W] in [0, 1], not to be written to. Raises ValueError as
    `decode_picture` does.

    What carries the picture counts: the alpha channel where some of the picture is fully transparent (paint on an empty
    layer), or where it varies by more (largest less smallest value) than the brightness; else the brightness. So a
    black-and-white picture with a few pixels that are not quite opaque counts by its brightness.
    """
    levels = _levels_of(data)
    values = levels.astype(np.float32) / np.iinfo(levels.dtype).max
    values.flags.writeable = False
    return values


def colour_map(data: str, tolerance: float = colours.TOLERANCE) -> colours.ColourMap:
    """A picture as shares of its flat colours. Raises ValueError as `decode_picture` does."""
    key = _digest(f"{tolerance} {data}")
    found = _colour_maps.get(key)
    if found is None:
        found = colours.unmix(np.asarray(decode_picture(data).convert("RGBA")), tolerance)
        _colour_maps.put(key, found, 3 * found.first.size)
    return found


def colour_values(data: str, colour: str, tolerance: float = colours.TOLERANCE) -> np.ndarray[Any, Any]:
    """The places of a flat colour in a picture as a mask: float32 [H, W] in [0, 1]. Raises ValueError where the picture
    cannot be read or has no such colour."""
    found = colour_map(data, tolerance)
    return found.of(found.find(colour, tolerance)).astype(np.float32) / 255


def unpacked_bytes(data: str) -> int:
    """How many bytes a picture's pixels take when it is decoded, by its header; 0 where it cannot be read."""
    known = _unpacked.get(_digest(data))
    if known is not None:
        return known
    try:
        with _opened(data) as picture:
            return _size(picture)
    except ValueError:
        return 0


def decode_picture(data: str) -> Image.Image:
    """The picture in a data URL or in plain base64: loaded, upright, the first frame of an animated one.

    Raises ValueError, saying what is wrong, where the text is not base64, holds more than MAX_IMAGE_BYTES, is
    not a complete image of IMAGE_FORMATS, or has a side above MAX_IMAGE_SIDE. The sides are read from the
    header before any pixel is decoded, so that a small file cannot unpack into a huge picture.
    """
    with _opened(data) as picture:
        picture.load()
        return ImageOps.exif_transpose(picture)


def frame_count(data: str) -> int:
    """How many frames a picture has, 1 where that cannot be read. The first is the mask."""
    try:
        with _opened(data) as picture:
            return getattr(picture, "n_frames", 1)
    except ValueError:  # damaged after its first frame
        return 1


def _known_formats() -> list[str]:
    """Those of IMAGE_FORMATS that this Pillow has."""
    Image.init()
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def data_url(picture: Any) -> str:
    """A PIL image, or an array or tensor [H, W] of bool, uint8 or floats from 0 to 1, as a PNG without loss.

    Floats are kept to 1/65535, and exactly where all are multiples of 1/255. Raises ValueError for another shape, dtype
    or range.
    """
    image = _storable(picture) if isinstance(picture, Image.Image) else _drawn(picture)
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# --- Reading


def _digest(data: str) -> bytes:
    return hashlib.blake2b(data.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _levels_of(data: str) -> Levels:
    """uint8 or uint16 [H, W]: the mask's values, times the type's largest."""
    key = _digest(data)
    levels = _levels.get(key)
    if levels is None:
        picture = decode_picture(data)
        levels = _mask_levels(picture)
        _levels.put(key, levels, levels.nbytes)
        _unpacked.put(key, _size(picture), _ENTRY_BYTES)
    return levels


def _mask_levels(picture: Image.Image) -> Levels:
    if picture.mode.startswith("I"):  # 16-bit grey: "I;16…", or "I" in older versions of Pillow
        return np.asarray(picture).astype(np.uint16)
    grey = picture if picture.mode in ("1", "L") else picture.convert("RGB")
    brightness = np.asarray(grey.convert("L"))
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
        if alpha.any() and (not alpha.all() or np.ptp(alpha) > np.ptp(brightness)):
            return alpha
    return brightness


def _size(picture: Image.Image) -> int:
    depth = 1 if picture.mode in ("1", "L", "P") else 2 if picture.mode.startswith("I;16") else 4
    return picture.width * picture.height * depth


class _Refused(ValueError):
    pass


@contextmanager
def _opened(data: str) -> Iterator[Image.Image]:
    """The picture with its header read; what Pillow raises here, or while it is decoded, becomes one ValueError."""
    raw = _decode_base64(data)
    try:
        with Image.open(io.BytesIO(raw), formats=_known_formats()) as picture:
            width, height = picture.size
            if max(width, height) > MAX_IMAGE_SIDE:
                most = f"{MAX_IMAGE_SIDE} × {MAX_IMAGE_SIDE}"
                raise _Refused(f"expected an image of at most {most} pixels, got {width} × {height}")
            # Hosts' extensions switch Pillow to accepting truncated files: look at the file's own end, too.
            if not _complete(raw):
                raise _Refused("the image is truncated")
            yield picture
    except _Refused:
        raise
    except UnidentifiedImageError:
        raise _Refused("not a PNG, JPEG or WebP image, nor a GIF, BMP, TIFF or AVIF") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _Refused(f"the image is far larger than {MAX_IMAGE_SIDE} × {MAX_IMAGE_SIDE}") from None
    except Exception as error:  # Pillow's decoders raise many kinds (OSError, SyntaxError, struct.error, …)
        reason = str(error).split("\n")[0][:100]
        raise _Refused(f"the image is damaged or truncated ({reason})") from error


def _decode_base64(data: str) -> bytes:
    head, comma, body = data.partition(",")
    if data[:5].lower() == "data:":
        if not comma or not re.fullmatch(r"data:image/[\w.+-]+(;[\w=.+-]+)*;base64", head, re.I):
            raise _Refused(f'expected "data:image/…;base64,…" or base64, got {shown(data, 40)}')
        data = body
    data = "".join(data.split())
    if len(data) * 3 // 4 > MAX_IMAGE_BYTES + 2:  # before decoding; padding makes up to 2 bytes less
        raise _Refused(f"the image is larger than {MAX_IMAGE_BYTES // 2**20} MB")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _Refused(f"not a PNG, JPEG or WebP image: expected base64, got {shown(data, 40)}") from None
    if len(raw) > MAX_IMAGE_BYTES:
        raise _Refused(f"the image is larger than {MAX_IMAGE_BYTES // 2**20} MB")
    return raw


def _complete(raw: bytes) -> bool:
    """Whether a file reaches its own end, by a mark or a length (which may be followed by anything). TIFF and AVIF tell
    only by being decoded."""
    if raw.startswith(b"\x89PNG"):
        return raw.rfind(b"IEND") > raw.rfind(b"IDAT")
    if raw.startswith(b"RIFF"):
        return len(raw) >= 8 + int.from_bytes(raw[4:8], "little")
    if raw.startswith(b"\xff\xd8"):
        return raw.rfind(b"\xff\xd9") > raw.rfind(b"\xff\xda")
    if raw.startswith(b"GIF8"):
        return raw.rstrip(b"\0").endswith(b";")
    return not raw.startswith(b"BM") or len(raw) >= int.from_bytes(raw[2:6], "little")


# --- Writing


def _storable(image: Image.Image) -> Image.Image:
    """The image in a mode that PNG has, upright."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        return _drawn(np.asarray(image))
    if image.mode == "I":
        levels = np.asarray(image)
        low, high = int(levels.min()), int(levels.max())
        if not 0 <= low <= high <= 65535:
            raise ValueError(f"expected levels from 0 to 65535, got {low} to {high}")
        return Image.fromarray(levels.astype(np.uint16))
    if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        return image
    return image.convert("RGBA" if image.mode in ("PA", "La", "RGBa") else "RGB")


def _drawn(array: Any) -> Image.Image:
    """An array or tensor [H, W] as a grey image."""
    if not hasattr(array, "__array__"):
        raise ValueError(f"expected an array, a tensor or an image, got a value of type {type(array).__name__}")
    if hasattr(array, "detach"):  # a tensor: perhaps on a device, or of a dtype that NumPy does not have
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    array = np.asarray(array)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"expected an array of shape [H, W], got {list(array.shape)}")
    if array.dtype == bool:
        return Image.fromarray(array.astype(np.uint8) * 255).convert("1")
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if array.dtype.kind != "f":
        raise ValueError(f"expected an array of bool, uint8 or floats from 0 to 1, got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not 0 <= low <= high <= 1:  # a NaN neither
        raise ValueError(f"expected an array of numbers from 0 to 1, got {number(low)} to {number(high)}")
    bytes_ = np.rint(array * 255)
    if np.abs(bytes_ / 255 - array).max() < 1e-6:
        return Image.fromarray(bytes_.astype(np.uint8))
    return Image.fromarray(np.rint(array.astype(np.float64) * 65535).astype(np.uint16))
