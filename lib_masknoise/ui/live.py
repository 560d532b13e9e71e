"""What the user interface shows of a scene before anything is sampled, as HTML. Imports no gradio."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from PIL import Image

from lib_masknoise import preview
from lib_masknoise.calibrate.profile import Profile, outside
from lib_masknoise.controls import control
from lib_masknoise.scene import Problem, Scene, SceneError, pictures
from lib_masknoise.ui import inputs

LONGER_SIDE = 224
"""Pixels of a map: small enough to be drawn while one paints."""
STRIP_COUNT = 8
STRIP_SIDE = 80


def scene_of(values: Sequence[Any]) -> Scene:
    """The scene that the components describe, also while the extension is switched off."""
    whole, _, *others = values
    scene = inputs.read([whole, True, *others])
    assert scene is not None  # it is enabled
    return scene if values[1] else scene.replace({"enabled": False})


def answer(
    values: Sequence[Any],
    request: str,
    token_counter: Callable[[str], str] | None = None,
    profile: Callable[[], Profile | None] = lambda: None,
) -> tuple[str, str]:
    """What the page shows of a job's values, and the reply that the canvas waits for.

    request: JSON text with the ``tick`` that the reply repeats, the picture's ``width`` and ``height`` and the
    ``prompts`` whose tokens are counted. The reply has those, the ``settings`` that a page keeps over its reload, and
    the ``remarks`` on the scene, each with its path and message. A ``picture`` that the browser cannot show, in base64,
    comes back as a PNG, or the reply has why it is ``refused``. profile: that of the model at hand, whose useful ranges
    are the reply's ``bands``.
    """
    asked = json.loads(request or "{}")
    reply = {
        "tick": asked.get("tick", 0),
        "tokens": {prompt: token_counter(prompt) for prompt in asked.get("prompts", [])} if token_counter else {},
        "settings": settings_of(values),
        "remarks": [],
        "bands": {},
    }
    if asked.get("picture"):
        try:
            reply["picture"] = pictures.data_url(pictures.decode_picture(asked["picture"]))
        except ValueError as error:
            reply["refused"] = str(error)
    size = (int(asked.get("height", 512)), int(asked.get("width", 512)))
    try:
        scene = scene_of(values).replace({"enabled": True})
        drawn = preview.Preview(scene)
        known, prompt = profile(), [asked["prompt"]] if asked.get("prompt") else []
        remarks = drawn.maps(_fitted(size, LONGER_SIDE)).remarks()
        if known is not None:
            remarks += outside(scene, known, prompt)
            reply["bands"] = bands(scene, known, prompt)
        reply["remarks"] = [remark._asdict() for remark in remarks]
        shown = figures(drawn, size) + remark_list(remarks)
    except (SceneError, ImportError) as error:  # a package may be missing that the noise's fields need
        shown = failure(error)
    return shown, json.dumps(reply)


def bands(scene: Scene, profile: Profile, prompts: Sequence[str] = ()) -> dict[str, Any]:
    """The useful ranges that count in a scene, by the controls' paths, for the page's sliders."""
    idle = "concepts[].weight" if scene.blend.mode == "add" else "blend.scale"
    own = [*prompts, *(concept.prompt for concept in scene.acting.concepts)]
    stale = not profile.familiar(own)
    return {
        path: {
            "origin": band.origin,
            "visible": band.visible,
            "top": band.top,
            "breaks": band.broken is not None,
            "end": band.end,
            "loses": band.lost is not None,
            "places": [list(place) for place in band.places],
            "low": control(path).low,
            "high": control(path).high,
            "stale": stale,
        }
        for path, band in profile.effects.items()
        if path != idle
    }


def settings_of(values: Sequence[Any]) -> list[Any]:
    """Those of a job's values that the canvas does not keep itself: enabled and one for each control."""
    return [values[1], *values[3:]]


def figures(drawn: preview.Preview, size: tuple[int, int]) -> str:
    """Coefficients; when concepts act, where that is not always; the noise's amount where there is any; frames and
    curve where there are several frames. Each with a legend."""
    scene = drawn.scene
    small = _fitted(size, LONGER_SIDE)
    noises = [name for name in preview.NOISES if getattr(scene.noise, name).strength > 0]
    blend = drawn.picture("coefficients", 0, small)
    shown = [_figure("Blend: what each place is made of", blend, _concepts_legend(scene))]
    chart = preview.steps_chart(scene)
    if chart:
        shown.append(f"<figure><figcaption>Steps: when each concept acts</figcaption>{chart}</figure>")
    if noises:
        legend = _ramp("none", preview.HEAT, "most")
        shown.append(_figure("Noise: where it may move", drawn.picture("noise", 0, small), legend))
    if scene.animation.frames > 1:
        strip = drawn.strip(STRIP_COUNT, _fitted(size, STRIP_SIDE))
        shown.append(_figure(f"Frames: some of {scene.animation.frames}", strip, _strip_legend(noises)))
        shown.append(f"<figure><figcaption>Motion over the frames</figcaption>{_curve(scene)}</figure>")
    return f'<div class="mn-figures">{"".join(shown)}</div>'


def problem_list(problems: Iterable[Problem], name: Callable[[str], str] | None = None) -> str:
    """Problems as a list. name: how the place of one is named; by the page's labels when None."""
    items = []
    for path, message in problems:
        place = html.escape((name or label_of)(path))
        words = f"<b>{place}</b>: {html.escape(message)}" if place else html.escape(message)
        items.append(f'<li title="{html.escape(path)}">{words}</li>')
    return f'<ul class="mn-problems">{"".join(items)}</ul>'


def label_of(path: str) -> str:
    """A place in a scene as the page names it: "Concept 1: weight", "Motion"; where it has no name, the path."""
    concept = re.fullmatch(r"concepts\[(\d+)\](?:\.(.*))?", path)
    label = _label(path)
    if concept is None:
        return label or path
    number, rest = concept.groups()
    name = label.removeprefix("Concept ") if label else rest
    return f"Concept {int(number) + 1}" + (f": {name}" if name else "")


def _label(path: str) -> str | None:
    for place in (path, re.sub(r"\[\d+\]$", "", path)):  # an entry of a list has the list's name
        try:
            return control(place).label
        except KeyError:
            continue
    return None


def remark_list(remarks: Iterable[Problem]) -> str:
    listed = "".join(f"<li>{html.escape(str(one))}</li>" for one in remarks)
    return f'<ul class="mn-remarks">{listed}</ul>' if listed else ""


def failure(error: Exception) -> str:
    """An error's message as text for the page; a SceneError's problems one by one."""
    if isinstance(error, SceneError):
        return problem_list(error.problems)
    return problem_list([Problem("", str(error))])


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure(caption: str, image: Image.Image, legend: str = "") -> str:
    width, height = image.size
    caption = html.escape(caption)
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<img src="{data_url(image)}" alt="{caption}" width="{width}" height="{height}">{legend}</figure>'
    )


def _concepts_legend(scene: Scene) -> str:
    """Each colour of the blend and whose it is."""
    listed = [(preview.BASE_COLOUR, "the image's own prompt")]
    for i, concept in enumerate(scene.concepts):
        if concept.enabled:
            listed.append((preview.COLOURS[i], concept.prompt or f"concept {i + 1}, without a prompt"))
    chips = [f'<span><i style="background: {colour}"></i>{html.escape(words[:60])}</span>' for colour, words in listed]
    if any(concept.weight < 0 for concept in scene.acting.concepts):
        chips.append("<span>striped: moved away from</span>")
    return f'<div class="mn-legend">{"".join(chips)}</div>'


def _ramp(low: str, colours: Sequence[str], high: str) -> str:
    """A colour scale with words at its ends."""
    scale = f"linear-gradient(to right, {', '.join(colours)})"
    return f'<div class="mn-legend"><span>{low}<i class="mn-ramp" style="background: {scale}"></i>{high}</span></div>'


def _strip_legend(noises: Sequence[str]) -> str:
    """What each row of `preview.strip` shows."""
    rows = ["blend", *(f"{name} noise" for name in noises)]
    words = f"<span>Rows from the top: {', '.join(rows)}.</span>"
    return f'<div class="mn-legend">{words}</div>' + (
        _ramp("one way", preview.DIVERGING, "the other") if noises else ""
    )


def _curve(scene: Scene) -> str:
    size = (120, 420)
    return preview.motion_curve(scene, size).replace("<svg ", f'<svg width="{size[1]}" ', 1)


def _fitted(size: tuple[int, int], longer: int) -> tuple[int, int]:
    scale = longer / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
