"""Transformers in which text and image change together: the texts of all concepts side by side, each weighed by place.

No exact local form exists there, since a text reads the image on its way. What there is: every text sees itself and the
image, as it does alone, and an image location ℓ sees the tokens of text k with `log w_k(ℓ)` added to their logits, so
that the softmax weighs them by `w_k(ℓ)`. Between two concepts the softmax mixes two readings; a *level-set text*, the
blend of both contexts at a share s, is a text of its own, which counts most where the map has that share:

    w_k(ℓ) = max(0, 1 − |s(ℓ) − s_k|·(n + 1)),   s_k = k/(n + 1),   k = 0 … n + 1

so that the way from one concept to the other passes n real blends and a location mixes neighbours only.

Texts of several lengths: a token that only some of a blend's contexts have is the blend of those, and counts as much as
they do, by the logarithm of that added to its logit (`conditioning.presence`). So a context alone is exactly itself.

The attention needs no mask of tokens × tokens: a softmax over parts is the softmax of each, weighed by its sum of
exponentials. Knows no host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_masknoise.attention import attention_with_sums
from lib_masknoise.conditioning import NEGLIGIBLE, LocationConditioning, presence
from lib_masknoise.maps import Size, resize

KNOTS = 1
"""Blended contexts for each pair that meets (docs/architectures.md)."""


@dataclass(frozen=True)
class Texts:
    """What stands side by side: contexts `[B, K, T, D]` and their weights `[B, K, H, W]`, which add up to 1 at every
    place; B is 1 where all rows share them. present: how much of each token there is, `[B, K, T]` from 0 to 1."""

    contexts: Tensor
    weights: Tensor
    present: Tensor

    def row(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """One row's contexts `[K, T, D]`, weights `[K, H, W]` and presence `[K, T]`."""
        contexts, weights, present = (t[min(index, len(t) - 1)] for t in (self.contexts, self.weights, self.present))
        return contexts, weights, present


def level_sets(a: Tensor, knots: int) -> tuple[Tensor, Tensor]:
    """Shares `[B, J, H, W]` of J contexts, none negative, adding up to 1 → the mix `[K, J]` that each of K texts is,
    and the texts' weights `[B, K, H, W]`: `Σ_k w_k mix_k = a` at every place, and they add up to 1.

    knots: blended texts between each two contexts that meet; 0 leaves the contexts alone. Where more than two meet, a
    share goes to the pairs by `c_ij = min(a_j/(1 − a_i), a_i/(1 − a_j))`, which changes smoothly with the maps, and
    what is left stays with the context itself. Texts that count nowhere are left out.
    """
    count = a.shape[1]
    mixes = list(torch.eye(count, dtype=a.dtype).unbind())
    own = list(a.unbind(1))
    between: list[Tensor] = []
    rest = (1 - a).clamp_min(torch.finfo(a.dtype).tiny)
    for i in range(count if knots else 0):
        for j in range(i + 1, count):
            meeting = torch.minimum(a[:, j] / rest[:, i], a[:, i] / rest[:, j]).clamp(0, 1)
            if not bool((meeting > NEGLIGIBLE).any()):
                continue
            mass = (a[:, i] + a[:, j]) * meeting
            share = a[:, j] / (a[:, i] + a[:, j]).clamp_min(torch.finfo(a.dtype).tiny)
            hats = [(1 - (share * (knots + 1) - k).abs()).clamp_min(0) for k in range(knots + 2)]
            own[i] = own[i] - mass * (1 - share) + mass * hats[0]
            own[j] = own[j] - mass * share + mass * hats[-1]
            for k in range(1, knots + 1):
                s = k / (knots + 1)
                mixes.append((1 - s) * mixes[i] + s * mixes[j])
                between.append(mass * hats[k])
    weights = torch.stack([*own, *between], dim=1).clamp_min(0)
    used = [k for k in range(len(mixes)) if bool((weights[:, k] > NEGLIGIBLE).any())]
    return torch.stack(mixes)[used], weights[:, used] / weights[:, used].sum(1, keepdim=True)


def side_by_side(
    contexts: Tensor, coefficients: Tensor, knots: int = KNOTS, lengths: Sequence[int] | None = None
) -> Texts:
    """What stands side by side for contexts `[B, J, T, D]`, the base's first, that contribute `[B, J, H, W]`; B is 1
    where all rows share them. Coefficients that add up to something else than 1 are divided by their sum. A weight
    below 0 or above 1 is reached as a text of its own, that far from the base. lengths: tokens of each context, all T
    when None.

    Raises ValueError where a place is further than that from the base.
    """
    a, ends = _within(coefficients)
    mixes, weights = level_sets(a, knots)
    # Of each text, how much of each context: an end is w of its own and 1 − w of the base.
    others = mixes[:, 1:] * torch.stack(ends, dim=-1).flatten(1, 2) if ends else mixes.new_zeros(1, len(mixes), 0)
    shares = torch.cat([1 - others.sum(-1, keepdim=True), others], dim=-1)
    present = presence(shares, lengths or [contexts.shape[2]] * contexts.shape[1])
    blended = torch.einsum("bkj,bjtd->bktd", shares.to(contexts), contexts)
    there = present.to(contexts)[..., None]
    return Texts(torch.where(there > 0, blended / there.clamp_min(torch.finfo(there.dtype).tiny), 0), weights, present)


def texts(conditioning: LocationConditioning, knots: int = KNOTS) -> Texts:
    """The texts of a conditioning, as `side_by_side` has them. Concept noise moves each by the average of its fields
    where the text counts, so that what is pinned stays.

    Raises ValueError where a place is too far from the base.
    """
    c = conditioning
    found = side_by_side(c.contexts[None], c.coefficients, knots, c.lengths)
    contexts, weights = found.contexts, found.weights
    noise = conditioning.noise
    if noise is not None:
        area = weights.sum((2, 3)).clamp_min(torch.finfo(weights.dtype).tiny)
        rows = max(len(weights), len(noise.fields))
        of_texts = torch.einsum(
            "bkhw,brhw->bkr", weights.expand(rows, -1, -1, -1), noise.fields.to(weights).expand(rows, -1, -1, -1)
        )
        of_texts = (of_texts / area[..., None]).to(contexts)
        tokens, directions = (t.to(contexts).expand(rows, -1, -1) for t in (noise.tokens, noise.directions))
        contexts = contexts + torch.einsum("bkr,brt,brd->bktd", of_texts, tokens, directions)
    return Texts(contexts, weights, found.present)


def _within(a: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Coefficients `[B, J, H, W]` → shares of the base and of ends `base + w_j (C_j − base)`, none negative and adding
    up to 1, and the w of each row, `[B, 1, 1]` for each context after the base."""
    total = a.sum(1, keepdim=True)
    a = a / torch.where(total.abs() > NEGLIGIBLE, total, torch.ones_like(total))
    low, high = a.amin((2, 3)), a.amax((2, 3))
    w = torch.where(high > 1, high, torch.where(low < -NEGLIGIBLE, low, torch.ones_like(low)))[:, 1:, None, None]
    shares = a[:, 1:] / w
    shares = torch.cat([1 - shares.sum(1, keepdim=True), shares], dim=1)
    if bool((shares < -1e-4).any()):
        raise ValueError(
            "weights that lead away from the base together: expected one concept alone at a place where a weight is "
            "below 0 or above 1, with a model whose text and image change together"
        )
    shares = shares.clamp_min(0)
    return shares / shares.sum(1, keepdim=True), list(w.unbind(1))


def log_weights(weights: Tensor, size: Size) -> Tensor:
    """`[…, K, H, W]` at the image tokens of `size` (h, w), `[…, K, L]`; −inf where a text does not count."""
    return resize(weights, size).flatten(-2).clamp_min(0).log()


def joint_attention(
    text: tuple[Tensor, Tensor, Tensor],
    image: tuple[Tensor, Tensor, Tensor],
    weights: Tensor,
    scale: float,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of K texts and an image to themselves and to each other, as this module's head describes.

    text: queries, keys and values `[R, heads, K·T, d]`, a text after the other. image: those `[R, heads, L, d]`.
    weights: logarithms, `[R, K, L]`. present: logarithms of how much of a token there is, `[R, K, T]`; all of it when
    None. Returns what texts and image get, in the same shapes.
    """
    rows, count, _ = weights.shape
    image_q, image_k, image_v = image
    # Each text sees itself and the image.
    itself, own = texts_alone(text, count, scale, present)
    beside, image_sums = attention_with_sums(text[0], image_k, image_v, scale)
    share = torch.sigmoid(own[..., None] - image_sums[..., None])
    of_texts = torch.lerp(beside.to(share.dtype), itself.to(share.dtype), share)
    # The image sees itself and all texts, each by its weight.
    out, sums = attention_with_sums(image_q, image_k, image_v, scale)
    every = image_q[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
    k, v = (_apart(t, count) for t in text[1:])
    bias = None if present is None else present.flatten(0, 1)
    read, read_sums = (t.unflatten(0, (rows, count)) for t in attention_with_sums(every, k, v, scale, bias))
    logits = torch.cat([sums[:, None], read_sums + weights[:, :, None].to(read_sums)], dim=1)
    shares = logits.softmax(1)[..., None]
    of_image = shares[:, 0] * out
    for i in range(count):
        of_image.addcmul_(shares[:, 1 + i], read[:, i].to(of_image.dtype))
    return of_texts.to(text[0].dtype), of_image.to(image_q.dtype)


def texts_alone(
    text: tuple[Tensor, Tensor, Tensor], count: int, scale: float, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of each of K texts to itself, `[R, heads, K·T, d]`, and the logarithms of the sums of exponentials,
    `[R, heads, K·T]`; the arguments are those of `joint_attention`."""
    q, k, v = (_apart(t, count) for t in text)
    out, sums = attention_with_sums(q, k, v, scale, None if present is None else present.flatten(0, 1))
    rows = len(text[0])
    return _together(out, rows), _together(sums[..., None], rows)[..., 0]


def _apart(t: Tensor, count: int) -> Tensor:
    """`[R, heads, K·T, d]` → `[R·K, heads, T, d]`."""
    return t.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)


def _together(t: Tensor, rows: int) -> Tensor:
    """`[R·K, heads, T, d]` → `[R, heads, K·T, d]`."""
    return t.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)
