"""Exact cross-attention in which every location attends to its own context.

With the location embedding `E_ℓ[t] = r_ℓ[t] Σ_j a_j(ℓ) C_j[t] + Σ_r g_r(ℓ) s_r[t] d_r + u(ℓ)`, keys and values are
linear in the context, so nothing of size `[h·w, T, D]` is ever built:

    logits_ℓ[t] = r_ℓ[t] Σ_j a_j(ℓ) (q_ℓ · W_k C_j[t]) + Σ_r g_r(ℓ) (q_ℓ · W_k d_r) s_r[t] + b_ℓ[t]
    out_ℓ       = Σ_j a_j(ℓ) Σ_t r_ℓ[t] p_ℓ[t] W_v C_j[t] + Σ_r g_r(ℓ) (Σ_t p_ℓ[t] s_r[t]) W_v d_r + W_v u(ℓ)

The sums over `j` and `r` become one inner product by stacking: the query `[a_1 q, …, a_J q, g_1 (q·W_k d_1), …]`
against keys `[K_1[t], …, K_J[t], s_1[t], …]`. A concept costs `d` columns, a noise context one. The offset `u` shifts
all logits of a location alike and so drops out of the softmax; the same is true of a bias of the projections, which
only passes through to the output. The oracle in the tests builds `E_ℓ`; both agree to rounding.

`blended_attention` is the computation; `AttentionPass` is one sampling pass over all layers of a network, with what is
projected once in it. Knows no host.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.conditioning import Level, LocationConditioning
from lib_masknoise.maps import Size

# Elements of the stacked query held at once. On a CPU a chunk should stay in the cache (docs/performance.md); on an
# accelerator fewer, larger launches win and the bound only keeps the peak memory in check.
CHUNK_ELEMENTS = {"cpu": 2**19}
CHUNK_ELEMENTS_ACCELERATOR = 2**25

# The fused kernels want rows of whole 16 bytes: memory-efficient attention takes widths that are multiples of 8 in half
# precision, and anything else falls to the slow kernel.
WIDTH_MULTIPLE = 8


@dataclass(frozen=True)
class Basis:
    """The contexts of a LocationConditioning, projected by one attention layer.

    `keys` and `values` `[1, heads, T, J·d + R]`: J projected contexts side by side, then R token profiles, filled up
    with zeros to a multiple of 8. `noise_keys` and `noise_values` `[U, heads, R, d]`: the projected noise directions.
    `offset_values` `[U, S, heads·d]`: the value projection of the offset's directions. U is 1 where all rows share
    their noise contexts, else the number of rows: the profiles then are `profiles` `[U, T, R]`, joined to the keys and
    values of a row when it is computed, so that the contexts are there once however many rows there are.
    `bias` `[heads·d]`: what the value projection adds to anything, None for nothing.
    """

    heads: int
    count: int
    keys: Tensor
    values: Tensor
    noise_keys: Tensor | None = None
    noise_values: Tensor | None = None
    offset_values: Tensor | None = None
    bias: Tensor | None = None
    profiles: Tensor | None = None

    @property
    def units(self) -> int:
        """U, of the noise contexts."""
        return 1 if self.profiles is None else len(self.profiles)

    def to(self, dtype: torch.dtype) -> Basis:
        """In another dtype; itself where that is its own."""
        if dtype == self.keys.dtype:
            return self
        cast: dict[str, Any] = {name: t.to(dtype) for name, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **cast)

    def pick(self, rows: Sequence[int]) -> Basis:
        """Of some rows, in that order; itself where all rows share everything or all are wanted."""
        per_row = {
            name: t
            for name in ("noise_keys", "noise_values", "offset_values", "profiles")
            if (t := getattr(self, name)) is not None and len(t) > 1
        }
        if not per_row or list(rows) == list(range(len(next(iter(per_row.values()))))):
            return self
        picked: dict[str, Any] = {name: t[list(rows)] for name, t in per_row.items()}
        return replace(self, **picked)

    def joined(self, rows: slice) -> Basis:
        """Of some rows, their token profiles joined to the keys and values, `[rows, heads, T, J·d + R]`."""
        if self.profiles is None:
            return self
        profiles = self.profiles[rows]
        keys, values = (_with_columns(t, profiles) for t in (self.keys, self.values))
        noise_keys, noise_values = (t if t is None else t[rows] for t in (self.noise_keys, self.noise_values))
        return Basis(self.heads, self.count, keys, values, noise_keys, noise_values)


class Wanted(NamedTuple):
    """What a layer is to project: basis contexts `[1, M, D]`, and directions `[1, N, D]` that are no contexts: the
    noise's, the offset's, and a zero, which shows a bias."""

    contexts: Tensor
    directions: Tensor

    @property
    def stacked(self) -> Tensor:
        return torch.cat([self.contexts, self.directions], dim=1)


def wanted(conditioning: LocationConditioning, like: Tensor) -> Wanted:
    """Everything of a conditioning that a layer projects, on the device and in the dtype of `like`."""
    contexts = conditioning.contexts.flatten(0, 1)
    parts = [part.directions.flatten(0, 1) for part in (conditioning.noise, conditioning.offset) if part is not None]
    directions = torch.cat([*parts, contexts.new_zeros(1, contexts.shape[1])])
    return Wanted(contexts[None].to(like), directions[None].to(like))


def projected(conditioning: LocationConditioning, keys: Tensor, values: Tensor, heads: int) -> Basis:
    """The basis from what a layer has made of `wanted(conditioning).stacked`: keys and values `[1, M + N, heads·d]`.

    The projections must be affine; an adapter may be on them, as long as it is that too.
    """
    count, tokens = conditioning.contexts.shape[:2]
    noise, offset = conditioning.noise, conditioning.offset
    units = [torch.Size((0, 0)) if part is None else part.directions.shape[:2] for part in (noise, offset)]
    sizes = [count * tokens, *(unit.numel() for unit in units), 1]
    (keys, noise_keys, _), _ = _unbiased(keys[0], sizes)
    (values, noise_values, offset_values), bias = _unbiased(values[0], sizes)
    keys, values = (_side_by_side(t.unflatten(0, (count, tokens)), heads) for t in (keys, values))
    basis = Basis(heads, count, keys, values, bias=bias)
    if offset is not None:
        basis = replace(basis, offset_values=offset_values.unflatten(0, units[1]))
    if noise is None:
        none = keys.new_zeros(1, tokens, 0)
        return replace(basis, keys=_with_columns(keys, none), values=_with_columns(values, none))
    own_keys, own_values = (_heads_first(t.unflatten(0, units[0]), heads) for t in (noise_keys, noise_values))
    basis = replace(basis, noise_keys=own_keys, noise_values=own_values)
    profiles = noise.tokens.transpose(1, 2).to(keys)
    if len(profiles) > 1:
        return replace(basis, profiles=profiles)
    return replace(basis, keys=_with_columns(keys, profiles), values=_with_columns(values, profiles))


def _with_columns(keys: Tensor, profiles: Tensor) -> Tensor:
    """`[1, heads, T, J·d]` and `[U, T, R]` → `[U, heads, T, J·d + R]`, filled up with zeros to a multiple of 8."""
    _, heads, tokens, width = keys.shape
    units, _, rank = profiles.shape
    filled = F.pad(profiles, (0, -(width + rank) % WIDTH_MULTIPLE))[:, None].expand(-1, heads, -1, -1)
    return torch.cat([keys.expand(units, -1, -1, -1), filled], dim=3)


def _unbiased(rows: Tensor, sizes: Sequence[int]) -> tuple[Sequence[Tensor], Tensor | None]:
    """Projections `[M, heads·d]` less the last one, which is that of zero, in parts; and that."""
    *parts, zero = rows.split(list(sizes))
    bias = zero[0]
    if not bias.any():
        return parts, None
    return [part - bias for part in parts], bias


def blended_attention(q: Tensor, basis: Basis, level: Level, scale: float | None = None) -> Tensor:
    """Attend from every location to its own blend of the basis contexts.

    q: projected queries `[B, h·w, heads·d]` of one U-Net level; B rows may carry different coefficient maps (frames)
    and different noise contexts (seeds). basis: this layer's projected contexts. level: the conditioning at this level,
    `B` rows or one row for all, float32 at least. scale: of the logits; `1/√d` when None.
    Returns `[B, h·w, heads·d]` in the dtype of `q`, before the output layer.
    Raises ValueError when the level has another number of locations or rows than the queries.
    """
    rows, locations, inner = q.shape
    if level.locations != locations:
        raise ValueError(f"the level has {level.locations} locations, the queries have {locations}")
    if level.rows not in (1, rows):
        raise ValueError(f"the level has {level.rows} rows, the queries have {rows}")
    d = inner // basis.heads
    scale = d**-0.5 if scale is None else scale
    if level.plain:
        out = _plain(q, basis, scale)
    else:
        groups = basis.units
        level = level.grouped(rows, groups)
        queries = q.reshape(groups, -1, basis.heads, d)
        out = torch.empty_like(queries)
        fused = _fused(q, level)
        attend = _attend_stacked if fused else _attend_explicit
        basis = basis.to(q.dtype if fused else torch.promote_types(q.dtype, torch.float32))
        for of_groups, places in _chunks(groups, queries.shape[1], basis, q.device):
            own = basis.joined(of_groups)
            for part in places:
                out[of_groups, part] = attend(queries[of_groups, part], own, level[of_groups, part], scale)
        out = out.view(rows, locations, inner)
    if basis.bias is not None:
        out = out + basis.bias
    if basis.offset_values is not None and level.offset is not None:
        offset = level.offset.to(basis.offset_values.dtype)
        out = out + (offset @ basis.offset_values).to(out.dtype)
    return out


def _heads_first(x: Tensor, heads: int) -> Tensor:
    """`[N, T, heads·d]` → `[N, heads, T, d]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _side_by_side(x: Tensor, heads: int) -> Tensor:
    """`[J, T, heads·d]` → `[1, heads, T, J·d]`."""
    return x.unflatten(-1, (heads, -1)).permute(2, 1, 0, 3).flatten(2)[None]


def _chunks(groups: int, locations: int, basis: Basis, device: torch.device) -> Iterator[tuple[slice, list[slice]]]:
    """Pieces of `[groups, locations]`: on a CPU one group at a time, on an accelerator all of them together."""
    tokens, columns = basis.keys.shape[2:]
    together = 1 if device.type in CHUNK_ELEMENTS else groups
    limit = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS_ACCELERATOR)
    step = max(64, limit // (basis.heads * max(columns, tokens) * together))
    places = [slice(start, min(start + step, locations)) for start in range(0, locations, step)]
    return ((slice(group, group + together), places) for group in range(0, groups, together))


def _fused(q: Tensor, level: Level) -> bool:
    """Whether the fused kernel applies and wins: it cannot scale probabilities, and on a CPU two matrix products with a
    softmax between them are as fast (docs/performance.md)."""
    return q.device.type != "cpu" and level.factor is None


def _plain(q: Tensor, basis: Basis, scale: float) -> Tensor:
    """One context for every location: the host's own attention."""
    rows = q.shape[0]
    d = q.shape[2] // basis.heads
    queries = _heads_first(q.to(basis.keys.dtype), basis.heads)
    keys, values = (t[..., :d].expand(rows, -1, -1, -1) for t in (basis.keys, basis.values))
    out = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
    return out.transpose(1, 2).flatten(2).to(q.dtype)


def _stack(queries: Tensor, basis: Basis, level: Level) -> Tensor:
    """`[a_1 q, …, a_J q, g_1 (q·k_1), …, g_R (q·k_R), 0…]`: `[g, M, heads, d]` → `[g, heads, M, J·d + R]`, in the dtype
    of the maps: a small share of a large query must not be rounded before it is one."""
    g, places, heads, d = queries.shape
    columns, width = basis.keys.shape[3], basis.count * d
    weights = level.coefficients[:, :, None, :, None]
    if columns == width:
        return (queries.unsqueeze(3) * weights).flatten(3).transpose(1, 2)
    # Written where they belong: to join the parts afterwards would take as long as to make them.
    stacked = weights.new_empty(g, heads, places, columns)
    contexts = stacked[..., :width].unflatten(3, (basis.count, d))
    _multiply(queries.transpose(1, 2).unsqueeze(3), weights.transpose(1, 2), contexts)
    filled = width
    if basis.noise_keys is not None and level.noise is not None:
        filled += basis.noise_keys.shape[2]
        along = torch.matmul(queries.transpose(1, 2), basis.noise_keys.transpose(2, 3))
        _multiply(along, level.noise[:, None], stacked[..., width:filled])
    stacked[..., filled:] = 0
    return stacked


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """The product in a place of its own; PyTorch does that in one go only where nobody asks for gradients."""
    if torch.is_grad_enabled():
        out.copy_(a).mul_(b)
    else:
        torch.mul(a, b, out=out)


def _contract(stacked: Tensor, basis: Basis, level: Level, d: int) -> Tensor:
    """The inverse of the stacking on the value side: `[g, heads, M, J·d + R]` → `[g, M, heads, d]`, in the dtype of the
    maps."""
    width = basis.count * d
    parts = stacked[..., :width].unflatten(3, (basis.count, d)).transpose(1, 2)  # [g, M, heads, J, d]
    weights = level.coefficients[:, :, None, :, None]
    out = parts[..., 0, :] * weights[..., 0, :]
    for j in range(1, basis.count):
        out.addcmul_(parts[..., j, :].to(out.dtype), weights[..., j, :])
    if basis.noise_values is not None and level.noise is not None:
        along = stacked[..., width : width + basis.noise_values.shape[2]] * level.noise[:, None]
        out += torch.matmul(along, basis.noise_values.to(along.dtype)).transpose(1, 2)
    return out


def _attend_explicit(queries: Tensor, basis: Basis, level: Level, scale: float) -> Tensor:
    """Two matrix products with a softmax between them; carries the token factor `r` and the bias `b`.

    In float32 at least, as the fused kernels are inside: a logit of 20 in half precision is off by a hundredth, and a
    blend of large queries may be beyond its range.
    """
    stacked = _stack(queries.to(basis.keys.dtype), basis, level)
    keys, values = basis.keys.transpose(2, 3), basis.values
    if level.factor is None or level.bias is None:
        out = torch.matmul(torch.softmax(torch.matmul(stacked, keys).mul_(scale), dim=-1), values)
        return _contract(out, basis, level, queries.shape[3])
    # The factor belongs to the contexts alone: the noise columns take part without it.
    d = queries.shape[3]
    width = basis.count * d
    factor = level.factor[:, None]
    logits = torch.matmul(stacked[..., :width], keys[:, :, :width]).mul_(factor)
    logits += torch.matmul(stacked[..., width:], keys[:, :, width:])
    probabilities = torch.softmax(logits.mul_(scale).add_(level.bias[:, None]), dim=-1)
    contexts = torch.matmul(probabilities * factor, values[..., :width])
    noise = torch.matmul(probabilities, values[..., width:])
    return _contract(torch.cat([contexts, noise], dim=3), basis, level, d)


def _attend_stacked(queries: Tensor, basis: Basis, level: Level, scale: float) -> Tensor:
    """One scaled-dot-product call over the stacked columns."""
    stacked = _stack(queries, basis, level).to(queries.dtype)
    out = F.scaled_dot_product_attention(stacked, basis.keys, basis.values, scale=scale)
    return _contract(out, basis, level, queries.shape[3])


# --- One pass over all layers


@dataclass(frozen=True)
class Row:
    """What one row of a denoiser call is conditioned on: one row of a location conditioning."""

    conditioning: LocationConditioning
    index: int

    @property
    def pooled(self) -> Tensor | None:
        return self._of(self.conditioning.pooled)

    @property
    def weight(self) -> Tensor | None:
        return self._of(self.conditioning.weight)

    def _of(self, rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows[min(self.index, len(rows) - 1)]


@dataclass(frozen=True)
class Share:
    """The rows of one call of the network that have a conditioning in common; picks: which of its rows each takes."""

    rows: tuple[int, ...]
    conditioning: LocationConditioning
    picks: tuple[int, ...]

    @property
    def span(self) -> slice | list[int]:
        """The rows as an index: a slice, which copies nothing, where they follow each other."""
        first, last = self.rows[0], self.rows[-1]
        return slice(first, last + 1) if last - first + 1 == len(self.rows) else list(self.rows)


def shares(rows: Sequence[Row]) -> tuple[Share, ...]:
    """Rows that have a conditioning in common, together."""
    found: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(id(row.conditioning), []).append(place)
    return tuple(
        Share(tuple(places), rows[places[0]].conditioning, tuple(rows[place].index for place in places))
        for places in found.values()
    )


KEPT = 4
"""Projected contexts that are kept although no row sees them now: prompts that take turns come back."""


class AttentionPass:
    """One sampling pass over all cross-attention layers: what is projected once a layer and resized once a level.

    A layer is named by any hashable object. Contexts are known by their contents: a conditioning whose maps alone have
    changed costs no projection.

        wanted = attention.wanted(layer, shares, q)
        if wanted is not None:
            attention.take(layer, to_k(wanted.stacked), to_v(wanted.stacked), heads)
        out = attention.attend(layer, q, shares, size)
    """

    def __init__(self) -> None:
        self._bases: OrderedDict[bytes, dict[Hashable, Basis]] = OrderedDict()
        self._placed: dict[bytes, Wanted] = {}
        self._levels: dict[tuple[Hashable, ...], tuple[LocationConditioning, Level]] = {}
        self._asked: dict[Hashable, list[tuple[LocationConditioning, Wanted]]] = {}

    def plan(self, conditionings: Iterable[LocationConditioning]) -> None:
        """What the next calls see. Forgets the maps of all others and the contexts that were not seen for long, so that
        prompts that change at every step do not fill the memory."""
        seen = {id(one): one for one in conditionings}
        self._levels = {key: known for key, known in self._levels.items() if key[0] in seen}
        for one in seen.values():
            self._bases.setdefault(one.digest, {})
            self._bases.move_to_end(one.digest)
        while len(self._bases) > len({one.digest for one in seen.values()}) + KEPT:
            digest, _ = self._bases.popitem(last=False)
            self._placed.pop(digest, None)

    def clear(self) -> None:
        """Forget everything."""
        for known in (self._bases, self._placed, self._levels, self._asked):
            known.clear()

    def wanted(self, layer: Hashable, shares: Iterable[Share], like: Tensor) -> Wanted | None:
        """What the layer has not projected yet, on the device and in the dtype of `like`; None for nothing."""
        fresh = {one.conditioning.digest: one.conditioning for one in shares}
        fresh = {digest: one for digest, one in fresh.items() if layer not in self._bases.setdefault(digest, {})}
        if not fresh:
            return None
        asked = self._asked[layer] = [(one, self._place(one, like)) for one in fresh.values()]
        return Wanted(*(torch.cat(parts, dim=1) for parts in zip(*(placed for _, placed in asked), strict=True)))

    def take(self, layer: Hashable, keys: Tensor, values: Tensor, heads: int, dtype: torch.dtype | None = None) -> None:
        """The layer's keys and values `[1, M + N, heads·d]` of what was wanted last. dtype: to keep them in; that of
        the keys when None."""
        asked = self._asked.pop(layer)
        sizes = [[part.shape[1] for part in parts] for parts in zip(*(placed for _, placed in asked), strict=True)]
        of_contexts, of_directions = sizes
        split = [*of_contexts, *of_directions]
        of_keys, of_values = keys.split(split, dim=1), values.split(split, dim=1)
        for i, (conditioning, _) in enumerate(asked):
            own_keys, own_values = (torch.cat(parts[i :: len(asked)], dim=1) for parts in (of_keys, of_values))
            basis = projected(conditioning, own_keys, own_values, heads)
            self._bases[conditioning.digest][layer] = basis.to(dtype or keys.dtype)

    def attend(
        self, layer: Hashable, q: Tensor, shares: Sequence[Share], size: Size, scale: float | None = None
    ) -> Tensor:
        """`blended_attention` of all rows `[rows, h·w, heads·d]`, at a level of `size` (h, w)."""
        out = []
        for share in shares:
            basis = self._bases[share.conditioning.digest][layer].pick(share.picks)
            out.append(blended_attention(q[share.span], basis, self._level(share, size, q), scale))
        if len(out) == 1:
            return out[0]
        whole = torch.empty_like(q)
        for share, part in zip(shares, out, strict=True):
            whole[share.span] = part
        return whole

    def _place(self, conditioning: LocationConditioning, like: Tensor) -> Wanted:
        digest = conditioning.digest
        known = self._placed.get(digest)
        if known is None or (known.contexts.device, known.contexts.dtype) != (like.device, like.dtype):
            known = self._placed[digest] = wanted(conditioning, like)
        return known

    def _level(self, share: Share, size: Size, like: Tensor) -> Level:
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = id(share.conditioning), share.picks, size, like.device, dtype
        if key not in self._levels:
            level = share.conditioning.level(size).pick(share.picks).to(like.device, dtype)
            self._levels[key] = share.conditioning, level
        return self._levels[key][1]
