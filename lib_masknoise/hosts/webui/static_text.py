"""Neo with a transformer whose text stays what it is from layer to layer (Anima, Wan): the exact blend in its
cross-attention, for one sampling pass.

The blocks ask for no patches, so their cross-attention modules get forwards of ours for as long as the pass lasts, and
the model a hook that hears which rows it is given. The keys pass an RMS norm there, over each head (Anima) or over all
of them (Wan), over which `attention` blends exactly; concept and feature noise act as in a U-Net. The modules are the
host's own, so that its casts and its LoRA take part.

Wan's text passes two layers of its own before the blocks: what they make of it is what is blended.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from modules import shared
from torch import Tensor

from lib_masknoise.attention import KeyNorm, shares
from lib_masknoise.hosts.webui.denoising import Conflict
from lib_masknoise.hosts.webui.forge import CrossAttention, Options
from lib_masknoise.hosts.webui.predictions import weighing, with_masks
from lib_masknoise.maps import extent


class Names(NamedTuple):
    """What a cross-attention calls its parts."""

    q: str
    k: str
    v: str
    out: str
    q_norm: str
    k_norm: str
    heads: str


ANIMA = Names("q_proj", "k_proj", "v_proj", "output_proj", "q_norm", "k_norm", "n_heads")
WAN = Names("q", "k", "v", "o", "norm_q", "norm_k", "num_heads")

MORE = ("k_img", "v_img")
"""Parts of a cross-attention that also sees a picture (Wan 2.1, image to video): that is another attention."""


class StaticText(CrossAttention):
    """The exact blend in the cross-attention of a transformer's blocks."""

    _layers: tuple[Any, ...] = ()
    _patch: int = 1
    _hook: Any = None

    def bound(self, unet: torch.nn.Module) -> None:
        layers = cross_attentions(unet)
        refuse_taken(layers, "cross-attention")
        self.denoising.name_layers({})
        self.denoising.prompts.read_by(_reading(unet))
        self._layers, self._patch = layers, _patch_size(unet)
        self._hook = unet.register_forward_pre_hook(self._before_model, with_kwargs=True)
        for layer in layers:
            layer.forward = functools.partial(self._attend_static, layer)

    def released(self) -> None:
        for layer in self._layers:
            vars(layer).pop("forward", None)
        if self._hook is not None:
            self._hook.remove()
        self._layers, self._hook, self._shares = (), None, ()

    def patched(self, options: Options) -> Options:
        return options

    def _masked(
        self, cond: list[Options], weights: Tensor, x: Tensor, options: Options
    ) -> tuple[list[Options], Options]:
        masks = self._by_part(weights, x)
        return with_masks([(one, masks[:, k]) for k, one in enumerate(cond)], x, several=True), weighing(options)

    def _before_model(self, model: Any, args: tuple[Any, ...], given: Options) -> None:
        """Before a call of the model: what its rows see. x: `[rows, C, T, h, w]`, T frames."""
        options = given.get("transformer_options") or {}
        self._shares = ()
        if self.denoising.planned is not None and "cond_or_uncond" in options:
            self.denoising.check_size(extent(args[0]))
            self._shares = shares(self.rows_of(options["cond_or_uncond"], given["context"]))

    def _attend_static(self, layer: Any, x: Tensor, *args: Any, **given: Any) -> Tensor:
        """A cross-attention's forward: `[rows, T·h·w, C]` → the same, T frames. Of the host's context only the rows
        count, which are known already."""
        names = _names(layer)
        if names is None or not self._shares:
            return type(layer).forward(layer, x, *args, **given)
        q_proj, k_proj, v_proj, out_proj, q_norm, k_norm = (getattr(layer, name) for name in names[:6])
        q = _normed(q_norm, q_proj(x))
        attention = self.denoising.attention
        wanted = attention.wanted(layer, self._shares, x)
        if wanted is not None:
            keys, values = k_proj(wanted.stacked), v_proj(wanted.stacked)
            attention.take(layer, keys, values, getattr(layer, names.heads), norm=_key_norm(k_norm, keys))
        height, width = (-(-side // self._patch) for side in self.denoising.given_size)
        frames = [
            attention.attend(layer, of_frame, self._shares, (height, width))
            for of_frame in q.split(height * width, dim=1)
        ]
        out = frames[0] if len(frames) == 1 else torch.cat(frames, dim=1)
        return out_proj(out.to(x.dtype))


def cross_attentions(model: torch.nn.Module) -> tuple[Any, ...]:
    """The cross-attention of every block, where all have one that this module knows: linear projections of the text,
    an RMS norm of the keys, and nothing else. Empty where they have not."""
    found = tuple(getattr(block, "cross_attn", None) for block in getattr(model, "blocks", ()))
    return found if found and all(_names(layer) is not None for layer in found) else ()


def width_of_text(model: torch.nn.Module, encoded: int) -> int:
    """How many numbers a token has that is blended. encoded: of the text encoder's."""
    embedding: Any = getattr(model, "text_embedding", None)
    return int(embedding[-1].out_features) if embedding is not None and cross_attentions(model) else encoded


def _names(layer: Any) -> Names | None:
    """What a layer calls its parts; None of a layer that is another one."""
    if getattr(layer, "is_SelfAttn", False) or any(hasattr(layer, name) for name in MORE):
        return None
    if not isinstance(getattr(layer, "v_norm", torch.nn.Identity()), torch.nn.Identity):
        return None
    known = (names for names in (ANIMA, WAN) if all(hasattr(layer, name) for name in names))
    return next((names for names in known if isinstance(getattr(layer, names.k_norm), torch.nn.RMSNorm)), None)


def _reading(model: Any) -> Callable[[Tensor], Tensor] | None:
    """What the model makes of a text `[T, D]` before its blocks see it, `[T, D']` on the CPU; None where they see it as
    it is. In the precision of the host's own call."""
    if not hasattr(model, "text_embedding"):
        return None
    patcher = shared.sd_model.forge_objects.unet

    def read(text: Tensor) -> Tensor:
        return model.text_embedding(text.to(patcher.load_device, patcher.model.computation_dtype)).float().cpu()

    return read


def _patch_size(model: Any) -> int:
    """Places of a frame's latent that are one of the model's, along each side."""
    return int(model.patch_spatial if hasattr(model, "patch_spatial") else model.patch_size[-1])


def _width(norm: Any) -> int:
    return int(norm.normalized_shape[-1])


def _normed(norm: Any, x: Tensor) -> Tensor:
    """`[rows, L, C]` under a norm over each head or over all of them."""
    return norm(x.unflatten(-1, (-1, _width(norm)))).flatten(-2)


def _key_norm(norm: Any, like: Tensor) -> KeyNorm:
    """The norm of a layer's keys. Its weight is asked of the module itself, which may keep it on another device."""
    eps = float(torch.finfo(like.dtype).eps if norm.eps is None else norm.eps)
    return KeyNorm(_width(norm), eps, norm(like.new_ones(_width(norm))) * (1 + eps) ** 0.5)


def refuse_taken(layers: tuple[Any, ...], what: str, name: str = "forward") -> None:
    """Raises Conflict where a layer has a method of its own in place of its class's. what: the layers in words."""
    for forward in (vars(layer)[name] for layer in layers if name in vars(layer)):
        module = getattr(getattr(forward, "func", forward), "__module__", forward)
        raise Conflict(f"the {what} layers are taken by another extension ({module}): switch it off or MaskNoise")
