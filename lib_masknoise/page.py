"""`python -m lib_masknoise ui`: a small txt2img page, the accordions and canvas of `ui` on the diffusers host."""

from __future__ import annotations

import base64
import html
import itertools
import json
import queue
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import PngImagePlugin

from lib_masknoise import animation, infotext
from lib_masknoise.calibrate.calibrator import Calibrator
from lib_masknoise.calibrate.profile import Profiles
from lib_masknoise.calibrate_routes import add_calibrate
from lib_masknoise.explore.map import preset_prompts
from lib_masknoise.explore.workshop import Workshop
from lib_masknoise.explore_routes import add_explore
from lib_masknoise.hosts import diffusers as host
from lib_masknoise.hosts.diffusers.calibrating import PipelineProbe
from lib_masknoise.hosts.diffusers.exploring import PipelineHost
from lib_masknoise.hosts.diffusers.live import LiveHost
from lib_masknoise.live import Engine, Picture, Turns, described
from lib_masknoise.live_routes import PATH as LIVE
from lib_masknoise.live_routes import add_live
from lib_masknoise.presets import Presets
from lib_masknoise.render import Settings
from lib_masknoise.render.studio import host_options
from lib_masknoise.scene import Scene, SceneError
from lib_masknoise.ui import accordions, calibrate, explore, inputs, keeping, live
from lib_masknoise.wildcards import Wildcards, expand

ROOT = Path(__file__).resolve().parents[1]
HOME = Path.home() / ".masknoise"
TAB = "txt2img"
SHOWN_FRAMES = 48  # in the gallery: the newest ones of a long animation
BATCH = 4
CHUNK_TOKENS = host.CHUNK_TOKENS

GALLERY = {"label": "Frames", "columns": 4, "object_fit": "contain", "height": 260}
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # those of gradio are fetched


class Stopped(Exception):
    """The stop button was pressed."""


class Studio:
    """A pipeline, one job at a time, and which sessions want theirs to stop. model: where the pipeline came from, None
    for the built-in one. wildcards: files that prompts may name. profiles: where those of models are kept; in `folder`
    when None."""

    def __init__(
        self,
        pipe: Any,
        folder: Path,
        model: str | None = None,
        wildcards: Wildcards | None = None,
        profiles: Path | None = None,
    ) -> None:
        self.pipe = pipe
        self.model = model
        self.additions: dict[str, str] = {}
        """What has been added to the model, in an infotext's words."""
        self.folder = folder
        self.turns = Turns()
        self.wildcards = wildcards or Wildcards()
        self.live = Engine(LiveHost(pipe, self.turns, self.wildcards))
        probe = PipelineProbe(pipe, model)
        self.workshop = Workshop(PipelineHost(probe, self.turns.job, model), folder / "explore")
        self.calibrator = Calibrator(self.workshop, Profiles(profiles or folder / "profiles"), probe.identity)
        self._kept = itertools.count()
        self._stops: dict[str, threading.Event] = {}

    def stop(self, session: str) -> None:
        if session in self._stops:
            self._stops[session].set()

    def render(self, session: str, scene: Scene, settings: Settings) -> Iterator[host.Progress | host.Frame]:
        """Steps and finished frames as they come. Raises what the sampling raises, and Stopped."""
        options = host_options(settings, range(scene.animation.frames), BATCH)

        def job(tell: Callable[[Any], None], stopped: Callable[[], bool]) -> None:
            def on_step(progress: host.Progress) -> None:
                if stopped():
                    raise Stopped
                tell(progress)

            for frame in host.render(self.pipe, scene, **options, on_step=on_step):
                tell(frame)

        return self.work(session, job)

    def work(self, session: str, job: Callable[[Callable[[Any], None], Callable[[], bool]], None]) -> Iterator[Any]:
        """Whatever a job tells, as it comes. Raises what it raises.

        It runs in a thread of its own: it reports by calling back, a page wants its reports one by one. The job is
        given how to tell something, and how to find out whether it is to stop.
        """
        stop = self._stops[session] = threading.Event()
        events: queue.Queue[Any] = queue.Queue()

        def work() -> None:
            try:
                with self.turns.job():
                    job(events.put, stop.is_set)
                events.put(None)
            except BaseException as error:  # whatever it is, the page is where it must be said
                events.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            stop.set()  # also where the page has gone away
            thread.join()
            self._stops.pop(session, None)

    def session_folder(self, session: str) -> Path:
        """An empty folder for a session's pictures."""
        folder = self.folder / session
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def keep(self, session: str) -> Path:
        """Save the last live picture of a page, with its infotext. Raises ValueError where there is none."""
        picture = self.live.picture(session)
        if picture is None:
            raise ValueError("There is no live picture yet.")
        folder = self.folder / "live"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{next(self._kept):05}.png"
        text = PngImagePlugin.PngInfo()
        text.add_text("parameters", _infotext(picture, self.additions))
        picture.image.save(path, pnginfo=text)
        return path

    def tokens(self, prompt: str) -> str:
        count = len(self.pipe.tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids)
        return f"{count}/{CHUNK_TOKENS * max(1, -(-count // CHUNK_TOKENS))}"


def create(studio: Studio, presets: Presets | None = None) -> gr.Blocks:
    """The page."""
    theme = gr.themes.Default(**FONTS)
    with gr.Blocks(title="MaskNoise", theme=theme, analytics_enabled=False) as page:
        with gr.Row():
            with gr.Column(scale=3):
                settings, buttons = _settings(studio.pipe)
            with gr.Column(scale=2):
                outputs = _outputs()
        made = accordions.build(
            _elem_id,
            enable=_enabled,
            presets=presets,
            token_counter=studio.tokens,
            tab=TAB,
            live_route=LIVE,
            profile=studio.calibrator.current,
        )
        _connect(studio, settings, buttons, outputs, made.inputs)
        _connect_keep(studio, outputs)
        studio.workshop.presets = partial(preset_prompts, presets) if presets else list
        calibrate.build(_elem_id, studio.calibrator, made.inputs)
        explore.build(_elem_id, explore.Explorer(studio.workshop), made.inputs)
        _load_script(page)
    return page


def run(
    port: int | None,
    model: str | None = None,
    additions: Mapping[str, Any] | None = None,
    wildcards: Wildcards | None = None,
) -> None:
    """Serve the page until it is interrupted. additions: to the model, as `load_pipeline` takes them."""
    pipe = host.load_pipeline(model, **(additions or {}))
    with tempfile.TemporaryDirectory(prefix="masknoise-") as folder:
        studio = Studio(pipe, Path(folder), model, wildcards, HOME / "profiles")
        studio.additions = _named(additions or {})
        page, _ = serve(studio, port, Presets(HOME / "presets", studio.calibrator.numbers))
        try:
            page.block_thread()
        finally:
            studio.live.close()


def serve(studio: Studio, port: int | None, presets: Presets | None = None) -> tuple[gr.Blocks, Any]:
    """Serve the page from threads of its own; returns it and its application, with the route of live pictures."""
    page = create(studio, presets)
    folders = [str(studio.folder)]
    app, _, _ = page.queue().launch(
        server_name="127.0.0.1", server_port=port, show_api=False, allowed_paths=folders, prevent_thread_lock=True
    )
    add_live(app, studio.live)
    add_explore(app, studio.workshop)
    add_calibrate(app, studio.calibrator)
    return page, app


def _elem_id(name: str) -> str:
    return f"masknoise_{name}"


@contextmanager
def _enabled(value: bool, label: str, elem_id: str) -> Iterator[Any]:
    """The outer accordion, switched on: this page is there for nothing else."""
    plain: Callable[..., AbstractContextManager[Any]] = accordions.plain_enable
    with plain(value=True, label=label, elem_id=elem_id) as enabled:
        yield enabled


# --- Components


def _settings(pipe: Any) -> tuple[list[Any], tuple[Any, Any]]:
    height, width = host.default_size(pipe)
    prompt = gr.Textbox(
        label="Prompt", info="The base: what fills the places no mask covers.", lines=2, elem_id="txt2img_prompt"
    )
    negative = gr.Textbox(label="Negative prompt", lines=1, elem_id="txt2img_neg_prompt")
    with gr.Row():
        width = gr.Slider(64, 1024, value=width, step=8, label="Width", elem_id="txt2img_width")
        height = gr.Slider(64, 1024, value=height, step=8, label="Height", elem_id="txt2img_height")
    with gr.Row():
        steps = gr.Slider(1, 100, value=20, step=1, label="Steps", elem_id="txt2img_steps")
        guidance = gr.Slider(1, 15, value=4, step=0.5, label="Guidance", elem_id="txt2img_cfg_scale")
        seed = gr.Number(value=0, precision=0, label="Seed", elem_id="txt2img_seed")
    with gr.Row():
        generate = gr.Button("Generate", variant="primary", elem_id="txt2img_generate")
        stop = gr.Button("Stop", elem_id="txt2img_interrupt")
    return [prompt, negative, width, height, steps, guidance, seed], (generate, stop)


def _outputs() -> list[Any]:
    progress = gr.HTML(
        _bar("Nothing generated yet.", 0), elem_id="txt2img_progress", elem_classes=["masknoise-progress"]
    )
    film = gr.HTML("", elem_id="txt2img_film", elem_classes=["masknoise-film"])
    gallery = gr.Gallery(elem_id="txt2img_gallery", **GALLERY)
    files = gr.File(label="Files", file_count="multiple", interactive=False, visible=False, elem_id="txt2img_files")
    return [progress, film, gallery, files]


def _connect(studio: Studio, settings: list[Any], buttons: tuple[Any, Any], outputs: list[Any], job: list[Any]) -> None:
    generate, stop = buttons

    # A page's own token: it says which job its stop button means. (A request has none in gradio 3.)
    session = gr.State(lambda: uuid.uuid4().hex)

    def start(token: str, *values: Any) -> Iterator[list[Any]]:
        count = len(settings)
        yield from _generate(studio, token, values[:count], values[count:])

    generate.click(start, [session, *settings, *job], outputs, show_progress="hidden", api_name=False)
    stop.click(studio.stop, [session], None, queue=False, api_name=False)


def _connect_keep(studio: Studio, outputs: list[Any]) -> None:
    """The canvas names its live session and presses the button: the picture goes into the gallery."""
    progress, _, gallery, _ = outputs

    def keep(name: str, before: list[str]) -> list[Any]:
        try:
            paths = [str(studio.keep(name)), *before]
        except ValueError as error:
            return [live.failure(error), gr.update(), before]
        return [_bar("Kept.", 1), paths[:SHOWN_FRAMES], paths]

    keeping.connect(_elem_id, keep, [progress, gallery])


def _load_script(page: gr.Blocks) -> None:
    """What a WebUI does with an extension's `javascript/` and `style.css`, in a page that has no room for either."""
    scripts = [path.read_text("utf-8") for path in sorted((ROOT / "javascript").glob("masknoise*.js"))]
    style = (ROOT / "style.css").read_text("utf-8")
    code = f"""() => {{
        const make = (tag, textContent) => Object.assign(document.createElement(tag), {{textContent}});
        const add = (tag, text) => document.head.append(make(tag, text));
        add("style", {json.dumps(style)});
        for (const text of {json.dumps(scripts)}) add("script", text);
    }}"""
    name = "js" if int(gr.__version__.split(".")[0]) >= 4 else "_js"
    page.load(None, None, None, **{name: code})


# --- Generating


def _generate(studio: Studio, session: str, settings: Sequence[Any], job: Sequence[Any]) -> Iterator[list[Any]]:
    """What the progress, the film, the gallery and the files show, again and again until the job is done."""
    prompt, negative, width, height, steps, guidance, seed = settings
    unchanged = gr.update()
    try:
        scene = expand(inputs.read(job) or Scene.parse({"enabled": False}), int(seed), studio.wildcards)
    except SceneError as error:
        yield [live.problem_list(error.problems), unchanged, unchanged, unchanged]
        return
    size = int(height), int(width)
    made = Settings(prompt, negative, None, int(seed), int(steps), size, float(guidance))
    folder, paths = studio.session_folder(session), []
    yield [_bar("Starting…", 0), "", [], gr.update(visible=False)]
    try:
        for event in studio.render(session, scene, made):
            if isinstance(event, host.Progress):
                yield [_progress(event), unchanged, unchanged, unchanged]
            else:
                paths.append(_save(event, folder))
                film = _picture(paths[-1], f"frame {len(paths)}")
                yield [unchanged, film, [str(path) for path in paths[-SHOWN_FRAMES:]], unchanged]
        words = "Done."
    except Stopped:
        words = "Stopped."
    except Exception as error:
        yield [live.failure(error), unchanged, unchanged, unchanged]
        return
    yield _finished(words, scene, paths, folder)


def _finished(words: str, scene: Scene, paths: list[Path], folder: Path) -> list[Any]:
    shown = [str(path) for path in paths[-SHOWN_FRAMES:]]
    if len(paths) < 2:
        film = _picture(paths[0], "the picture") if paths else ""
        return [_bar(words, bool(paths)), film, shown, gr.update(visible=False)]
    try:
        metadata = {"scene": scene.to_dict(defaults=False)}
        files = animation.write_scene(scene, paths, folder / "animation", "masknoise", metadata)
    except (ImportError, ValueError, OSError) as error:
        return [live.failure(error), gr.update(), shown, gr.update(visible=False)]
    bar = _bar(f"{words} {len(paths)} of {scene.animation.frames} frames.", len(paths) / scene.animation.frames)
    moving = next((path for path in files if path.suffix in (".gif", ".webp", ".png")), None)
    film = _picture(moving, "the animation") if moving else gr.update()
    return [bar, film, shown, gr.update(value=[str(path) for path in files], visible=True)]


def _named(additions: Mapping[str, Any]) -> dict[str, str]:
    """What is added to a model as the WebUIs write it, under their keys where they have one."""
    words = {
        "Sampler": additions.get("sampler") or "",
        "Clip skip": str(additions["clip_skip"]) if additions.get("clip_skip", 1) > 1 else "",
        "VAE": Path(additions["vae"]).name if additions.get("vae") else "",
        "Lora": ", ".join(f"{Path(one.file).stem}: {one.weight:g}" for one in additions.get("loras", ())),
        "TI": ", ".join(Path(file).stem for file in additions.get("embeddings", ())),
    }
    return {key: value for key, value in words.items() if value}


def _infotext(picture: Picture, additions: Mapping[str, str]) -> str:
    """A live picture's, as the WebUIs write it."""
    made = picture.wish.settings
    return infotext.text(made.prompt, made.negative_prompt, {**additions, **described(picture)})


def _save(frame: host.Frame, folder: Path) -> Path:
    path = folder / f"{int(frame.index):05}.png"
    frame.image.save(path)
    return path


def _progress(event: host.Progress) -> str:
    first, last = event.done + 1, event.done + event.batch
    which = f"frame {first}" if first == last else f"frames {first} to {last}"
    return _bar(f"Sampling {which} of {event.total}: {event.fraction:.0%}", event.frames / event.total)


def _bar(words: str, fraction: float) -> str:
    words = html.escape(words)
    return (
        f'<p role="status">{words}</p><progress max="1" value="{float(fraction):.3f}" aria-label="Progress"></progress>'
    )


def _picture(path: Path, words: str) -> str:
    kind = path.suffix[1:]
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(words)}">'
