"""Neo with a transformer of two streams whose blocks have attention modules (Qwen-Image): `joint` in these.

Their forwards project, norm and turn queries and keys as the host's do, with its modules. Each text stands where it
stands alone, behind the image's places.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from lib_masknoise.hosts.webui.joint import Beside, JointAttention, attending, placed, turned
from lib_masknoise.joint import joint_attention

PARTS = (
    "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "norm_q", "norm_k", "norm_added_q",
    "norm_added_k", "to_out", "to_add_out", "heads",
)  # fmt: skip
"""Of an attention that this module knows."""


class StreamAttention(JointAttention):
    """The texts of all concepts side by side in one condition, weighed in the attention of every block."""

    def layers(self, model: Any) -> tuple[Any, ...]:
        return attentions(model)

    def acting(self, model: Any, weights: Tensor, present: Tensor) -> AbstractContextManager[None]:
        return attending(self.layers(model), functools.partial(attended, self.beside(model, weights, present)))


def attentions(model: torch.nn.Module) -> tuple[Any, ...]:
    """The attention of every block of two streams, where all have one that this module knows; else empty."""
    found = tuple(getattr(block, "attn", None) for block in getattr(model, "transformer_blocks", ()))
    return found if found and all(hasattr(layer, name) for layer in found for name in PARTS) else ()


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
