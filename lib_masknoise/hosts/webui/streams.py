"""Neo with a transformer of two streams whose blocks take no attention mask (Qwen-Image): all the concepts' texts at
once, for one sampling pass.

As in `joint`, the texts stand side by side and a step takes one evaluation of the model. Here the attention of every
block is `lib_masknoise.joint`'s own: for as long as a call of the model lasts, the blocks' attention modules have
forwards of ours, which project, norm and turn queries and keys as the host's do, with its modules. So keys and values
are blended as in diffusers' pipelines, texts may be of several lengths, and no mask is built. Weights and presence go
along as two more of the model's conditions, since the rows of a call may be divided differently.

Each text stands where it stands alone, behind the image's places. The tokens of reference pictures (Qwen-Image-Edit)
have no place in the masks: they see every text by its area.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from modules import shared
from torch import Tensor

from lib_masknoise.hosts.webui.denoising import Conflict, Denoising
from lib_masknoise.hosts.webui.forge import Options
from lib_masknoise.hosts.webui.joint import JointAttention, joined
from lib_masknoise.hosts.webui.predictions import Masks, Weighted, taking
from lib_masknoise.hosts.webui.static_text import refuse_taken
from lib_masknoise.joint import Seen, at_tokens, joint_attention, seen, side_by_side
from lib_masknoise.maps import Size, extent

WEIGHTS, PRESENT = "masknoise_weights", "masknoise_present"
"""Among the model's conditions: what each text counts, `[rows, K, h, w]`, and how much of each of its tokens there is,
`[rows, K, T]`."""

PARTS = (
    "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "norm_q", "norm_k", "norm_added_q",
    "norm_added_k", "to_out", "to_add_out", "heads",
)  # fmt: skip
"""Of an attention that this module knows."""

KEPT_SIGHTS = 3
"""Calls of the prompts, of the negative prompts and of both: what they see is the same at every step."""


class StreamAttention(JointAttention):
    """The texts of all concepts side by side in one condition, weighed in the attention of every block."""

    def __init__(self, denoising: Denoising):
        super().__init__(denoising)
        self._known: list[tuple[Tensor, Tensor, Size, int, tuple[Seen, ...]]] = []

    def wrapped(self, options: Options, x: Tensor) -> Options:
        return taking(Masks().wrapped(options, x), WEIGHTS, self._weighed)

    def side_by_side(self, entries: list[Weighted], x: Tensor) -> Options | None:
        contexts = [one["model_conds"]["c_crossattn"].cond for one, _ in entries]
        lengths = [context.shape[1] for context in contexts]
        filled = torch.stack([F.pad(one, (0, 0, 0, max(lengths) - one.shape[1])) for one in contexts], dim=1)
        try:
            found = side_by_side(filled, torch.stack([weight for _, weight in entries], dim=1), lengths=lengths)
        except ValueError:
            return None
        refuse_taken(self.layers(_model()), "attention")
        more = {WEIGHTS: found.weights, PRESENT: found.present}
        return joined(entries, found.contexts.flatten(1, 2), more)

    def _weighed(self, weights: Tensor, call: Callable[[Options], Tensor], c: Options) -> Tensor:
        """A call of the model whose rows have several texts."""
        present, model = c.pop(PRESENT), _model()

        def before(module: Any, args: tuple[Any, ...]) -> None:
            self.denoising.check_size(extent(args[0]))
            if len(args[0]) != len(weights):
                raise Conflict(
                    f"the model was given {len(args[0])} of {len(weights)} rows: another extension divides what is "
                    "denoised together; switch it off or MaskNoise"
                )

        hook = model.register_forward_pre_hook(before)
        try:
            with self.acting(model, weights, present):
                return call(c)
        finally:
            hook.remove()

    def layers(self, model: Any) -> tuple[Any, ...]:
        """The attention that becomes ours."""
        return attentions(model)

    def acting(self, model: Any, weights: Tensor, present: Tensor) -> AbstractContextManager[None]:
        """Within, calls of the model see texts of weights `[rows, K, h, w]` and presence `[rows, K, T]`."""
        return attending(self.layers(model), functools.partial(attended, self.beside(model, weights, present)))

    def beside(self, model: Any, weights: Tensor, present: Tensor) -> Beside:
        """What stands side by side where texts of such weights and presence do."""

        def sights(places: int, device: torch.device) -> tuple[Seen, ...]:
            height, width = (-(-side // getattr(model, "patch_size", 2)) for side in self.denoising.given_size)
            return self._sights(weights, present, (height, width), places, device)

        texts, tokens = present.shape[1:]
        return Beside(texts, tokens, sights)

    def _sights(
        self, weights: Tensor, present: Tensor, size: Size, places: int, device: torch.device
    ) -> tuple[Seen, ...]:
        """What the rows of a call see whose image and references have that many places, found again only where
        something of it changes."""
        for of_weights, of_present, *others, known in self._known:
            if others == [size, places] and _equal(of_weights, weights) and _equal(of_present, present):
                return known
        at = at_tokens(weights.float().cpu(), size, places - math.prod(size))
        known = tuple(one.to(device) for one in seen(at, present.float().cpu()))
        self._known = [(weights, present, size, places, known), *self._known][:KEPT_SIGHTS]
        return known


@dataclass(frozen=True)
class Beside:
    """What stands side by side in a call of the model: how many texts, how many tokens each has, and what the rows see,
    given how many places image and references have, and the device."""

    texts: int
    tokens: int
    sights: Callable[[int, torch.device], tuple[Seen, ...]]


def attentions(model: torch.nn.Module) -> tuple[Any, ...]:
    """The attention of every block of two streams, where all have one that this module knows; else empty."""
    found = tuple(getattr(block, "attn", None) for block in getattr(model, "transformer_blocks", ()))
    return found if found and all(hasattr(layer, name) for layer in found for name in PARTS) else ()


@contextmanager
def attending(layers: tuple[Any, ...], forward: Callable[..., Any]) -> Iterator[None]:
    """Within, the layers have that forward, which gets the layer first."""
    try:
        for layer in layers:
            layer.forward = functools.partial(forward, layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def attended(
    beside: Beside,
    layer: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    encoder_hidden_states_mask: Any = None,
    attention_mask: Any = None,
    image_rotary_emb: Any = None,
) -> tuple[Tensor, Tensor]:
    """An attention's forward: image `[rows, L, C]` and texts `[rows, K·T, C]` → both. image_rotary_emb: the turns
    `[rows, K·T + L, 1, d/2, 2, 2]` of as many tokens one after the other, which only the first text's are."""
    length = encoder_hidden_states.shape[1]
    turns = placed(image_rotary_emb, beside, 1)
    text = [getattr(layer, name)(encoder_hidden_states) for name in ("add_q_proj", "add_k_proj", "add_v_proj")]
    image = [getattr(layer, name)(hidden_states) for name in ("to_q", "to_k", "to_v")]
    (text_q, text_k, text_v), (q, k, v) = ([t.unflatten(-1, (layer.heads, -1)) for t in own] for own in (text, image))
    q = turned(torch.cat([layer.norm_added_q(text_q), layer.norm_q(q)], dim=1), turns)
    k = turned(torch.cat([layer.norm_added_k(text_k), layer.norm_k(k)], dim=1), turns)
    q, k, v = (t.transpose(1, 2) for t in (q, k, torch.cat([text_v, v], dim=1)))
    sights = beside.sights(hidden_states.shape[1], q.device)
    out = joint_attention((q, k, v), beside.texts, beside.tokens, sights, q.shape[3] ** -0.5)
    out = out.transpose(1, 2).flatten(2).to(hidden_states)
    of_image = out[:, length:]
    for part in layer.to_out:
        of_image = part(of_image)
    return of_image, layer.to_add_out(out[:, :length])


def placed(turns: Tensor, beside: Beside, axis: int) -> Tensor:
    """The turns of K·T + L tokens, counted one after the other on that axis, for K texts that stand where the first
    does."""
    length = beside.texts * beside.tokens
    text, image = turns.narrow(axis, 0, beside.tokens), turns.narrow(axis, length, turns.shape[axis] - length)
    return torch.cat([*[text] * beside.texts, image], dim=axis)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """`[…, d]` as d/2 pairs, each times a matrix of `[…, d/2, 2, 2]`."""
    pairs = x.unflatten(-1, (-1, 1, 2))
    return (turns[..., 0] * pairs[..., 0] + turns[..., 1] * pairs[..., 1]).flatten(-2).to(x)


def _model() -> Any:
    return shared.sd_model.forge_objects.unet.model.diffusion_model


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.device == other.device and torch.equal(one, other))
