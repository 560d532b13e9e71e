"""The Scene: the one description of a job, and the only way a request enters the program.

A Scene is JSON (docs/scene.md shows every field). Parsing is strict, because a wrong setting that is quietly
dropped costs the user a wrong image: unknown fields, wrong types, numbers out of bounds and unreadable mask
images are all refused, all at once, each with its path and what was expected there. Scalar settings take
their defaults, bounds, choices and descriptions from :mod:`lib_masknoise.controls`.

No ``from __future__ import annotations`` here: pydantic reads the annotations of these classes.
"""

import base64
import binascii
import difflib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Optional, TypeVar, Union, get_args

import pydantic
from PIL import Image, ImageOps

from .controls import ADD_SCALE, control

if not pydantic.VERSION.startswith("1."):  # the hosts have 1 or 2; both can do what 1 can
    from pydantic import v1 as pydantic

ErrorWrapper = pydantic.error_wrappers.ErrorWrapper
ValidationError = pydantic.ValidationError

VERSION = 1
MAX_CONCEPTS = 16
MAX_KEYFRAMES = 1000
MAX_PROMPTS = 16
MAX_STROKES = 10_000
MAX_POINTS = 100_000
MAX_STAMPS = 1000
MAX_FILTERS = 200
MAX_FLOW_LENGTH = 10_000
MAX_IMAGE_BYTES = 16 * 2**20
MAX_IMAGE_SIDE = 4096
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
EASINGS = ("linear", "ease-in", "ease-out", "ease-in-out", "step")


class Problem(NamedTuple):
    """What is wrong at one place of a scene. path: "concepts[1].mask.data", "" for the scene as a whole."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SceneError(ValueError):
    """A scene that cannot be used; ``problems`` holds everything that is wrong with it, str() one a line."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


# --- Checking one value


def _shown(value: object, limit: int = 60) -> str:
    """A value as a message quotes it: as JSON, cut short."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, int) and abs(value) >= 10**limit:
        return "a huge integer"
    if value is not None and not isinstance(value, bool | int | float | str | list | tuple):
        return f"a value of type {type(value).__name__}"
    if isinstance(value, str):
        value = value if len(value) <= limit else value[:limit] + "…"
    text = json.dumps(value, ensure_ascii=False, default=lambda other: type(other).__name__)
    if isinstance(value, list | tuple) and len(text) > limit:
        return f"a list of {len(value)}"
    return text.encode("utf-8", "replace").decode("utf-8")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _any_of(choices: tuple[object, ...]) -> str:
    *most, last = map(_shown, choices)
    return f"{', '.join(most)} or {last}" if most else last


def _suggestion(given: object, choices: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(given)[:100], choices, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


class _Rule(NamedTuple):
    """What a scalar must be; ``kind`` is bool, int, float or str."""

    kind: type
    low: float | None = None
    high: float | None = None
    choices: tuple[object, ...] = ()

    @property
    def expected(self) -> str:
        if self.choices:
            return _any_of(self.choices)
        name = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}[self.kind]
        if self.low is not None and self.high is not None:
            return f"{name} from {_number(self.low)} to {_number(self.high)}"
        return name

    def check(self, value: object) -> Any:
        """The value as ``kind``, exactly: no truth value is a number, no text either, and 1.0 is an
        integer."""
        if isinstance(value, str) and self.kind is str and not _encodable(value):
            raise ValueError(f"expected valid Unicode text, got {_shown(value)}")
        if not self._fits(value):
            hint = _suggestion(value, self.choices) if isinstance(value, str) and self.kind is str else ""
            raise ValueError(f"expected {self.expected}, got {_shown(value)}{hint}")
        return self.kind(value)

    def _fits(self, value: object) -> bool:
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str) and (not self.choices or value in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and (not math.isfinite(value) or self.kind is int and not value.is_integer()):
            return False
        if self.choices:
            return value in self.choices
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


def _encodable(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can hold and no tokenizer or file can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_COORDINATE = _Rule(float, 0.0, 1.0)


class Point(tuple[float, float]):
    """[x, y], each 0 to 1 over the image; y points down."""

    expected: ClassVar[str] = "[x, y] with numbers from 0 to 1"

    @classmethod
    def __get_validators__(cls) -> Iterator[Callable[..., Any]]:
        yield cls.validate

    @classmethod
    def __modify_schema__(cls, schema: dict[str, Any]) -> None:
        schema.update(_point_schema(2))

    @classmethod
    def validate(cls, value: object) -> "Point":
        if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(_COORDINATE._fits, value)):
            raise ValueError(f"expected {cls.expected}, got {_shown(value)}")
        return cls(map(float, value))


class Points(tuple[tuple[float, ...], ...]):
    """A stroke's path: [x, y] or [x, y, pressure] each, all numbers 0 to 1; at least one point."""

    expected: ClassVar[str] = "a list of [x, y] or [x, y, pressure]"

    @classmethod
    def __get_validators__(cls) -> Iterator[Callable[..., Any]]:
        yield cls.validate

    @classmethod
    def __modify_schema__(cls, schema: dict[str, Any]) -> None:
        schema.update(type="array", minItems=1, maxItems=MAX_POINTS, items=_point_schema(3))

    @classmethod
    def validate(cls, value: object) -> "Points":
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"expected {cls.expected}, got {_shown(value)}")
        bad = [
            ErrorWrapper(ValueError(f"expected [x, y] or [x, y, pressure], from 0 to 1, got {_shown(point)}"), (i,))
            for i, point in enumerate(value)
            if not isinstance(point, list | tuple) or not 2 <= len(point) <= 3 or not all(map(_COORDINATE._fits, point))
        ]
        if bad:
            raise ValidationError(bad, Stroke)
        return cls(tuple(map(float, point)) for point in value)


def _point_schema(most: int) -> dict[str, Any]:
    coordinate = {"type": "number", "minimum": 0, "maximum": 1}
    return {"type": "array", "minItems": 2, "maxItems": most, "items": coordinate}


# --- Mask images


def decode_picture(data: str) -> Image.Image:
    """The picture in a data URL or in plain base64: loaded, upright, the first frame of an animated one.

    Raises ValueError, saying what is wrong, where the text is not base64, holds more than MAX_IMAGE_BYTES, is
    not a complete PNG, JPEG or WebP image, or has a side above MAX_IMAGE_SIDE. The sides are read from the
    header before any pixel is decoded, so that a small file cannot unpack into a huge picture.
    """
    raw = _decode_base64(data)
    try:
        with Image.open(io.BytesIO(raw), formats=IMAGE_FORMATS) as picture:
            width, height = picture.size
            if max(width, height) > MAX_IMAGE_SIDE:
                most = f"{MAX_IMAGE_SIDE} × {MAX_IMAGE_SIDE}"
                raise _Refused(f"expected an image of at most {most} pixels, got {width} × {height}")
            # Hosts' extensions switch Pillow to accepting truncated files: look at the file's own end, too.
            if not _complete(raw):
                raise _Refused("the image is truncated")
            return ImageOps.exif_transpose(picture) or picture
    except _Refused:
        raise
    except Image.UnidentifiedImageError:
        raise _Refused("not a PNG, JPEG or WebP image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _Refused(f"the image is far larger than {MAX_IMAGE_SIDE} × {MAX_IMAGE_SIDE}") from None
    except Exception as error:  # Pillow's decoders raise many kinds (OSError, SyntaxError, struct.error, …)
        reason = str(error).split("\n")[0][:100]
        raise _Refused(f"the image is damaged or truncated ({reason})") from error


class _Refused(ValueError):
    pass


def _decode_base64(data: str) -> bytes:
    head, comma, body = data.partition(",")
    if data[:5].lower() == "data:":
        if not comma or not re.fullmatch(r"data:image/[\w.+-]+(;[\w=.+-]+)*;base64", head, re.I):
            raise _Refused(f'expected "data:image/…;base64,…" or base64, got {_shown(data, 40)}')
        data = body
    data = "".join(data.split())
    if len(data) * 3 // 4 > MAX_IMAGE_BYTES + 2:  # before decoding; padding makes up to 2 bytes less
        raise _Refused(f"the image is larger than {MAX_IMAGE_BYTES // 2**20} MB")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _Refused(f"not a PNG, JPEG or WebP image: expected base64, got {_shown(data, 40)}") from None
    if len(raw) > MAX_IMAGE_BYTES:
        raise _Refused(f"the image is larger than {MAX_IMAGE_BYTES // 2**20} MB")
    return raw


def _complete(raw: bytes) -> bool:
    """Whether a PNG, JPEG or WebP file reaches its own end mark (which may be followed by anything)."""
    if raw.startswith(b"\x89PNG"):
        return raw.rfind(b"IEND") > raw.rfind(b"IDAT")
    if raw.startswith(b"RIFF"):
        return len(raw) >= 8 + int.from_bytes(raw[4:8], "little")
    return raw.rfind(b"\xff\xd9") > raw.rfind(b"\xff\xda")


# --- The models


def _setting(path: str) -> Any:
    """A field that is a control: default, bounds, choices and description come from the table."""
    entry = control(path)
    extra: dict[str, Any] = {}
    if isinstance(entry.default, tuple):
        items = {"type": "string", "enum": list(entry.choices)}
        extra = {"items": items, "minItems": 1, "maxItems": len(entry.choices), "uniqueItems": True}
    elif entry.choices:
        extra = {"enum": list(entry.choices)}
    return pydantic.Field(entry.default, ge=entry.low, le=entry.high, description=entry.help, **extra)


def _rule(field: Any) -> _Rule | None:
    kind = field.outer_type_
    for scalar in (bool, int, float, str):
        if isinstance(kind, type) and issubclass(kind, scalar):
            info = field.field_info
            return _Rule(scalar, info.ge, info.le, tuple(info.extra.get("enum", ())))
    return None


def _nullable(schema: dict[str, Any], model: Any) -> None:
    """Pydantic's schema leaves out that a field may be null."""
    for field in model.__fields__.values():
        if field.allow_none:
            given = schema["properties"][field.alias]
            description = given.pop("description")
            null = {"type": "null"}
            schema["properties"][field.alias] = {"description": description, "anyOf": [given, null], "default": None}


AnyPart = TypeVar("AnyPart", bound="Part")


class Part(pydantic.BaseModel):
    """What every part of a scene has in common: strict, complete in its complaints, immutable."""

    class Config:
        extra = "forbid"
        frozen = True
        copy_on_model_validation = "none"
        schema_extra = _nullable

    @pydantic.validator("*", pre=True)
    def _strict(cls, value: Any, field: Any) -> Any:
        """Our own check goes before pydantic's, which would turn "1" and true into numbers."""
        if value is None and field.allow_none:
            return value
        rule = _rule(field)
        if rule:
            return rule.check(value)
        extra = field.field_info.extra
        if "maxItems" in extra:
            return _list(value, extra.get("minItems", 0), extra["maxItems"])
        if value is None:
            raise ValueError(f"expected {getattr(field.outer_type_, 'expected', 'an object')}, got null")
        return value

    @classmethod
    def validate(cls, value: Any) -> "Part":
        """The part described by a mapping (a part of this class passes as it is).

        Raises pydantic's ValidationError with every problem inside, or TypeError where it is no mapping.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, got {_shown(value)}")
        names = tuple(field.alias for field in cls.__fields__.values())
        known = {name: value[name] for name in names if name in value}
        unknown = [
            ErrorWrapper(ValueError(f"unknown field; expected one of {', '.join(names)}{_suggestion(key, names)}"), key)
            for key in value
            if key not in known
        ]
        try:
            part = cls(**known)
        except ValidationError as error:
            raise ValidationError([*error.raw_errors, *unknown], cls) from None
        if unknown:
            raise ValidationError(unknown, cls)
        return part

    @classmethod
    def parse(cls: type[AnyPart], data: str | bytes | Mapping[str, Any]) -> AnyPart:
        """The scene, or another part, that ``data`` (JSON text, its bytes, or the object itself) describes.

        Raises SceneError with every problem, each by its path.
        """
        repeated: list[Problem] = []
        if isinstance(data, str | bytes | bytearray):
            data = _load(data)
            repeated = list(_repeated(data, ()))
        try:
            part = cls.validate(data)
        except ValidationError as error:
            raise SceneError((*_problems(error.raw_errors, ()), *repeated)) from None
        except TypeError as error:
            raise SceneError((Problem("", str(error)),)) from None
        if repeated:
            raise SceneError(tuple(repeated))
        return part


def _list(value: object, least: int, most: int) -> list | tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, got {_shown(value)}")
    if len(value) > most:
        raise ValueError(f"expected at most {most:,} entries, got {len(value):,}")
    if len(value) < least:
        raise ValueError(f"expected at least {least} entry, got an empty list")
    return value


def _not_below(low: str, high: str) -> Any:
    """A validator: field ``high`` must not be below field ``low`` (silent where ``low`` itself is wrong)."""

    def check(cls: type, value: float, values: Mapping[str, Any]) -> float:
        if low in values and value < values[low]:
            least = f"{low.rstrip('_')} ({_number(values[low])})"
            raise ValueError(f"expected at least {least}, got {_number(value)}")
        return value

    return pydantic.validator(high, allow_reuse=True)(check)


def _bounded(default: float, low: float, high: float, description: str, **extra: Any) -> Any:
    return pydantic.Field(default, ge=low, le=high, description=description, **extra)


def _feather() -> Any:
    return _bounded(0.0, 0.0, 1.0, "Width of the soft edge, as a fraction of the image's shorter side.")


class Mask(Part):
    """A soft mask; which one its ``kind`` says."""


def _kind_required(schema: dict[str, Any], model: type) -> None:
    schema["required"] = [*schema.get("required", []), "kind"]


class RectMask(Mask):
    """A rectangle; by default the whole image."""

    kind: Literal["rect"] = "rect"
    left: float = _bounded(0.0, 0.0, 1.0, "Left edge, as a fraction of the width.")
    top: float = _bounded(0.0, 0.0, 1.0, "Top edge, as a fraction of the height.")
    right: float = _bounded(1.0, 0.0, 1.0, "Right edge, as a fraction of the width.")
    bottom: float = _bounded(1.0, 0.0, 1.0, "Bottom edge, as a fraction of the height.")
    feather: float = _feather()

    _right = _not_below("left", "right")
    _bottom = _not_below("top", "bottom")


class SplitMask(Mask):
    """A strip across the image, from one edge to another along one axis."""

    class Config:
        schema_extra = _kind_required

    kind: Literal["split"] = "split"
    axis: str = pydantic.Field("x", enum=["x", "y"], description="The axis that is split.")
    from_: float = _bounded(0.0, 0.0, 1.0, "Where the strip starts along the axis.", alias="from")
    to: float = _bounded(1.0, 0.0, 1.0, "Where the strip ends along the axis.")
    feather: float = _bounded(0.0, 0.0, 1.0, "Width of the soft edge, as a fraction of the axis.")

    _to = _not_below("from_", "to")


class EllipseMask(Mask):
    """An ellipse: its half axes are fractions of the width and of the height before it is turned."""

    class Config:
        schema_extra = _kind_required

    kind: Literal["ellipse"] = "ellipse"
    x: float = _bounded(0.5, 0.0, 1.0, "Centre, as a fraction of the width.")
    y: float = _bounded(0.5, 0.0, 1.0, "Centre, as a fraction of the height.")
    rx: float = _bounded(0.25, 0.001, 2.0, "Horizontal half axis, as a fraction of the width.")
    ry: float = _bounded(0.25, 0.001, 2.0, "Vertical half axis, as a fraction of the height.")
    angle: float = _bounded(0.0, -360.0, 360.0, "Clockwise turn, in degrees.")
    feather: float = _feather()


class GradientMask(Mask):
    """A ramp from 1 at one point to 0 at another, straight or around the first point."""

    class Config:
        schema_extra = _kind_required

    kind: Literal["gradient"] = "gradient"
    shape: str = pydantic.Field("linear", enum=["linear", "radial"], description="Straight, or around `from`.")
    from_: Point = pydantic.Field(Point((0.0, 0.5)), alias="from", description="Where the mask is 1.")
    to: Point = pydantic.Field(Point((1.0, 0.5)), description="Where the mask reaches 0.")
    smooth: bool = pydantic.Field(True, description="Whether the ramp eases in and out instead of running straight.")

    @pydantic.validator("to")
    def _apart(cls, value: Point, values: Mapping[str, Any]) -> Point:
        if "from_" in values and math.dist(value, values["from_"]) < 1e-6:
            raise ValueError(f"expected a point other than from, got {_shown(value)}")
        return value


class ImageMask(Mask):
    """A picture: its alpha channel where that varies, otherwise its brightness."""

    class Config:
        schema_extra = _kind_required

    kind: Literal["image"] = "image"
    data: str = pydantic.Field(..., description="A PNG, JPEG or WebP image: a data URL, or plain base64.")
    invert: bool = pydantic.Field(False, description="Whether black counts as 1 instead of white.")

    @pydantic.validator("data")
    def _decodable(cls, value: str) -> str:
        decode_picture(value)
        return value


class Stroke(Part):
    """One stroke of a round brush."""

    points: Points = pydantic.Field(..., description="[x, y] or [x, y, pressure], each from 0 to 1.")
    radius: float = _bounded(0.05, 0.0005, 1.0, "Brush radius, as a fraction of the image's shorter side.")
    hardness: float = _bounded(0.5, 0.0, 1.0, "The fraction of the radius that is fully covered.")
    opacity: float = _bounded(1.0, 0.0, 1.0, "How much one stroke covers at most.")
    flow: float = _bounded(
        1.0, 0.01, 1.0, "How much one dab of the brush covers: below 1, going over a place again covers more of it."
    )
    erase: bool = pydantic.Field(False, description="Whether the stroke takes away instead of adding.")


AnyShape = Union[RectMask, SplitMask, EllipseMask, GradientMask, ImageMask]  # noqa: UP007


class Stamp(Part):
    """A whole shape or picture, painted like a stroke."""

    mask: AnyShape = pydantic.Field(..., discriminator="kind", description="What is painted: any mask but strokes.")
    opacity: float = _bounded(1.0, 0.0, 1.0, "How much it covers at most.")
    erase: bool = pydantic.Field(False, description="Whether it takes away instead of adding.")

    @pydantic.validator("mask", pre=True)
    def _by_kind(cls, value: Any) -> Mask:
        return _mask(value, AnyShape)


class Filter(Part):
    """A change of everything painted before it."""

    filter: str = pydantic.Field(..., enum=["invert", "blur"], description="What is done.")
    amount: float = _bounded(
        0.05, 0.0, 1.0, "Of a blur: the width that a hard edge gets, as a fraction of the image's shorter side."
    )


Operation = Union[Stroke, Stamp, Filter]  # noqa: UP007


def _operation(value: Any) -> Any:
    """The entry of a strokes mask that a mapping describes: ``mask`` or ``filter`` says which it is, else it is a
    stroke."""
    if isinstance(value, Stroke | Stamp | Filter):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, got {_shown(value)}")
    return (Stamp if "mask" in value else Filter if "filter" in value else Stroke).validate(value)


class StrokesMask(Mask):
    """Brush strokes, shapes and filters, applied one after the other to an empty mask."""

    class Config:
        schema_extra = _kind_required

    kind: Literal["strokes"] = "strokes"
    strokes: tuple[Operation, ...] = pydantic.Field((), maxItems=MAX_STROKES, description="In the order painted.")

    @pydantic.validator("strokes", pre=True)
    def _by_entry(cls, value: tuple[Any, ...]) -> tuple[Operation, ...]:
        """Count before looking at each entry: a request must not cost more than the limits allow."""
        _list(value, 0, MAX_STROKES)
        _check_amounts([entry for entry in value if isinstance(entry, Mapping)])
        entries, wrong = [], []
        for i, entry in enumerate(value):
            try:
                entries.append(_operation(entry))
            except (ValidationError, TypeError) as error:
                wrong.append(ErrorWrapper(error, (i,)))
        if wrong:
            raise ValidationError(wrong, cls)
        return tuple(entries)

    @pydantic.validator("strokes")
    def _short_enough(cls, value: tuple[Operation, ...]) -> tuple[Operation, ...]:
        """A stroke with flow is drawn dab by dab, at four to a radius."""
        length = sum(_radii(stroke) for stroke in value if isinstance(stroke, Stroke) and stroke.flow < 1)
        if length > MAX_FLOW_LENGTH:
            raise ValueError(
                f"expected strokes with a flow below 1 to be at most {MAX_FLOW_LENGTH:,} radii long in all, "
                f"got {length:,.0f}"
            )
        return value


def _check_amounts(entries: list[Mapping[str, Any]]) -> None:
    paths = (entry.get("points") for entry in entries)
    counts = {
        "points": (sum(len(path) for path in paths if isinstance(path, list | tuple)), MAX_POINTS),
        "shapes and pictures": (sum("mask" in entry for entry in entries), MAX_STAMPS),
        "filters": (sum("filter" in entry for entry in entries), MAX_FILTERS),
    }
    for name, (count, most) in counts.items():
        if count > most:
            raise ValueError(f"expected at most {most:,} {name} in all, got {count:,}")


def _radii(stroke: Stroke) -> float:
    """A stroke's length in brush radii, on a square image."""
    return sum(math.dist(a[:2], b[:2]) for a, b in itertools.pairwise(stroke.points)) / stroke.radius


AnyMask = Union[RectMask, SplitMask, EllipseMask, GradientMask, ImageMask, StrokesMask]  # noqa: UP007


def _mask(value: Any, allowed: Any = AnyMask) -> Mask:
    """The mask that a mapping describes, by its kind (a mask passes as it is)."""
    if isinstance(value, get_args(allowed)):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, got {_shown(value)}")
    kinds: dict[str, type[Mask]] = {mask.__fields__["kind"].default: mask for mask in get_args(allowed)}
    kind = value.get("kind", "rect")
    try:
        _Rule(str, choices=tuple(kinds)).check(kind)
    except ValueError as error:
        raise ValidationError([ErrorWrapper(error, "kind")], Mask) from None
    return kinds[kind].validate(value)


def _frame() -> Any:
    return pydantic.Field(0, ge=0, le=control("animation.frames").high, description="Index of the frame, from 0.")


def _easing() -> Any:
    description = "How it goes on to the next keyframe; step holds it until there."
    return pydantic.Field("linear", enum=list(EASINGS), description=description)


def _keyframes(description: str) -> Any:
    return pydantic.Field((), maxItems=MAX_KEYFRAMES, description=description)


def _check_ascending(keys: tuple[Any, ...]) -> None:
    """Raise ValidationError where a key's frame does not come after the one before."""
    wrong = [
        ErrorWrapper(ValueError(f"expected more than the keyframe before ({a.frame}), got {b.frame}"), (i, "frame"))
        for i, (a, b) in enumerate(itertools.pairwise(keys), 1)
        if b.frame <= a.frame
    ]
    if wrong:
        raise ValidationError(wrong, Part)


def _setting_or_none(path: str) -> Any:
    """A field with a control's bounds that may be left out."""
    entry = control(path)
    return pydantic.Field(None, ge=entry.low, le=entry.high, description=entry.help)


class ConceptKeyframe(Part):
    """A concept at one frame, and how it moves on from there; what is left out is as the concept itself has it."""

    frame: int = _frame()
    easing: str = _easing()
    prompt: Optional[str] = _setting_or_none("concepts[].prompt")  # noqa: UP045
    negative: Optional[str] = _setting_or_none("concepts[].negative")  # noqa: UP045
    weight: Optional[float] = _setting_or_none("concepts[].weight")  # noqa: UP045
    mask: Optional[AnyMask] = pydantic.Field(  # noqa: UP045
        None, discriminator="kind", description="Where the concept applies at that frame."
    )

    @pydantic.validator("mask", pre=True)
    def _by_kind(cls, value: Any) -> Any:
        return None if value is None else _mask(value)


class Concept(Part):
    """A prompt with a mask, a weight and optionally a negative prompt, and how they change over the frames."""

    prompt: str = _setting("concepts[].prompt")
    negative: str = _setting("concepts[].negative")
    weight: float = _setting("concepts[].weight")
    enabled: bool = _setting("concepts[].enabled")
    mask: AnyMask = pydantic.Field(
        default_factory=RectMask,
        discriminator="kind",
        description="Where the concept applies; by default everywhere.",
    )
    interpolation: str = _setting("concepts[].interpolation")
    keyframes: tuple[ConceptKeyframe, ...] = _keyframes(
        "What the concept becomes at some frames, in their order; in between it moves from one to the next."
    )

    @pydantic.validator("mask", pre=True)
    def _by_kind(cls, value: Any) -> Mask:
        return _mask(value)

    @pydantic.validator("keyframes")
    def _ascending(cls, value: tuple[ConceptKeyframe, ...]) -> tuple[ConceptKeyframe, ...]:
        _check_ascending(value)
        for name in ("prompt", "negative"):
            different = len({getattr(key, name) for key in value})
            if different > MAX_PROMPTS:
                raise ValueError(f"expected at most {MAX_PROMPTS} different {name}s, got {different}")
        return value

    def at_key(self, key: ConceptKeyframe) -> "Concept":
        """The concept as it is at one of its keyframes: a still one."""
        given = {name: getattr(key, name) for name in ("prompt", "negative", "weight", "mask")}
        return self.copy(update={"keyframes": (), **{name: v for name, v in given.items() if v is not None}})


class Blend(Part):
    """How the concepts' prompts are mixed with the base prompt."""

    mode: str = _setting("blend.mode")
    scale: float = _setting("blend.scale")
    preserve_norm: bool = _setting("blend.preserve_norm")
    feather: float = _setting("blend.feather")
    start: float = _setting("blend.start")
    end: float = _setting("blend.end")

    _end = _not_below("start", "end")

    @pydantic.root_validator(pre=True)
    def _scale_of_mode(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("mode") == "add":
            return {"scale": ADD_SCALE, **values}
        return values


class Keyframe(Part):
    """The motion's value at one frame and how it moves on from there."""

    frame: int = _frame()
    value: float = _bounded(0.0, -1.0, 1.0, "The motion's value at that frame.")
    easing: str = _easing()


class Motion(Part):
    """How noise moves from frame to frame."""

    kind: str = _setting("motion.kind")
    cycles: int = _setting("motion.cycles")
    phase: float = _setting("motion.phase")
    momentum: float = _setting("motion.momentum")
    loop: bool = _setting("motion.loop")
    keyframes: tuple[Keyframe, ...] = _keyframes("For the kind keyframes: at least one, in the order of their frames.")

    @pydantic.validator("keyframes", always=True)
    def _ascending(cls, value: tuple[Keyframe, ...], values: Mapping[str, Any]) -> tuple[Keyframe, ...]:
        if not value and values.get("kind") == "keyframes":
            raise ValueError("expected at least one keyframe for the kind keyframes, got none")
        _check_ascending(value)
        return value


def _own_motion() -> Any:
    return pydantic.Field(None, description="How this noise moves; null means as the scene's motion says.")


class VisualNoise(Part):
    """Noise in the initial latent."""

    strength: float = _setting("noise.visual.strength")
    motion: Optional[Motion] = _own_motion()  # noqa: UP045


class ConceptNoise(Part):
    """Noise in the space of the text embeddings."""

    strength: float = _setting("noise.concept.strength")
    rank: int = _setting("noise.concept.rank")
    size: float = _setting("noise.concept.size")
    motion: Optional[Motion] = _own_motion()  # noqa: UP045


class FeatureNoise(Part):
    """Noise on chosen dimensions of the text features."""

    strength: float = _setting("noise.feature.strength")
    dimensions: str = _setting("noise.feature.dimensions")
    size: float = _setting("noise.feature.size")
    motion: Optional[Motion] = _own_motion()  # noqa: UP045

    @pydantic.validator("dimensions", pre=True)
    def _canonical(cls, value: Any) -> Any:
        return _dimensions(value)


_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def _dimensions(value: object) -> object:
    """Dimensions as text: "all", or indices and ranges without blanks; a list of indices becomes ranges."""
    expected = 'expected "all", indices and ranges such as "0-63,100", or a list of indices'
    if isinstance(value, list | tuple):
        if not value or not all(_Rule(int, 0, 10**9 - 1)._fits(index) for index in value):
            raise ValueError(f"{expected} of at least 0, got {_shown(value)}")
        runs = itertools.groupby(enumerate(sorted(set(map(int, value)))), key=lambda item: item[1] - item[0])
        ends = [(run[0][1], run[-1][1]) for run in (list(items) for _, items in runs)]
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
    if not isinstance(value, str):
        raise ValueError(f"{expected}, got {_shown(value)}")
    text = re.sub(r"\s*([,-])\s*", r"\1", value.strip())
    if text == "all":
        return text
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if not match:
            raise ValueError(f"{expected}, got {_shown(value)}")
        first, last = match.groups()
        if last is not None and int(last) < int(first):
            raise ValueError(f"expected ascending ranges, got {_shown(part)}")
    return text


class Noise(Part):
    """The three kinds of noise, and what they share."""

    exponent: float = _setting("noise.exponent")
    seed: int = _setting("noise.seed")
    visual: VisualNoise = pydantic.Field(default_factory=VisualNoise, description="Noise in the initial latent.")
    concept: ConceptNoise = pydantic.Field(default_factory=ConceptNoise, description="Noise in the text embeddings.")
    feature: FeatureNoise = pydantic.Field(default_factory=FeatureNoise, description="Noise on chosen text features.")


class Animation(Part):
    """How many frames there are and what is written from them."""

    frames: int = _setting("animation.frames")
    fps: int = _setting("animation.fps")
    formats: tuple[str, ...] = _setting("animation.formats")
    rubber_band: bool = _setting("animation.rubber_band")
    interpolate: int = _setting("animation.interpolate")

    @pydantic.validator("formats", pre=True)
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        rule = _Rule(str, choices=control("animation.formats").choices)
        wrong = []
        for i, entry in enumerate(value):
            try:
                if rule.check(entry) in value[:i]:
                    wrong.append(ErrorWrapper(ValueError(f"{_shown(entry)} is given twice"), (i,)))
            except ValueError as error:
                wrong.append(ErrorWrapper(error, (i,)))
        if wrong:
            raise ValidationError(wrong, Animation)
        return value


class Scene(Part):
    """One job of MaskNoise. ``Scene.parse({})`` is the neutral scene; docs/scene.md describes every field."""

    version: int = pydantic.Field(VERSION, enum=[VERSION], description="Version of the scene format.")
    enabled: bool = _setting("enabled")
    concepts: tuple[Concept, ...] = pydantic.Field(
        (), maxItems=MAX_CONCEPTS, description="Prompts, each with a mask of its own."
    )
    blend: Blend = pydantic.Field(default_factory=Blend, description="How concepts and base prompt are mixed.")
    noise: Noise = pydantic.Field(default_factory=Noise, description="What moves where no mask holds it.")
    motion: Motion = pydantic.Field(default_factory=Motion, description="How the noise moves from frame to frame.")
    animation: Animation = pydantic.Field(default_factory=Animation, description="The frames and their files.")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Scene":
        """The scene in a JSON file (UTF-8). Raises SceneError, also where the file cannot be read."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise SceneError((Problem("", f"cannot read {path}: {error.strerror or error}"),)) from None
        return cls.parse(data)

    def to_dict(self, defaults: bool = True) -> dict[str, Any]:
        """The scene as JSON types, in the fields' order: complete, or without what equals the defaults.

        ``Scene.parse(scene.to_dict()) == scene``, and the same with ``defaults=False``.
        """
        return _plain(self) if defaults else _compact(self)

    def to_json(self, indent: int | None = None) -> str:
        """The complete scene as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (draft 7) of a scene.

        It cannot express the order of two fields, whether an image can be decoded, or that the default of
        ``blend.scale`` depends on ``blend.mode``; :meth:`parse` can.
        """
        schema = _tidy(cls.schema(by_alias=True))
        dimensions = schema["definitions"]["FeatureNoise"]["properties"]["dimensions"]
        indices = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
        dimensions["anyOf"] = [{"type": dimensions.pop("type")}, indices]
        return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "MaskNoise scene", **schema}

    def replace(self, changes: Mapping[str, Any]) -> "Scene":
        """The scene with other values at some paths: ``{"concepts[0].weight": 0.5, "animation.frames": 24}``.

        ``concepts[].weight`` means the weight of every concept. A ``blend.scale`` that is its mode's default
        follows a change of the mode. Raises SceneError for what does not exist or does not fit.
        """
        data = self.to_dict()
        if self.blend.scale == _default_scale(self.blend.mode):
            del data["blend"]["scale"]
        wrong = []
        for path, value in changes.items():
            try:
                _put(data, _steps(path), value)
            except ValueError as error:
                wrong.append(Problem(path, str(error)))
        if wrong:
            raise SceneError(tuple(wrong))
        return self.parse(data)

    @property
    def neutral(self) -> bool:
        """True where the scene cannot change an image: disabled, or no concept and every strength 0."""
        noise = self.noise
        still = noise.visual.strength == noise.concept.strength == noise.feature.strength == 0
        return not self.enabled or (not self.acting.concepts and still)

    @property
    def acting(self) -> "Scene":
        """The scene without the concepts that are switched off: what is sampled."""
        concepts = tuple(concept for concept in self.concepts if concept.enabled)
        return self if len(concepts) == len(self.concepts) else self.copy(update={"concepts": concepts})

    @property
    def loops(self) -> bool:
        """Whether the animation is played in a circle, so that its last frame leads to its first."""
        noise = self.noise
        own = [part.motion for part in (noise.visual, noise.concept, noise.feature) if part.motion and part.strength]
        return all(motion.loop for motion in (self.motion, *own)) and not self.animation.rubber_band


# --- In and out


class _Object(dict):
    """A JSON object that remembers which keys were given more than once."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        result.repeated = tuple(key for key in result if keys.count(key) > 1)
    return result


def _load(text: str | bytes | bytearray) -> Any:
    try:
        if isinstance(text, str):
            text = text.removeprefix("\ufeff")
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except RecursionError:
        message = "not a scene: the JSON is nested too deeply"
    except ValueError as error:  # not Unicode, or a number of thousands of digits
        message = f"not valid JSON: {error}"
    raise SceneError((Problem("", message),)) from None


def _repeated(node: Any, loc: tuple[str | int, ...]) -> Iterator[Problem]:
    if isinstance(node, _Object):
        yield from (Problem(_path((*loc, key)), "given more than once") for key in node.repeated)
        for key, child in node.items():
            yield from _repeated(child, (*loc, key))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _repeated(child, (*loc, i))


def _problems(errors: Any, loc: tuple[Any, ...]) -> Iterator[Problem]:
    """Pydantic's tree of errors as a flat list. An error that wraps others stands for those."""
    for error in errors:
        if isinstance(error, list | tuple):
            yield from _problems(error, loc)
            continue
        here = (*loc, *error.loc_tuple())
        if isinstance(error.exc, ValidationError):
            yield from _problems(error.exc.raw_errors, here)
        elif isinstance(error.exc, pydantic.errors.MissingError):
            yield Problem(_path(here), "missing; expected a value")
        else:
            yield Problem(_path(here), str(error.exc))


def _path(loc: tuple[Any, ...]) -> str:
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif isinstance(step, str) and re.fullmatch(r"[\w-]{1,100}", step):
            path += f".{step}" if path else step
        else:  # a key that would make the path unreadable
            path += f"[{_shown(step)}]"
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return {field.alias: _plain(getattr(value, name)) for name, field in value.__fields__.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _compact(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_compact(item) for item in value]
    if not isinstance(value, Part):
        return value
    result = {}
    for name, field in value.__fields__.items():
        given = getattr(value, name)
        default = _default_scale(value.mode) if isinstance(value, Blend) and name == "scale" else field.get_default()
        says_which = isinstance(value, Mask) and name == "kind" and not isinstance(value, RectMask)
        if given != default or says_which:
            result[field.alias] = _compact(given)
    return result


def _default_scale(mode: str) -> float:
    return ADD_SCALE if mode == "add" else control("blend.scale").default


def _tidy(schema: Any) -> Any:
    """Pydantic's schema without its made-up titles and OpenAPI's discriminator."""
    if isinstance(schema, dict):
        return {
            key: _tidy(value)
            for key, value in schema.items()
            if key != "discriminator" and not (key == "title" and isinstance(value, str))
        }
    return [_tidy(item) for item in schema] if isinstance(schema, list | tuple) else schema


_STEP = re.compile(r"(\w+)(?:\[(\d*)\])?")


def _steps(path: str) -> list[str | int | None]:
    """ "concepts[0].weight" -> ["concepts", 0, "weight"]; None stands for every entry."""
    steps: list[str | int | None] = []
    for part in path.split("."):
        match = _STEP.fullmatch(part)
        if not match:
            raise ValueError("not a path such as blend.mode or concepts[0].weight")
        name, index = match.groups()
        steps.append(name)
        if index is not None:
            steps.append(int(index) if index else None)
    return steps


def _put(node: Any, steps: list[str | int | None], value: Any) -> None:
    head, *rest = steps
    if isinstance(head, str):
        if not isinstance(node, dict):
            raise ValueError(f'no such field "{head}"')
        if not rest:
            node[head] = value
        else:
            if node.get(head) is None:  # absent, or a part that may be null
                node[head] = {}
            _put(node[head], rest, value)
        return
    entries = range(len(node)) if isinstance(node, list) and head is None else [head]
    if not isinstance(node, list) or not entries or (head is not None and head >= len(node)):
        raise ValueError(f"no such entry; there are {len(node) if isinstance(node, list) else 0}")
    for i in entries:
        if rest:
            _put(node[i], rest, value)
        else:
            node[i] = value
