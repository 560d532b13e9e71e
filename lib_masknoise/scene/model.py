"""The Scene: the one description of a job, and the only way a request enters the program.

A Scene is JSON (docs/scene.md shows every field). Parsing is strict, because a wrong setting that is quietly
dropped costs the user a wrong image: unknown fields, wrong types, numbers out of bounds and unreadable mask
images are all refused, all at once, each with its path and what was expected there. Scalar settings take
their defaults, bounds, choices and descriptions from :mod:`lib_masknoise.controls`.

No ``from __future__ import annotations`` here: pydantic reads the annotations of these classes.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Optional

from lib_masknoise import easing
from lib_masknoise.controls import control, default_scale
from lib_masknoise.scene import colours, dimensions, layers, numbers, pictures, seeds
from lib_masknoise.scene.editing import put_all
from lib_masknoise.scene.errors import Problem, SceneError, path_of, shown
from lib_masknoise.scene.masks import AnyMask, Mask, RectMask, mask_of
from lib_masknoise.scene.pydantic1 import pydantic
from lib_masknoise.scene.remarks import remarks
from lib_masknoise.scene.rules import Rule
from lib_masknoise.scene.strict import Part, bounded, each, not_below, setting, setting_or_none, tidy

VERSION = 1
MAX_CONCEPTS = 16
MAX_KEYFRAMES = 1000
MAX_VALUES = 10000
"""Keyframes of a motion, which are numbers alone: as many as an animation has frames at most."""
MAX_PROMPTS = 16
EASINGS = tuple(easing.EASINGS)


def _frame() -> Any:
    return pydantic.Field(0, ge=0, le=control("animation.frames").high, description="Index of the frame, from 0.")


def _easing() -> Any:
    description = "How it goes on to the next keyframe; step holds it until there."
    return pydantic.Field("linear", enum=list(EASINGS), description=description)


def _keyframes(description: str, most: int = MAX_KEYFRAMES) -> Any:
    return pydantic.Field((), maxItems=most, description=description)


def _check_ascending(keys: tuple[Any, ...]) -> None:
    """Raise SceneError where a key's frame does not come after the one before."""
    wrong = [
        Problem(f"[{i}].frame", f"expected more than the keyframe before ({a.frame}), got {b.frame}")
        for i, (a, b) in enumerate(itertools.pairwise(keys), 1)
        if b.frame <= a.frame
    ]
    if wrong:
        raise SceneError(wrong)


class ConceptKeyframe(Part):
    """A concept at one frame, and how it moves on from there; what is left out is as the concept itself has it."""

    frame: int = _frame()
    easing: str = _easing()
    prompt: Optional[str] = setting_or_none("concepts[].prompt")  # noqa: UP045
    negative: Optional[str] = setting_or_none("concepts[].negative")  # noqa: UP045
    weight: Optional[float] = setting_or_none("concepts[].weight")  # noqa: UP045
    mask: Optional[AnyMask] = pydantic.Field(  # noqa: UP045
        None, discriminator="kind", description="Where the concept applies at that frame."
    )

    @pydantic.validator("mask", pre=True)
    def _by_kind(cls, value: Any) -> Any:
        return None if value is None else mask_of(value)


class Concept(Part):
    """A prompt with a mask, a weight and optionally a negative prompt, and how they change over the frames."""

    always_said: ClassVar[tuple[str, ...]] = ("prompt",)

    prompt: str = setting("concepts[].prompt")
    negative: str = setting("concepts[].negative")
    weight: float = setting("concepts[].weight")
    enabled: bool = setting("concepts[].enabled")
    start: float = setting("concepts[].start")
    end: float = setting("concepts[].end")
    mask: AnyMask = pydantic.Field(
        default_factory=RectMask,
        discriminator="kind",
        description="Where the concept applies; by default everywhere.",
    )
    interpolation: str = setting("concepts[].interpolation")
    keyframes: tuple[ConceptKeyframe, ...] = _keyframes(
        "What the concept becomes at some frames, in their order; in between it moves from one to the next."
    )

    _end = not_below("start", "end")

    @pydantic.validator("mask", pre=True)
    def _by_kind(cls, value: Any) -> Mask:
        return mask_of(value)

    @pydantic.validator("keyframes")
    def _ascending(cls, value: tuple[ConceptKeyframe, ...]) -> tuple[ConceptKeyframe, ...]:
        _check_ascending(value)
        for name in ("prompt", "negative"):
            different = len({getattr(key, name) for key in value})
            if different > MAX_PROMPTS:
                raise ValueError(f"expected at most {MAX_PROMPTS} different {name}s, got {different}")
        return value

    def _fill(self, given: Mapping[Any, Any]) -> None:
        """A prompt left out may be a mistake: it has to be given, be it empty, by the concept or by every keyframe."""
        wrong = [] if "prompt" in given or _all_have_prompts(given.get("keyframes")) else [Problem("prompt", _MISSING)]
        try:
            super()._fill(given)
        except SceneError as error:
            wrong += error.problems
        if wrong:
            raise SceneError(wrong)

    @property
    def moves(self) -> bool:
        """Whether it may be another one from frame to frame."""
        return bool(self.keyframes) or self.mask.moves

    def acts_at(self, position: float) -> bool:
        """Whether it acts in the step at that fraction of them."""
        if position >= 1:  # a sampler that makes more steps than it announces
            return self.start < self.end == 1
        return self.start <= position < self.end

    def after(self, common: str) -> "Concept":
        """The concept with its prompts after a common beginning, at its keyframes too."""
        if not common:
            return self
        keys = tuple(
            key if key.prompt is None else key.copy(update={"prompt": _joined(common, key.prompt)})
            for key in self.keyframes
        )
        return self.copy(update={"prompt": _joined(common, self.prompt), "keyframes": keys})

    def at_key(self, key: ConceptKeyframe) -> "Concept":
        """The concept as it is at one of its keyframes: a still one."""
        given = {name: getattr(key, name) for name in ("prompt", "negative", "weight", "mask")}
        return self.copy(update={"keyframes": (), **{name: v for name, v in given.items() if v is not None}})


def _joined(common: str, prompt: str) -> str:
    """A beginning that ends in a comma or a line's end of its own gets no further one."""
    return f"{common}{' ' if common.endswith(',') else ', '}{prompt}" if prompt.strip() else common


_MISSING = 'missing; expected a text, be it "" for an empty prompt'


def _all_have_prompts(keys: Any) -> bool:
    return bool(_entries(keys)) and all(_given(key, "prompt") is not None for key in keys)


class Blend(Part):
    """How the concepts' prompts are mixed with the base prompt."""

    mode: str = setting("blend.mode")
    scale: float = setting("blend.scale")
    overlap: str = setting("blend.overlap")
    preserve_norm: bool = setting("blend.preserve_norm")
    feather: float = setting("blend.feather")
    start: float = setting("blend.start")
    end: float = setting("blend.end")
    hires: bool = setting("blend.hires")
    common: str = setting("blend.common")

    _end = not_below("start", "end")

    @pydantic.root_validator(pre=True)
    def _scale_of_mode(cls, values: dict[str, Any]) -> dict[str, Any]:
        mode = values.get("mode")
        return {"scale": default_scale(mode), **values} if mode == "add" else values

    def default_of(self, name: str) -> Any:
        return default_scale(self.mode) if name == "scale" else super().default_of(name)


class Keyframe(Part):
    """The motion's value at one frame and how it moves on from there."""

    frame: int = _frame()
    value: float = bounded(0.0, -1.0, 1.0, "The motion's value at that frame.")
    easing: str = _easing()


class Motion(Part):
    """How noise moves from frame to frame."""

    kind: str = setting("motion.kind")
    cycles: int = setting("motion.cycles")
    phase: float = setting("motion.phase")
    momentum: float = setting("motion.momentum")
    loop: bool = setting("motion.loop")
    keyframes: tuple[Keyframe, ...] = _keyframes(
        "For the kind keyframes: at least one, in the order of their frames.", MAX_VALUES
    )

    @pydantic.validator("keyframes", always=True)
    def _ascending(cls, value: tuple[Keyframe, ...], values: Mapping[str, Any]) -> tuple[Keyframe, ...]:
        if not value and values.get("kind") == "keyframes":
            raise ValueError("expected at least one keyframe for the kind keyframes, got none")
        _check_ascending(value)
        return value


def _own_motion() -> Any:
    return pydantic.Field(None, description="How this noise moves; null means as the scene's motion says.")


def _named_layers() -> Any:
    def check(cls: type, value: Any) -> str:
        return layers.canonical(value)

    return pydantic.validator("layers", pre=True, allow_reuse=True)(check)


class VisualNoise(Part):
    """Noise in the initial latent."""

    strength: float = setting("noise.visual.strength")
    seeds: str = setting("noise.visual.seeds")
    motion: Optional[Motion] = _own_motion()  # noqa: UP045

    @pydantic.validator("seeds", pre=True)
    def _canonical(cls, value: Any) -> Any:
        return seeds.canonical(value)

    @property
    def stops(self) -> tuple[int, ...]:
        """The seeds that the initial noise goes to; none where it has no strength."""
        return seeds.listed(self.seeds) if self.strength else ()


class ConceptNoise(Part):
    """Noise in the space of the text embeddings."""

    strength: float = setting("noise.concept.strength")
    rank: int = setting("noise.concept.rank")
    size: float = setting("noise.concept.size")
    layers: str = setting("noise.concept.layers")
    motion: Optional[Motion] = _own_motion()  # noqa: UP045

    _layers = _named_layers()


class FeatureNoise(Part):
    """Noise on chosen dimensions of the text features."""

    strength: float = setting("noise.feature.strength")
    dimensions: str = setting("noise.feature.dimensions")
    size: float = setting("noise.feature.size")
    layers: str = setting("noise.feature.layers")
    motion: Optional[Motion] = _own_motion()  # noqa: UP045

    _layers = _named_layers()

    @pydantic.validator("dimensions", pre=True)
    def _canonical(cls, value: Any) -> Any:
        return dimensions.canonical(value)


TIME = Rule(int, 1, 1000)
SHARE = Rule(float, -10, 10)


class Injection(Part):
    """How the initial noise leans towards the prompts."""

    strength: float = setting("noise.initial.inject.strength")
    form: str = setting("noise.initial.inject.form")
    times: str = setting("noise.initial.inject.times")
    weights: str = setting("noise.initial.inject.weights")
    restandardise: bool = setting("noise.initial.inject.restandardise")

    @pydantic.validator("times", pre=True)
    def _canonical_times(cls, value: Any) -> Any:
        canonical = numbers.canonical(value, TIME, "1000,800")
        if not canonical:
            raise ValueError(f"expected at least one time, got {shown(value)}")
        return canonical

    @pydantic.validator("weights", pre=True)
    def _canonical_weights(cls, value: Any, values: Mapping[str, Any]) -> Any:
        canonical = numbers.canonical(value, SHARE, "0.7,0.3")
        found, times = numbers.numbers(canonical), numbers.numbers(values.get("times", ""))
        if found and times and len(found) != len(times):
            raise ValueError(f"expected {len(times)} as there are times, or none; got {len(found)}")
        if found and not any(found):
            raise ValueError(f"expected one that is not 0, got {shown(value)}")
        return canonical

    @property
    def shares(self) -> list[tuple[int, float]]:
        """The times, and how much each counts."""
        times = [int(time) for time in numbers.numbers(self.times)]
        return list(zip(times, numbers.numbers(self.weights) or [1.0] * len(times), strict=True))


class InitialNoise(Part):
    """What is done to the initial noise before anything is sampled."""

    choose: int = setting("noise.initial.choose")
    erase: int = setting("noise.initial.erase")
    inject: Injection = pydantic.Field(default_factory=Injection, description="How it leans towards the prompts.")
    where: str = setting("noise.initial.where")

    @property
    def acts(self) -> bool:
        """Whether the noise is another one than the host's."""
        return self.erase > 1 or self.choose > 1 or self.inject.strength > 0


class Noise(Part):
    """The three kinds of noise, what they share, and the initial noise before they move it."""

    exponent: float = setting("noise.exponent")
    seed: int = setting("noise.seed")
    visual: VisualNoise = pydantic.Field(default_factory=VisualNoise, description="Noise in the initial latent.")
    concept: ConceptNoise = pydantic.Field(default_factory=ConceptNoise, description="Noise in the text embeddings.")
    feature: FeatureNoise = pydantic.Field(default_factory=FeatureNoise, description="Noise on chosen text features.")
    initial: InitialNoise = pydantic.Field(
        default_factory=InitialNoise, description="What is done to the initial noise before the first step."
    )


class Animation(Part):
    """How many frames there are and what is written from them."""

    frames: int = setting("animation.frames")
    fps: int = setting("animation.fps")
    formats: tuple[str, ...] = setting("animation.formats")
    rubber_band: bool = setting("animation.rubber_band")
    interpolate: int = setting("animation.interpolate")

    @pydantic.validator("formats", pre=True)
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        rule = Rule(str, choices=control("animation.formats").choices)
        known: list[str] = []

        def check(entry: Any) -> Any:
            if rule.check(entry) in known:
                raise ValueError(f"{shown(entry)} is given twice")
            known.append(entry)
            return entry

        return each(check, value)


class Scene(Part):
    """One job of MaskNoise. ``Scene.parse({})`` is the neutral scene; docs/scene.md describes every field."""

    version: int = pydantic.Field(VERSION, enum=[VERSION], description="Version of the scene format.")
    enabled: bool = setting("enabled")
    concepts: tuple[Concept, ...] = pydantic.Field(
        (), maxItems=MAX_CONCEPTS, description="Prompts, each with a mask of its own."
    )
    blend: Blend = pydantic.Field(default_factory=Blend, description="How concepts and base prompt are mixed.")
    noise: Noise = pydantic.Field(default_factory=Noise, description="What moves where no mask holds it.")
    motion: Motion = pydantic.Field(default_factory=Motion, description="How the noise moves from frame to frame.")
    animation: Animation = pydantic.Field(default_factory=Animation, description="The frames and their files.")

    @pydantic.validator("concepts", pre=True)
    def _pictures_fit(cls, value: Any) -> Any:
        """By the pictures' headers, before any is decoded: a small request must not unpack into a huge one."""
        known: set[str] = set()
        total = 0
        for steps, data in _pictures(value):
            if data not in known:
                known.add(data)
                total += pictures.unpacked_bytes(data)
                if total > pictures.MAX_UNPACKED_BYTES:
                    raise SceneError([Problem(path_of(steps), _too_many(total, pictures.MAX_UNPACKED_BYTES))])
        return value

    @classmethod
    def from_lines(cls, text: str, axis: str = "x", feather: float = 0.2) -> "Scene":
        """A scene whose concepts are the lines of a text, side by side (axis "x") or above each other ("y").

        Empty lines are passed over. A line that begins with ``common:`` is what all prompts begin with
        (`blend.common`). Raises SceneError for more lines than there may be concepts.
        """
        common, prompts = lines(text)
        strips = [(i / len(prompts), (i + 1) / len(prompts)) for i in range(len(prompts))]
        concepts = [
            {"prompt": prompt, "mask": {"kind": "split", "axis": axis, "from": start, "to": end, "feather": feather}}
            for prompt, (start, end) in zip(prompts, strips, strict=True)
        ]
        return cls.parse({"concepts": concepts, "blend": {"common": common}})

    @classmethod
    def from_colours(cls, picture: Any, prompts: Mapping[str, str], tolerance: float = colours.TOLERANCE) -> "Scene":
        """A scene from one colour-coded picture: what the places of each flat colour show.

        picture: a PIL image, or a data URL. prompts: by colours such as ``"#ff0000"``. tolerance: see `ImageMask`.
        Raises SceneError, which lists the picture's colours where one of those given is none of them.
        """
        data = picture if isinstance(picture, str) else pictures.data_url(picture)
        masks = ({"kind": "image", "data": data, "colour": one, "tolerance": tolerance} for one in prompts)
        texts = prompts.values()
        return cls.parse({"concepts": [{"prompt": text, "mask": m} for text, m in zip(texts, masks, strict=True)]})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Scene":
        """The scene in a JSON file (UTF-8). Raises SceneError, also where the file cannot be read."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise SceneError([Problem("", f"cannot read {path}: {error.strerror or error}")]) from None
        try:
            return cls.parse(data)
        except SceneError as error:
            # What has a place in the scene says it by itself; what is none at all, by its file.
            named = [p if p.path else Problem("", f"{path}: {p.message}") for p in error.problems]
            raise SceneError(named) from None

    def to_json(self, indent: int | None = None) -> str:
        """The complete scene as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (draft 7) of a scene.

        It cannot express the order of two fields, whether an image can be decoded, or that the default of
        ``blend.scale`` depends on ``blend.mode``; :meth:`parse` can.
        """
        schema = tidy(cls.schema(by_alias=True))
        dimensions = schema["definitions"]["FeatureNoise"]["properties"]["dimensions"]
        indices = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
        dimensions["anyOf"] = [{"type": dimensions.pop("type")}, indices]
        stops = schema["definitions"]["VisualNoise"]["properties"]["seeds"]
        stops["anyOf"] = [{"type": stops.pop("type")}, {**indices, "minItems": 0, "maxItems": seeds.MOST}]
        injection = schema["definitions"]["Injection"]["properties"]
        for name, rule, least in (("times", TIME, 1), ("weights", SHARE, 0)):
            kind = {"type": {int: "integer", float: "number"}[rule.kind], "minimum": rule.low, "maximum": rule.high}
            listed = {"type": "array", "items": kind, "minItems": least}
            injection[name]["anyOf"] = [{"type": injection[name].pop("type")}, kind, listed]
        return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "MaskNoise scene", **schema}

    def replace(self, changes: Mapping[str, Any]) -> "Scene":
        """The scene with other values at some paths: ``{"concepts[0].weight": 0.5, "animation.frames": 24}``.

        ``concepts[].weight`` means the weight of every concept. A ``blend.scale`` that is its mode's default
        follows a change of the mode. Raises SceneError for what does not exist or does not fit.
        """
        data = self.to_dict()
        if self.blend.scale == self.blend.default_of("scale"):
            del data["blend"]["scale"]
        put_all(data, changes)
        return self.parse(data)

    @property
    def neutral(self) -> bool:
        """True where the scene cannot change an image: disabled, or no concept, every strength 0 and the initial noise
        as it is."""
        noise = self.noise
        still = noise.visual.strength == noise.concept.strength == noise.feature.strength == 0
        still = still and not noise.initial.acts
        return not self.enabled or (not self.acting.concepts and still)

    @property
    def acting(self) -> "Scene":
        """The scene without the concepts that are switched off, and with what their prompts have in common in each of
        them: what is sampled."""
        concepts = tuple(concept for concept in self.concepts if concept.enabled)
        common = self.blend.common.strip()
        if len(concepts) == len(self.concepts) and not common:
            return self
        said = tuple(concept.after(common) for concept in concepts)
        return self.copy(update={"concepts": said, "blend": self.blend.copy(update={"common": ""})})

    def remarks(self, weights: Any = None) -> tuple[Problem, ...]:
        """What the scene asks for that will not do what one expects of it, each with its place. Never an error.

        weights: the weight maps ``[B, N, h, w]`` of the concepts at some frames (``Maps.weights``), at the latent's
        size; what depends on masks is said with them only. ``Maps.remarks`` brings them along.
        """
        return remarks(self, weights)

    @property
    def loops(self) -> bool:
        """Whether the animation is played in a circle, so that its last frame leads to its first."""
        noise = self.noise
        own = [part.motion for part in (noise.visual, noise.concept, noise.feature) if part.motion and part.strength]
        return all(motion.loop for motion in (self.motion, *own)) and not self.animation.rubber_band


def lines(text: str) -> tuple[str, list[str]]:
    """What the lines of a text have in common (a line that begins with ``common:``), and the others, a prompt each."""
    common, prompts = "", []
    for line in filter(None, map(str.strip, text.splitlines())):
        head, colon, rest = line.partition(":")
        if colon and head.strip().lower() == "common":
            common = rest.strip()
        else:
            prompts.append(line)
    return common, prompts


def _too_many(total: int, most: int) -> str:
    return (
        f"expected all pictures of a scene to be at most {most // 2**20} MiB of unpacked pixels together, "
        f"got {total / 2**20:.1f} MiB with this one"
    )


def _pictures(concepts: Any) -> Iterator[tuple[tuple[Any, ...], str]]:
    """The pictures of a scene's concepts, be they parts or what JSON has for them, with their places."""
    for i, concept in enumerate(_entries(concepts)):
        yield from _pictures_of(_given(concept, "mask"), (i, "mask"))
        for j, key in enumerate(_entries(_given(concept, "keyframes"))):
            yield from _pictures_of(_given(key, "mask"), (i, "keyframes", j, "mask"))


def _pictures_of(mask: Any, steps: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    data = _given(mask, "data")
    if isinstance(data, str):
        yield (*steps, "data"), data
    for i, entry in enumerate(_entries(_given(mask, "strokes"))):
        data = _given(_given(entry, "mask"), "data")
        if isinstance(data, str):
            yield (*steps, "strokes", i, "mask", "data"), data


def _given(node: Any, name: str) -> Any:
    return node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)


def _entries(node: Any) -> Any:
    return node if isinstance(node, list | tuple) else ()
