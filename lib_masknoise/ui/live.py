"""What the user interface shows of a scene before anything is sampled, as HTML. Imports no gradio."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from PIL import Image

from lib_masknoise import preview
from lib_masknoise.scene import Problem, Scene, SceneError
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


def answer(values: Sequence[Any], request: str, token_counter: Callable[[str], str] | None = None) -> tuple[str, str]:
    """What the page shows of a job's values, and the reply that the canvas waits for.

    request: JSON text with the ``tick`` that the reply repeats, the picture's ``width`` and ``height`` and the
    ``prompts`` whose tokens are counted. The reply has those, the ``settings`` that a page keeps over its reload, and
    the ``remarks`` on the scene, each with its path and message.
    """
    asked = json.loads(request or "{}")
    prompts = asked.get("prompts", []) if token_counter else []
    reply = {
        "tick": asked.get("tick", 0),
        "tokens": {prompt: token_counter(prompt) for prompt in prompts},
        "settings": settings_of(values),
        "remarks": [],
    }
    size = (int(asked.get("height", 512)), int(asked.get("width", 512)))
    try:
        scene = scene_of(values).replace({"enabled": True})
        pictures = preview.Preview(scene)
        remarks = pictures.maps(_fitted(size, LONGER_SIDE)).remarks()
        reply["remarks"] = [remark._asdict() for remark in remarks]
        shown = figures(pictures, size) + remark_list(remarks)
    except SceneError as error:
        shown = problem_list(error.problems)
    return shown, json.dumps(reply)


def settings_of(values: Sequence[Any]) -> list[Any]:
    """Those of a job's values that the canvas does not keep itself: enabled and one for each control."""
    return [values[1], *values[3:]]


def figures(pictures: preview.Preview, size: tuple[int, int]) -> str:
    """Coefficients; the noise's amount where there is any; frames and curve where there are several frames."""
    scene = pictures.scene
    small = _fitted(size, LONGER_SIDE)
    noises = (scene.noise.visual, scene.noise.concept, scene.noise.feature)
    shown = [_figure("Blend: what each place is made of", pictures.picture("coefficients", 0, small))]
    if any(noise.strength > 0 for noise in noises):
        shown.append(_figure("Noise: where it may move", pictures.picture("noise", 0, small)))
    if scene.animation.frames > 1:
        strip = pictures.strip(STRIP_COUNT, _fitted(size, STRIP_SIDE))
        shown.append(_figure(f"Frames: some of {scene.animation.frames}", strip))
        shown.append(f"<figure><figcaption>Motion over the frames</figcaption>{_curve(scene)}</figure>")
    return f'<div class="mn-figures">{"".join(shown)}</div>'


def problem_list(problems: Iterable[Problem]) -> str:
    return f'<ul class="mn-problems">{"".join(f"<li>{html.escape(str(one))}</li>" for one in problems)}</ul>'


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


def _figure(caption: str, image: Image.Image) -> str:
    width, height = image.size
    caption = html.escape(caption)
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<img src="{data_url(image)}" alt="{caption}" width="{width}" height="{height}"></figure>'
    )


def _curve(scene: Scene) -> str:
    size = (120, 420)
    return preview.motion_curve(scene, size).replace("<svg ", f'<svg width="{size[1]}" ', 1)


def _fitted(size: tuple[int, int], longer: int) -> tuple[int, int]:
    scale = longer / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
