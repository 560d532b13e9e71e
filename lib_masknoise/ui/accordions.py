"""The accordions of MaskNoise: every control of a scene, the painting canvas, previews and presets.

Built by the WebUIs' script and by `python -m lib_masknoise ui` alike, with gradio 3.41 and 4. Building changes nothing
outside the components it makes: hosts build several times. The canvas itself is JavaScript (``javascript/``); it finds
its place and its hidden fields by the element ids that `_place` writes into the page.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import gradio as gr

from lib_masknoise import preview
from lib_masknoise import scene as scenes
from lib_masknoise.calibrate.profile import ORIGINS, NoProfile, Profile, with_percent
from lib_masknoise.controls import Control, control, default_scale
from lib_masknoise.motion import opensimplex
from lib_masknoise.scene import Scene, SceneError
from lib_masknoise.ui import inputs, live

ElemId = Callable[[str], str]

HIDDEN = "masknoise-hidden"

INPUT = {
    "pictures": ["img2img_image", "img2img_sketch", "img2maskimg", "inpaint_sketch", "img_inpaint_base"],
    "by": "img2img_tab_resize_by",
    "scale": "img2img_scale",
    "mode": "resize_mode",
    "area": "img2img_inpaint_full_res",
    "script": "#tab_img2img #script_list input",
}
"""Where the WebUIs' img2img has its input picture, and how that becomes the picture that is made."""
QUIET = {"queue": False, "show_progress": "hidden", "api_name": False}
"""How events run that answer at once: beside the queue in which jobs wait, with no spinner over what they update."""

SCENE_HELP = "For the API: a whole scene, an object or its JSON text, instead of all other arguments; else empty."


PERCENT = "Of the model's useful range: with another model they become its numbers. Needs Calibrate."


class Presets(Protocol):
    """What is needed of `lib_masknoise.presets.Presets`."""

    def names(self) -> list[str]: ...

    def load(self, name: str) -> Scene: ...

    def save(self, name: str, scene: Scene, overwrite: bool = True, said: Any = None) -> Any: ...

    def delete(self, name: str) -> None: ...


@dataclass(frozen=True)
class Accordions:
    """``inputs``: the components of a job's values, in the order of `inputs.defaults`. ``notice``: where something is
    said about all of them."""

    inputs: list[Any]
    notice: Any


def build(
    elem_id: ElemId,
    *,
    enable: Callable[..., AbstractContextManager[Any]] | None = None,
    presets: Presets | None = None,
    token_counter: Callable[[str], str] | None = None,
    tab: str = "txt2img",
    live_route: str | None = None,
    profile: Callable[[], Profile | None] = lambda: None,
) -> Accordions:
    """Build all accordions inside the current gradio block.

    elem_id: makes an element id, unique in the page, of a name. enable: makes the outer accordion, a context manager
    that gives the component whose value says whether the extension is on (the WebUIs' `InputAccordion`); a plain
    accordion with a checkbox when None. presets: the saved scenes; without them there is no preset row. token_counter:
    a prompt's tokens as text ("12/75"). tab: the page's tab, whose width, height and gallery the canvas follows.
    live_route: the route that makes live pictures, in hosts that have it. profile: of the model at hand.
    """
    with (enable or plain_enable)(value=False, label="MaskNoise", elem_id=elem_id("enabled")) as enabled:
        notice = opensimplex.missing()
        if notice is not None:
            gr.HTML(live.failure(ModuleNotFoundError(notice)), elem_classes=["masknoise-preview"])
        scene = gr.Textbox(value="", label="Scene", info=SCENE_HELP, visible=False, elem_id=elem_id("scene"))
        painting = _hidden("Painting", elem_id("painting"), inputs.NO_PAINTING)
        notice = gr.HTML("", elem_id=elem_id("notice"), elem_classes=["masknoise-preview"])
        parts = _Parts(elem_id)
        preview_place = _bench(elem_id, tab, live_route)
        _first(parts)
        _blend(parts)
        _noise(parts)
        _motion(parts)
        shown = [scene, enabled, painting, *(parts.made[entry.path] for entry in inputs.SHOWN)]
        _connect_preview(elem_id, shown, preview_place, token_counter, profile)
        _connect_restore(elem_id, shown)
        _json_text(elem_id, shown)
        if presets is not None:
            _preset_row(elem_id, shown, presets, profile)
    return Accordions(shown, notice)


@contextmanager
def plain_enable(value: bool, label: str, elem_id: str) -> Iterator[Any]:
    """An accordion with a checkbox in it, where the host has no accordion that is one."""
    with gr.Accordion(label, open=True):
        yield gr.Checkbox(value=value, label=label, elem_id=elem_id)


def _bench(elem_id: ElemId, tab: str, live_route: str | None) -> Any:
    """The canvas, and the preview's place: beside it where there is width, else below (style.css)."""
    with gr.Row(elem_classes=["masknoise-bench"]):
        with gr.Column(scale=5, min_width=320, elem_classes=["masknoise-desk"]):
            gr.HTML(_place(elem_id, tab, live_route))
        with gr.Column(scale=1, min_width=240):
            return gr.HTML("", elem_id=elem_id("preview"), elem_classes=["masknoise-preview"])


def _hidden(label: str, elem_id: str, value: str = "") -> Any:
    """A text field that is in the page, unlike an invisible one in some versions of gradio, but not seen."""
    return gr.Textbox(value=value, label=label, elem_id=elem_id, elem_classes=[HIDDEN])


def _place(elem_id: ElemId, tab: str, live_route: str | None) -> str:
    """Where the canvas goes, and what it must know."""
    weight = control("concepts[].weight")
    config = {
        "tab": tab,
        **{name: elem_id(name) for name in ("painting", "request", "reply", "refresh", "kept", "restore")},
        "controls": [elem_id(_name(entry)) for entry in inputs.SHOWN],
        "size": [f"{tab}_width", f"{tab}_height"],
        "gallery": f"#{tab}_gallery img",
        "input": INPUT if tab == "img2img" else None,
        "accordion": elem_id("enabled"),
        "presets": elem_id("preset_refresh"),
        "live": live_route and {"route": live_route, "session": elem_id("live_session"), "keep": elem_id("live_keep")},
        "bands": {path: elem_id(path.replace(".", "_")) for path in ORIGINS},
        "common": elem_id(_name(control("blend.common"))),
        "colours": preview.COLOURS,
        "weight": {"low": weight.low, "high": weight.high, "step": weight.step, "usual": weight.default},
        "defaults": mask_defaults(),
        "limits": {
            "concepts": scenes.MAX_CONCEPTS,
            "strokes": scenes.MAX_STROKES,
            "points": scenes.MAX_POINTS,
            "stamps": scenes.MAX_STAMPS,
            "filters": scenes.MAX_FILTERS,
            "flow": scenes.MAX_FLOW_LENGTH,
        },
    }
    return f'<div class="masknoise-canvas" data-config="{html.escape(json.dumps(config))}"></div>'


def mask_defaults() -> dict[str, dict[str, Any]]:
    """What a mask's fields are where a scene leaves them out, by its kind, and those of a strokes mask's entries."""
    parts = Scene.json_schema()["definitions"]
    kinds = {part["properties"]["kind"]["default"]: part for name, part in parts.items() if name.endswith("Mask")}
    entries = {name: parts[name.capitalize()] for name in ("stroke", "stamp", "filter")}
    return {
        name: {field: given["default"] for field, given in part["properties"].items() if "default" in given}
        for name, part in {**kinds, **entries}.items()
    }


# --- Controls


def _name(entry: Control) -> str:
    return entry.path.replace(".", "_")


class _Parts:
    """Makes the components of controls and remembers them by path."""

    def __init__(self, elem_id: ElemId) -> None:
        self.elem_id = elem_id
        self.made: dict[str, Any] = {}

    def row(self, *paths: str) -> None:
        with gr.Row():
            for path in paths:
                entry = control(path)
                self.made[path] = _component(entry, self.elem_id(_name(entry)))


def _component(entry: Control, elem_id: str) -> Any:
    """The component of one control: name, bounds, choices and tooltip from the table."""
    common = {"label": entry.label, "info": entry.help, "elem_id": elem_id, "elem_classes": ["masknoise-control"]}
    if isinstance(entry.default, bool):
        return gr.Checkbox(value=entry.first, **common)
    if isinstance(entry.first, tuple):
        return gr.CheckboxGroup(choices=list(entry.choices), value=list(entry.first), **common)
    if entry.choices:
        return gr.Dropdown(choices=list(entry.choices), value=entry.first, **common)
    if entry.path == "noise.seed":  # no slider has room for 2^63 values
        return gr.Number(value=entry.first, precision=0, **common)
    if entry.numeric:
        return gr.Slider(minimum=entry.low, maximum=entry.high, step=entry.step, value=entry.first, **common)
    return gr.Textbox(value=entry.first, lines=1, max_lines=1, **common)


@contextmanager
def _part(label: str, elem_id: str) -> Iterator[None]:
    """An accordion of controls that most jobs leave as they are; their help is shown on demand."""
    with gr.Accordion(label, open=False, elem_id=elem_id), gr.Column(elem_classes=["masknoise-part"]):
        gr.HTML(HELP_BUTTON)
        yield


HELP_BUTTON = '<button type="button" class="masknoise-help" aria-pressed="false">? What these do</button>'


def _first(parts: _Parts) -> None:
    """What is needed first: the three noises' strengths, and how many frames move in which way."""
    with gr.Column(elem_classes=["masknoise-part"]):
        parts.row("noise.visual.strength", "noise.concept.strength", "noise.feature.strength")
        parts.row("animation.frames", "animation.fps", "motion.kind")
        offer = gr.Button(OFFER, visible=False, size="sm", elem_id=parts.elem_id("offer_circle"))
        gr.HTML(HELP_BUTTON)
    frames, kind = parts.made["animation.frames"], parts.made["motion.kind"]
    for shown in (frames, kind):
        shown.change(_without_motion, [frames, kind], [offer], **QUIET)
    offer.click(lambda: OFFERED, [], [kind], **QUIET)


OFFERED = "circle"
OFFER = f"Without a motion all frames are the same picture: let the noise move in a {OFFERED}"


def _without_motion(frames: float, kind: str) -> Any:
    return gr.update(visible=frames > 1 and kind == control("motion.kind").default)


def _blend(parts: _Parts) -> None:
    with _part("More: blending", parts.elem_id("blend")):
        parts.row("blend.scale", "blend.overlap", "blend.feather")
        parts.row("blend.common")
        parts.row("blend.mode", "blend.start", "blend.end")
        parts.row("blend.preserve_norm", "blend.hires")
    mode, scale = parts.made["blend.mode"], parts.made["blend.scale"]
    mode.input(default_scale, [mode], [scale], **QUIET)


def _noise(parts: _Parts) -> None:
    with _part("More: noise", parts.elem_id("noise")):
        parts.row("noise.exponent", "noise.seed", "noise.visual.seeds")
        parts.row("noise.concept.rank", "noise.concept.size", "noise.concept.layers")
        parts.row("noise.feature.dimensions", "noise.feature.size", "noise.feature.layers")
    with _part("More: initial noise (variations)", parts.elem_id("initial")):
        parts.row("noise.initial.choose", "noise.initial.erase", "noise.initial.inject.strength")
        parts.row("noise.initial.inject.form", "noise.initial.where", "noise.initial.inject.restandardise")
        parts.row("noise.initial.inject.times", "noise.initial.inject.weights")


def _motion(parts: _Parts) -> None:
    with _part("More: motion and files", parts.elem_id("motion")):
        parts.row("motion.cycles", "motion.phase", "motion.momentum", "motion.loop")
        parts.row("animation.formats", "animation.interpolate", "animation.rubber_band")


# --- Previews


def _connect_preview(
    elem_id: ElemId,
    shown: Sequence[Any],
    place: Any,
    token_counter: Callable[[str], str] | None,
    profile: Callable[[], Profile | None],
) -> None:
    """The canvas fills the request and presses the button; the answer is for the page and for the canvas."""
    request = _hidden("Preview request", elem_id("request"))
    reply = _hidden("Preview reply", elem_id("reply"))
    button = gr.Button("Refresh preview", elem_id=elem_id("refresh"), elem_classes=[HIDDEN])

    def refresh(*values: Any) -> tuple[str, str]:
        *job, asked = values
        return live.answer(job, asked, token_counter, profile)

    button.click(refresh, [*shown, request], [place, reply], **QUIET)


def _connect_restore(elem_id: ElemId, shown: Sequence[Any]) -> None:
    """After a page's reload its canvas fills in what the controls were, and presses the button."""
    kept = _hidden("Kept settings", elem_id("kept"))
    button = gr.Button("Restore settings", elem_id=elem_id("restore"), elem_classes=[HIDDEN])
    _, enabled, _, *controls = shown
    button.click(_kept_settings, [kept], [enabled, *controls], **QUIET)


def _kept_settings(text: str) -> list[Any]:
    """Values as `live.settings_of` gave them; none changes where they are of another version or none at all."""
    count = len(inputs.SHOWN) + 1
    with suppress(ValueError, TypeError, LookupError):
        values = json.loads(text)
        live.scene_of(["", values[0], inputs.NO_PAINTING, *values[1:]])
        if len(values) == count:
            return list(values)
    return [gr.update()] * count


# --- The scene as text


def _json_text(elem_id: ElemId, shown: Sequence[Any]) -> None:
    with gr.Accordion("Scene JSON", open=False, elem_id=elem_id("json")):
        text = gr.Textbox(
            label="Scene as JSON",
            info="Everything above as one text: for files, the command line and the API. Paste another one to use it.",
            lines=8,
            max_lines=24,
            show_copy_button=True,
            elem_id=elem_id("json_text"),
        )
        with gr.Row():
            read = gr.Button("Show current scene", elem_id=elem_id("json_show"))
            use = gr.Button("Apply this scene", elem_id=elem_id("json_apply"))
        message = gr.HTML("", elem_id=elem_id("json_message"), elem_classes=["masknoise-preview"])
        read.click(_scene_text, list(shown), [text, message], **QUIET)
        use.click(_apply_text, [text], [*shown, message], **QUIET)


def _scene_text(*values: Any) -> tuple[Any, str]:
    try:
        scene = live.scene_of(values)
    except SceneError as error:
        return gr.update(), live.problem_list(error.problems)
    return scene.to_json(indent=2), ""


def _apply_text(text: str) -> list[Any]:
    try:
        scene = Scene.parse(text)
    except SceneError as error:
        return [*_unchanged(), live.problem_list(error.problems, name=str)]  # the text has paths
    return [*inputs.show(scene), "Applied."]


def _unchanged() -> list[Any]:
    return [gr.update() for _ in inputs.defaults()]


# --- Presets


def _preset_row(elem_id: ElemId, shown: Sequence[Any], presets: Presets, profile: Callable[[], Profile | None]) -> None:
    with gr.Accordion("Presets", open=False, elem_id=elem_id("presets")):
        with gr.Row():
            chosen = gr.Dropdown(choices=presets.names(), value=None, label="Preset", elem_id=elem_id("preset"))
            name = gr.Textbox(label="Save as", max_lines=1, elem_id=elem_id("preset_name"))
            percent = gr.Checkbox(False, label="Strengths in per cent", info=PERCENT, elem_id=elem_id("preset_percent"))
        with gr.Row():
            load, save, delete, refresh = (
                gr.Button(label, elem_id=elem_id(f"preset_{label.split()[0].lower()}"))
                for label in ("Load preset", "Save preset", "Delete preset", "Refresh presets")
            )
        message = gr.HTML("", elem_id=elem_id("preset_message"), elem_classes=["masknoise-preview"])
    shelf = _Shelf(presets, profile)
    load.click(shelf.load, [chosen], [*shown, message], **QUIET)
    save.click(shelf.save, [name, percent, *shown], [chosen, message], **QUIET)
    delete.click(shelf.delete, [chosen], [chosen, message], **QUIET)
    refresh.click(shelf.refresh, [chosen], [chosen, message], **QUIET)


class _Shelf:
    """The preset row's events: what each returns for its components, problems as text."""

    def __init__(self, presets: Presets, profile: Callable[[], Profile | None] = lambda: None) -> None:
        self.presets, self.profile = presets, profile

    def load(self, name: str | None) -> list[Any]:
        name = name or ""
        try:
            return [*inputs.show(self.presets.load(name)), f"Loaded {html.escape(name)}."]
        except (ValueError, OSError) as error:
            return [*_unchanged(), live.failure(error)]

    def save(self, name: str, percent: bool, *values: Any) -> tuple[Any, str]:
        try:
            scene = live.scene_of(values)
            self.presets.save(name, scene, said=self._in_percent(scene) if percent else None)
        except (ValueError, OSError) as error:
            return gr.update(), live.failure(error)
        return self._choices(name), f"Saved {html.escape(name)}."

    def _in_percent(self, scene: Scene) -> Any:
        profile = self.profile()
        if profile is None:
            raise NoProfile("There is no profile of this model, so no per cent of it: press Calibrate first.")
        return with_percent(scene, profile)

    def delete(self, name: str | None) -> tuple[Any, str]:
        name = name or ""
        try:
            self.presets.delete(name)
        except (ValueError, OSError) as error:
            return gr.update(), live.failure(error)
        return self._choices(None), f"Deleted {html.escape(name)}."

    def refresh(self, name: str | None) -> tuple[Any, str]:
        return self._choices(name if name in self.presets.names() else None), ""

    def _choices(self, value: str | None) -> Any:
        return gr.update(choices=self.presets.names(), value=value)
