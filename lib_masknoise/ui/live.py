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
    ``prompts`` whose tokens are counted. The reply has those and the ``settings`` that a page keeps over its reload.
    """
    asked = json.loads(request or "{}")
    reply = {
        "tick": asked.get("tick", 0),
        "tokens": {prompt: token_counter(prompt) for prompt in asked.get("prompts", [])} if token_counter else {},
        "settings": settings_of(values),
    }
    size = (int(asked.get("height", 512)), int(asked.get("width", 512)))
    try:
        shown = figures(scene_of(values).replace({"enabled": True}), size)
    except (SceneError, ImportError) as error:  # a package may be missing that the noise's fields need
        shown = failure(error)
    return shown, json.dumps(reply)


def settings_of(values: Sequence[Any]) -> list[Any]:
    """Those of a job's values that the canvas does not keep itself: enabled and one for each control."""
    return [values[1], *values[3:]]


def figures(scene: Scene, size: tuple[int, int]) -> str:
    """Coefficients; the noise's amount where there is any; frames and curve where there are several frames."""
    small = _fitted(size, LONGER_SIDE)
    noises = (scene.noise.visual, scene.noise.concept, scene.noise.feature)
    pictures = preview.Preview(scene)
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
