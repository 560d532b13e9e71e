"""What a job with a scene should give: every picture, every row and every location on its own.

Pictures are sampled one by one with one U-Net call for each row, in float64; the cross-attention layers attend to the
location embeddings themselves. Nothing is batched, nothing is kept, no host takes part but for its prompt parser.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lib_masknoise.conditioning import (
    Encoded,
    LocationConditioning,
    condition,
    condition_negative,
    negatives,
    prompts,
)
from lib_masknoise.maps import Maps, coefficients, level_with
from lib_masknoise.noise import SeparableNoise
from lib_masknoise.noise.feature import Subspaces
from lib_masknoise.noise.initial import EPSILON, Guess, alone, at_every_step, ordered
from lib_masknoise.noise.latent import visual
from lib_masknoise.scene import Scene
from tests.materialised import materialised_attention

Part = tuple[Encoded, float, Any]
"""A part of a prompt at one step: encoded, its weight, the host's own cond."""


def latents(
    model: Any,
    scene: dict[str, Any],
    prompts: Sequence[str],
    *,
    negative: str = "",
    pictures: Sequence[tuple[int, int]] = ((0, 1),),
    sampler: str = "Euler",
    steps: int = 2,
    cfg: float = 5.0,
    size: tuple[int, int] = (4, 6),
    skips: Callable[[int, float], bool] = lambda step, sigma: False,
    pads: str | None = None,
    subspaces: Subspaces | None = None,
) -> Tensor:
    """`[B, 4, h, w]`. prompts: one for each of `pictures`, which are (frame, seed). skips: whether the guidance of a
    denoiser call (its number, sigma) does without the negative prompt. pads: the host's setting that makes both sides
    equally long, for scenes in which nothing moves. subspaces: what is known of the model."""
    from modules import sd_samplers

    made = Scene.parse(scene)
    config = sd_samplers.find_sampler_config(sampler)
    unet = copy.deepcopy(model.model.diffusion_model).double()
    unet.dtype = torch.float64
    for layer in unet.time_embed:
        layer.double()
    unet.time_embed._forward_pre_hooks.clear()
    unet.time_embed.register_forward_pre_hook(lambda module, args: tuple(t.double() for t in args))
    schedule = sd_samplers.sigmas(steps, torch.zeros(1, dtype=model.dtype)).double()
    found = []
    for prompt, (frame, seed) in zip(prompts, pictures, strict=True):
        picture = _Picture(
            model, unet, made, prompt, negative, frame, seed, size, config.total_steps(steps), cfg, skips
        )
        picture.pads, picture.subspaces = pads, subspaces
        noise = picture.noise().to(model.dtype)[None].double()
        found.append(config.function(picture, noise * schedule[0], schedule, extra_args={}))
    return torch.cat(found)


class _Picture:
    """The denoiser of one picture."""

    def __init__(self, model, unet, scene, prompt, negative, frame, seed, size, total_steps, cfg, skips):
        self.model, self.unet, self.scene, self.size = model, unet, scene, size
        self.prompt, self.negative = prompt, negative
        self.frame, self.seed, self.total = frame, seed, scene.animation.frames
        self.maps = Maps(scene, size)
        self.own_seed = seed if scene.noise.seed < 0 else scene.noise.seed
        self.total_steps, self.cfg, self.skips, self.step = total_steps, cfg, skips, 0
        self.pads: str | None = None
        self.subspaces: Subspaces | None = None

    def noise(self) -> Tensor:
        noise = torch.randn(4, *self.size, generator=torch.Generator().manual_seed(self.seed))
        options = self.scene.noise.visual
        free = self.maps.amount("visual", [self.frame])[0]
        motion = options.motion or self.scene.motion
        noise = noise.to(self.model.dtype)
        if self.scene.noise.initial.acts:
            noise = ordered(noise, self.scene.noise.initial, self.maps.weights([0])[0], self.own_seed, self._ask)
        return visual(noise, free, motion, [self.frame], self.total, self.own_seed)[0]

    def _ask(self, z: Tensor, time: int, concept: int | None = None, guided: bool = False) -> list[Guess]:
        """The stand-in's levels are 4·time/1000; its model sees noise of unit variance."""
        scene = at_every_step(self.maps.scene) if concept is None else alone(self.maps.scene, concept)
        level = torch.tensor([0.004 + (4.0 - 0.004) * (time - 1) / 999], dtype=torch.float64)
        whole = float((1 + level**2).sqrt())
        sides = []
        for cfg in (1.0, 0.0):
            own = self.model, self.unet, scene, self.prompt, self.negative, 0, self.seed, self.size, self.total_steps
            picture = _Picture(*own, cfg, lambda step, sigma: False)
            picture.own_seed = self.own_seed
            # What a pass begins with is noise alone, but at its first level not quite of variance 1 for the model.
            seen = z.double() * 4.0 / (1 + 4.0**2) ** 0.5
            sides.append([])
            for one in seen:
                picture.step = 0
                sides[-1].append(picture(one[None] * whole, level)[0].float())
        return [
            Guess(one.float(), with_, without, EPSILON, 1 / whole, float(level) / whole)
            for one, with_, without in zip(seen, *sides, strict=True)
        ]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        blend = self.scene.blend
        inside = blend.start <= self.step / self.total_steps < blend.end
        base, negative = self._parts(self.prompt), self._parts(self.negative)[0]
        if inside:
            rows = self._blended(base)
            concepts = {text: self._parts(text)[0][0] for text in negatives(self.scene)}
            below = condition_negative(self.maps, negative[0], concepts, [self.frame])
            above, below = self._as_long([row[0] for row in rows], below)
            outs = [self._out(x, sigma, c, *row[1:]) for c, row in zip(above, rows, strict=True)]
        else:
            outs = [self._out(x, sigma, None, weight, cond) for _, weight, cond in base]
            below = None
        first = outs[0][0]
        down = self._out(x, sigma, below, 1.0, negative[2])[0]
        skip = self.skips(self.step, float(sigma[0]))
        if skip:
            down = first
        self.step += 1
        return down + (1.0 if skip else self.cfg) * sum(weight * (out - down) for out, weight in outs)

    def _as_long(
        self, above: list[LocationConditioning], below: LocationConditioning
    ) -> tuple[list[LocationConditioning], LocationConditioning]:
        """With as many tokens as the host's setting makes of them."""
        longest = max(length for c in above for length in c.lengths)
        if self.pads == "pad_cond_uncond_v0":
            return above, _with_length(below, longest, None)
        if self.pads == "pad_cond_uncond":
            longest, empty = max(longest, *below.lengths), self.model.cond_stage_model_empty_prompt[0].float()
            return [_with_length(c, longest, empty) for c in above], _with_length(below, longest, empty)
        return above, below

    def _blended(self, base: list[Part]) -> list[tuple[LocationConditioning, Tensor | float, Any]]:
        """The conditioning of each row, by how much its guidance counts at each location, and the host's own cond."""
        concepts = {text: self._parts(text) for text in prompts(self.scene)}
        rows = []
        count = max(map(len, (base, *concepts.values())))
        for k in range(count):
            own, *of_concepts = (_part(parts, k) for parts in (base, *concepts.values()))
            encoded = {text: one[0] for text, one in zip(concepts, of_concepts, strict=True)}
            c = condition(self.maps, own[0], encoded, [self.frame], [self.own_seed], self.subspaces)
            weights = [one.weight for one in self.scene.concepts]
            blend = self.scene.blend
            a = coefficients(self.maps.weights([self.frame])[0], weights, blend.mode, blend.scale)
            weight = own[1]
            if any(one[1] != weight for one in of_concepts):  # with keyframes there are more prompts than concepts
                weight_of = {text: one[1] for text, one in zip(concepts, of_concepts, strict=True)}
                steps = [weight_of[concept.prompt] - own[1] for concept in self.scene.concepts]
                weight = own[1] + sum(a_j * step for a_j, step in zip(a[1:], steps, strict=True))
            rows.append((c, weight, own[2]))
        return rows

    def _parts(self, text: str) -> list[Part]:
        from modules import prompt_parser

        size = (self.size[1] * 8, self.size[0] * 8)
        texts = prompt_parser.SdConditioning([text], False, *size)
        multi = prompt_parser.get_multicond_learned_conditioning(self.model, texts, self.total_steps)
        found = []
        for part in multi.batch[0]:
            cond = next(cond for end, cond in part.schedules if self.step <= end)
            context, pooled = (cond["crossattn"], cond["vector"].float()) if isinstance(cond, dict) else (cond, None)
            found.append((Encoded(context.float(), pooled), part.weight, cond))
        return found

    def _out(
        self, x: Tensor, sigma: Tensor, c: LocationConditioning | None, weight: Any, cond: Any
    ) -> tuple[Tensor, Any]:
        """What the U-Net takes the picture for, from one row; c None: as the host's own layers see it."""
        context, options = (cond["crossattn"], {"y": cond["vector"]}) if isinstance(cond, dict) else (cond, {})
        if c is not None and options:
            # The size at the end is the image's own: of every prompt the same.
            sizes = options["y"][6:].double()
            options = {"y": torch.cat([c.pooled[0][:6].double(), sizes])}
        options = {name: one[None].double() for name, one in options.items()}
        for name, layer in self.unet.named_modules():
            if name.endswith("attn2"):
                vars(layer).pop("forward", None)
                if c is not None:
                    layer.forward = functools.partial(self._attend, layer, _double(c.seen_by(_tags(name))))
        sigma = sigma.double()[:, None, None, None]
        noise = self.unet(x / (1 + sigma**2).sqrt(), 50 * sigma.flatten(), context=context[None].double(), **options)
        return x - sigma * noise, weight

    def _attend(self, layer: nn.Module, c: LocationConditioning, x: Tensor, context: Any = None) -> Tensor:
        size = level_with(self.size, x.shape[1])
        return layer.to_out(
            materialised_attention(layer.to_q(x), c, size, layer.to_k.weight, layer.to_v.weight, layer.heads)
        )


def _with_length(c: LocationConditioning, length: int, empty: Tensor | None) -> LocationConditioning:
    """Token by token: the context's own as far as they go, then the empty prompt's in turn, or its last again."""
    contexts = torch.zeros(len(c.contexts), length, c.contexts.shape[-1])
    for j, own in enumerate(c.lengths):
        for t in range(length):
            more = c.contexts[j, own - 1] if empty is None else empty[(t - own) % len(empty)]
            contexts[j, t] = c.contexts[j, t] if t < own else more
    kept = min(length, c.contexts.shape[1])

    def noise(given: SeparableNoise | None, filling: float) -> SeparableNoise | None:
        if given is None:
            return None
        tokens = torch.full((*given.tokens.shape[:-1], length), filling)
        tokens[..., :kept] = given.tokens[..., :kept]
        return replace(given, tokens=tokens)

    return replace(
        c, contexts=contexts, lengths=(length,) * len(contexts), noise=noise(c.noise, 0.0), offset=noise(c.offset, 1.0)
    )


def _tags(name: str) -> frozenset[str]:
    """What the stand-in's layers are called: blocks 3 of the input and 0 and 1 of the output see half the latent."""
    side, block = name.split(".")[:2]
    block = {"input_blocks": "in", "output_blocks": "out"}.get(side, "mid") + (block if side != "middle_block" else "")
    return frozenset({block, "coarse" if block in ("in3", "mid", "out0", "out1") else "fine"})


def _double(c: LocationConditioning) -> LocationConditioning:
    def double(noise: SeparableNoise | None) -> SeparableNoise | None:
        return noise and replace(noise, tokens=noise.tokens.double(), directions=noise.directions.double())

    return replace(c, contexts=c.contexts.double(), noise=double(c.noise), offset=double(c.offset))


def _part(parts: list[Part], k: int) -> Part:
    """A prompt with fewer parts than another takes part with its first, which then counts nothing."""
    if k < len(parts):
        return parts[k]
    return (parts[0][0], 0.0, parts[0][2])
