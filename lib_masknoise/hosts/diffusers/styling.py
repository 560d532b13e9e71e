"""A pipeline of diffusers as what `lib_masknoise.calibrate.style` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from lib_masknoise.calibrate.looking import looks
from lib_masknoise.conditioning import Encoded, LocationConditioning
from lib_masknoise.errors import ModelError
from lib_masknoise.hosts.diffusers.blocks import blocks_of
from lib_masknoise.hosts.diffusers.families import family, require_unet
from lib_masknoise.hosts.diffusers.recording import decode


class PipelineSubject:
    """See `lib_masknoise.calibrate.style.Subject`. size: (height, width) in pixels; the model's own when None."""

    def __init__(self, pipe: DiffusionPipeline, size: tuple[int, int] | None = None) -> None:
        require_unet(pipe, "calibrate --style")
        self.pipe, self.family = pipe, family(pipe)
        self.size = size or self.family.default_size
        self.predicts = pipe.scheduler.config.get("prediction_type", "epsilon")
        if self.predicts not in ("epsilon", "v_prediction"):
            raise ModelError(f"the model predicts {self.predicts!r}: expected epsilon or v_prediction")

    @cached_property
    def alphas(self) -> Tensor:
        return self.pipe.scheduler.alphas_cumprod.float().cpu()

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width = (side // self.family.factor for side in self.size)
        return int(self.family.model.config.in_channels), height, width

    @property
    def levels(self) -> Mapping[str, int]:
        return blocks_of(self.family.model)[1]

    def encode(self, prompts: Sequence[str]) -> Mapping[str, Encoded]:
        return self.family.encode(prompts)

    def decoded(self, latents: Tensor) -> Tensor:
        pictures = [np.asarray(one, dtype=np.float32) / 255 for one in decode(self.pipe, latents)]
        return torch.from_numpy(np.stack(pictures)).movedim(-1, 1)

    @torch.no_grad()
    def looked(self, seen: LocationConditioning, x: Tensor, time: int) -> tuple[Tensor, Tensor]:
        unet, device = self.family.model, self.family.device
        given = x.to(device, unet.dtype)
        embeds = self.family.stand_ins(Encoded(seen.contexts[0], None if seen.pooled is None else seen.pooled[0]), 1)
        context = embeds["prompt_embeds"].expand(len(x), -1, -1)
        with self.family.bind((seen, None), (seen, None), (0.0, 1.0), None), looks(unet) as look:
            out = unet(given, time, encoder_hidden_states=context, **self._added(embeds, len(x))).sample
        out, signal = out.float().cpu(), self.alphas[time]
        noise = out if self.predicts == "epsilon" else signal.sqrt() * out + (1 - signal).sqrt() * x
        return noise, look()

    def _added(self, embeds: Mapping[str, Tensor], rows: int) -> dict[str, Any]:
        """What SDXL is told besides: the pooled embedding, which the binding puts its own in place of, and the size."""
        if "pooled_prompt_embeds" not in embeds:
            return {}
        pooled = embeds["pooled_prompt_embeds"].expand(rows, -1)
        times = torch.tensor([[*self.size, 0, 0, *self.size]]).to(pooled).expand(rows, -1)
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": times}}
