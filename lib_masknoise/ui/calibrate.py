"""The accordion *Useful range*: from where to where each strength does something with the loaded model.

The ranges themselves are drawn on the sliders by `javascript/masknoise_7_bands.js`, which hears of them with every
preview.
"""

from __future__ import annotations

import html
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from lib_masknoise.calibrate.calibrator import Calibrator
from lib_masknoise.calibrate.profile import Profile
from lib_masknoise.calibrate.requests import CalibrateRequest
from lib_masknoise.controls import control
from lib_masknoise.explore.model import Stop
from lib_masknoise.scene import Scene, SceneError
from lib_masknoise.ui import inputs, live
from lib_masknoise.ui.explore import JS, READ_PAGE, bar, hidden, page_settings

HELP = (
    "How strong is strong depends on the model. This measures it, with the prompts of the concepts and the one above: "
    "from where on each strength is seen, and up to where pictures hold. It takes a few dozen pictures, once a model. "
    "*Find style* measures what the dimensions *style* and *layout* of feature noise are: about a thousand rows."
)


def build(elem_id: Callable[[str], str], calibrator: Calibrator, job: Sequence[Any]) -> None:
    """Inside the current gradio block. job: the components of the scene."""
    with gr.Accordion("Useful range", open=False, elem_id=elem_id("calibrate")):
        gr.Markdown(HELP)
        session = gr.State(lambda: uuid.uuid4().hex)
        with gr.Row():
            again = gr.Checkbox(False, label="Measure again", elem_id=elem_id("calibrate_again"))
            start = gr.Button("Calibrate", elem_id=elem_id("calibrate_start"))
            style = gr.Button("Find style", elem_id=elem_id("calibrate_style"))
            halt = gr.Button("Stop calibrating", elem_id=elem_id("calibrate_stop"))
        progress = gr.HTML(
            bar("Not begun. What is known of the loaded model already shows on the sliders.", 0),
            elem_id=elem_id("calibrate_progress"),
            elem_classes=["masknoise-progress"],
        )
        found = gr.HTML("", elem_id=elem_id("calibrate_ranges"), elem_classes=["masknoise-preview"])
        settings = hidden("Settings to calibrate with", elem_id("calibrate_settings"))
        given = [session, settings, again, *job]
        options: dict[str, Any] = {"show_progress": "hidden", "api_name": False, JS: READ_PAGE % len(given)}

        def measure(name: str, text: str, anew: bool, *values: Any) -> Iterator[list[Any]]:
            yield from _shown(calibrator, name, text, {"again": anew}, values)

        def find(name: str, text: str, anew: bool, *values: Any) -> Iterator[list[Any]]:
            yield from _shown(calibrator, name, text, {"again": anew, "style": True}, values)

        start.click(measure, given, [progress, found], **options)
        style.click(find, given, [progress, found], **options)
        halt.click(calibrator.workshop.stop, [session], None, queue=False, api_name=False)


def _shown(
    calibrator: Calibrator, session: str, settings: str, wanted: Mapping[str, bool], job: Sequence[Any]
) -> Iterator[list[Any]]:
    """What the progress and the ranges show, again and again until they are there."""
    try:
        scene = inputs.read([job[0], True, *job[2:]]) or Scene()
        asked = CalibrateRequest.parse({**page_settings(settings), "session": session, "scene": scene, **wanted})
        yield [bar("Starting…", 0), gr.update()]
        for event in calibrator.events(asked):
            if isinstance(event, Profile):
                yield [bar("Done.", 1), ranges(event)]
            else:
                words, done, total = event
                yield [bar(words, done / max(1, total)), gr.update()]
    except Stop:
        yield [bar("Stopped.", 0), gr.update()]
    except SceneError as error:
        yield [live.problem_list(error.problems), gr.update()]
    except Exception as error:
        yield [live.failure(error), gr.update()]


def ranges(profile: Profile) -> str:
    """A profile as a table, and whether it has directions of style."""
    names = " and ".join(html.escape(name) for name in (profile.style or {}).get("mixtures", ()))
    style = f"<p>Dimensions of feature noise that are known: {names}.</p>" if names else ""
    if not profile.effects:
        return style
    rows = "".join(
        f"<tr><td>{html.escape(control(path).label)}</td><td>{_number(band.visible, 'not seen')}</td>"
        f"<td>{_number(band.broken, 'holds')}</td><td>{_number(band.lost, 'not found')}</td></tr>"
        for path, band in profile.effects.items()
    )
    head = "<tr><th>Strength</th><th>seen from</th><th>holds up to</th><th>half lost from</th></tr>"
    words = html.escape(f"{profile.name}, measured with {'; '.join(profile.prompts)}")
    return f'<table class="mn-ranges">{head}{rows}</table><p>{words}</p>{style}'


def _number(value: float | None, none: str) -> str:
    return none if value is None else f"{value:.3g}"
