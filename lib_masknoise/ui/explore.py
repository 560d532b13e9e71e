"""The accordion *Explore*: the four views on the loaded model, each shown as the page it also is on the disk."""

from __future__ import annotations

import hashlib
import html
import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from lib_masknoise import arguments
from lib_masknoise.explore import map as maps
from lib_masknoise.explore import views
from lib_masknoise.explore.between import Stage
from lib_masknoise.explore.folder import Folder, page
from lib_masknoise.explore.grid import Grid
from lib_masknoise.explore.model import Model, Report, Stop
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.settings import Settings
from lib_masknoise.ui import inputs, live

REMEMBERED = 12
"""Views whose pictures are kept, so that going back to one is instant."""

BATCH = 8
HEIGHT = 900

Tell = Callable[[Any], None]
Stopped = Callable[[], bool]
Job = Callable[[Tell, Stopped], None]
Start = Callable[[str, Job], Iterator[Any]]
"""Runs a job for a session, one at a time on the model; hands out what it tells."""
ReadSettings = Callable[[Sequence[Any]], Settings]

Making = Callable[[Folder, Stage], dict[str, Any]]


class Explorer:
    """Makes views on a model and keeps the last ones. folder: for their pictures, where the page may read them."""

    def __init__(self, model: Model, start: Start, folder: Path) -> None:
        self.model, self.start, self.folder = model, start, folder
        self._known: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def show(self, session: str, name: str, said: Any, make: Making) -> Iterator[list[str]]:
        """What the progress and the view show, again and again until it is there. said: all that the view depends on,
        but for the model, as JSON has it."""
        digest = hashlib.sha256(json.dumps([name, said], sort_keys=True).encode()).hexdigest()[:24]
        folder = self.folder / "explore" / digest
        known = self._known.get(digest)
        if known is not None:
            yield [_bar("Done before.", 1), frame(known, folder)]
            return

        def job(tell: Tell, stopped: Stopped) -> None:
            tell(make(Folder(folder), _stage(tell, stopped)))

        yield [_bar("Starting…", 0), ""]
        try:
            for event in self.start(session, job):
                if isinstance(event, dict):
                    self._keep(digest, event)
                    yield [_bar("Stopped." if event["interrupted"] else "Done.", 1), frame(event, folder)]
                else:
                    yield [_bar(*event), gr.update()]
        except Stop:
            yield [_bar("Stopped.", 0), ""]
        except SceneError as error:
            yield [live.problem_list(error.problems), ""]
        except Exception as error:
            yield [live.failure(error), ""]

    def _keep(self, digest: str, view: dict[str, Any]) -> None:
        with self._lock:
            if not view["interrupted"]:
                self._known[digest] = view
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)


def frame(view: dict[str, Any], folder: Path) -> str:
    """A view's page in the page. Its pictures come from the host by their paths."""
    sources = {name: f"file={(folder / name).as_posix()}" for name in view["files"]}
    text = html.escape(page(view, sources), quote=True)
    return (
        f'<iframe class="masknoise-explore" title="Explore: {view["view"]}" height="{HEIGHT}" srcdoc="{text}"></iframe>'
    )


def build(
    elem_id: Callable[[str], str],
    explorer: Explorer,
    stop: Callable[[str], None],
    settings: Sequence[Any],
    read_settings: ReadSettings,
    job: Sequence[Any],
) -> None:
    """The accordion. settings, job: the components of the image's settings and of the scene."""
    with gr.Accordion("Explore", open=False, elem_id=elem_id("explore")):
        session = gr.State(lambda: uuid.uuid4().hex)
        looks: list[tuple[Any, Callable[..., Iterator[list[str]]], list[Any]]] = []
        with gr.Tabs():
            for make_tab in (_journey, _between, _map, _grid):
                looks.append(make_tab(elem_id, explorer, read_settings))
        halt = gr.Button("Stop", elem_id=elem_id("explore_stop"))
        progress = gr.HTML(
            _bar("Nothing looked at yet.", 0), elem_id=elem_id("explore_progress"), elem_classes=["masknoise-progress"]
        )
        place = gr.HTML("", elem_id=elem_id("explore_view"))
        for button, look, own in looks:
            given = [session, *own, *settings, *job]
            button.click(
                _split(look, len(own), len(settings)), given, [progress, place], show_progress="hidden", api_name=False
            )
        halt.click(stop, [session], None, queue=False, api_name=False)


Look = Callable[[str, Sequence[Any], Sequence[Any], Sequence[Any]], Iterator[list[str]]]
Tab = tuple[Any, Look, list[Any]]


def _split(look: Look, own: int, settings: int) -> Callable[..., Iterator[list[str]]]:
    """One list of values → those of the tab, of the image and of the scene; what is wrong in them is shown."""

    def run(session: str, *values: Any) -> Iterator[list[str]]:
        try:
            yield from look(session, values[:own], values[own : own + settings], values[own + settings :])
        except SceneError as error:
            yield [live.problem_list(error.problems), ""]

    return run


def _journey(elem_id: Callable[[str], str], explorer: Explorer, read: ReadSettings) -> Tab:
    with gr.Tab("Journey"):
        gr.Markdown("How noise becomes the picture of the prompt above, step by step.")
        whole = gr.Checkbox(False, label="Of the whole scene", elem_id=elem_id("journey_scene"))
        button = gr.Button("Look at the journey", elem_id=elem_id("journey_look"))

    def look(session: str, own: Sequence[Any], settings: Sequence[Any], job: Sequence[Any]) -> Iterator[list[str]]:
        made = read(settings)
        scene = _scene(job) if own[0] else None
        said = [asdict(made), scene and scene.to_dict()]
        return explorer.show(
            session, "journey", said, lambda to, stage: views.journey(explorer.model, made, scene, to, stage)
        )

    return button, look, [whole]


def _between(elem_id: Callable[[str], str], explorer: Explorer, read: ReadSettings) -> Tab:
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

    def look(session: str, own: Sequence[Any], settings: Sequence[Any], job: Sequence[Any]) -> Iterator[list[str]]:
        made, scene = read(settings), _scene(job)
        base = made.prompt
        ends = [text.strip() for text in own[:2]]
        known = [concept.prompt for concept in scene.concepts[:2]]
        used = scene if len(known) == 2 and not any(ends) else None
        ends = [end or (known[i] if i < len(known) else "") for i, end in enumerate(ends)]
        if not all(ends):
            raise SceneError([Problem("From, To", "expected two prompts, or a scene with two concepts")])
        options: dict[str, Any] = {"stops": int(own[2]), "bridges": int(own[3]), "even": bool(own[4])}
        made = Settings(**{**asdict(made), "prompt": ends[0]})
        said = [asdict(made), ends[1], base, options, used and used.to_dict()]

        def make(to: Folder, stage: Stage) -> dict[str, Any]:
            names = maps.read_prompts(maps.BUILT_IN) if options["bridges"] else []
            return views.between(
                explorer.model, made, ends[1], to, stage, names=names, scene=used, base=base if used else "", **options
            )

        return explorer.show(session, "between", said, make)

    return button, look, [first, second, stops, bridges, even]


def _map(elem_id: Callable[[str], str], explorer: Explorer, read: ReadSettings) -> Tab:
    with gr.Tab("Map"):
        gr.Markdown("Where prompts live, by this model's own encoder. A click is a blend of the three around it.")
        prompts = gr.Textbox(
            label="Prompts",
            info="One a line, # for headings. Empty: a built-in list of about 600 scenes and styles.",
            lines=3,
            max_lines=12,
            elem_id=elem_id("map_prompts"),
        )
        columns = gr.Slider(0, 24, value=8, step=1, label="Columns of pictures", elem_id=elem_id("map_columns"))
        button = gr.Button("Look at the map", elem_id=elem_id("map_look"))

    def look(session: str, own: Sequence[Any], settings: Sequence[Any], job: Sequence[Any]) -> Iterator[list[str]]:
        made = Settings(**{**asdict(read(settings)), "prompt": ""})
        given = own[0].splitlines()
        entries = maps.entries(given) if own[0].strip() else maps.read_prompts(maps.BUILT_IN)
        known = {entry.prompt for entry in entries}
        of_scene = [concept.prompt for concept in _scene(job).concepts]
        entries = [*(maps.Entry(text, "The scene") for text in dict.fromkeys(of_scene) if text not in known), *entries]
        said = [asdict(made), [entry.prompt for entry in entries], own[1]]
        return explorer.show(
            session,
            "map",
            said,
            lambda to, stage: views.prompt_map(explorer.model, made, entries, to, stage, columns=int(own[1])),
        )

    return button, look, [prompts, columns]


def _grid(elem_id: Callable[[str], str], explorer: Explorer, read: ReadSettings) -> Tab:
    with gr.Tab("Grid"):
        gr.Markdown("What seed, steps, guidance and words do to the prompt above, every combination.")
        with gr.Row():
            seeds = gr.Textbox("1, 2, 3", label="Seeds", max_lines=1, elem_id=elem_id("grid_seeds"))
            steps = gr.Textbox("2, 5, 10, 20", label="Step counts", max_lines=1, elem_id=elem_id("grid_steps"))
            guidance = gr.Textbox("1, 4, 8", label="Guidance", max_lines=1, elem_id=elem_id("grid_guidance"))
            words = gr.Checkbox(False, label="Word by word", elem_id=elem_id("grid_words"))
        button = gr.Button("Look at the grid", elem_id=elem_id("grid_look"))

    def look(session: str, own: Sequence[Any], settings: Sequence[Any], job: Sequence[Any]) -> Iterator[list[str]]:
        made = read(settings)
        wanted = Grid(
            made.prompt,
            _numbers("Seeds", own[0], arguments.seed),
            _numbers("Step counts", own[1], arguments.positive),
            _numbers("Guidance", own[2], arguments.finite),
            bool(own[3]),
        )
        try:
            _ = wanted.cells
        except ValueError as error:
            raise SceneError([Problem("Grid", str(error))]) from None
        said = [asdict(made), asdict(wanted)]
        return explorer.show(
            session, "grid", said, lambda to, stage: views.grid(explorer.model, made, wanted, None, to, stage)
        )

    return button, look, [seeds, steps, guidance, words]


def _numbers(name: str, text: str, of: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(dict.fromkeys(of(part.strip()) for part in text.split(",")))
    except Exception as error:  # argparse's, which is no ValueError
        raise SceneError([Problem(name, str(error))]) from None


def _scene(job: Sequence[Any]) -> Scene:
    return inputs.read([job[0], True, *job[2:]]) or Scene()


def _stage(tell: Tell, stopped: Stopped) -> Stage:
    @contextmanager
    def stage(what: str, total: int, unit: str) -> Iterator[Report]:
        done = 0.0

        def report(more: float) -> None:
            nonlocal done
            if stopped():
                raise Stop
            done += more
            tell((f"{what.capitalize()}: {done:.1f} of {total} {unit}", done / max(1, total)))

        yield report

    return stage


def _bar(words: str, fraction: float) -> str:
    words = html.escape(words)
    return (
        f'<p role="status">{words}</p><progress max="1" value="{float(fraction):.3f}" aria-label="Progress"></progress>'
    )
