"""The pictures that a mask can be: read strictly, decoded once, known by the digest of their text.

A scene is parsed again at every change of a slider, drawn at every size, and often stamps one picture many times. What
has been decoded is therefore remembered, up to a bound, by what it is made of, so that the same picture is the same
wherever it comes from.
"""

from __future__ import annotations

import base64
import binascii
import glob
import hashlib
import io
import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lib_masknoise.scene import colours
from lib_masknoise.scene.apng import packed
from lib_masknoise.scene.errors import number, shown

MAX_IMAGE_BYTES = 16 * 2**20
MAX_IMAGE_SIDE = 4096
MAX_UNPACKED_BYTES = 64 * 2**20
"""Of the pixels of all different pictures in one scene: as much as one of 4096 × 4096 with colours and alpha."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""AVIF where Pillow can read it, from 11.3 on."""
MOVING_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")
"""Those whose frames are a sequence. Other files' further pictures are pages, thumbnails or maps of brightness."""
MAX_PICTURES = 10_000
"""Of a sequence: as many as an animation may have frames."""

_ENDINGS = ("png", "apng", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif")

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
_good: Memory[bool] = Memory(2**20)  # what could be decoded
_extents: Memory[tuple[int, int]] = Memory(2**20)  # by the header: bytes of its pixels, how many pictures
_ENTRY_BYTES = 256  # about what such an entry takes: the key, the numbers, its place in the order


def check(data: str) -> None:
    """Raise ValueError, saying what is wrong, where `decode_picture` would; a picture known as good costs nothing."""
    if _good.get(_digest(data)) is None:
        _levels_of(data)


def mask_values(data: str, index: int = 0) -> np.ndarray[Any, Any]:
    """What a picture, of several the one with that index, is as a mask: float32 [H, W] in [0, 1], not to be written to.
    Raises ValueError as `decode_pictures` does.

    What carries the picture counts: the alpha channel where some of the picture is fully transparent (paint on an empty
    layer), or where it varies by more (largest less smallest value) than the brightness; else the brightness. So a
    black-and-white picture with a few pixels that are not quite opaque counts by its brightness. Of a sequence that is
    decided once for all of it.
    """
    levels = _levels_of(data)[index]
    values: Levels = levels.astype(np.float32) / np.iinfo(levels.dtype).max
    values.flags.writeable = False
    return values


def colour_map(data: str, tolerance: float = colours.TOLERANCE, index: int = 0) -> colours.ColourMap:
    """A picture, of several the one with that index, as shares of its flat colours. Raises ValueError as
    `decode_pictures` does."""
    key = _digest(f"{tolerance} {index} {data}")
    found = _colour_maps.get(key)
    if found is None:
        picture = next(itertools.islice(decode_pictures(data), index, None))
        found = colours.unmix(np.asarray(picture.convert("RGBA")), tolerance)
        _colour_maps.put(key, found, 3 * found.first.size)
    return found


def colour_values(data: str, colour: str, tolerance: float = colours.TOLERANCE, index: int = 0) -> np.ndarray[Any, Any]:
    """The places of a flat colour in a picture as a mask: float32 [H, W] in [0, 1]. Raises ValueError where the picture
    cannot be read or has no such colour; in a sequence, a picture without it is 0 everywhere."""
    found = colour_map(data, tolerance, index)
    try:
        number = found.find(colour, tolerance)
    except ValueError:
        if picture_count(data) == 1:
            raise
        return np.zeros(found.first.shape, np.float32)
    return found.of(number).astype(np.float32) / 255


def check_colour(data: str, colour: str, tolerance: float = colours.TOLERANCE) -> None:
    """Raise ValueError, which lists the first picture's colours, where a colour is in none of the pictures."""
    wrong = None
    for index in range(picture_count(data)):
        try:
            colour_map(data, tolerance, index).find(colour, tolerance)
            return
        except ValueError as error:
            wrong = wrong or error
    if wrong:
        raise wrong


def unpacked_bytes(data: str) -> int:
    """How many bytes the pixels of a picture, or of all of a sequence, take when decoded, by its header; 0 where it
    cannot be read."""
    return _extent(data)[0]


def picture_count(data: str) -> int:
    """How many pictures a mask image is: an animation's frames, else 1, also where it cannot be read."""
    return _extent(data)[1]


def decode_picture(data: str) -> Image.Image:
    """The picture in a data URL or in plain base64: loaded, upright, the first frame of an animated one.

    Raises ValueError, saying what is wrong, where the text is not base64, holds more than MAX_IMAGE_BYTES, is
    not a complete image of IMAGE_FORMATS, or has a side above MAX_IMAGE_SIDE. The sides are read from the
    header before any pixel is decoded, so that a small file cannot unpack into a huge picture.
    """
    with _opened(data) as picture:
        picture.load()
        return ImageOps.exif_transpose(picture)


def decode_pictures(data: str) -> Iterator[Image.Image]:
    """The picture, or all frames of an animated one in their order, each as `decode_picture` gives it.

    Raises ValueError as that does, and for more than MAX_PICTURES, or MAX_UNPACKED_BYTES in all.
    """
    size, count = _extent(data)
    with _opened(data) as picture:
        if count > MAX_PICTURES:
            raise _Refused(f"expected at most {MAX_PICTURES:,} pictures, got {count:,}")
        if size > MAX_UNPACKED_BYTES:
            most, got = MAX_UNPACKED_BYTES // 2**20, size / 2**20
            raise _Refused(f"expected at most {most} MiB of unpacked pixels, got {got:.1f} MiB in {count:,} pictures")
        for index in range(count):
            if index:
                picture.seek(index)
            picture.load()
            yield ImageOps.exif_transpose(picture)


def frame_count(data: str) -> int:
    """How many frames or pages a file has, 1 where that cannot be read."""
    try:
        with _opened(data) as picture:
            return getattr(picture, "n_frames", 1)
    except ValueError:
        return 1


def files_of(source: str | os.PathLike[str]) -> list[Path]:
    """The picture files that a sequence is made of: one file, all of a folder, or those of a pattern such as
    ``masks/*.png``; numbers in their names count as numbers. Raises ValueError where there is none."""
    path = Path(source)
    if path.is_file():
        return [path]
    names = [str(one) for one in path.iterdir()] if path.is_dir() else glob.glob(str(source))
    files = [Path(name) for name in names if Path(name).suffix.lower().lstrip(".") in _ENDINGS and Path(name).is_file()]
    if not files:
        raise ValueError(f"{source}: no picture there; expected a file, a folder or a pattern such as masks/*.png")
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]


def read_sequence(source: str | os.PathLike[str]) -> str:
    """One file as it is, or the first pictures of several as a sequence (`sequence_url`), for `ImageMask.data`. Raises
    ValueError, naming the file, for what `decode_picture` and `sequence_url` refuse."""
    files, images = files_of(source), []
    for file in files:
        try:
            data = base64.b64encode(file.read_bytes()).decode()
            if len(files) == 1:
                check(data)
                return data
            images.append(decode_picture(data))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    try:
        return sequence_url(images)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _known_formats() -> list[str]:
    """Those of IMAGE_FORMATS that this Pillow has."""
    Image.init()
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def data_url(picture: Any) -> str:
    """A PIL image, or an array or tensor [H, W] of bool, uint8 or floats from 0 to 1, as a PNG without loss.

    Floats are kept to 1/65535, and exactly where all are multiples of 1/255. Raises ValueError for another shape, dtype
    or range.
    """
    return _png_url(_png(_image(picture)))


def sequence_url(sequence: Iterable[Any]) -> str:
    """Pictures, each as `data_url` takes one and all of one size, as one animated PNG without loss. Raises ValueError
    as that does, and where there is none or they differ in size."""
    images = [_image(picture) for picture in sequence]
    if not 1 <= len(images) <= MAX_PICTURES:
        raise ValueError(f"expected 1 to {MAX_PICTURES:,} pictures, got {len(images):,}")
    for index, image in enumerate(images):
        if image.size != images[0].size:
            sizes = "{} × {}, got {} × {}".format(*images[0].size, *image.size)
            raise ValueError(f"picture {index}: expected the first one's size, {sizes}")
    if len(images) == 1:
        return _png_url(_png(images[0]))
    return _png_url(packed([_png(image) for image in _alike(images)]))


# --- Reading


def _digest(data: str) -> bytes:
    return hashlib.blake2b(data.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _extent(data: str) -> tuple[int, int]:
    """Bytes of its pixels and how many pictures it is; 0 and 1 where it cannot be read."""
    key = _digest(data)
    known = _extents.get(key)
    if known is None:
        try:
            with _opened(data) as picture:
                count = getattr(picture, "n_frames", 1) if picture.format in MOVING_FORMATS else 1
                known = count * _size(picture), count
        except ValueError:
            known = 0, 1
        _extents.put(key, known, _ENTRY_BYTES)
    return known


def _levels_of(data: str) -> Levels:
    """uint8 or uint16 [K, H, W]: the mask's values in each of its pictures, times the type's largest."""
    key = _digest(data)
    levels = _levels.get(key)
    if levels is None:
        levels = _mask_levels(map(_channels, decode_pictures(data)))
        _levels.put(key, levels, levels.nbytes)
        _good.put(key, True, _ENTRY_BYTES)
    return levels


def _channels(picture: Image.Image) -> tuple[Levels, Levels | None]:
    """Brightness and, where it has one, alpha."""
    if picture.mode.startswith("I"):  # 16-bit grey: "I;16…", or "I" in older versions of Pillow
        return np.asarray(picture).astype(np.uint16), None
    grey = picture if picture.mode in ("1", "L") else picture.convert("RGB")
    brightness = np.asarray(grey.convert("L"))
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
        return brightness, np.asarray(picture.convert("RGBA").getchannel("A"))
    return brightness, None


def _mask_levels(channels: Iterable[tuple[Levels, Levels | None]]) -> Levels:
    """What carries the pictures, [K, H, W]."""
    lights, alphas = zip(*channels, strict=True)
    brightness = np.stack(lights)
    if all(alpha is None for alpha in alphas):
        return brightness
    opaque = np.full(brightness.shape[1:], 255, np.uint8)
    alpha = np.stack([opaque if one is None else one for one in alphas])
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


def _image(picture: Any) -> Image.Image:
    return _storable(picture) if isinstance(picture, Image.Image) else _drawn(picture)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _png_url(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def _alike(images: list[Image.Image]) -> list[Image.Image]:
    """Images in one mode, as the frames of a file have one: palettes and transparent colours are written out."""
    if any(image.mode.startswith("I") for image in images):
        return list(map(_fine, images))
    plain = [image if _plain(image) else image.convert("RGBA") for image in images]
    modes = {image.mode for image in plain}
    if len(modes) == 1:
        return plain
    return [image.convert("L" if modes <= {"1", "L"} else "RGBA") for image in plain]


def _fine(image: Image.Image) -> Image.Image:
    """A grey image in 16 bits. Raises ValueError for one with transparency, which there is none for there."""
    if image.mode.startswith("I"):
        return image
    grey, alpha = _channels(image)
    if alpha is not None:
        raise ValueError("a sequence of pictures with 16 bits has none with transparency; give all 8 bits")
    return Image.fromarray(grey.astype(np.uint16) * 257)


def _plain(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "RGB", "RGBA", "LA") and "transparency" not in image.info


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
