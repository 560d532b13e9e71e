"""The masks of a scene: what they are made of, not how they are drawn. Each kind is one class and one name in a union.

No ``from __future__ import annotations`` here: pydantic reads the annotations of these classes.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Union, get_args

from PIL import Image

from lib_masknoise.scene import colours, pictures
from lib_masknoise.scene.errors import Problem, SceneError, number, shown
from lib_masknoise.scene.points import MAX_POINTS, Point, Points
from lib_masknoise.scene.pydantic1 import pydantic
from lib_masknoise.scene.rules import Rule, check_list
from lib_masknoise.scene.strict import Part, bounded, each, not_below

MAX_STROKES = 10_000
MAX_STAMPS = 1000
MAX_FILTERS = 200
MAX_FLOW_LENGTH = 10_000


def _feather() -> Any:
    return bounded(0.0, 0.0, 1.0, "Width of the soft edge, as a fraction of the image's shorter side.")


class Mask(Part):
    """A soft mask; which one its ``kind`` says."""

    always_said: ClassVar[tuple[str, ...]] = ("kind",)

    @property
    def moves(self) -> bool:
        """Whether it is another one from frame to frame, by itself."""
        return False


def _kind_required(schema: dict[str, Any], model: type) -> None:
    schema["required"] = [*schema.get("required", []), "kind"]


class RectMask(Mask):
    """A rectangle; by default the whole image."""

    always_said: ClassVar[tuple[str, ...]] = ()

    kind: Literal["rect"] = "rect"
    left: float = bounded(0.0, 0.0, 1.0, "Left edge, as a fraction of the width.")
    top: float = bounded(0.0, 0.0, 1.0, "Top edge, as a fraction of the height.")
    right: float = bounded(1.0, 0.0, 1.0, "Right edge, as a fraction of the width.")
    bottom: float = bounded(1.0, 0.0, 1.0, "Bottom edge, as a fraction of the height.")
    feather: float = _feather()

    _right = not_below("left", "right")
    _bottom = not_below("top", "bottom")


class SplitMask(Mask):
    """A strip across the image, from one edge to another along one axis."""

    class Config:
        schema_extra = _kind_required

    kind: Literal["split"] = "split"
    axis: str = pydantic.Field("x", enum=["x", "y"], description="The axis that is split.")
    from_: float = bounded(0.0, 0.0, 1.0, "Where the strip starts along the axis.", alias="from")
    to: float = bounded(1.0, 0.0, 1.0, "Where the strip ends along the axis.")
    feather: float = bounded(0.0, 0.0, 1.0, "Width of the soft edge, as a fraction of the axis.")

    _to = not_below("from_", "to")


class EllipseMask(Mask):
    """An ellipse: its half axes are fractions of the width and of the height before it is turned."""

    class Config:
        schema_extra = _kind_required

    kind: Literal["ellipse"] = "ellipse"
    x: float = bounded(0.5, 0.0, 1.0, "Centre, as a fraction of the width.")
    y: float = bounded(0.5, 0.0, 1.0, "Centre, as a fraction of the height.")
    rx: float = bounded(0.25, 0.001, 2.0, "Horizontal half axis, as a fraction of the width.")
    ry: float = bounded(0.25, 0.001, 2.0, "Vertical half axis, as a fraction of the height.")
    angle: float = bounded(0.0, -360.0, 360.0, "Clockwise turn, in degrees.")
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
            raise ValueError(f"expected a point other than from, got {shown(value)}")
        return value


class ImageMask(Mask):
    """A picture: its alpha channel where some of it is transparent, otherwise its brightness; with a colour, the places
    that have it. An animated picture is a sequence of masks."""

    class Config:
        schema_extra = _kind_required

    kind: Literal["image"] = "image"
    data: str = pydantic.Field(
        ..., description="A PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF image: a data URL, or plain base64."
    )
    invert: bool = pydantic.Field(False, description="Whether black counts as 1 instead of white.")
    tolerance: float = bounded(
        colours.TOLERANCE, 0.0, 0.5, "By how much a pixel may differ from the colour in each channel."
    )
    colour: str = pydantic.Field(
        "", description='Of a picture of flat colours: the one that the mask is, such as "#ff0000".'
    )
    sequence: str = pydantic.Field(
        "frames",
        enum=["frames", "stretch", "still"],
        description="Of an animated picture: one of its pictures for each frame, all of them over the whole animation, "
        "or the same one always.",
    )
    picture: float = bounded(
        0.0,
        0.0,
        pictures.MAX_PICTURES - 1,
        "Of an animated picture: the one at frame 0, counted from 0; a fraction lies between two.",
    )

    @pydantic.validator("data")
    def _decodable(cls, value: str) -> str:
        pictures.check(value)
        return value

    @pydantic.validator("colour")
    def _in_the_picture(cls, value: str, values: Mapping[str, Any]) -> str:
        if value:
            colours.parsed(value)
            if "data" in values and "tolerance" in values:
                pictures.check_colour(values["data"], value, values["tolerance"])
        return value

    @pydantic.validator("picture")
    def _one_of_them(cls, value: float, values: Mapping[str, Any]) -> float:
        last = pictures.picture_count(values["data"]) - 1 if "data" in values else value
        if value > last:
            raise ValueError(f"expected at most {last}, as there are {last + 1} pictures; got {number(value)}")
        return value

    @property
    def moves(self) -> bool:
        return self.sequence != "still" and self.count > 1

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return pictures.picture_count(self.data)

    def at(self, frame: float, total: int, loop: bool) -> "ImageMask":
        """The still mask at a frame (of ``total``, a fraction or whole); ``loop``: whether the sequence begins again
        after its last picture, which otherwise stays."""
        if not self.moves:
            return self
        last = self.count - 1
        place = self.picture + frame
        if self.sequence == "stretch":
            reach, frames = (self.count, total) if loop else (last - self.picture, max(total - 1, 1))
            place = self.picture + frame * reach / frames
        place = place % self.count if loop else min(place, last)
        return self.copy(update={"picture": float(place), "sequence": "still"})

    @classmethod
    def of(cls, picture: Any, invert: bool = False) -> "ImageMask":
        """The mask that a PIL image shows, or a NumPy array or PyTorch tensor [H, W] of bool, uint8 or floats 0 to 1; a
        list of them, all of one size, is a sequence.

        It is kept as a PNG, without loss (floats to 1/65535). Raises SceneError for another shape, dtype or range.
        """
        try:
            listed = isinstance(picture, list | tuple)
            data = pictures.sequence_url(picture) if listed else pictures.data_url(picture)
        except ValueError as error:
            raise SceneError([Problem("", str(error))]) from None
        return cls(data=data, invert=invert)

    @classmethod
    def read(cls, source: Any, **settings: Any) -> "ImageMask":
        """The mask in a picture's file; of the pictures in a folder, or those of a pattern such as ``masks/*.png``, a
        sequence in the order of their names, numbers as numbers. settings: other fields. Raises SceneError."""
        try:
            data = pictures.read_sequence(source)
        except ValueError as error:
            raise SceneError([Problem("", str(error))]) from None
        return cls(data=data, **settings)


class Stroke(Part):
    """One stroke of a round brush."""

    points: Points = pydantic.Field(..., description="[x, y] or [x, y, pressure], each from 0 to 1.")
    radius: float = bounded(0.05, 0.0005, 1.0, "Brush radius, as a fraction of the image's shorter side.")
    hardness: float = bounded(0.5, 0.0, 1.0, "The fraction of the radius that is fully covered.")
    opacity: float = bounded(1.0, 0.0, 1.0, "How much one stroke covers at most.")
    flow: float = bounded(
        1.0, 0.01, 1.0, "How much one dab of the brush covers: below 1, going over a place again covers more of it."
    )
    erase: bool = pydantic.Field(False, description="Whether the stroke takes away instead of adding.")

    @property
    def radii(self) -> float:
        """Its length in brush radii, on a square image."""
        return sum(math.dist(a[:2], b[:2]) for a, b in itertools.pairwise(self.points)) / self.radius


AnyShape = Union[RectMask, SplitMask, EllipseMask, GradientMask, ImageMask]  # noqa: UP007


class Stamp(Part):
    """A whole shape or picture, painted like a stroke."""

    mask: AnyShape = pydantic.Field(..., discriminator="kind", description="What is painted: any mask but strokes.")
    opacity: float = bounded(1.0, 0.0, 1.0, "How much it covers at most.")
    erase: bool = pydantic.Field(False, description="Whether it takes away instead of adding.")

    @pydantic.validator("mask", pre=True)
    def _by_kind(cls, value: Any) -> Mask:
        return mask_of(value, AnyShape)


class Filter(Part):
    """A change of everything painted before it."""

    filter: str = pydantic.Field(..., enum=["invert", "blur"], description="What is done.")
    amount: float = bounded(
        0.05, 0.0, 1.0, "Of a blur: the width that a hard edge gets, as a fraction of the image's shorter side."
    )


Operation = Union[Stroke, Stamp, Filter]  # noqa: UP007


def _operation(value: Any) -> Part:
    """The entry of a strokes mask that a mapping describes: ``mask`` or ``filter`` says which it is, else it is a
    stroke."""
    if isinstance(value, Stroke | Stamp | Filter):
        return value
    kind: type[Part] = Stroke
    if isinstance(value, Mapping):
        kind = Stamp if "mask" in value else Filter if "filter" in value else Stroke
    return kind.validate(value)


class StrokesMask(Mask):
    """Brush strokes, shapes and filters, applied one after the other to an empty mask."""

    class Config:
        schema_extra = _kind_required

    kind: Literal["strokes"] = "strokes"
    strokes: tuple[Operation, ...] = pydantic.Field((), maxItems=MAX_STROKES, description="In the order painted.")

    @property
    def moves(self) -> bool:
        return any(isinstance(entry, Stamp) and entry.mask.moves for entry in self.strokes)

    @pydantic.validator("strokes", pre=True)
    def _by_entry(cls, value: tuple[Any, ...]) -> tuple[Part, ...]:
        """Count before looking at each entry: a request must not cost more than the limits allow."""
        check_list(value, 0, MAX_STROKES)
        _check_amounts([entry for entry in value if isinstance(entry, Mapping)])
        return each(_operation, value)

    @pydantic.validator("strokes")
    def _short_enough(cls, value: tuple[Operation, ...]) -> tuple[Operation, ...]:
        """A stroke with flow is drawn dab by dab, at four to a radius."""
        length = sum(stroke.radii for stroke in value if isinstance(stroke, Stroke) and stroke.flow < 1)
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


AnyMask = Union[AnyShape, StrokesMask]  # noqa: UP007


def mask_of(value: Any, allowed: Any = AnyMask) -> Mask:
    """The mask that a mapping describes, by its kind; a picture as `ImageMask.of` takes it. A mask passes as it is."""
    kinds: dict[str, type[Mask]] = {mask.__fields__["kind"].default: mask for mask in get_args(allowed)}
    if isinstance(value, Mask) and type(value) in kinds.values():
        return value
    if isinstance(value, Image.Image) or hasattr(value, "__array__"):
        return ImageMask.of(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object, got {shown(value)}")
    kind = value.get("kind", "rect")
    try:
        Rule(str, choices=tuple(kinds)).check(kind)
    except ValueError as error:
        raise SceneError([Problem("kind", str(error))]) from None
    return kinds[kind].validate(value)
