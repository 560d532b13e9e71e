"""Jobs in the stand-in, and whether it is afterwards as it was before."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tests.standin.forge import ForgeCheckpoint
from tests.standin.model import Checkpoint

CALLBACKS = ("cfg_denoiser", "cfg_denoised", "cfg_after_cfg")


class Other:
    """Another extension. hooks: functions by their names."""

    def __init__(self, **hooks: Callable[..., None]):
        vars(self).update(hooks)


class Host:
    """The host in which the extension is installed. script: the extension's. adapter: its modules, by name."""

    def __init__(self, script: ModuleType, adapter: dict[str, ModuleType]):
        from modules import errors, extra_networks, images, processing, script_callbacks, shared

        self.shared, self.errors, self.processing, self.images = shared, errors, processing, images
        self.callbacks, self.extra_networks = script_callbacks, extra_networks
        self.script, self.presets = script.Script(), script.PRESETS
        self.script.is_img2img = False
        self.img2img_script = script.Script()
        self.img2img_script.is_img2img = True
        vars(self).update(adapter)
        self.folder = Path()
        self._lacking: list[str] = []
        self._own = {name: list(entries) for name, entries in script_callbacks.callback_map.items()}

    def start(
        self,
        dtype: torch.dtype = torch.float32,
        xl: bool = False,
        *,
        forge: str = "",
        like: str = "",
        folder: Path | None = None,
        **options: Any,
    ) -> None:
        """As after a start of the program, with a model of that kind. forge: the host is Forge, with such a model
        (`ForgeCheckpoint`). like: one of `facts.HOSTS`, without what that one lacks. options: the host's settings."""
        self.folder = folder or self.folder
        self.shared.reset(checkpoint(0, dtype, xl, forge))
        self.shared.checkpoints["refiner"] = checkpoint(1, dtype, xl, forge)
        vars(self.shared.opts).update(options)
        self._lack(like)
        self.errors.logged.clear()
        self.extra_networks.activated.clear()
        for name, entries in self._own.items():
            self.callbacks.callback_map[name][:] = entries

    def _lack(self, host: str) -> None:
        """Take away what a host does not have. Afterwards everything is there again."""
        for name in self._lacking:
            sys.modules.pop(name, None)
        self._lacking = [name for name, hosts in self.facts.MODULES.items() if host and host not in hosts]
        sys.modules.update(dict.fromkeys(self._lacking))  # imports of these fail
        for name, hosts in self.facts.SETTINGS.items():
            if host and host not in hosts:
                delattr(self.shared.opts, name)

    @property
    def model(self) -> Checkpoint:
        return self.shared.sd_model

    @property
    def unet(self) -> nn.Module:
        return self.model.model.diffusion_model

    def layers(self, unet: nn.Module | None = None) -> list[nn.Module]:
        return [module for name, module in (unet or self.unet).named_modules() if name.endswith("attn2")]

    def job(
        self,
        scene: Any = None,
        *,
        others: Sequence[Any] = (),
        later: Sequence[Any] = (),
        img2img: bool = False,
        inner: bool = False,
        **options: Any,
    ) -> Any:
        """A job: as the API would make it. scene: the extension's argument. others, later: further extensions, whose
        hooks come before or after this one's. inner: a pass of another extension in img2img, with the scripts of its
        txt2img job."""  # fmt: skip
        from modules.scripts import ScriptRunner

        values = [] if scene is None else [scene]
        ours = self.img2img_script if img2img and not inner else self.script
        runner = ScriptRunner([*((o, ()) for o in others), (ours, values), *((o, ()) for o in later)])
        kind = "StableDiffusionProcessingImg2Img" if img2img else "StableDiffusionProcessingTxt2Img"
        options = {"prompt": "red house", "is_api": True, "outpath_samples": str(self.folder), **options}
        return getattr(self.processing, kind)(scripts=runner, **options)

    def process(self, p: Any) -> Any:
        """Do a job. However it ends, nothing of it remains in the host; what hooks and callbacks raised is in
        `errors.logged`."""
        try:
            return self.processing.process_images(p)
        finally:
            self.assert_clean()
            assert not {"get_conds"} & vars(p).keys()

    def run(self, scene: Any = None, **options: Any) -> Any:
        """The result of a job in which no hook or callback failed."""
        processed = self.process(self.job(scene, **options))
        assert not self.errors.logged
        return processed

    def latents(self, scene: Any = None, **options: Any) -> torch.Tensor:
        return torch.cat(self.run(scene, **options).latents).double()

    def assert_clean(self) -> None:
        for name in CALLBACKS:
            ours = [e for e in self.callbacks.callback_map[name] if _module(e.callback).startswith("lib_masknoise")]
            assert not ours, f"{name} callbacks remain"
        for model in (self.model, *self.shared.checkpoints.values()):
            assert state_of(model.model.diffusion_model) == model.untouched, f"{model.sd_checkpoint_info} is changed"
            if isinstance(model, ForgeCheckpoint):
                assert model.forge_objects.unet is model.patcher, "the clone remains"
                assert model.patcher.model_options == {"transformer_options": {}}


def _module(callback: Any) -> str:
    return getattr(callback, "__module__", None) or ""


@functools.cache
def checkpoint(seed: int, dtype: torch.dtype, xl: bool, forge: str = "") -> Checkpoint:
    model = ForgeCheckpoint(seed, dtype, xl, forge) if forge else Checkpoint(seed, dtype, xl)
    model.untouched = state_of(model.model.diffusion_model)
    return model


def state_of(unet: nn.Module) -> dict[str, dict[str, Any]]:
    """Every attribute of every module by identity, hooks included."""

    def identity(value: Any) -> Any:
        return tuple((key, id(one)) for key, one in value.items()) if isinstance(value, dict) else id(value)

    return {
        name: {key: identity(value) for key, value in vars(module).items()} for name, module in unet.named_modules()
    }
