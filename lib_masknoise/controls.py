"""One table of every scalar control of a Scene.

The models of :mod:`lib_masknoise.scene`, the user interface, the JSON Schema, the infotext and the X/Y/Z plot
all read this table, so that a default, a bound or a name stands in one place and they cannot drift apart.

A control's ``path`` is its place in the Scene's JSON: ``noise.visual.strength``; ``concepts[].weight`` for
the field that each concept has. What is not a scalar (``concepts[].mask``, ``motion.keyframes``) and the
format's own ``version`` are no controls. A noise's own motion (``noise.visual.motion``) takes its scalars from
those of ``motion``, a concept's keyframe from those of the concept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MODES = ("interpolate", "add")
OVERLAPS = ("mix", "top")
INTERPOLATIONS = ("linear", "spherical")
MOTIONS = ("none", "sine", "circle", "simplex", "walk", "linear", "keyframes")
PLACES = ("everywhere", "pinned", "free")
INJECTIONS = ("text", "prediction")
FORMATS = ("gif", "webp", "apng", "mp4", "sheet")

ADD_SCALE = 0.1
"""The default of ``blend.scale`` when ``blend.mode`` is "add" (the additive formula's own factor)."""

Value = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True)
class Control:
    """One scalar setting of a Scene. Its type is that of ``default``; a tuple means several of ``choices``.

    path: place in the Scene's JSON. low, high: inclusive bounds and step: the slider's step, None for what is
    not a number. choices: the allowed values, empty where any value will do. label: its name in the user
    interface, unique. help: one sentence for the tooltip. infotext: its key in an image's infotext, unique; unlike the
    label it never changes. axis: its name in the X/Y/Z plot, None for what is neither a number nor a choice of one.
    """

    path: str
    default: Value
    label: str
    help: str
    infotext: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    begins: Value | None = None
    """What a new painting begins with, where that is not what a scene without the field has."""

    @property
    def first(self) -> Value:
        """What its component shows before anything is set."""
        return self.default if self.begins is None else self.begins

    @property
    def numeric(self) -> bool:
        return isinstance(self.default, int | float) and not isinstance(self.default, bool)

    @property
    def axis(self) -> str | None:
        one_choice = bool(self.choices) and isinstance(self.default, str)
        name = self.infotext.removeprefix("MaskNoise ")
        return f"[MaskNoise] {name[0].upper()}{name[1:]}" if self.numeric or one_choice else None


def _switch(path: str, default: bool, label: str, help: str, was: str = "") -> Control:
    """was: the label at first, from which the infotext's key comes."""
    return Control(path, default, label, help, _key(was or label))


def _text(path: str, default: str, label: str, help: str, was: str = "") -> Control:
    return Control(path, default, label, help, _key(was or label))


def _choice(
    path: str,
    default: str | tuple[str, ...],
    choices: tuple[str, ...],
    label: str,
    help: str,
    begins: str | None = None,
) -> Control:
    return Control(path, default, label, help, _key(label), choices=choices, begins=begins)


def _number(
    path: str, default: float, low: float, high: float, step: float, label: str, help: str, was: str = ""
) -> Control:
    return Control(path, default, label, help, _key(was or label), low, high, step)


def _key(label: str) -> str:
    """The infotext key. Hosts read ``\\w[\\w \\-/]*`` as a key and split at colons and commas."""
    return f"MaskNoise {label[0].lower()}{label[1:]}"


CONTROLS: tuple[Control, ...] = (
    _switch("enabled", True, "Enabled", "Whether the scene changes images at all."),
    _text("concepts[].prompt", "", "Concept prompt", "What the concept's mask should show."),
    _text(
        "concepts[].negative",
        "",
        "Concept negative prompt",
        "What to avoid under the concept's mask; empty means the image's own negative prompt.",
    ),
    _number(
        "concepts[].weight",
        1.0,
        -4.0,
        4.0,
        0.05,
        "Concept weight",
        "How much of the concept its mask brings in: above 1 exaggerates it, below 0 moves away from it.",
    ),
    _switch(
        "concepts[].enabled", True, "Concept enabled", "Whether the concept acts; off, it is as if it were not there."
    ),
    _number(
        "concepts[].start",
        0.0,
        0.0,
        1.0,
        0.01,
        "Concept start",
        "The fraction of the sampling steps at which the concept sets in: early steps decide where things are.",
    ),
    _number(
        "concepts[].end",
        1.0,
        0.0,
        1.0,
        0.01,
        "Concept end",
        "The fraction of the sampling steps after which the concept stops: late steps decide details.",
    ),
    _choice(
        "concepts[].interpolation",
        "linear",
        INTERPOLATIONS,
        "Concept interpolation",
        "How a concept passes from one keyframe's prompt to the next: straight, or on an arc that keeps its strength.",
    ),
    _choice(
        "blend.mode",
        "interpolate",
        MODES,
        "Blend mode",
        "Interpolate goes from the base prompt to the concepts; add puts the concepts on top of it.",
    ),
    _number(
        "blend.scale",
        1.0,
        0.0,
        2.0,
        0.01,
        "Weight of all concepts",
        f"A factor on every concept's weight: 1 is fully the concept; {ADD_SCALE} is usual in add mode.",
        "Blend scale",
    ),
    _switch(
        "blend.preserve_norm",
        False,
        "Full strength in between",
        "Keeps what is blended of several prompts as strong as each of them, where averaging would weaken it.",
        "Preserve norm",
    ),
    _number(
        "blend.feather",
        0.0,
        0.0,
        1.0,
        0.01,
        "Mask feather",
        "Softens the edges of every mask by this fraction of the image's shorter side.",
    ),
    _choice(
        "blend.overlap",
        "mix",
        OVERLAPS,
        "Overlap",
        "Where masks overlap: top lets a later concept cover the ones before it, as far as its mask is opaque; mix "
        "lets all of them share the place.",
        begins="top",
    ),
    _number(
        "blend.start",
        0.0,
        0.0,
        1.0,
        0.01,
        "Blend start",
        "The fraction of the sampling steps at which the concepts set in.",
    ),
    _number(
        "blend.end",
        1.0,
        0.0,
        1.0,
        0.01,
        "Blend end",
        "The fraction of the sampling steps after which the concepts stop.",
    ),
    _switch(
        "blend.hires",
        True,
        "In the hires pass too",
        "Whether the scene acts in the hires pass; off, that pass is as if MaskNoise were off.",
        "Blend hires",
    ),
    _text(
        "blend.common",
        "",
        "In every concept",
        "What every concept's prompt begins with: a style, a light, whatever all of them share.",
        "Common prompt",
    ),
    _number(
        "noise.exponent",
        2.0,
        0.0,
        16.0,
        0.1,
        "Distance from masks",
        "How far the noise keeps away from masks: at 0 it reaches all but fully masked places.",
        "Noise exponent",
    ),
    _number("noise.seed", -1, -1, 2**63 - 1, 1, "Noise seed", "The seed of all noise; -1 uses the image's seed."),
    _number(
        "noise.visual.strength",
        0.0,
        0.0,
        1.0,
        0.01,
        "Visual noise strength",
        "How far the initial noise of unmasked places moves from frame to frame.",
    ),
    _text(
        "noise.visual.seeds",
        "",
        "Travel to seeds",
        'Seeds such as "12, 7": unmasked places go from the image\'s own to each in turn, and with a loop back again.',
    ),
    _number(
        "noise.concept.strength",
        0.0,
        0.0,
        4.0,
        0.01,
        "Concept noise strength",
        "How far the meaning of unmasked places drifts; 1 is as far as the prompts' own words spread. "
        "In the WebUIs not with Flux, SD 3 and other models without cross-attention.",
    ),
    _number(
        "noise.concept.rank",
        8,
        1,
        64,
        1,
        "Concept noise variety",
        "In how many independent directions the meaning may drift.",
        "Concept noise rank",
    ),
    _number(
        "noise.concept.size",
        0.25,
        0.01,
        4.0,
        0.01,
        "Concept noise size",
        "The size of one patch of drifting meaning, as a fraction of the image's shorter side.",
    ),
    _text(
        "noise.concept.layers",
        "all",
        "Concept noise layers",
        'Which layers see the drift: "all", or some of coarse, middle, fine and blocks such as "in4,out3-5".',
    ),
    _number(
        "noise.feature.strength",
        0.0,
        0.0,
        4.0,
        0.01,
        "Feature noise strength",
        "How far the chosen dimensions of the text features are shifted in unmasked places. "
        "In the WebUIs not with Flux, SD 3 and other models without cross-attention.",
    ),
    _text(
        "noise.feature.dimensions",
        "0-63",
        "Features that shift",
        'Which numbers of the text features are shifted: indices and ranges such as "0-63,100", "all", or "style" or '
        '"layout" where those were found for the model.',
        "Feature noise dimensions",
    ),
    _number(
        "noise.feature.size",
        0.25,
        0.01,
        4.0,
        0.01,
        "Feature noise size",
        "The size of one patch of shifted features, as a fraction of the image's shorter side.",
    ),
    _text(
        "noise.feature.layers",
        "all",
        "Feature noise layers",
        'Which layers see the shift: "all", or some of coarse, middle, fine and blocks such as "in4,out3-5".',
    ),
    _number(
        "noise.initial.choose",
        1,
        1,
        64,
        1,
        "Seeds to choose from",
        "How many initial noises are tried before the first step; the one whose picture begins closest to the masks is "
        "taken. Each costs one evaluation of the model, and one for each concept.",
        "Initial noise choose",
    ),
    _number(
        "noise.initial.erase",
        1,
        1,
        64,
        1,
        "Noises added up",
        "How many noises the initial one is the normalised sum of: what the seed alone would have shown is erased. 1 "
        "leaves it.",
        "Initial noise erase",
    ),
    _number(
        "noise.initial.inject.strength",
        0.0,
        0.0,
        20.0,
        0.1,
        "Lean towards the prompts",
        "How far the initial noise leans towards what the prompts say at each place, before the first step.",
        "Initial noise inject strength",
    ),
    _choice(
        "noise.initial.inject.form",
        "text",
        INJECTIONS,
        "Initial noise inject form",
        "Text leans by what the prompts change in the model's prediction; prediction adds the prediction itself, as "
        "published.",
    ),
    _text(
        "noise.initial.inject.times",
        "1000",
        "Initial noise inject times",
        'At which times of the model its prediction is asked for, 1000 being noise alone: one or several, "1000,800".',
    ),
    _text(
        "noise.initial.inject.weights",
        "",
        "Initial noise inject weights",
        "By how much the prediction at each of the times counts; empty means equally.",
    ),
    _switch(
        "noise.initial.inject.restandardise",
        True,
        "Initial noise stays noise",
        "Whether the noise that leans is white and of variance 1 again; off, the published scaling, which spoils most "
        "pictures.",
        "Initial noise inject restandardise",
    ),
    _choice(
        "noise.initial.where",
        "everywhere",
        PLACES,
        "Initial noise where",
        "Where noises are added up and lean: everywhere, where masks hold the picture, or where it is free.",
    ),
    _choice("motion.kind", "none", MOTIONS, "Motion", "How the noise moves from frame to frame."),
    _number(
        "motion.cycles",
        1,
        1,
        1000,
        1,
        "Motion cycles",
        "How many times the motion comes round over the whole animation.",
    ),
    _number(
        "motion.phase",
        0.0,
        -2 * math.pi,
        2 * math.pi,
        0.01,
        "Motion phase",
        "Where in its cycle the motion starts, in radians.",
    ),
    _number(
        "motion.momentum",
        0.9,
        0.0,
        0.999,
        0.001,
        "Motion momentum",
        "How smoothly a random walk moves: 0 is rough, near 1 almost a swing.",
    ),
    _switch("motion.loop", True, "Motion loop", "Whether the last frame leads back to the first."),
    _number("animation.frames", 1, 1, 10_000, 1, "Frames", "How many images the animation has; 1 makes a still."),
    _number("animation.fps", 12, 1, 120, 1, "Frames per second", "How fast the animation plays."),
    _choice("animation.formats", ("gif",), FORMATS, "Animation formats", "The files written from the frames."),
    _switch(
        "animation.rubber_band",
        False,
        "Rubber band",
        "Plays the frames forwards and then backwards again.",
    ),
    _number(
        "animation.interpolate",
        1,
        1,
        8,
        1,
        "Frame interpolation",
        "Plays this many frames for each one rendered, the ones between guessed by ffmpeg; 1 plays only rendered ones.",
    ),
)


def control(path: str) -> Control:
    """The control at ``path`` (an index counts as none given: ``concepts[2].weight`` is
    ``concepts[].weight``).

    Raises KeyError, with the path, where there is none.
    """
    return _BY_PATH["[]".join(part.split("]", 1)[-1] for part in path.split("["))]


def default_scale(mode: str) -> float:
    """What ``blend.scale`` is in a mode when it is not given."""
    return ADD_SCALE if mode == "add" else float(control("blend.scale").default)  # type: ignore[arg-type]


_BY_PATH = {entry.path: entry for entry in CONTROLS}
