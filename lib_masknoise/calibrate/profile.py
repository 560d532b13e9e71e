"""What was measured of a checkpoint: for each effect the range in which it is useful; kept as JSON by the model's hash.

A strength in per cent is a place in that range: 0 is barely visible, 100 the last one before pictures break, at 130
more than half of them is lost, and between 0 and 100 equal steps look equal. A scene keeps raw numbers, so that a
picture stays what it is; presets may say per cent, which become numbers of the model at hand when they are loaded.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib_masknoise.controls import control
from lib_masknoise.disk import replace_file
from lib_masknoise.scene import Problem, Scene, SceneError

VERSION = 2
READABLE = (1, VERSION)
"""Profiles of version 1 have no `lost` and no `lengths`: per cent are of their curve, and they are not reused."""
HOME = Path.home() / ".masknoise" / "profiles"
"""Where the command line and the page keep profiles; the WebUIs look there too, as that is where style is found."""

ORIGINS: Mapping[str, float] = {
    "blend.scale": 0.0,
    "concepts[].weight": 1.0,
    "noise.visual.strength": 0.0,
    "noise.concept.strength": 0.0,
    "noise.feature.strength": 0.0,
}
"""The controls whose range is measured, and where each does nothing. `blend.scale` counts in mode "add" alone."""

PERCENT = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*%\s*")
MAX_PERCENT = 1000.0
KEY = re.compile(r"[0-9a-f]{8,64}")

STEPS = 10
"""Of the range, between which per cent pass evenly."""
LOST = 130.0
"""Per cent at which more than half of a picture is lost."""

FAMILIAR = 0.5
"""A scene of whose words a smaller part occurs in a profile's prompts is another scene than it was measured on."""
LITTLE_WORDS = frozenset("a an the of in on at with and or to by from is are".split())


class NoProfile(ValueError):
    """There is none of the model at hand."""


@dataclass(frozen=True)
class Band:
    """Where one effect is useful. All strengths are raw values of its control.

    visible: from where on it is seen; None where it is not, up to the control's bound. broken: the last strength before
    pictures break; None where none does up to the bound. rows: how many rows of the denoiser that took, for each
    prompt. scales, changes: the curve behind it, strengths in ascending order and how much each changes the picture, in
    distances of two seeds. lost: from where on more than half of a picture is lost; None where that was not found up to
    the bound. lengths: how far pictures have moved on the way to each of scales, in the same distances: what has come
    back or turned counts too, so that equal steps of it look equal.
    """

    effect: str
    visible: float | None
    broken: float | None
    rows: int = 0
    scales: tuple[float, ...] = ()
    changes: tuple[float, ...] = ()
    lost: float | None = None
    lengths: tuple[float, ...] = ()

    @property
    def origin(self) -> float:
        return ORIGINS[self.effect]

    @property
    def top(self) -> float:
        """What 100 % is: the last strength before pictures break, or the control's bound."""
        return self.broken if self.broken is not None else self._bound

    @property
    def end(self) -> float:
        """What 130 % is, where `top` is not the control's bound: from where on more than half is lost, or the bound."""
        return self.lost if self.lost is not None else self._bound

    @property
    def _bound(self) -> float:
        return float(control(self.effect).high or 0.0)

    def place(self, value: float) -> str:
        """ "invisible", "useful" or "broken"."""
        if self.visible is None or value < self.visible:
            return "invisible" if self.broken is None or value <= self.broken else "broken"
        return "useful" if value <= self.top else "broken"

    def percent(self, value: float) -> float | None:
        """The place of a strength in the range, by straight lines between `places` in the logarithm of what is above
        the origin; −∞ at the origin and below it. None where nothing is visible."""
        places, above = self.places, value - self.origin
        if not places:
            return None
        return _along(*self._lines, math.log(above)) if above > 0 else -math.inf

    def value(self, percent: float) -> float | None:
        """The strength at a place in the range: the inverse of `percent`. None where nothing is visible."""
        if not self.places:
            return None
        logs, percents = self._lines
        return self.origin + math.exp(_along(percents, logs, percent))

    @property
    def places(self) -> list[tuple[float, float]]:
        """Strengths and their per cent, both growing: equal ratios from 0 to 100 %, whose per cent is how much of the
        way that pictures go between these ends they have gone there; and 130 %. Empty where nothing is visible."""
        if self.visible is None or not self.origin < self.visible < self.top:
            return []
        low, ratio = self.visible - self.origin, (self.top - self.origin) / (self.visible - self.origin)
        strengths = [self.origin + low * ratio ** (i / STEPS) for i in range(STEPS + 1)]
        further = [(self.end, LOST)] if self.end > self.top else []
        return [*zip(strengths, self._percents(strengths), strict=True), *further]

    @property
    def _lines(self) -> tuple[list[float], list[float]]:
        """`places` as logarithms of what is above the origin, and per cent."""
        strengths, percents = zip(*self.places, strict=True)
        return [math.log(strength - self.origin) for strength in strengths], list(percents)

    def _percents(self, strengths: Sequence[float]) -> list[float]:
        """How much of the way from the first of some strengths to the last one pictures have gone at each, growing."""
        even = [100.0 * i / (len(strengths) - 1) for i in range(len(strengths))]
        if len(self.scales) < 2:
            return even
        logs = [math.log(max(scale - self.origin, 1e-9)) for scale in self.scales]
        values = [math.log(max(length, 1e-9)) for length in self.lengths or self.changes]
        gone = [math.exp(_between(values, logs, math.log(strength - self.origin))) for strength in strengths]
        if any(after - before <= 1e-6 for before, after in zip(gone, gone[1:], strict=False)):
            return even
        return [100.0 * (length - gone[0]) / (gone[-1] - gone[0]) for length in gone]


@dataclass(frozen=True)
class Profile:
    """model: the hash of the checkpoint's weights. name: of the checkpoint, for people. prompts: what was measured
    with. settings: how (guidance_scale, size, …). effects: by the controls' paths. style: what has been found of
    directions of style, None where they have not been looked for. version: of the file that the effects are from.
    """

    model: str
    prompts: tuple[str, ...]
    effects: Mapping[str, Band]
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    style: Mapping[str, Any] | None = None
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """As profile.json has it."""
        bands = {path: _said(band) for path, band in self.effects.items()}
        return {
            "version": self.version,
            "model": self.model,
            "name": self.name,
            "prompts": list(self.prompts),
            "settings": dict(self.settings),
            "effects": bands,
            **({} if self.style is None else {"style": dict(self.style)}),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def parse(cls, given: Any) -> Profile:
        """From an object or its JSON text. Raises SceneError with what is wrong, by path."""
        if isinstance(given, str | bytes):
            try:
                given = json.loads(given)
            except ValueError as error:
                raise SceneError([Problem("", f"not valid JSON ({error})")]) from None
        return _Reading().profile(given)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Profile:
        """The profile in a JSON file. Raises SceneError, also where the file cannot be read."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise SceneError([Problem("", f"cannot read {path}: {error.strerror or error}")]) from None
        try:
            return cls.parse(data)
        except SceneError as error:
            raise SceneError([Problem(p.path, f"{p.message} (in {path})") for p in error.problems]) from None

    def write(self, path: str | os.PathLike[str]) -> None:
        replace_file(Path(path), self.to_json().encode())

    def band(self, path: str) -> Band | None:
        """Of the control at a place in a scene, ``concepts[2].weight`` too."""
        return self.effects.get(general(path))

    def answers(self, prompts: Sequence[str], settings: Mapping[str, Any]) -> bool:
        """Whether measuring with these would give it again: it has effects, of the same, as this version finds them."""
        same = (self.prompts, self.settings) == (tuple(prompts), settings)
        return bool(self.effects) and self.version == VERSION and same

    def familiar(self, prompts: Iterable[str]) -> bool:
        """Whether it was measured with prompts like these: at least half of their words occur in its own. The range
        varies with the prompts about as much as with the effect."""
        asked = _words(prompts)
        return not asked or len(asked & _words(self.prompts)) >= FAMILIAR * len(asked)


def _said(band: Band) -> dict[str, Any]:
    """A band as JSON types, without the effect, which is its name."""
    given = asdict(band)
    del given["effect"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _between(values: Sequence[float], places: Sequence[float], place: float) -> float:
    """A value by straight lines between those at ascending places; beyond them the nearest one."""
    if place <= places[0]:
        return values[0]
    for i in range(1, len(places)):
        if place <= places[i]:
            way = (place - places[i - 1]) / (places[i] - places[i - 1])
            return values[i - 1] + way * (values[i] - values[i - 1])
    return values[-1]


def _along(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """The same, and beyond them by the line through the first and the last one: where both grow, the inverse is that
    with values and places exchanged."""
    if places[0] <= place <= places[-1]:
        return _between(values, places, place)
    slope = (values[-1] - values[0]) / (places[-1] - places[0])
    near = 0 if place < places[0] else -1
    return values[near] + slope * (place - places[near])


def general(path: str) -> str:
    """``concepts[2].keyframes[0].weight`` and ``concepts[2].weight`` are places of ``concepts[].weight``."""
    return re.sub(r"^concepts\[\d+\](\.keyframes\[\d+\])?\.", "concepts[].", path)


def _words(prompts: Iterable[str]) -> set[str]:
    return {word for prompt in prompts for word in re.findall(r"[^\W_]+", prompt.lower())} - LITTLE_WORDS


# --- Strictly read


class _Reading:
    """What is wrong is gathered, so that all of it is said at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def profile(self, given: Any) -> Profile:
        if not isinstance(given, Mapping):
            raise SceneError([Problem("", "expected a profile, a JSON object")])
        version = given.get("version")
        if isinstance(version, bool) or version not in READABLE:
            raise SceneError([Problem("version", f"expected 1 or {VERSION}, got {version!r}")])
        known = ("version", "model", "name", "prompts", "settings", "effects", "style")
        self.problems += [Problem(str(name), "not a field of a profile") for name in given if name not in known]
        model = self._checked("model", given.get("model"), isinstance(given.get("model"), str), "a text")
        name = self._checked("name", given.get("name", ""), isinstance(given.get("name", ""), str), "a text")
        prompts = given.get("prompts", [])
        texts = isinstance(prompts, list) and all(isinstance(text, str) for text in prompts)
        self._checked("prompts", prompts, texts, "a list of texts")
        settings = given.get("settings", {})
        self._checked("settings", settings, isinstance(settings, Mapping), "an object")
        effects = given.get("effects")
        self._checked("effects", effects, isinstance(effects, Mapping), "an object")
        bands = {str(path): self._band(str(path), one) for path, one in dict(effects or {}).items()}
        style = given.get("style")
        self._checked("style", style, style is None or isinstance(style, Mapping), "an object")
        if self.problems:
            raise SceneError(self.problems)
        found = {path: band for path, band in bands.items() if band is not None}
        return Profile(model, tuple(prompts), found, name, settings, style, int(version))

    def _checked(self, path: str, value: Any, right: bool, wanted: str) -> Any:
        if not right:
            self.problems.append(Problem(path, f"expected {wanted}, got {value!r}"))
        return value

    def _band(self, effect: str, given: Any) -> Band | None:
        path = f"effects.{effect}"
        if effect not in ORIGINS:
            self.problems.append(Problem(path, f"expected one of {', '.join(ORIGINS)}"))
            return None
        if not isinstance(given, Mapping):
            self.problems.append(Problem(path, "expected an object"))
            return None
        count = len(self.problems)
        ends = ("visible", "broken", "lost")
        visible, broken, lost = (self._number(f"{path}.{name}", given.get(name), True) for name in ends)
        rows = self._number(f"{path}.rows", given.get("rows", 0)) or 0
        curve = ("scales", "changes", "lengths")
        scales, changes, lengths = (self._numbers(f"{path}.{name}", given.get(name, [])) for name in curve)
        if len(self.problems) > count:
            return None
        for name, values in (("changes", changes), ("lengths", lengths)):
            if len(values) != len(scales) and not (name == "lengths" and not values):
                self.problems.append(Problem(f"{path}.{name}", "expected one for each of scales"))
                return None
        return Band(effect, visible, broken, int(rows), scales, changes, lost, lengths)

    def _number(self, path: str, value: Any, optional: bool = False) -> float | None:
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        self._checked(path, value, right or (optional and value is None), "a number")
        return float(value) if right else None

    def _numbers(self, path: str, given: Any) -> tuple[float, ...]:
        values = given if isinstance(given, list) else []
        self._checked(path, given, isinstance(given, list), "a list of numbers")
        return tuple(self._number(f"{path}[{i}]", value) or 0.0 for i, value in enumerate(values))


# --- Kept by the model's hash


class Profiles:
    """The profiles in a folder, one file a model: ``HASH.json``, and ``HASH.npz`` for the arrays of its style."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, model: str) -> Path:
        """Of a model's profile, by its hash. Raises ValueError for what is no hash."""
        if not KEY.fullmatch(model):
            raise ValueError(f"expected a hash in hexadecimal digits, got {model!r}")
        return self.folder / f"{model[:16]}.json"

    def load(self, model: str) -> Profile | None:
        """Of a model, None where there is none. Raises SceneError where its file cannot be used."""
        path = self.path(model)
        return Profile.read(path) if path.is_file() and not path.is_symlink() else None

    def save(self, profile: Profile) -> Path:
        """Keep a profile; what the last one of the model had of style stays. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(profile.model)
        profile.write(path)
        return path


# --- Per cent


def strengths(scene: Scene) -> Iterator[tuple[str, float]]:
    """The strengths of a scene that a profile has a range for and that do something, with their places."""
    if scene.blend.mode == "add" and scene.acting.concepts:
        yield "blend.scale", scene.blend.scale
    for i, concept in enumerate(scene.concepts):
        if not concept.enabled:
            continue
        keyed = [(f"concepts[{i}].keyframes[{j}].weight", key.weight) for j, key in enumerate(concept.keyframes)]
        for path, weight in [(f"concepts[{i}].weight", concept.weight), *keyed]:
            if weight is not None and weight > 1 and scene.blend.mode != "add":
                yield path, weight
    for name in ("visual", "concept", "feature"):
        strength = getattr(scene.noise, name).strength
        if strength > 0:
            yield f"noise.{name}.strength", strength


def outside(scene: Scene, profile: Profile, prompts: Sequence[str] = ()) -> tuple[Problem, ...]:
    """Remarks on the strengths of a scene that lie outside their ranges. prompts: the image's own, to tell whether the
    profile is of prompts like these."""
    found = []
    for path, value in strengths(scene):
        band = profile.band(path)
        if band is None:
            continue
        place, percent = band.place(value), band.percent(value)
        said = "" if percent is None else f" ({percent:.0f} % of this model's useful range)"
        if place == "invisible":
            end = f"visible from {band.visible:.3g} on" if band.visible is not None else "nothing of it is"
            found.append(Problem(path, f"{value:g}: barely visible with this model{said}; {end}"))
        elif place == "broken":
            what = "more than half is lost" if band.lost is not None and value >= band.lost else "pictures break"
            found.append(Problem(path, f"{value:g}: {what} with this model{said}; up to {band.top:.3g} holds"))
    if found and profile.version < VERSION:
        found.append(Problem("", "the useful range was measured by an earlier version; calibrate again"))
    own = [*prompts, *(concept.prompt for concept in scene.acting.concepts)]
    if found and not profile.familiar(own):
        found.append(Problem("", "the useful range was measured with other prompts; calibrate again for these"))
    return tuple(found)


def in_percent(path: str, value: Any) -> float | None:
    """The number of a text that says per cent ("40%"), None for anything else."""
    match = PERCENT.fullmatch(value) if isinstance(value, str) and general(path) in ORIGINS else None
    return float(match[1]) if match else None


def in_numbers(data: Any, profile: Profile | None) -> Any:
    """A scene's JSON types with every strength that says per cent ("40%") as a number of the model at hand.

    Raises SceneError, by path: where there is no profile, where it has no range for that control, where a weight of all
    concepts is not one of mode "add", for per cent beyond the control's bounds.
    """
    made, problems = copy.deepcopy(data), []
    for path, holder, name in _places(made):
        percent = in_percent(path, holder[name])
        if percent is None:
            continue
        try:
            holder[name] = _number_of(path, percent, made, profile)
        except ValueError as error:
            problems.append(Problem(path, str(error)))
    if problems:
        raise SceneError(problems)
    return made


def with_percent(scene: Scene, profile: Profile) -> dict[str, Any]:
    """A scene's JSON types, without what equals the defaults, in which every strength with a range says per cent."""
    made = {"version": scene.version, **scene.to_dict(defaults=False)}
    known = dict(strengths(scene))
    for path, holder, name in _places(made):
        band = profile.band(path)
        percent = None if band is None or path not in known else band.percent(known[path])
        if percent is not None and abs(percent) <= MAX_PERCENT:
            holder[name] = f"{round(percent, 2):g}%"
    return made


def _places(data: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every strength in a scene's JSON types: its path, the object that has it, and its name there."""
    if not isinstance(data, dict):
        return

    def inside(place: Any, name: str) -> Any:
        found = place.get(name) if isinstance(place, dict) else None
        return found if isinstance(found, dict | list) else {}

    blend = inside(data, "blend")
    holders: list[tuple[str, Any, str]] = [("blend.scale", blend, "scale")]
    holders += [
        (f"noise.{name}.strength", inside(inside(data, "noise"), name), "strength")
        for name in ("visual", "concept", "feature")
    ]
    for i, concept in enumerate(inside(data, "concepts") or ()):
        holders.append((f"concepts[{i}].weight", concept, "weight"))
        for j, key in enumerate(inside(concept, "keyframes") or ()):
            holders.append((f"concepts[{i}].keyframes[{j}].weight", key, "weight"))
    yield from ((path, holder, name) for path, holder, name in holders if isinstance(holder, dict) and name in holder)


def _number_of(path: str, percent: float, data: Any, profile: Profile | None) -> float:
    if profile is None:
        raise NoProfile(
            f"{percent:g}%: there is no profile of this model to know what that is; make one with the button "
            "Calibrate or python -m lib_masknoise calibrate"
        )
    adds = (data.get("blend") or {}).get("mode") == "add"
    if path == "blend.scale" and not adds:
        raise ValueError(f'{percent:g}%: per cent are of the mode "add" alone; expected a number')
    if general(path) == "concepts[].weight" and adds:
        raise ValueError(f'{percent:g}%: in the mode "add" blend.scale has the per cent; expected a number')
    band = profile.band(path)
    value = None if band is None else band.value(percent)
    if value is None:
        raise ValueError(f"{percent:g}%: the profile of this model has no useful range for it")
    entry = control(general(path))
    if not (entry.low or 0.0) <= value <= (entry.high or math.inf):
        raise ValueError(f"{percent:g}% is {value:.3g} with this model; expected at most {entry.high:g}")
    return value
