"""The accordion *Explore*: the four views on the loaded model, each shown as the page it also is on the disk.

The settings of the pictures are the page's own: `javascript/masknoise_7_explore.js` reads them off it when a button is
pressed, since a WebUI's components are not ours to name. The same file hands on what a view asks for: its scene for the
canvas, and pictures of places on a map.
"""

from __future__ import annotations

import base64
import html
import io
import json
import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_masknoise import arguments
from lib_masknoise.explore.folder import page
from lib_masknoise.explore.model import Stop
from lib_masknoise.explore.requests import (
    Asked,
    BetweenRequest,
    GridRequest,
    JourneyRequest,
    MapRequest,
    PlaceRequest,
)
from lib_masknoise.explore.workshop import Made, Workshop
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.ui import inputs, live

HEIGHT = 900
PLACE_SIDE = 320  # pixels of the longer one, of a picture on the map
HIDDEN = "masknoise-hidden"
JS = "js" if int(gr.__version__.split(".")[0]) >= 4 else "_js"
READ_PAGE = "(...values) => window.masknoiseExploreSettings(values.slice(0, %d))"
"""Before an event: what the page says is put in the place of the value of the hidden settings. Gradio hands a script
the outputs' values as well, behind those of the inputs."""
MAX_SEED = 2**32


class Explorer:
    """A page's way to a workshop."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def show(self, asked: Asked) -> Iterator[list[Any]]:
        """What the progress and the view show, again and again until it is there."""
        known = self.workshop.known(asked)
        if known is not None:
            yield [bar("Done before.", 1), frame(known)]
            return
        yield [bar("Starting…", 0), ""]
        try:
            for event in self.workshop.events(asked):
                if isinstance(event, Made):
                    yield [bar("Stopped." if event.view["interrupted"] else "Done.", 1), frame(event)]
                else:
                    words, done, total = event
                    yield [bar(words, done / max(1, total)), gr.update()]
        except Stop:
            yield [bar("Stopped.", 0), ""]
        except SceneError as error:
            yield [live.problem_list(error.problems), ""]
        except Exception as error:
            yield [live.failure(error), ""]

    def place(self, session: str, text: str) -> str:
        """A picture of a place on a map, as the map asks for it (JSON text both ways): a newer question of the same
        page ends an older one. The answer has its `tick`, and an `image`, or `words` where there is none."""
        asked = json.loads(text or "{}")
        answer: dict[str, Any] = {"tick": asked.get("tick", 0)}
        name = f"{session}/place"
        self.workshop.stop(name)
        try:
            answer["image"] = self._place(name, asked)
        except Stop:
            answer["words"] = ""
        except Exception as error:
            answer["words"] = str(error)
        return json.dumps(answer)

    def _place(self, name: str, asked: Mapping[str, Any]) -> str:
        chart = self.workshop.kept(str(asked.get("view", "")))
        if chart is None or not self.workshop.holds(chart):
            raise ValueError("Another model or other settings are there now: look at the map again.")
        common = {name: value for name, value in chart.asked.to_dict().items() if name in Asked.__fields__}
        blend = {"prompts": asked["prompts"], "weights": asked["weights"]}
        made = self.workshop.make(PlaceRequest.parse({**common, "prompt": "", "session": name, **blend}))
        return _small(made.folder / made.view["file"])


def _small(path: Path) -> str:
    image = Image.open(path).convert("RGB")
    image.thumbnail((PLACE_SIDE, PLACE_SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def frame(made: Made) -> str:
    """A view's page in the page. Its pictures come from the host by their paths."""
    sources = {name: f"file={(made.folder / name).as_posix()}" for name in made.view["files"]}
    text = html.escape(page(made.view, sources, made.digest), quote=True)
    title = f"Explore: {made.view['view']}"
    return f'<iframe class="masknoise-explore" title="{title}" height="{HEIGHT}" srcdoc="{text}"></iframe>'


def build(elem_id: Callable[[str], str], explorer: Explorer, job: Sequence[Any]) -> None:
    """The accordion. job: the components of the scene."""
    with gr.Accordion("Explore", open=False, elem_id=elem_id("explore"), elem_classes=["masknoise-exploring"]):
        session = gr.State(lambda: uuid.uuid4().hex)
        with gr.Tabs():
            tabs = [make_tab(elem_id) for make_tab in (_journey, _between, _map, _grid)]
        halt = gr.Button("Stop", elem_id=elem_id("explore_stop"))
        progress = gr.HTML(
            bar("Nothing looked at yet.", 0), elem_id=elem_id("explore_progress"), elem_classes=["masknoise-progress"]
        )
        place = gr.HTML("", elem_id=elem_id("explore_view"))
        settings = hidden("Settings of the page", elem_id("explore_settings"))
        for button, look, own in tabs:
            given = [session, settings, *own, *job]
            options: dict[str, Any] = {"show_progress": "hidden", "api_name": False, JS: READ_PAGE % len(given)}
            button.click(_looking(explorer, look, len(own)), given, [progress, place], **options)
        halt.click(explorer.workshop.stop, [session], None, queue=False, api_name=False)
        _connect_places(elem_id, explorer, session)


def _connect_places(elem_id: Callable[[str], str], explorer: Explorer, session: Any) -> None:
    """A map fills in its question and presses the button; the answer is for the map."""
    asked = hidden("Place asked for", elem_id("explore_place"))
    reply = hidden("Picture of the place", elem_id("explore_reply"))
    button = gr.Button("Ask for the place", elem_id=elem_id("explore_ask"), elem_classes=[HIDDEN])
    button.click(explorer.place, [session, asked], [reply], queue=False, show_progress="hidden", api_name=False)


def hidden(label: str, elem_id: str) -> Any:
    return gr.Textbox(value="", label=label, elem_id=elem_id, elem_classes=[HIDDEN])


Look = Callable[[Sequence[Any], dict[str, Any], Scene], Asked]
Tab = tuple[Any, Look, list[Any]]


def _looking(explorer: Explorer, look: Look, own: int) -> Callable[..., Iterator[list[Any]]]:
    """An event of a tab: its own values, the page's settings and the scene make a request; what is wrong is shown."""

    def run(session: str, settings: str, *values: Any) -> Iterator[list[Any]]:
        try:
            common = {**page_settings(settings), "session": session}
            scene = inputs.read([values[own], True, *values[own + 2 :]]) or Scene()
            asked = look(values[:own], common, scene)
        except SceneError as error:
            yield [live.problem_list(error.problems), ""]
            return
        yield from explorer.show(asked)

    return run


def page_settings(text: str) -> dict[str, Any]:
    """What the page says of itself, as fields of a request. A negative seed means any."""
    found: dict[str, Any] = json.loads(text or "{}")
    if found.get("seed", 0) < 0:
        found["seed"] = random.randrange(MAX_SEED)
    return found


def _journey(elem_id: Callable[[str], str]) -> Tab:
    with gr.Tab("Journey"):
        gr.Markdown("How noise becomes the picture of the prompt above, step by step.")
        whole = gr.Checkbox(False, label="Of the whole scene", elem_id=elem_id("journey_scene"))
        button = gr.Button("Look at the journey", elem_id=elem_id("journey_look"))

    def look(own: Sequence[Any], common: dict[str, Any], scene: Scene) -> Asked:
        return JourneyRequest.parse({**common, "scene": scene if own[0] else None})

    return button, look, [whole]


def _between(elem_id: Callable[[str], str]) -> Tab:
    with gr.Tab("Between"):
        gr.Markdown("What stands between two prompts, beyond them, and which named prompts lie on the way.")
        with gr.Row():
            first = gr.Textbox(label="From", info="Empty: the scene's first concept.", elem_id=elem_id("between_from"))
            second = gr.Textbox(label="To", info="Empty: the scene's second concept.", elem_id=elem_id("between_to"))
        with gr.Row():
            stops = gr.Slider(2, 65, value=17, step=1, label="Stops", elem_id=elem_id("between_stops"))
            bridges = gr.Slider(0, 12, value=5, step=1, label="Bridges", elem_id=elem_id("between_bridges"))
            even = gr.Checkbox(False, label="At equal distances", elem_id=elem_id("between_even"))
        button = gr.Button("Look between", elem_id=elem_id("between_look"))

    def look(own: Sequence[Any], common: dict[str, Any], scene: Scene) -> Asked:
        ends = {"from": own[0].strip(), "to": own[1].strip()}
        options = {"stops": own[2], "bridges": own[3], "even": own[4]}
        return BetweenRequest.parse({**common, **ends, **options, "scene": scene if scene.concepts else None})

    return button, look, [first, second, stops, bridges, even]


def _map(elem_id: Callable[[str], str]) -> Tab:
    with gr.Tab("Map"):
        gr.Markdown("Where prompts live, by this model's own encoder. A click is a blend of the three around it.")
        prompts = gr.Textbox(
            label="Prompts",
            info="One a line, # for headings. Empty: a built-in list of about 600 scenes and styles.",
            lines=3,
            max_lines=12,
            elem_id=elem_id("map_prompts"),
        )
        with gr.Row():
            columns = gr.Slider(0, 24, value=8, step=1, label="Columns of pictures", elem_id=elem_id("map_columns"))
            presets = gr.Checkbox(True, label="The presets' prompts as well", elem_id=elem_id("map_presets"))
        button = gr.Button("Look at the map", elem_id=elem_id("map_look"))

    def look(own: Sequence[Any], common: dict[str, Any], scene: Scene) -> Asked:
        options = {"columns": own[1], "presets": own[2], "scene": scene if scene.concepts else None}
        return MapRequest.parse({**common, "prompts": own[0].splitlines(), **options})

    return button, look, [prompts, columns, presets]


def _grid(elem_id: Callable[[str], str]) -> Tab:
    with gr.Tab("Grid"):
        gr.Markdown("What seed, steps, guidance and words do to the prompt above, every combination.")
        with gr.Row():
            seeds = gr.Textbox("1, 2, 3", label="Seeds", max_lines=1, elem_id=elem_id("grid_seeds"))
            steps = gr.Textbox("2, 5, 10, 20", label="Step counts", max_lines=1, elem_id=elem_id("grid_steps"))
            guidance = gr.Textbox("1, 4, 8", label="Guidance", max_lines=1, elem_id=elem_id("grid_guidance"))
        with gr.Row():
            words = gr.Checkbox(False, label="Word by word", elem_id=elem_id("grid_words"))
            whole = gr.Checkbox(False, label="Of the whole scene", elem_id=elem_id("grid_scene"))
        button = gr.Button("Look at the grid", elem_id=elem_id("grid_look"))

    def look(own: Sequence[Any], common: dict[str, Any], scene: Scene) -> Asked:
        axes = {
            "seeds": _numbers("Seeds", own[0], arguments.seed),
            "step_counts": _numbers("Step counts", own[1], arguments.positive),
            "guidances": _numbers("Guidance", own[2], arguments.finite),
        }
        return GridRequest.parse({**common, **axes, "words": own[3], "scene": scene if own[4] else None})

    return button, look, [seeds, steps, guidance, words, whole]


def _numbers(name: str, text: str, of: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(dict.fromkeys(of(part.strip()) for part in text.split(",")))
    except Exception as error:  # argparse's, which is no ValueError
        raise SceneError([Problem(name, str(error))]) from None


def bar(words: str, fraction: float) -> str:
    words = html.escape(words)
    return (
        f'<p role="status">{words}</p><progress max="1" value="{float(fraction):.3f}" aria-label="Progress"></progress>'
    )
