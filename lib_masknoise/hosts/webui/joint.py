"""reForge and Neo with models in which text and image attend together and that take an attention mask (Flux, Chroma):
all the concepts' texts at once, for one sampling pass.

The texts stand one after the other, and the mask says who sees whom: an image location ℓ sees the tokens of text j with
`log a_j(ℓ)` added to their logits, which weighs them by `a_j(ℓ)` in the softmax; a text sees itself and the image, as
it does alone. It takes one evaluation of the model, of a longer sequence. Where one text has all the weight, only that
one is there, and the evaluation is the plain one.

What cannot be said so is left to `predictions`: negative weights, and prompts of several parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from modules import shared
from torch import Tensor

from lib_masknoise import infotext
from lib_masknoise.conditioning import NEGLIGIBLE
from lib_masknoise.hosts.webui.denoising import Denoising
from lib_masknoise.hosts.webui.forge import Options
from lib_masknoise.hosts.webui.predictions import Masks, Weighted, condition_of
from lib_masknoise.maps import Size, resize

UNSEEN = -1e4
"""For a logit: finite, since the hosts' attention in chunks subtracts the largest logit of a chunk from the others."""

KEPT_MASKS = 2
"""The prompts' and the negative prompts': each may be hundreds of megabytes, and is the same at every step."""


class JointAttention:
    """The texts of all concepts side by side in one condition."""

    what = "joint attention"
    instead = (
        "the concepts' tokens stand side by side in the attention of text and image, and a step takes one evaluation "
        "of the model"
    )

    def __init__(self, denoising: Denoising):
        self.denoising = denoising
        self._masks: list[tuple[Tensor, list[int], Tensor]] = []

    def conditions(self, entries: list[Weighted], x: Tensor, several: bool) -> list[Options]:
        masks = Masks()
        if len(entries) == 1:
            return masks.conditions(entries, x, several)
        if self.denoising.conds.part_count is not None or _some_negative(entries):
            self._say_predictions()
            return masks.conditions(entries, x, several)
        return [_joined(entries, lambda weights, lengths: self._mask(weights, lengths, x))]

    def _mask(self, weights: Tensor, lengths: list[int], x: Tensor) -> Tensor:
        """`attention_mask` where the model computes, made again only for other weights or texts."""
        for known, of_lengths, mask in self._masks:
            if of_lengths == lengths and torch.equal(known, weights) and mask.device == x.device:
                return mask
        model = shared.sd_model.forge_objects.unet.model.diffusion_model
        patch = getattr(model, "patch_size", 2)
        height, width = self.denoising.rows.size
        size = math.ceil(height / patch), math.ceil(width / patch)
        mask = attention_mask(weights, lengths, size).to(x.device)
        self._masks = [(weights, lengths, mask), *self._masks][:KEPT_MASKS]
        return mask

    def _say_predictions(self) -> None:
        p: Any = self.denoising.p
        p.extra_generation_params[infotext.BLENDING] = p.extra_generation_params[infotext.BLENDING].replace(
            self.what, Masks.what
        )
        p.comment(f"MaskNoise: for a negative weight or a prompt of several parts, {Masks.instead}")


def takes_masks(model: torch.nn.Module) -> bool:
    """Whether the host's model is one of text and image streams that take an attention mask, with text tokens that have
    no place of their own: several texts side by side are then each what they are alone."""
    streams = hasattr(model, "double_blocks") and hasattr(model, "single_blocks")
    code = getattr(type(model).forward, "__code__", None)
    named = code is not None and "attention_mask" in code.co_consts
    return streams and named and not getattr(model, "txt_ids_dims", None)


def _some_negative(entries: list[Weighted]) -> bool:
    return any(bool((weight < -NEGLIGIBLE).any()) for _, weight in entries)


def _joined(entries: list[Weighted], mask: Callable[[Tensor, list[int]], Tensor]) -> Options:
    """One condition with the texts of all, in which each counts as much as its weights `[B, h, w]` say. mask: makes
    their `attention_mask`."""
    first = entries[0][0]
    of_entries = [one["model_conds"] for one, _ in entries]
    texts = [conds["c_crossattn"].cond for conds in of_entries]
    weights = torch.stack([weight for _, weight in entries], dim=1)
    own = dict(of_entries[0])
    own["c_crossattn"] = type(own["c_crossattn"])(torch.cat(texts, dim=1))
    if "y" in own:  # the pooled texts, by the area of each, as in the other passes
        pooled = torch.stack([conds["y"].cond for conds in of_entries], dim=1)
        area = weights.mean(dim=(2, 3)).to(pooled)
        own["y"] = type(own["y"])(torch.einsum("bj,bjp->bp", area, pooled))
    own["attention_mask"] = condition_of(mask(weights, [text.shape[1] for text in texts]))
    return {**first, "cross_attn": own["c_crossattn"].cond, "strength": 1.0, "model_conds": own}


def attention_mask(weights: Tensor, lengths: list[int], size: Size) -> Tensor:
    """What is added to the logits of text tokens followed by image tokens, `[B, 1, M, M]`.

    weights: of J texts, `[B, J, h, w]`. lengths: tokens of each. size: (h, w) of the image tokens.
    """
    seen = resize(weights, size).flatten(2).clamp_min(0).log().clamp_min(UNSEEN)  # [B, J, L]
    text, places = sum(lengths), seen.shape[2]
    mask = torch.zeros(len(seen), 1, text + places, text + places)
    of_token = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    mask[:, 0, :text, :text] = torch.where(of_token[:, None] == of_token, 0.0, UNSEEN)
    mask[:, 0, text:, :text] = seen[:, of_token].transpose(1, 2)
    return mask
