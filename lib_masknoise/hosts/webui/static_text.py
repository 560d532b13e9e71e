"""Neo with a transformer whose text stays what it is from layer to layer (Anima): the exact blend in its
cross-attention, for one sampling pass.

The blocks ask for no patches, so their cross-attention modules get forwards of ours for as long as the pass lasts. The
keys pass an RMS norm there, over which `attention` blends exactly; concept and feature noise act as in a U-Net. The
host's own modules project, so that its casts and its LoRA take part.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from lib_masknoise.attention import KeyNorm, shares
from lib_masknoise.hosts.webui.denoising import Conflict
from lib_masknoise.hosts.webui.forge import CrossAttention, Options
from lib_masknoise.hosts.webui.predictions import weighing, with_masks

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "output_proj", "q_norm", "k_norm")


class StaticText(CrossAttention):
    """The exact blend in the cross-attention of a transformer's blocks."""

    _layers: tuple[Any, ...] = ()
    _patch: int = 1

    def bound(self, unet: torch.nn.Module) -> None:
        layers = cross_attentions(unet)
        for layer in layers:
            if "forward" in vars(layer):
                raise Conflict(_taken(layer.forward))
        self.denoising.name_layers({})
        self._layers, self._patch = layers, int(getattr(unet, "patch_spatial", 1))
        for layer in layers:
            layer.forward = functools.partial(self._attend_static, layer)

    def released(self) -> None:
        for layer in self._layers:
            vars(layer).pop("forward", None)
        self._layers = ()

    def patched(self, options: Options) -> Options:
        return options

    def _masked(
        self, cond: list[Options], weights: Tensor, x: Tensor, options: Options
    ) -> tuple[list[Options], Options]:
        masks = self._by_part(weights, x)
        return with_masks([(one, masks[:, k]) for k, one in enumerate(cond)], x, several=True), weighing(options)

    def _attend_static(
        self,
        layer: Any,
        x: Tensor,
        context: Tensor | None = None,
        rope_emb: Tensor | None = None,
        transformer_options: Options | None = None,
    ) -> Tensor:
        """A cross-attention's forward: `[rows, T·h·w, C]` → the same, T frames. context: the host's, `[rows, 1, T, D]`,
        of which only the rows are looked at."""
        options = transformer_options or {}
        if self.denoising.planned is None or context is None or "cond_or_uncond" not in options:
            return type(layer).forward(layer, x, context, rope_emb=rope_emb, transformer_options=options)
        chunks = options["cond_or_uncond"]
        if chunks is not self._call:  # a new list for each call of the model
            self._call, self._shares = chunks, shares(self.rows_of(chunks, context))
        q = layer.q_norm(layer.q_proj(x).unflatten(-1, (layer.n_heads, layer.head_dim))).flatten(-2)
        attention = self.denoising.attention
        wanted = attention.wanted(layer, self._shares, x)
        if wanted is not None:
            keys, values = layer.k_proj(wanted.stacked), layer.v_proj(wanted.stacked)
            attention.take(layer, keys, values, layer.n_heads, norm=_key_norm(layer, keys))
        height, width = (-(-side // self._patch) for side in self.denoising.rows.size)
        if x.shape[1] % (height * width):
            raise Conflict(
                f"the model was given {x.shape[1]} places of a picture of {height}×{width}: another extension samples "
                "in tiles (MultiDiffusion?), and masks know the whole image only; switch it off or MaskNoise"
            )
        frames = [
            attention.attend(layer, of_frame, self._shares, (height, width))
            for of_frame in q.split(height * width, dim=1)
        ]
        out = frames[0] if len(frames) == 1 else torch.cat(frames, dim=1)
        return layer.output_dropout(layer.output_proj(out.to(x.dtype)))


def cross_attentions(model: torch.nn.Module) -> tuple[Any, ...]:
    """The cross-attention of every block, where all have one that this module knows: linear projections of the text,
    a norm over each head's keys, and nothing else. Empty where they have not."""
    found = tuple(getattr(block, "cross_attn", None) for block in getattr(model, "blocks", ()))
    return found if found and all(map(_known, found)) else ()


def _known(layer: Any) -> bool:
    parts = [getattr(layer, name, None) for name in PROJECTIONS]
    if any(part is None for part in parts) or not isinstance(getattr(layer, "v_norm", None), torch.nn.Identity):
        return False
    takes_options = "transformer_options" in inspect.signature(type(layer).forward).parameters
    return takes_options and isinstance(parts[-1], torch.nn.RMSNorm) and not getattr(layer, "is_SelfAttn", False)


def _key_norm(layer: Any, like: Tensor) -> KeyNorm:
    """The norm of a layer's keys. Its weight is asked of the module itself, which may keep it on another device."""
    eps = layer.k_norm.eps
    eps = float(torch.finfo(like.dtype).eps if eps is None else eps)
    ones = like.new_ones(layer.head_dim)
    return KeyNorm(layer.head_dim, eps, layer.k_norm(ones) * (1 + eps) ** 0.5)


def _taken(forward: Any) -> str:
    module = getattr(getattr(forward, "func", forward), "__module__", forward)
    return f"the cross-attention layers are taken by another extension ({module}): switch it off or MaskNoise"
