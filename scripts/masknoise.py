"""MaskNoise's AlwaysOn script: the WebUI's hooks, handed on to the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Depends
from modules import script_callbacks, scripts
from modules.ui_components import InputAccordion

from lib_masknoise import api
from lib_masknoise.calibrate.calibrator import Calibrator
from lib_masknoise.calibrate.profile import Profiles
from lib_masknoise.calibrate_routes import add_calibrate
from lib_masknoise.explore_routes import add_explore
from lib_masknoise.hosts.webui import containers, exploring, xyz
from lib_masknoise.hosts.webui import job as webui
from lib_masknoise.hosts.webui.calibrating import WebUIProbe
from lib_masknoise.hosts.webui.checkpoints import PROFILES, checkpoint
from lib_masknoise.hosts.webui.live import SHOWN, Keeper, LiveHost
from lib_masknoise.hosts.webui.prompts import token_count
from lib_masknoise.live import Engine
from lib_masknoise.live_routes import PATH as LIVE
from lib_masknoise.live_routes import add_live
from lib_masknoise.presets import Presets
from lib_masknoise.ui import accordions, calibrate, explore, keeping

FOLDER = Path(scripts.basedir())
PRESETS = Presets(FOLDER / "presets", lambda data: CALIBRATOR.numbers(data))
WORKSHOP = exploring.workshop(PRESETS, WebUIProbe())
CALIBRATOR = Calibrator(WORKSHOP, Profiles(PROFILES), checkpoint)
HOST = LiveHost()
ENGINE = Engine(HOST)


class Script(scripts.Script):
    def title(self) -> str:
        return "MaskNoise"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        host = {
            "enable": InputAccordion,
            "presets": PRESETS,
            "token_counter": token_count,
            "profile": CALIBRATOR.current,
        }
        tab, route = ("img2img", None) if is_img2img else ("txt2img", LIVE)
        built = accordions.build(self.elem_id, **host, tab=tab, live_route=route)
        self.infotext_fields = webui.paste_fields(built.inputs, built.notice)
        self.paste_field_names = webui.paste_names()
        if not is_img2img:
            calibrate.build(self.elem_id, CALIBRATOR, built.inputs)
            explore.build(self.elem_id, explore.Explorer(WORKSHOP), built.inputs)
        return built.inputs

    def setup(self, p: Any, *values: Any) -> None:
        webui.setup(p)

    def after_component(self, component: Any, elem_id: str | None = None, **kwargs: Any) -> None:
        if self.is_img2img or elem_id not in SHOWN:
            return
        self.shown = {**getattr(self, "shown", {}), elem_id: component}
        if len(self.shown) == len(SHOWN):
            outputs = [self.shown.pop(name) for name in SHOWN]
            keeping.connect(self.elem_id, Keeper(ENGINE).keep, outputs)

    def before_process(self, p: Any, *values: Any) -> None:
        webui.before_process(p, values, PRESETS, bool(self.is_img2img))

    def process(self, p: Any, *values: Any) -> None:
        webui.process(p)

    def before_process_batch(self, p: Any, *values: Any, prompts: list[str], **kwargs: Any) -> None:
        webui.before_process_batch(p, prompts)

    def process_batch(self, p: Any, *values: Any, **kwargs: Any) -> None:
        webui.process_batch(p)

    def process_before_every_sampling(self, p: Any, *values: Any, noise: Any, **kwargs: Any) -> None:
        webui.process_before_every_sampling(p, noise)

    def postprocess_image(self, p: Any, *values: Any) -> None:
        webui.postprocess_image(p)

    def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
        webui.postprocess(p, processed)


def _add_routes(demo: Any, app: Any) -> None:
    HOST.app = app
    add_live(app, ENGINE, [Depends(webui.permission(app))])
    authorisation = webui.authorisation(app)
    if authorisation is not None:  # without --api the host has no API, and neither have we
        api.add_routes(app, PRESETS, authorisation)
        add_explore(app, WORKSHOP, authorisation)
        add_calibrate(app, CALIBRATOR, authorisation)


def _show_pictures(demo: Any, app: Any) -> None:
    """Let the page read the views' pictures, as it reads those of the host."""
    demo.allowed_paths = [*(demo.allowed_paths or ()), str(WORKSHOP.folder)]


script_callbacks.on_app_started(_add_routes)
script_callbacks.on_app_started(_show_pictures)
script_callbacks.on_ui_settings(containers.add_setting)
script_callbacks.on_script_unloaded(ENGINE.close)
script_callbacks.on_before_image_saved(containers.before_image_saved)
script_callbacks.on_before_ui(lambda: xyz.register(PRESETS))
