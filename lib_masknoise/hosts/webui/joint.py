"""reForge and Neo with models in which text and image attend together and that take an attention mask (Flux, Chroma):
all the concepts' texts at once, for one sampling pass.

The texts stand one after the other, and the mask says who sees whom: an image location ℓ sees the tokens of text j with
`log a_j(ℓ)` added to their logits, which weighs them by `a_j(ℓ)` in the softmax; a text sees itself and the image, as
it does alone. Between two concepts that meet stands a text more, a blend of both (`lib_masknoise.joint`). It takes one
evaluation of the model, of a longer sequence. Where one text has all the weight, only that one is there, and the
evaluation is the plain one. The tokens of reference pictures (Kontext in Neo) have no place in the masks: they see
every text by its area.

Where a text's tokens are counted on an axis of the rotary embedding (Flux 2), each text is counted anew, as it is
alone: the counts go along as one more of the model's conditions, since the rows of a call may be divided differently,
and a patch of the model's input sets them.

What cannot be said so is left to `predictions`: prompts of several parts, weights that lead away from the base
together, and weights below 0 of texts of several lengths.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from modules import shared
from torch import Tensor

from lib_masknoise import infotext
from lib_masknoise.conditioning import NEGLIGIBLE
from lib_masknoise.hosts.webui import facts
from lib_masknoise.hosts.webui.denoising import Denoising
from lib_masknoise.hosts.webui.forge import Options
from lib_masknoise.hosts.webui.predictions import Masks, Weighted, condition_of, taking
from lib_masknoise.joint import at_tokens, side_by_side
from lib_masknoise.maps import Size

UNSEEN = -1e4
"""For a logit: finite, since the hosts' attention in chunks subtracts the largest logit of a chunk from the others."""

KEPT_MASKS = 2
"""The prompts' and the negative prompts': each may be hundreds of megabytes, and is the same at every step."""

PLACES = "masknoise_places"
"""Among the model's conditions: where each text token stands in its text, `[rows, M]`."""


class JointAttention:
    """The texts of all concepts side by side in one condition."""

    what = "joint attention"
    instead = (
        "the concepts' tokens stand side by side in the attention of text and image, and a step takes one evaluation "
        "of the model"
    )

    def __init__(self, denoising: Denoising):
        self.denoising = denoising
        self._masks: list[tuple[Tensor, list[int], int, Tensor]] = []

    def wrapped(self, options: Options, x: Tensor) -> Options:
        axes = text_axes(shared.sd_model.forge_objects.unet.model.diffusion_model)
        options = Masks().wrapped(options, x)
        return placing(options, axes) if axes else options

    def conditions(self, entries: list[Weighted], x: Tensor, several: bool) -> list[Options]:
        if len(entries) > 1:
            found = None if self.denoising.conds.part_count is not None else self.side_by_side(entries, x)
            if found is not None:
                return [found]
            self._say_predictions()
        return Masks().conditions(entries, x, several)

    def side_by_side(self, entries: list[Weighted], x: Tensor) -> Options | None:
        """One condition for all of them; None where it cannot be said so."""
        found = texts_of(entries)
        if found is None:
            return None
        context, lengths, weights = found
        more = {"attention_mask": self._mask(weights, lengths, x)}
        if text_axes(shared.sd_model.forge_objects.unet.model.diffusion_model):
            more[PLACES] = places_of(lengths)[None]
        return joined(entries, context, more)

    def _mask(self, weights: Tensor, lengths: list[int], x: Tensor) -> Tensor:
        """`attention_mask` where the model computes, made again only for other weights or texts."""
        model = shared.sd_model.forge_objects.unet.model
        patch = getattr(model.diffusion_model, "patch_size", 2)
        more = reference_tokens(patch)
        for known, of_lengths, of_more, mask in self._masks:
            if (of_lengths, of_more) == (lengths, more) and torch.equal(known, weights) and mask.device == x.device:
                return mask
        height, width = self.denoising.rows.size
        size = math.ceil(height / patch), math.ceil(width / patch)
        # As the model computes: the host would make a copy of that kind for every call.
        mask = attention_mask(weights, lengths, size, more).to(x.device, getattr(model, "computation_dtype", None))
        self._masks = [(weights, lengths, more, mask), *self._masks][:KEPT_MASKS]
        return mask

    def _say_predictions(self) -> None:
        p: Any = self.denoising.p
        p.extra_generation_params[infotext.BLENDING] = p.extra_generation_params[infotext.BLENDING].replace(
            self.what, Masks.what
        )
        p.comment(f"MaskNoise: with several parts in a prompt, or weights so far from its own, {Masks.instead}")


def takes_masks(model: torch.nn.Module) -> bool:
    """Whether the host's model is one of text and image streams that take an attention mask, and each of several texts
    side by side can stand where it stands alone."""
    streams = hasattr(model, "double_blocks") and hasattr(model, "single_blocks")
    placed = not text_axes(model) or _names(model, "forward_orig", "post_input")
    return streams and placed and _names(model, "forward", "attention_mask")


def _names(model: torch.nn.Module, method: str, name: str) -> bool:
    """Whether a method of the model asks for something under that name."""
    code = getattr(getattr(type(model), method, None), "__code__", None)
    return code is not None and name in code.co_consts


def text_axes(model: torch.nn.Module) -> tuple[int, ...]:
    """The axes of the model's places on which it counts a text's tokens (Flux 2); none where these have no place."""
    return tuple(getattr(model, "txt_ids_dims", None) or ())


def places_of(lengths: Sequence[int]) -> Tensor:
    """Where each token of texts side by side stands in its own text, `[M]`."""
    return torch.cat([torch.arange(length) for length in lengths])


def placing(options: Options, axes: tuple[int, ...]) -> Options:
    """The host's model options with the wrapper by which every text is counted anew, in calls that have `PLACES`."""

    def placed(places: Tensor, call: Callable[[Options], Tensor], c: Options) -> Tensor:
        transformer = c["transformer_options"]
        patches = transformer.get("patches", {})
        own = functools.partial(_set_places, places, axes)
        patches = {**patches, "post_input": [own, *patches.get("post_input", [])]}
        return call({**c, "transformer_options": {**transformer, "patches": patches}})

    return taking(options, PLACES, placed)


def _set_places(places: Tensor, axes: tuple[int, ...], given: Options) -> Options:
    """A patch of the model's input: `txt_ids` `[rows, M, axes]` with the places `[rows, M]` on some of the axes."""
    ids = given["txt_ids"].clone()
    for axis in axes:
        ids[..., axis] = places
    return {**given, "txt_ids": ids}


def texts_of(entries: list[Weighted]) -> tuple[Tensor, list[int], Tensor] | None:
    """The K texts that stand side by side, `[B, M, D]`, the tokens of each, and their weights `[B, K, h, w]`.

    None where attention cannot weigh them so.

    Texts of several lengths have no blend between them: each stands for itself.
    """
    contexts = [one["model_conds"]["c_crossattn"].cond for one, _ in entries]
    weights = torch.stack([weight for _, weight in entries], dim=1)
    lengths = [context.shape[1] for context in contexts]
    if len(set(lengths)) > 1:
        return None if bool((weights < -NEGLIGIBLE).any()) else (torch.cat(contexts, dim=1), lengths, weights)
    try:
        found = side_by_side(torch.stack(contexts, dim=1), weights)
    except ValueError:
        return None
    return found.contexts.flatten(1, 2), lengths[:1] * found.contexts.shape[1], found.weights


def reference_tokens(patch: int) -> int:
    """How many tokens of reference pictures the host puts behind the image's (Neo: Kontext)."""
    return sum(math.prod(math.ceil(side / patch) for side in one.shape[-2:]) for one in facts.references())


def joined(entries: list[Weighted], context: Tensor, more: dict[str, Tensor]) -> Options:
    """One condition with the texts of all: what they are together, and what else the model is given of them."""
    first = entries[0][0]
    of_entries = [one["model_conds"] for one, _ in entries]
    own = dict(of_entries[0])
    own["c_crossattn"] = type(own["c_crossattn"])(context)
    if "y" in own:  # the pooled texts, by the area of each, as in the other passes
        pooled = torch.stack([conds["y"].cond for conds in of_entries], dim=1)
        area = torch.stack([weight for _, weight in entries], dim=1).mean(dim=(2, 3)).to(pooled)
        own["y"] = type(own["y"])(torch.einsum("bj,bjp->bp", area, pooled))
    own.update((name, condition_of(tensor)) for name, tensor in more.items())
    return {**first, "cross_attn": context, "strength": 1.0, "model_conds": own}


def attention_mask(weights: Tensor, lengths: list[int], size: Size, more: int = 0) -> Tensor:
    """What is added to the logits of text tokens, then image tokens, then `more` without a place: `[B, 1, M, M]`.

    weights: of J texts, `[B, J, h, w]`. lengths: tokens of each. size: (h, w) of the image tokens.
    """
    seen = at_tokens(weights, size, more).log().clamp_min(UNSEEN)  # [B, J, L]
    text, places = sum(lengths), seen.shape[2]
    mask = torch.zeros(len(seen), 1, text + places, text + places)
    of_token = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    mask[:, 0, :text, :text] = torch.where(of_token[:, None] == of_token, 0.0, UNSEEN)
    mask[:, 0, text:, :text] = seen[:, of_token].transpose(1, 2)
    return mask
