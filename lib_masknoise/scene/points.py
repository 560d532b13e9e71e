"""Places in an image, as JSON writes them: [x, y], each 0 to 1, y down."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from lib_masknoise.scene.errors import shown
from lib_masknoise.scene.rules import Rule
from lib_masknoise.scene.strict import each

MAX_POINTS = 100_000

_COORDINATE = Rule(float, 0.0, 1.0)


class Point(tuple[float, ...]):
    """[x, y], each 0 to 1 over the image; y points down."""

    expected: ClassVar[str] = "[x, y] with numbers from 0 to 1"

    @classmethod
    def __get_validators__(cls) -> Iterator[Callable[..., Any]]:
        yield cls.validate

    @classmethod
    def __modify_schema__(cls, schema: dict[str, Any]) -> None:
        schema.update(_schema(2))

    @classmethod
    def validate(cls, value: object) -> "Point":
        return cls(_place(value, 2, cls.expected))


class Points(tuple[tuple[float, ...], ...]):
    """A stroke's path: [x, y] or [x, y, pressure] each, all numbers 0 to 1; at least one point."""

    expected: ClassVar[str] = "a list of [x, y] or [x, y, pressure]"

    @classmethod
    def __get_validators__(cls) -> Iterator[Callable[..., Any]]:
        yield cls.validate

    @classmethod
    def __modify_schema__(cls, schema: dict[str, Any]) -> None:
        schema.update(type="array", minItems=1, maxItems=MAX_POINTS, items=_schema(3))

    @classmethod
    def validate(cls, value: object) -> "Points":
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"expected {cls.expected}, got {shown(value)}")
        return cls(each(lambda point: _place(point, 3, "[x, y] or [x, y, pressure], from 0 to 1"), value))


def _place(value: object, most: int, expected: str) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= most or not all(map(_COORDINATE.fits, value)):
        raise ValueError(f"expected {expected}, got {shown(value)}")
    return tuple(map(float, value))


def _schema(most: int) -> dict[str, Any]:
    coordinate = {"type": "number", "minimum": 0, "maximum": 1}
    return {"type": "array", "minItems": 2, "maxItems": most, "items": coordinate}
