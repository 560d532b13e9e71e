"""Transformers in which text and image change together: the texts of all concepts side by side, each weighed by place.

No exact local form exists there, since a text reads the image on its way. What there is: every text sees itself and the
image, as it does alone, and an image location ℓ sees the image and one text, whose keys and values are the blend by
`w_k(ℓ)` of those that all texts have come to at this layer. Blending shortens keys, which a norm has made alike in
length; so each blended key gets the length that its parts have on average:

    K_ℓ[t] = r_ℓ[t] Σ_k w_k(ℓ) K_k[t],   r_ℓ[t] = Σ_k w_k(ℓ) ‖K_k[t]‖ / ‖Σ_k w_k(ℓ) K_k[t]‖
    V_ℓ[t] = Σ_k w_k(ℓ) V_k[t]

A *level-set text*, the blend of two contexts at a share s, is a text of its own that goes through the whole network and
counts most where the map has that share:

    w_k(ℓ) = max(0, 1 − |s(ℓ) − s_k|·(n + 1)),   s_k = k/(n + 1),   k = 0 … n + 1

so that the way from one concept to the other passes n real blends and a location mixes neighbours only.

Texts of several lengths: a token that only some of a blend's contexts have is the blend of those, and counts as much as
they do, by the logarithm of that added to its logit (`conditioning.presence`). So a context alone is exactly itself.

Nothing of the size tokens × tokens is built, no text reads another, and a location reads only the texts that count
there.
Knows no host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.attention import attention_with_sums, chunk_elements, exact, gives_sums, pairs, pairs_of
from lib_masknoise.conditioning import MAX_NORM_FACTOR, NEGLIGIBLE, LocationConditioning, presence
from lib_masknoise.maps import Size, resize

KNOTS = 1
"""Blended contexts for each pair that meets (docs/architectures.md)."""

MEETS = 0.01
"""Pairs that meet on less than this share of the picture, as at the steps of a hard edge, have no text between them;
from twice as much on they have it whole."""

MOST = 12
"""Kinds of places with several texts; where there are more, all of them are one kind that sees every text."""


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
            mass = mass * (mass.mean((1, 2), keepdim=True) / MEETS - 1).clamp(0, 1)
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


@dataclass(frozen=True)
class Alone:
    """A text that somebody sees: its number and how many tokens it has; which image places see nothing beside it,
    `[n]`; the logarithms of how much of each token there is, `[tokens]`, None where there is all of all."""

    number: int
    tokens: int
    where: Tensor
    present: Tensor | None

    def to(self, device: torch.device) -> Alone:
        present = None if self.present is None else self.present.to(device)
        return Alone(self.number, self.tokens, self.where.to(device), present)


@dataclass(frozen=True)
class Mixed:
    """Image places that see the same m texts: which places `[n]`, the texts' numbers `[m]`, what they count there,
    `[n, m]`, adding up to 1, and how much of each token there is, `[m, T]`, None where there is all of all."""

    where: Tensor
    texts: Tensor
    shares: Tensor
    present: Tensor | None

    def to(self, device: torch.device) -> Mixed:
        present = None if self.present is None else self.present.to(device)
        return Mixed(self.where.to(device), self.texts.to(device), self.shares.to(device), present)


@dataclass(frozen=True)
class Seen:
    """What some rows that follow each other see."""

    rows: slice
    alone: tuple[Alone, ...]
    mixed: tuple[Mixed, ...]

    def to(self, device: torch.device) -> Seen:
        return Seen(self.rows, tuple(one.to(device) for one in self.alone), tuple(one.to(device) for one in self.mixed))


def at_tokens(weights: Tensor, size: Size, more: int = 0) -> Tensor:
    """Weights `[…, K, H, W]` at the image tokens of `size` (h, w) and at `more` behind them that have no place and see
    every text by its area, `[…, K, L + more]`."""
    placed = resize(weights, size).flatten(-2).clamp_min(0)
    return torch.cat([placed, placed.mean(-1, keepdim=True).expand(*placed.shape[:-1], more)], dim=-1)


@dataclass(frozen=True)
class Standing:
    """Texts before the image in one sequence, `[B, K, T]` each: how much of each token there is, where it stands,
    counted from 0, and which tokens fill their text up."""

    present: Tensor
    places: Tensor
    fillers: Tensor

    @property
    def ends(self) -> Tensor:
        """Where the image follows, `[B]`."""
        return self.places.amax((1, 2)) + 1

    def of(self, texts: Texts) -> Texts:
        """The texts, as long as they stand here."""
        longer = self.present.shape[2] - texts.contexts.shape[2]
        return Texts(F.pad(texts.contexts, (0, 0, 0, longer)), texts.weights, self.present)

    def to(self, device: torch.device) -> Standing:
        return Standing(self.present.to(device), self.places.to(device), self.fillers.to(device))


def before_image(weights: Tensor, present: Tensor, block: int = 1) -> Standing:
    """How texts of weights `[B, K, H, W]` and presence `[B, K, T]` stand, each filled up to a multiple of `block`
    tokens as it is alone. The turns of a rotary embedding tell the way between two places only; so shorter texts begin
    later, and every text is as far from the image as it is alone: all end where the longest ends that counts in their
    row."""
    own = (present > 0).sum(-1, keepdim=True)  # [B, K, 1]
    full = block * torch.ceil(own / block).long()
    tokens, counts = int(full.max()), (weights > NEGLIGIBLE).flatten(2).any(-1, keepdim=True)
    index = torch.arange(tokens)
    ends = (full * counts).amax(1, keepdim=True)
    places = torch.minimum((index + ends - full).clamp_min(0), ends - 1)
    fillers = (index >= own) & (index < full)
    present = torch.where(fillers, 1.0, F.pad(present, (0, tokens - present.shape[2])))
    return Standing(*(t.expand(len(places), -1, -1) for t in (present, places, fillers)))


def seen(weights: Tensor, present: Tensor) -> tuple[Seen, ...]:
    """Which texts count where, once a pass: weights `[R, K, L]` and presence `[R, K, T]`, whose tokens that are there
    come first."""
    return tuple(
        Seen(slice(first, last), *_places(weights[first], present[first])) for first, last in _runs(weights, present)
    )


def _runs(*of_rows: Tensor) -> list[tuple[int, int]]:
    """Where rows begin and end that follow each other and are alike."""
    count = len(of_rows[0])
    new = [row for row in range(count) if not row or any(bool((t[row] != t[row - 1]).any()) for t in of_rows)]
    return list(zip(new, [*new[1:], count], strict=True))


def _places(weights: Tensor, present: Tensor) -> tuple[tuple[Alone, ...], tuple[Mixed, ...]]:
    """Of a row, weights `[K, L]` and presence `[K, T]`."""
    kinds, kind = torch.unique(weights > NEGLIGIBLE, dim=1, return_inverse=True)
    several = kinds.sum(0) > 1
    if int(several.sum()) > MOST:
        together = int(several.nonzero()[0])
        kind = torch.where(several[kind], together, kind)
        kinds[:, together] = kinds[:, several].any(1)
    mixed, single = [], {}
    for number in kind.unique().tolist():
        where, texts = (kind == number).nonzero()[:, 0], kinds[:, number].nonzero()[:, 0]
        if len(texts) == 1:
            single[int(texts)] = where
            continue
        shares, own = weights[texts][:, where].T, present[texts]
        shares = shares / shares.sum(1, keepdim=True)
        mixed.append(Mixed(where, texts, shares, None if bool((own == 1).all()) else own))
    alone = []
    for k in sorted({*single, *(k for one in mixed for k in one.texts.tolist())}):
        own = present[k][present[k] > 0]
        bias = None if bool((own == 1).all()) else own.log()
        alone.append(Alone(k, len(own), single.get(k, torch.zeros(0, dtype=torch.long)), bias))
    return tuple(alone), tuple(mixed)


Parts = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""


def joint_attention(
    parts: Parts, count: int, tokens: int, sights: Sequence[Seen], scale: float, image_first: bool = False
) -> Tensor:
    """Attention of K texts and an image to themselves and to each other, as this module's head describes.

    parts: queries, keys and values `[R, heads, K·T + L, d]`: one text after the other, and the image behind or before
    them. count, tokens: K and T. sights: what the rows see. Returns what all get, `[R, heads, K·T + L, d]`; what a text
    gets that nobody sees is of no account.
    """
    whole, length = parts[0].shape[2], count * tokens
    image = slice(0, whole - length) if image_first else slice(length, whole)
    first = whole - length if image_first else 0
    found = [_of_rows(parts, one, image, first, tokens, scale) for one in sights]
    return found[0] if len(found) == 1 else torch.cat(found)


def _of_rows(parts: Parts, sight: Seen, image: slice, first: int, tokens: int, scale: float) -> Tensor:
    """Of some rows; the texts begin at `first`. Everything reads the image. Where the kernel gives the sums, that is
    one call for all, to which each reading of a text is added by its share; else the image is read beside a text, in
    one call for the text's own queries and those of the places that see no other."""
    q, k, v = (t[sight.rows] for t in parts)
    image_k, image_v = k[:, :, image], v[:, :, image]
    out = torch.zeros_like(q)
    sums: Tensor | None = None
    if gives_sums(q):
        out, sums = attention_with_sums(q, image_k, image_v, scale)
    for one in sight.alone:
        start = first + one.number * tokens
        text = slice(start, start + one.tokens)
        own = torch.arange(start, start + one.tokens, device=q.device)
        where = torch.cat([own, one.where + image.start])
        if sums is not None:
            bias = None if one.present is None else one.present.expand(len(q), -1)
            read = attention_with_sums(q[:, :, where], k[:, :, text], v[:, :, text], scale, bias)
            out[:, :, where] = _merged(out[:, :, where], sums[:, :, where], *read)
            continue
        keys, values = (torch.cat(pair, dim=2) for pair in ((k[:, :, text], image_k), (v[:, :, text], image_v)))
        mask = None if one.present is None else F.pad(one.present, (0, image_k.shape[2])).to(q)[None]
        out[:, :, where] = F.scaled_dot_product_attention(q[:, :, where], keys, values, attn_mask=mask, scale=scale)
    if not sight.mixed:
        return out
    where = torch.cat([one.where for one in sight.mixed]) + image.start
    queries = q[:, :, where]
    if sums is not None:
        beside = out[:, :, where], sums[:, :, where]
    else:
        beside = attention_with_sums(queries, image_k, image_v, scale)
    count = (k.shape[2] - image_k.shape[2]) // tokens
    keys, values = (t[:, :, first : first + count * tokens].unflatten(2, (count, tokens)) for t in (k, v))
    read_of_kinds = [
        blended_texts(part, keys[:, :, one.texts], values[:, :, one.texts], one.shares, scale, one.present)
        for part, one in zip(queries.split([len(one.where) for one in sight.mixed], dim=2), sight.mixed, strict=True)
    ]
    of_texts, text_sums = (torch.cat(parts, dim=2) for parts in zip(*read_of_kinds, strict=True))
    out[:, :, where] = _merged(*beside, of_texts, text_sums)
    return out


def _merged(beside: Tensor, image_sums: Tensor, of_text: Tensor, sums: Tensor) -> Tensor:
    """One softmax over image and text: each reading by its share of the sum of exponentials."""
    share = torch.sigmoid(sums - image_sums.to(sums))[..., None]
    return torch.lerp(beside.to(share), of_text.to(share), share).to(beside)


def blended_texts(
    q: Tensor, keys: Tensor, values: Tensor, shares: Tensor, scale: float, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of places to the blend of some texts that each of them sees, and the logarithms of its sums.

    q `[R, heads, n, d]`; keys, values `[R, heads, m, T, d]`; shares `[n, m]`; present `[m, T]`, all of it when None.
    Returns `[R, heads, n, d]` and `[R, heads, n]`, in float32 at least.
    """
    kind, (count, tokens, width) = exact(q), keys.shape[2:]
    there = None if present is None else present.to(kind)
    keys, values = (t.to(kind) if there is None else t.to(kind) * there[..., None] for t in (keys, values))
    lengths = keys.norm(dim=-1)  # [R, heads, m, T]
    grams = pairs_of(torch.einsum("rhitd,rhjtd->rhtij", keys, keys)).transpose(2, 3)
    k, v = (t.transpose(2, 3).flatten(3) for t in (keys, values))  # [R, heads, T, m·d]
    out, sums = q.new_empty(q.shape, dtype=kind), q.new_empty(q.shape[:3], dtype=kind)
    step = max(64, chunk_elements(q.device) // (len(q) * q.shape[1] * max(tokens, count * width)))
    for start in range(0, q.shape[2], step):
        part = slice(start, start + step)
        a = shares[part].to(kind)
        stacked = (q[:, :, part, None].to(kind) * a[:, :, None]).flatten(3)
        squared = torch.matmul(pairs(a), grams)
        factor = (torch.matmul(a, lengths) * squared.clamp_min(torch.finfo(kind).tiny).rsqrt()).clamp_max(
            MAX_NORM_FACTOR
        )
        logits = torch.matmul(stacked, k.transpose(2, 3)).mul_(factor).mul_(scale)
        inverse = None
        if there is not None:
            share = a @ there
            inverse = torch.where(share > 0, 1 / share.clamp_min(torch.finfo(kind).tiny), 0)
            logits = logits.mul_(inverse).add_(share.log())
        sums[:, :, part] = logits.logsumexp(-1)
        probabilities = logits.softmax(-1)
        if inverse is not None:
            probabilities = probabilities * inverse
        read = torch.matmul(probabilities, v).unflatten(3, (count, width))
        out[:, :, part] = (read * a[:, :, None]).sum(3)
    return out, sums


def texts_alone(text: Parts, count: int, scale: float, present: Tensor | None = None) -> Tensor:
    """Attention of each of K texts to itself, `[R, heads, K·T, d]`. present: `[R, K, T]`, all of it when None."""
    rows = len(text[0])
    q, k, v = (t.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1) for t in text)
    bias = None if present is None else present.flatten(0, 1)[:, None, None].log().to(q)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return out.unflatten(0, (rows, count)).transpose(1, 2).flatten(2, 3)
