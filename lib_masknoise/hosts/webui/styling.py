"""The U-Net of a WebUI as what `lib_masknoise.calibrate.style` measures.

Each call of it is our own, within a job of the host's that does not sample, by the same ways into its cross-attention
as those of a pass with a scene in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from modules import shared
from torch import Tensor

from lib_masknoise.attention import Row
from lib_masknoise.calibrate.looking import looks
from lib_masknoise.conditioning import Encoded, LocationConditioning
from lib_masknoise.hosts.webui import facts
from lib_masknoise.hosts.webui.blocks import block_levels
from lib_masknoise.hosts.webui.denoising import Planned
from lib_masknoise.hosts.webui.exploring import WebUIModel
from lib_masknoise.settings import Settings


def subject(model: WebUIModel, settings: Settings) -> WebUISubject:
    """The loaded model, by the way into it that this host has. settings: whose size its pictures have."""
    return (OfForge if hasattr(shared.sd_model, "forge_objects") else OfA1111)(model, settings)


class WebUISubject:
    """See `lib_masknoise.calibrate.style.Subject`."""

    def __init__(self, model: WebUIModel, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.size = settings.size or model.size

    @property
    def unet(self) -> torch.nn.Module:
        raise NotImplementedError

    @property
    def alphas(self) -> Tensor:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width = (side // facts.pixels_of_latent() for side in self.size)
        return 4, height, width

    @property
    def levels(self) -> Mapping[str, int]:
        return block_levels(self.unet)

    def encode(self, prompts: Sequence[str]) -> Mapping[str, Encoded]:
        return self.model.encode(prompts, self.settings)

    def decoded(self, latents: Tensor) -> Tensor:
        pictures = [np.asarray(one, dtype=np.float32) / 255 for one in self.model.decoded(latents)]
        return torch.from_numpy(np.stack(pictures)).movedim(-1, 1)

    @torch.no_grad()
    def looked(self, seen: LocationConditioning, x: Tensor, time: int) -> tuple[Tensor, Tensor]:
        planned = Planned()
        planned.planned = [Row(seen, i) for i in range(len(x))]
        planned.attention.plan([seen])
        given = [seen.contexts[0], None if seen.pooled is None else seen.pooled[0]]
        context, vector = (None if t is None else t.to(shared.device).expand(len(x), *t.shape) for t in given)
        assert context is not None
        with self.bound(planned) as ask, looks(self.unet) as look:
            noise = ask(x.to(shared.device), time, context, vector).float().cpu()
        return noise, look()

    @contextmanager
    def bound(self, planned: Planned) -> Iterator[Ask]:
        """The host's model sees what is planned until the block ends. Gives what asks it for the noise in `x`, of
        variance 1, at a step of the schedule."""
        raise NotImplementedError
        yield


Ask = Callable[[Tensor, int, Tensor, "Tensor | None"], Tensor]


class OfA1111(WebUISubject):
    @property
    def unet(self) -> torch.nn.Module:
        unet: torch.nn.Module = shared.sd_model.model.diffusion_model
        return unet

    @cached_property
    def alphas(self) -> Tensor:
        return torch.as_tensor(shared.sd_model.alphas_cumprod).float().cpu()

    @contextmanager
    def bound(self, planned: Planned) -> Iterator[Ask]:
        from lib_masknoise.hosts.webui.a1111 import Attending

        attending = Attending(planned)

        def ask(x: Tensor, time: int, context: Tensor, vector: Tensor | None) -> Tensor:
            attending.begin()
            cond = {"c_crossattn": [context]} if vector is None else {"crossattn": context, "vector": vector}
            out: Tensor = shared.sd_model.apply_model(x, x.new_full((len(x),), time), cond)
            if getattr(shared.sd_model, "parameterization", "eps") != "v":
                return out
            signal = self.alphas[time].to(out)
            return signal.sqrt() * out + (1 - signal).sqrt() * x

        try:
            attending.bind()
            yield ask
        finally:
            attending.close()


class OfForge(WebUISubject):
    """And of its kin. What the host hands out for a denoiser takes sigmas and gives pictures."""

    @property
    def patcher(self) -> Any:
        return shared.sd_model.forge_objects.unet

    @property
    def unet(self) -> torch.nn.Module:
        unet: torch.nn.Module = self.patcher.model.diffusion_model
        return unet

    @cached_property
    def alphas(self) -> Tensor:
        model = self.patcher.model
        predictor = getattr(model, "predictor", None) or model.model_sampling  # reForge
        return 1 / (1 + predictor.sigmas.float().cpu().square())

    @contextmanager
    def bound(self, planned: Planned) -> Iterator[Ask]:
        from lib_masknoise.hosts.webui.forge import COND, Attending

        patcher = self.patcher
        memory = facts.module("backend.memory_management", "ldm_patched.modules.model_management")
        memory.load_models_gpu([patcher])  # encoding and decoding may have put it elsewhere
        attending = Attending(planned)
        attending.bound(self.unet)
        options = attending.patched(patcher.model_options)["transformer_options"]

        def ask(x: Tensor, time: int, context: Tensor, vector: Tensor | None) -> Tensor:
            attending.begin()
            sigma = ((1 - self.alphas[time]) / self.alphas[time]).sqrt()
            noisy, sigmas = x * (1 + sigma**2).sqrt().to(x), x.new_full((len(x),), float(sigma))
            own = {**options, "cond_or_uncond": [COND], "sigmas": sigmas}
            added = {} if vector is None else {"y": vector}
            out = patcher.model.apply_model(noisy, sigmas, c_crossattn=context, transformer_options=own, **added)
            return (noisy - out) / sigma.to(x)

        yield ask
