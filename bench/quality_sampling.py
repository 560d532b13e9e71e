"""Scenes sampled many seeds at a time, by the program's method and by the methods it is compared with.

All methods see the same coefficient maps, contexts and initial latents; they differ in what is blended:

    conditioning    the contexts, at every location (the program): Attn(q, Σ_j a_j C_j)
    outputs         the attention's outputs (Regional Prompter, Forge Couple): Σ_j a_j Attn(q, C_j)
    predictions     the U-Net's outputs, one row a context (Latent Couple, MultiDiffusion): Σ_j a_j ε(x, C_j)
    hard            nothing: every location has the context of its largest coefficient
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor

from lib_masknoise.conditioning import LocationConditioning, condition, prompts, unblended
from lib_masknoise.hosts.diffusers import Binding, encode
from lib_masknoise.maps import Maps, level_with
from lib_masknoise.scene import Scene


class OutputBlending(Binding):
    """Blends the outputs of one attention for each context. Coefficients may be negative or above 1 too."""

    def attend(self, attn: Attention, x: Tensor) -> Tensor:
        q, size = attn.to_q(x), level_with(self.size, x.shape[1])
        blended = torch.empty_like(q)
        for share in self._shares:
            side, part = share.conditioning, q[share.span]
            a = side.level(size).coefficients.to(q).unbind(-1)  # J maps [1, L]
            outputs = [self._alone(attn, part, context.to(q)) for context in _contexts(side)]
            blended[share.span] = sum(a_j[..., None] * out for a_j, out in zip(a, outputs, strict=True))
        return blended

    @staticmethod
    def _alone(attn: Attention, q: Tensor, context: Tensor) -> Tensor:
        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        k, v = (heads(project(context)).expand(len(q), -1, -1, -1) for project in (attn.to_k, attn.to_v))
        return F.scaled_dot_product_attention(heads(q), k, v, scale=attn.scale).transpose(1, 2).flatten(2)


class PredictionBlending(Binding):
    """Blends the U-Net's predictions: it runs on one row more for each further context."""

    def __init__(
        self,
        unet: torch.nn.Module,
        positive: LocationConditioning,
        negative: LocationConditioning,
        outside: None,
        window: tuple[float, float],
    ):
        super().__init__(unet, positive, negative, outside, window)
        negative, positive = self.inside
        whole = torch.ones(1, 1, 1, 1)
        alone = [
            replace(positive, contexts=context, lengths=(context.shape[1],), coefficients=whole)
            for context in _contexts(positive)
        ]
        self.inside = self.outside = (negative, *alone)
        self.maps = positive.coefficients.unbind(1)  # J maps [1, H, W]
        self._blending = None

    def install(self) -> None:
        super().install()
        self._blending = self.unet.register_forward_hook(self._blend)

    def close(self) -> None:
        if self._blending is not None:
            self._blending.remove()
            self._blending = None
        super().close()

    def _before_unet(self, unet: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        without, with_prompt = args[0].chunk(2)
        rows = torch.cat([without, *[with_prompt] * len(self.maps)])
        return super()._before_unet(unet, (rows, *args[1:]), kwargs)

    def _blend(self, unet: torch.nn.Module, args: tuple, output: tuple[Tensor]) -> tuple[Tensor]:
        without, *predictions = output[0].chunk(1 + len(self.maps))
        blended = sum(a_j[:, None].to(e) * e for a_j, e in zip(self.maps, predictions, strict=True))
        return (torch.cat([without, blended]),)


def _contexts(side: LocationConditioning) -> list[Tensor]:
    """Each context alone and at its own length, `[1, T_j, D]`."""
    return [side.contexts[j : j + 1, :length] for j, length in enumerate(side.lengths)]


def harden(positive: LocationConditioning) -> LocationConditioning:
    """Masks without soft edges: coefficient 1 for the largest, 0 for the others."""
    largest = positive.coefficients.argmax(1, keepdim=True)
    return replace(positive, coefficients=torch.zeros_like(positive.coefficients).scatter_(1, largest, 1.0))


def _preserve_norm(positive: LocationConditioning) -> LocationConditioning:
    return replace(positive, preserve_norm=True)


@dataclass(frozen=True)
class Method:
    """What stands between a scene's conditioning and the U-Net, and the name the tables give it."""

    label: str
    binding: type[Binding] = Binding
    change: Callable[[LocationConditioning], LocationConditioning] = lambda positive: positive


METHODS = {
    "conditioning": Method("conditioning (MaskNoise)"),
    "outputs": Method("attention outputs", OutputBlending),
    "predictions": Method("predictions", PredictionBlending),
    "hard": Method("hard masks", change=harden),
    "preserve_norm": Method("conditioning, preserve_norm", change=_preserve_norm),
}


@dataclass(frozen=True)
class Sampler:
    """A pipeline and its settings. size: (height, width) in pixels. Images: `[S, H, W, 3]` uint8, one a seed."""

    pipe: DiffusionPipeline
    size: tuple[int, int]
    steps: int
    guidance_scale: float = 4.0

    @property
    def latent_size(self) -> tuple[int, int]:
        return self.size[0] // self.pipe.vae_scale_factor, self.size[1] // self.pipe.vae_scale_factor

    def plain(self, prompt: str, seeds: Sequence[int]) -> np.ndarray:
        """The host alone with one prompt."""
        return self.decode(self.plain_latents(prompt, seeds))

    def plain_latents(self, prompt: str, seeds: Sequence[int]) -> Tensor:
        count = len(seeds)
        return self._latents(self.noise(seeds), prompt=[prompt] * count, negative_prompt=[""] * count)

    def scene(self, scene: Scene, seeds: Sequence[int], method: str = "conditioning", prompt: str = "") -> np.ndarray:
        """A scene over the base `prompt`, by one of METHODS. All seeds are rows of one batch."""
        return self.decode(self.scene_latents(scene, seeds, method, prompt))

    def scene_latents(
        self,
        scene: Scene,
        seeds: Sequence[int],
        method: str = "conditioning",
        prompt: str = "",
        noise: Tensor | None = None,
    ) -> Tensor:
        """noise: the initial latents `[S, C, h, w]`, where they are not those of the seeds."""
        encoded = encode(self.pipe, [prompt, "", *prompts(scene)])
        base, negative = encoded[prompt], encoded[""]
        positive = condition(Maps(scene, self.latent_size), base, encoded)
        chosen = METHODS[method]
        bound = chosen.binding(self.pipe.unet, chosen.change(positive), unblended(negative), None, (0.0, 1.0))
        # Only the shape of the embeddings counts: the binding has the contexts.
        noise = self.noise(seeds) if noise is None else noise
        embeds = base.context[:77].to(self.pipe.device, self.pipe.unet.dtype).expand(len(noise), -1, -1)
        with closing(bound):
            bound.install()
            return self._latents(noise, prompt_embeds=embeds, negative_prompt_embeds=embeds)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Sampled latents `[S, C, h, w]`, or a part of them, as images."""
        decoded = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample
        return np.stack([np.asarray(image) for image in self.pipe.image_processor.postprocess(decoded)])

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """The initial latents of some seeds, `[S, C, h, w]`."""
        shape = (1, self.pipe.unet.config.in_channels, *self.latent_size)
        return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def _latents(self, noise: Tensor, **prompts: Any) -> Tensor:
        return self.pipe(
            **prompts,
            latents=noise.to(self.pipe.device, self.pipe.unet.dtype),
            height=self.size[0],
            width=self.size[1],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            output_type="latent",
        ).images
