"""The Forge host: a location conditioning inside Forge and its kin (`backend`: Forge, Neo; `ldm_patched`: reForge,
Classic), for one sampling pass.

The host offers patches of its U-Net's attention, on a clone of the U-Net. Two of them together make the exact blended
attention: the attn2 patch hands the layer our basis contexts to project in place of the prompt's, and the attn2 replace
patch, which gets the projected queries, keys and values, attends with them. Nothing of the host's modules is touched,
so its memory management, casts and merged or online LoRA are its own.

Conditioning modifiers, which the host calls before each denoiser call, switch the patches on: the first of them for
what other extensions' modifiers ask of the model by themselves, the last for the host's own call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from modules import shared
from torch import Tensor

from lib_masknoise.attention import Row, Share, shares
from lib_masknoise.hosts.webui.blocks import layer_of, layer_tags
from lib_masknoise.hosts.webui.denoising import Conflict, Denoising, Planned, context_of
from lib_masknoise.maps import extent

COND, UNCOND = 0, 1

Options = dict[str, Any]


class Blender(Protocol):
    """How one kind of model blends, given the host's conditions and model options for a call of the denoiser."""

    def bound(self, unet: torch.nn.Module) -> None:
        """What is about to be patched."""

    def released(self) -> None:
        """It is to be as it was. Safe at any time, also twice."""

    def plan(self, params: Any) -> None:
        """What the coming call of the denoiser sees."""

    def changed(self, x: Tensor, cond: Any, uncond: Any, options: Options) -> tuple[Any, Any, Options]:
        """The host's conditions and model options for this call of the denoiser, with ours."""

    def patched(self, options: Options) -> Options:
        """The host's model options with what acts in the model itself, for a call that is not the host's own."""

    def total_weight(self, like: Tensor) -> Tensor | None:
        """By how much the guidance counts: `[B, 1, h, w]`; None where it is 1 everywhere."""


class Patches:
    """Forge's method: a clone of the host's U-Net (or transformer) with patches of ours, for one sampling pass."""

    def __init__(self, denoising: Denoising, blender: Callable[[Denoising], Blender]):
        self.denoising, self.blender = denoising, blender(denoising)
        self._objects: Any = None
        self._own: Any = None
        self._original: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Patches:
        return self  # the host copies a U-Net's options, in which our patches are, for each clone

    def bind(self) -> None:
        objects = shared.sd_model.forge_objects
        if objects is self._objects and objects.unet is self._own:
            return
        self._unbind()
        clone = objects.unet.clone()
        clone.model_options.setdefault("conditioning_modifiers", []).insert(0, self._before_others)
        clone.add_conditioning_modifier(self._before_sampling)
        clone.model_options.setdefault("sampler_post_cfg_function", []).insert(0, self._weigh_guidance)
        self.blender.bound(clone.model.diffusion_model)
        self._objects, self._original, self._own = objects, objects.unet, clone
        objects.unet = clone

    def close(self) -> None:
        self._unbind()
        self.denoising.attention.clear()

    def _unbind(self) -> None:
        self.blender.released()
        if self._objects is not None and self._objects.unet is self._own:
            self._objects.unet = self._original
        self._objects = self._original = self._own = None

    def plan(self, params: Any) -> None:
        self.blender.plan(params)

    def after_denoiser(self, params: Any) -> None:
        """Never called by this host, which has `_weigh_guidance` for it."""

    def _before_others(
        self, model: Any, x: Tensor, timestep: Tensor, uncond: Any, cond: Any, scale: float, options: Options, seed: int
    ) -> tuple[Any, ...]:
        """The first conditioning modifier: others may call the model themselves (ControlNet's reference does, on the
        picture that it refers to), and would see the base prompt everywhere."""
        return model, x, timestep, uncond, cond, scale, self.blender.patched(options), seed

    def _before_sampling(
        self, model: Any, x: Tensor, timestep: Tensor, uncond: Any, cond: Any, scale: float, options: Options, seed: int
    ) -> tuple[Any, ...]:
        """The last conditioning modifier: everything that other extensions change is to be seen."""
        self.denoising.check()
        cond, uncond, options = self.blender.changed(x, cond, uncond, options)
        return model, x, timestep, uncond, cond, scale, options, seed

    def _weigh_guidance(self, args: Options) -> Tensor:
        """The sum of the weights at each location scales the guidance there. Without negative prompts the host takes 0
        for what they predict, and so do we."""
        guided, plain = args["denoised"], args["uncond_denoised"]
        total = self.blender.total_weight(guided)
        if total is not None:
            guided = plain + (guided - plain) * spread(total, guided)
        self.denoising.plain, self.denoising.guided = plain, guided
        return guided


def spread(weight: Tensor, like: Tensor) -> Tensor:
    """A weight of each location `[B, h, w]` or `[B, 1, h, w]`, for every channel, and every frame where there are some:
    to multiply `[B, …, h, w]` by."""
    return weight.to(like).reshape(len(weight), *[1] * (like.dim() - 3), *extent(weight))


class Attending:
    """The exact blend in the cross-attention layers of a U-Net: patches that attend to what the rows of each call are
    planned to see."""

    def __init__(self, denoising: Planned):
        self.denoising = denoising
        self._blocks: list[tuple[str, int]] = []
        self._call: Any = None
        self._given: tuple[Any, ...] | None = None  # the layer that has our contexts and not yet used our attention
        self._wanted = False
        self._shares: tuple[Share, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attending:
        return self

    def bound(self, unet: torch.nn.Module) -> None:
        self.denoising.name_layers({layer_of(name): tags for name, tags in layer_tags(unet).items()})
        self._blocks = _blocks(unet)

    def begin(self) -> None:
        """A call of the denoiser is to come."""
        self._call, self._given = None, None

    def patched(self, options: Options) -> Options:
        """The host's model options with our patches in them, each once."""
        if self.denoising.planned is None:
            return options
        transformer = dict(options.get("transformer_options", {}))
        taken = transformer.get("patches_replace", {}).get("attn2", {}).values()
        for patch in (patch for patch in taken if patch != self._attend):
            raise Conflict(
                f"the cross-attention is taken by another extension ({getattr(patch, '__module__', patch)}), an "
                "IP-Adapter or Regional Prompter for one: switch it off or MaskNoise"
            )
        patches = dict(transformer.get("patches", {}))
        others = [patch for patch in patches.get("attn2_patch", []) if patch != self._give_contexts]
        patches["attn2_patch"] = [*others, self._give_contexts]
        replace = {**transformer.get("patches_replace", {}), "attn2": dict.fromkeys(self._blocks, self._attend)}
        return {**options, "transformer_options": {**transformer, "patches": patches, "patches_replace": replace}}

    def rows_of(self, chunks: Sequence[int], context: Tensor) -> Sequence[Row]:
        """What the rows of a U-Net call see."""
        assert self.denoising.planned is not None
        return self.denoising.planned

    # --- Each cross-attention layer

    def _give_contexts(
        self, n: Tensor, context: Tensor, value: Tensor, extra_options: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The attn2 patch: what the layer is to project, `[1, M, D]`, in place of its context."""
        if self._given:
            raise Conflict(
                f"the host did not use our attention in block {self._given}: another extension has replaced it; switch "
                "it off or MaskNoise"
            )
        layer = self._given = _layer(extra_options)
        chunks = extra_options["cond_or_uncond"]
        if chunks is not self._call:  # a new list for each call of the U-Net
            self.denoising.check_size(tuple(extra_options["original_shape"][-2:]))
            self._call, self._shares = chunks, shares(self.rows_of(chunks, context))
        wanted = self.denoising.attention.wanted(layer, self._shares, n)
        self._wanted = wanted is not None
        # Where everything is projected already the layer still has to be given something.
        contexts = n.new_zeros(1, 1, context.shape[-1]) if wanted is None else wanted.stacked
        return n, contexts, contexts

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, extra_options: Options) -> Tensor:
        """The attn2 replace patch: queries `[rows, h·w, heads·d]`, keys and values `[1, M, heads·d]`."""
        layer, self._given = _layer(extra_options), None
        if self._wanted:
            self.denoising.attention.take(layer, k, v, extra_options["n_heads"])
        return self.denoising.attention.attend(layer, q, self._shares, self.denoising.size_of(q.shape[1]))


class CrossAttention(Attending):
    """A `Blender`: the attention patches, for the calls of a job's denoiser."""

    denoising: Denoising

    def __init__(self, denoising: Denoising):
        super().__init__(denoising)
        self._given_contexts: tuple[Tensor, Tensor | None]
        self._positive: list[Row] = []
        self._negative: list[Row] = []
        self._parts_seen = 0

    def released(self) -> None:
        """The patches are on a clone."""

    def plan(self, params: Any) -> None:
        self.denoising.plan(params)
        self._given_contexts = context_of(params.text_cond), context_of(params.text_uncond)
        planned, count = self.denoising.planned, len(self.denoising.rows.pictures)
        if planned is not None:
            parts = (len(planned) - (0 if params.text_uncond is None else count)) // count
            self._positive, self._negative = planned[: parts * count], planned[parts * count :]
        self._parts_seen = 0
        self.begin()

    # --- Each call of the denoiser

    def changed(self, x: Tensor, cond: Any, uncond: Any, options: Options) -> tuple[Any, Any, Options]:
        self._parts_seen = 0  # another extension may have called the model before
        if self.denoising.planned is not None:
            self.denoising.check_size(extent(x))
        options = self.patched(options)
        if self.denoising.weights is not None:
            if len(cond) * len(self.denoising.rows.pictures) != len(self.denoising.weights):
                raise Conflict(
                    "the prompt is divided already by another extension (Forge Couple?); switch it off or MaskNoise"
                )
            cond, options = self._masked(cond, self.denoising.weights, x, options)
        return cond, uncond, options

    def rows_of(self, chunks: Sequence[int], context: Tensor) -> Sequence[Row]:
        """The host goes through the parts of the prompts from the last to the first, a chunk with a row for each image
        at a time, in one call or in several."""
        batch = len(self.denoising.rows.pictures)
        if len(context) != batch * len(chunks):
            raise Conflict(
                f"the U-Net was given {len(context)} rows for {batch} images: another extension divides the prompt "
                "between rows of its own (Forge Couple?); switch it off or MaskNoise"
            )
        parts = len(self._positive) // batch
        rows = []
        for chunk, own in zip(chunks, context.split(batch), strict=True):
            if chunk == UNCOND or self._is_negative(own):
                rows += self._negative
            else:
                part = parts - 1 - self._parts_seen % parts
                rows += self._positive[part::parts]
                self._parts_seen += 1
        return rows

    def _is_negative(self, context: Tensor) -> bool:
        """Whether a chunk that is announced as the prompt's has the negative prompt's context: self-attention guidance
        denoises that alone once more, under the wrong name."""
        cond, uncond = self._given_contexts
        if uncond is None or not _begins_with(context, uncond):
            return False
        return not _begins_with(context, cond[:: len(cond) // len(uncond)])

    # --- Prompts made of parts whose guidance is added up: `a AND b:0.5`

    def _masked(
        self, cond: list[Options], weights: Tensor, x: Tensor, options: Options
    ) -> tuple[list[Options], Options]:
        """The host averages the parts, each with its mask: `Σ_k w_k cond_k / Σ_k w_k`. Strengths that add up to 1 keep
        it from scaling the guidance."""
        masks = self._by_part(weights, x)
        cond = [{**one, "mask": masks[:, k], "strength": 1.0 / len(cond)} for k, one in enumerate(cond)]
        return cond, options

    def _by_part(self, weights: Tensor, x: Tensor) -> Tensor:
        """`[B, parts, h, w]`."""
        return weights[:, 0].unflatten(0, (len(self.denoising.rows.pictures), -1)).to(x)

    def total_weight(self, like: Tensor) -> Tensor | None:
        weights = self.denoising.weights
        return None if weights is None else self._by_part(weights, like).sum(1, keepdim=True)


def has_cross_attention(unet: torch.nn.Module) -> bool:
    """Whether the host's model has cross-attention layers that the host lets be patched: whether it is a U-Net."""
    blocks = getattr(unet, "input_blocks", None)
    return blocks is not None and any(name.split(".")[-1] == "attn2" for name, _ in unet.named_modules())


def _blocks(unet: torch.nn.Module) -> list[tuple[str, int]]:
    """What the host calls the U-Net's blocks."""
    sides = ((name, getattr(unet, f"{name}_blocks", ())) for name in ("input", "output"))
    return [("middle", 0), *((name, number) for name, blocks in sides for number in range(len(blocks)))]


def _begins_with(context: Tensor, known: Tensor) -> bool:
    """Whether `[rows, T', D]` is `[rows, T, D]`, which the host may have repeated to T' tokens."""
    return torch.equal(context[:, : known.shape[1]], known.to(context))


def _layer(extra_options: Options) -> tuple[Any, ...]:
    """Which cross-attention layer of the U-Net it is, a `blocks.Layer`."""
    return (*extra_options["block"], extra_options.get("block_index", 0))
