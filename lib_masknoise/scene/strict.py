"""The base of every part of a scene: strict, complete in its complaints, immutable. And the fields they are made of.

No ``from __future__ import annotations`` here and where parts are defined: pydantic reads the annotations.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lib_masknoise.controls import control
from lib_masknoise.scene.errors import Problem, SceneError, number, path_of, shown
from lib_masknoise.scene.pydantic1 import pydantic
from lib_masknoise.scene.reading import read_json
from lib_masknoise.scene.rules import Rule, check_list, suggestion

Self = TypeVar("Self", bound="Part")

if TYPE_CHECKING:
    AnyModel = TypeVar("AnyModel", bound="_Model")

    class _Model:
        """What we use of pydantic's model. By its own type a checker would refuse what a part takes: a list where the
        field is a tuple, a mapping where it is a part, an array where it is a mask."""

        __fields__: ClassVar[dict[str, Any]]

        def __init__(self, **given: Any) -> None: ...

        def copy(self: AnyModel, *, update: Mapping[str, Any]) -> AnyModel: ...

        @classmethod
        def schema(cls, by_alias: bool = True) -> dict[str, Any]: ...

else:
    _Model = pydantic.BaseModel


def _nullable(schema: dict[str, Any], model: Any) -> None:
    """Pydantic's schema leaves out that a field may be null."""
    for field in model.__fields__.values():
        if field.allow_none:
            given = schema["properties"][field.alias]
            description = given.pop("description")
            null = {"type": "null"}
            schema["properties"][field.alias] = {"description": description, "anyOf": [given, null], "default": None}


class Part(_Model):
    """What every part of a scene has in common.

    ``Part(field=value, …)`` takes parts, or what JSON has for them. A field whose name Python reserves has an
    underscore behind it (``from_``). Raises SceneError with every problem, each by its path.
    """

    always_said: ClassVar[tuple[str, ...]] = ()
    """Fields that the short form of `to_dict` has also where they are the default."""

    class Config:
        extra = "forbid"
        frozen = True
        copy_on_model_validation = "none"
        schema_extra = _nullable

    def __init__(self, /, **given: Any) -> None:
        aliases = {name: field.alias for name, field in self.__fields__.items()}
        twice = [alias for name, alias in aliases.items() if name != alias and name in given and alias in given]
        if twice:
            raise SceneError(Problem(alias, "given more than once") for alias in twice)
        self._fill({aliases.get(name, name): value for name, value in given.items()})

    def _fill(self, given: Mapping[Any, Any]) -> None:
        names = tuple(field.alias for field in self.__fields__.values())
        expected = f"unknown field; expected one of {', '.join(names)}"
        wrong = [Problem(path_of([key]), expected + suggestion(key, names)) for key in given if key not in names]
        try:
            super().__init__(**{name: given[name] for name in names if name in given})
        except pydantic.ValidationError as error:
            wrong = [*_problems(error.raw_errors, ()), *wrong]
        if wrong:
            raise SceneError(wrong)

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
            return check_list(value, extra.get("minItems", 0), extra["maxItems"])
        if value is None:
            raise ValueError(f"expected {getattr(field.outer_type_, 'expected', 'an object')}, got null")
        return value

    @classmethod
    def validate(cls: type[Self], value: Any) -> Self:
        """The part described by a mapping (a part of this class passes as it is). Raises SceneError."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise SceneError([Problem("", f"expected an object, got {shown(value)}")])
        part = cls.__new__(cls)
        part._fill(value)
        return part

    @classmethod
    def parse(cls: type[Self], data: str | bytes | Mapping[str, Any]) -> Self:
        """The scene, or another part, that ``data`` (JSON text, its bytes, or the object itself) describes.

        Raises SceneError with every problem, each by its path.
        """
        given, repeated = read_json(data) if isinstance(data, str | bytes | bytearray) else (data, [])
        try:
            part = cls.validate(given)
        except SceneError as error:
            raise SceneError((*error.problems, *repeated)) from None
        if repeated:
            raise SceneError(repeated)
        return part

    def to_dict(self, defaults: bool = True) -> dict[str, Any]:
        """The part as JSON types, in the fields' order: complete, or without what equals the defaults.

        ``parse(part.to_dict()) == part``, and the same with ``defaults=False``.
        """
        values = {name: getattr(self, name) for name in self.__fields__}
        return {
            self.__fields__[name].alias: _plain(value, defaults)
            for name, value in values.items()
            if defaults or value != self.default_of(name) or name in self.always_said
        }

    def default_of(self, name: str) -> Any:
        """What a field would be if it had not been given."""
        return self.__fields__[name].get_default()


def _plain(value: Any, defaults: bool) -> Any:
    if isinstance(value, Part):
        return value.to_dict(defaults)
    return [_plain(item, defaults) for item in value] if isinstance(value, tuple) else value


def _rule(field: Any) -> Rule | None:
    kind = field.outer_type_
    for scalar in (bool, int, float, str):
        if isinstance(kind, type) and issubclass(kind, scalar):
            info = field.field_info
            return Rule(scalar, info.ge, info.le, tuple(info.extra.get("enum", ())))
    return None


def _problems(errors: Any, steps: tuple[Any, ...]) -> Iterator[Problem]:
    """Pydantic's tree of errors as a flat list. An error that has problems of its own stands for those."""
    for error in errors:
        if isinstance(error, list | tuple):
            yield from _problems(error, steps)
            continue
        here = (*steps, *error.loc_tuple())
        if isinstance(error.exc, SceneError):
            yield from (problem.under(path_of(here)) for problem in error.exc.problems)
        elif isinstance(error.exc, pydantic.errors.MissingError):
            yield Problem(path_of(here), "missing; expected a value")
        else:
            yield Problem(path_of(here), str(error.exc))


def each(check: Callable[[Any], Any], values: Any) -> tuple[Any, ...]:
    """``check`` of every entry of a list. Raises SceneError with the problems of all."""
    checked, wrong = [], []
    for i, value in enumerate(values):
        try:
            checked.append(check(value))
        except SceneError as error:
            wrong += [problem.under(f"[{i}]") for problem in error.problems]
        except ValueError as error:
            wrong.append(Problem(f"[{i}]", str(error)))
    if wrong:
        raise SceneError(wrong)
    return tuple(checked)


# --- Fields. They are Any for the type checker, as pydantic's own are: the annotation beside them says the type.


def setting(path: str) -> Any:
    """A field that is a control: default, bounds, choices and description come from the table."""
    entry = control(path)
    extra: dict[str, Any] = {}
    if isinstance(entry.default, tuple):
        items = {"type": "string", "enum": list(entry.choices)}
        extra = {"items": items, "minItems": 1, "maxItems": len(entry.choices), "uniqueItems": True}
    elif entry.choices:
        extra = {"enum": list(entry.choices)}
    return pydantic.Field(entry.default, ge=entry.low, le=entry.high, description=entry.help, **extra)


def setting_or_none(path: str) -> Any:
    """A field with a control's bounds that may be left out."""
    entry = control(path)
    return pydantic.Field(None, ge=entry.low, le=entry.high, description=entry.help)


def bounded(default: float, low: float, high: float, description: str, **extra: Any) -> Any:
    """A number that is no control."""
    return pydantic.Field(default, ge=low, le=high, description=description, **extra)


def not_below(low: str, high: str) -> Any:
    """A validator: field ``high`` must not be below field ``low`` (silent where ``low`` itself is wrong)."""

    def check(cls: type, value: float, values: Mapping[str, Any]) -> float:
        if low in values and value < values[low]:
            least = f"{low.rstrip('_')} ({number(values[low])})"
            raise ValueError(f"expected at least {least}, got {number(value)}")
        return value

    return pydantic.validator(high, allow_reuse=True)(check)


def tidy(schema: Any) -> Any:
    """Pydantic's schema without its made-up titles and OpenAPI's discriminator."""
    if isinstance(schema, dict):
        return {
            key: tidy(value)
            for key, value in schema.items()
            if key != "discriminator" and not (key == "title" and isinstance(value, str))
        }
    return [tidy(item) for item in schema] if isinstance(schema, list | tuple) else schema
