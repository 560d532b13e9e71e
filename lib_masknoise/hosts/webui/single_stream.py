"""Neo with a transformer of one stream, a text and then the image, after layers of the text alone and of the image
alone (Z-Image, Lumina 2): all the concepts' texts at once, for one sampling pass.

As in `streams`; what differs is how a text stands in the sequence. The model puts text and image together in a method
of its own, which for as long as a call of the model lasts is ours: the host's gives the image, behind a text as long as
the longest that counts in the row, and every text passes the host's layers of texts by itself, filled up as it is alone
(`lib_masknoise.joint.before_image`). The tokens that fill up the image have no place in the masks: they see every text
by its area.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.hosts.webui.joint import Beside, JointAttention, attending, turned
from lib_masknoise.hosts.webui.static_text import refuse_taken
from lib_masknoise.joint import Standing, before_image, joint_attention

UNSEEN = -1e4
"""For a logit: finite, since the hosts' attention in chunks subtracts the largest logit of a chunk from the others."""

SEQUENCE = "patchify_and_embed"
"""The model's method that puts text and image together."""

TURN = "apply_rope"
"""What the attention's module calls its rotary embedding."""

PARTS = ("qkv", "out", "q_norm", "k_norm", "n_local_heads", "n_local_kv_heads", "n_rep", "head_dim")
"""Of an attention that this module knows."""

OF_MODEL = ("context_refiner", SEQUENCE)
"""What such a model has beside its layers."""


class SingleStream(JointAttention):
    """The texts of all concepts side by side in one condition, weighed in the attention of every layer."""

    def layers(self, model: Any) -> tuple[Any, ...]:
        return attentions(model)

    @contextmanager
    def acting(self, model: Any, weights: Tensor, present: Tensor) -> Iterator[None]:
        refuse_taken((model,), "embedding", SEQUENCE)
        standing = before_image(weights.float().cpu(), present.float().cpu(), block_of(model))
        beside = self.beside(model, weights, standing.present)
        setattr(model, SEQUENCE, functools.partial(in_one_sequence, standing.to(weights.device), model))
        try:
            with attending(self.layers(model), functools.partial(attended, beside)):
                yield
        finally:
            vars(model).pop(SEQUENCE, None)


def attentions(model: torch.nn.Module) -> tuple[Any, ...]:
    """The attention of every layer of one stream, where the model puts text and image together in a method of its own
    and all layers have an attention that this module knows; else empty."""
    if not all(hasattr(model, name) for name in OF_MODEL):
        return ()
    found = tuple(getattr(layer, "attention", None) for layer in getattr(model, "layers", ()))
    return found if found and all(map(_known, found)) else ()


def block_of(model: Any) -> int:
    """What the model fills its texts up to a multiple of; 1: it does not."""
    return int(getattr(model, "pad_tokens_multiple", None) or 1)


def in_one_sequence(
    standing: Standing, model: Any, x: Tensor, texts: Tensor, mask: Any, time: Tensor, count: Any, **options: Any
) -> tuple[Tensor, Any, list[Any], list[int], Tensor]:
    """The model's method: a picture `[rows, C, h, w]` and texts `[rows, K·T, D]` → texts and image in one sequence
    `[rows, K·T' + L, D]`, its mask, of each row the picture's size and the sequence's length before it, and the turns
    of all tokens `[rows, K·T' + L, 1, d/2, 2, 2]`."""
    number, tokens = standing.present.shape[1:]
    found: dict[int, tuple[Tensor, Tensor, Any]] = {}
    ends = standing.ends.tolist()
    for end in dict.fromkeys(ends):
        rows = [row for row, own in enumerate(ends) if own == end]
        stand_in = texts.new_zeros(len(rows), end, texts.shape[2])
        host = getattr(type(model), SEQUENCE)
        whole, _, sizes, _, turns = host(model, x[rows], stand_in, None, time[rows], count, **options)
        for i, row in enumerate(rows):
            of_texts = turns[i, standing.places[row].flatten()]
            found[row] = whole[i, end:], torch.cat([of_texts, turns[i, end:]]), sizes[i]
    images, of_all, sizes = zip(*(found[row] for row in range(len(ends))), strict=True)
    turns = torch.stack(of_all)
    refined = _refined(standing, model, texts, turns[:, : number * tokens], options)
    return torch.cat([refined, torch.stack(images)], dim=1), None, list(sizes), [number * tokens] * len(ends), turns


def _refined(standing: Standing, model: Any, texts: Tensor, turns: Tensor, options: dict[str, Any]) -> Tensor:
    """Texts `[rows, K·T, D]`, each filled up and by itself through the layers of texts, `[rows, K·T', D]`."""
    number, tokens = standing.present.shape[1:]
    texts = texts.unflatten(1, (number, -1))
    texts = F.pad(texts, (0, 0, 0, tokens - texts.shape[2]))
    if bool(standing.fillers.any()):
        texts = torch.where(standing.fillers[..., None], model.cap_pad_token.to(texts), texts)
    present, rows = standing.present.flatten(0, 1), len(texts)
    mask = None
    if not bool((present == 1).all()):
        mask = present.log().clamp_min(UNSEEN).to(texts)[:, None, None].expand(-1, 1, tokens, -1)
    texts, turns = texts.flatten(0, 1), turns.unflatten(1, (number, tokens)).flatten(0, 1)
    for layer in model.context_refiner:
        texts = layer(texts, mask, turns, **options)
    return texts.unflatten(0, (rows, number)).flatten(1, 2)


def attended(
    beside: Beside, layer: Any, x: Tensor, mask: Any, turns: Tensor, transformer_options: Any = None
) -> Tensor:
    """An attention's forward: texts and image `[rows, K·T + L, C]`, turned by `[rows, K·T + L, 1, d/2, 2, 2]`."""
    widths = [count * layer.head_dim for count in (layer.n_local_heads, *[layer.n_local_kv_heads] * 2)]
    q, k, v = (t.unflatten(-1, (-1, layer.head_dim)) for t in layer.qkv(x).split(widths, dim=-1))
    q, k = turned(layer.q_norm(q), turns), turned(layer.k_norm(k), turns)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(layer.n_rep, dim=1) for t in (k, v))
    sights = beside.sights(x.shape[1] - beside.texts * beside.tokens, x.device)
    out = joint_attention((q, k, v), beside.texts, beside.tokens, sights, layer.head_dim**-0.5)
    return layer.out(out.transpose(1, 2).flatten(2).to(x))


def _known(layer: Any) -> bool:
    """Whether an attention is one of linear projections, norms of each head, and the host's own rotary embedding."""
    forward = getattr(type(layer), "forward", None)
    turns = TURN in getattr(getattr(forward, "__code__", None), "co_names", ())
    return turns and all(hasattr(layer, name) for name in PARTS)
