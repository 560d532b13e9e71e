"""An extension for the tests only: it breaks jobs off where another extension's bug would, and counts what is installed
in the host. Link tests/webui/extension into the WebUI's extensions folder to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from modules import script_callbacks, scripts, shared


class Crash(RuntimeError):
    pass


def _unet() -> Any:
    """None before Forge has loaded a model, which it does for the first job."""
    model = shared.sd_model
    objects = getattr(model, "forge_objects", None)
    if objects is None and not hasattr(model, "model"):
        return None
    return objects.unet.model.diffusion_model if objects is not None else model.model.diffusion_model


def _layer() -> Any:
    """The queries of a cross-attention layer in the middle of the U-Net."""
    layers = [module for name, module in _unet().named_modules() if name.endswith("attn2.to_q")]
    return layers[len(layers) // 2]


class Bomb:
    """Raises at the given call of the U-Net, and is gone then."""

    def __init__(self, at: Any, step: int):
        self.left = step
        self.at = at
        self.counter = _unet().register_forward_pre_hook(self.count)
        self.hook = at.register_forward_pre_hook(self.fire)
        self.armed = False

    def count(self, module: Any, args: Any) -> None:
        self.armed = self.left <= 0
        self.left -= 1

    def fire(self, module: Any, args: Any) -> None:
        if self.armed or (module is _unet() and self.left < 0):
            self.remove()
            raise Crash("the watcher's")

    def remove(self) -> None:
        self.counter.remove()
        self.hook.remove()


class Script(scripts.Script):
    def title(self) -> str:
        return "MaskNoise watcher"

    def show(self, is_img2img: bool) -> Any:
        return False if is_img2img else scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        place = gr.Textbox("", label="Place", visible=False, elem_id=self.elem_id("place"))
        step = gr.Number(0, label="Step", visible=False, elem_id=self.elem_id("step"))
        return [place, step]

    def process(self, p: Any, place: str, step: float) -> None:
        if place == "process":
            raise Crash("the watcher's")
        if place == "sample":
            sample = p.sample

            def then_raise(*args: Any, **kwargs: Any) -> Any:
                sample(*args, **kwargs)
                raise Crash("the watcher's")

            p.sample = then_raise

    def process_before_every_sampling(self, p: Any, place: str, step: float, **kwargs: Any) -> None:
        bomb = getattr(p, "watcher_bomb", None)
        left = bomb.left if bomb is not None else int(step)
        self.postprocess(p)
        if place in ("U-Net", "attention"):
            p.watcher_bomb = Bomb(_unet() if place == "U-Net" else _layer(), left)
        if place == "before sampling":
            raise Crash("the watcher's")
        if place == "sampler":
            p.sampler.launch_sampling = self._crash

    def postprocess(self, p: Any, *args: Any) -> None:
        bomb = getattr(p, "watcher_bomb", None)
        if bomb is not None:
            bomb.remove()
            p.watcher_bomb = None

    @staticmethod
    def _crash(*args: Any, **kwargs: Any) -> None:
        raise Crash("the watcher's")


class Calls:
    """How often the host's denoiser was called since the start, and the memory that its process holds, in bytes."""

    count = 0

    def __call__(self, params: Any) -> None:
        Calls.count += 1


def _cost() -> dict[str, int]:
    memory = 0
    status = Path("/proc/self/status")
    if status.is_file():
        memory = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmRSS" in line)
    return {"calls": Calls.count, "memory": memory}


def _hooks() -> dict[str, int]:
    unet = _unet()
    modules = [] if unet is None else list(unet.modules())
    options = getattr(getattr(shared.sd_model, "forge_objects", None), "unet", None)
    return {
        "callbacks": sum(map(len, script_callbacks.callback_map.values())),
        "forward hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        "forwards": sum("forward" in vars(module) for module in modules),
        "patches": _leaves(options.model_options) if options is not None else 0,
    }


def _leaves(node: Any) -> int:
    if isinstance(node, dict):
        return sum(map(_leaves, node.values()))
    return sum(map(_leaves, node)) if isinstance(node, list | tuple) else 1


def _add_routes(demo: Any, app: Any) -> None:
    app.add_api_route("/masknoise-watcher/hooks", _hooks)
    app.add_api_route("/masknoise-watcher/cost", _cost)


script_callbacks.on_app_started(_add_routes)
script_callbacks.on_cfg_denoiser(Calls())
