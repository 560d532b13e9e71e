"""Exact cross-attention in which every location attends to its own context.

With the location embedding `E_ℓ[t] = r_ℓ[t] Σ_j a_j(ℓ) C_j[t] + Σ_r g_r(ℓ) s_r[t] d_r + u(ℓ)`, keys and values are
linear in the context, so nothing of size `[h·w, T, D]` is ever built:

    logits_ℓ[t] = r_ℓ[t] Σ_j a_j(ℓ) (q_ℓ · W_k C_j[t]) + Σ_r g_r(ℓ) (q_ℓ · W_k d_r) s_r[t] + b_ℓ[t]
    out_ℓ       = Σ_j a_j(ℓ) Σ_t r_ℓ[t] p_ℓ[t] W_v C_j[t] + Σ_r g_r(ℓ) (Σ_t p_ℓ[t] s_r[t]) W_v d_r + W_v u(ℓ)

The sums over `j` and `r` become one inner product by stacking: the query `[a_1 q, …, a_J q, g_1 (q·W_k d_1), …]`
against keys `[K_1[t], …, K_J[t], s_1[t], …]`. A concept costs `d` columns, a noise context one. The offset `u` shifts
all logits of a location alike and so drops out of the softmax; the same is true of a bias of the projections, which
only passes through to the output. The oracle in the tests builds `E_ℓ`; both agree to rounding.

Transformers put an RMS norm on their keys, which is not linear. With the unnormalised keys `k_c` of everything that is
blended (contexts, noise, offset, bias) and what a location takes of each, `c_ℓ`, the norm's divisor is a quadratic form
in the Gram matrix of a token, and the norm's weight is folded into the keys:

    n_ℓ[t] = Σ_c c_ℓ k_c[t],   logits_ℓ[t] = (q_ℓ · w∘n_ℓ[t]) / √(‖n_ℓ[t]‖²/d + ε),   ‖n_ℓ[t]‖² = c_ℓᵀ G_t c_ℓ

An offset and a bias then no longer drop out; they become columns as the noise contexts are.

`blended_attention` is the computation; `AttentionPass` is one sampling pass over all layers of a network, with what is
projected once in it. Knows no host.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.conditioning import Level, LocationConditioning
from lib_masknoise.maps import Size
from lib_masknoise.scene.layers import NAMELESS, Tags

# Elements of the stacked query held at once. On a CPU a chunk should stay in the cache (docs/performance.md); on an
# accelerator fewer, larger launches win and the bound only keeps the peak memory in check.
CHUNK_ELEMENTS = {"cpu": 2**19}
CHUNK_ELEMENTS_ACCELERATOR = 2**25

# The fused kernels want rows of whole 16 bytes: memory-efficient attention takes widths that are multiples of 8 in half
# precision, and anything else falls to the slow kernel.
WIDTH_MULTIPLE = 8


@dataclass(frozen=True)
class KeyNorm:
    """The RMS norm that a layer puts on its keys: `k ↦ weight ∘ k / √(mean(k²) + eps)`.

    width: elements that are normalised together: those of a head, or of all heads. weight: of as many, None for 1.
    """

    width: int
    eps: float
    weight: Tensor | None = None


class Grams(NamedTuple):
    """The Gram matrices of a layer's unnormalised keys, over the norm's width, for each token; H is 1 for a norm over
    all heads. As features of products of coefficients, those of a pair twice: `contexts` `[1, H, J(J+1)/2, T]`,
    `between` `[U, H, J·R, T]`, `free` `[U, H, R(R+1)/2, T]`, the last two None where there is nothing but contexts."""

    eps: float
    contexts: Tensor
    between: Tensor | None = None
    free: Tensor | None = None

    def of(self, rows: slice | list[int]) -> Grams:
        """Of some rows, where each has its own."""
        between, free = (t if t is None or len(t) == 1 else t[rows] for t in (self.between, self.free))
        return self._replace(between=between, free=free)


@dataclass(frozen=True)
class Basis:
    """The contexts of a LocationConditioning, projected by one attention layer.

    `keys` and `values` `[1, heads, T, J·d + R]`: J projected contexts side by side, then R token profiles, filled up
    with zeros to a multiple of 8. `noise_keys` and `noise_values` `[U, heads, R, d]`: the projected noise directions.
    `offset_values` `[U, S, heads·d]`: the value projection of the offset's directions. U is 1 where all rows share
    their noise contexts, else the number of rows: the profiles then are `profiles` `[U, T, R]`, joined to the keys and
    values of a row when it is computed, so that the contexts are there once however many rows there are.
    `bias` `[heads·d]`: what the value projection adds to anything, None for nothing.
    `grams`: of keys under a norm, None without one. The noise then takes in the offset and, with `constant`, the biases
    of the projections. `alone` `[1, heads, T, d]`: the normalised keys of a single context, to which `bias` belongs.
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
    grams: Grams | None = None
    constant: bool = False
    alone: Tensor | None = None

    @property
    def units(self) -> int:
        """U, of the noise contexts."""
        return 1 if self.profiles is None else len(self.profiles)

    def to(self, dtype: torch.dtype) -> Basis:
        """In another dtype, but for the Gram matrices; itself where that is its own."""
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
        return replace(self, **picked, grams=self.grams and self.grams.of(list(rows)))

    def joined(self, rows: slice) -> Basis:
        """Of some rows, their token profiles joined to the keys and values, `[rows, heads, T, J·d + R]`."""
        if self.profiles is None:
            return self
        profiles = self.profiles[rows]
        keys, values = (_with_columns(t, profiles) for t in (self.keys, self.values))
        noise_keys, noise_values = (t if t is None else t[rows] for t in (self.noise_keys, self.noise_values))
        grams = self.grams and self.grams.of(rows)
        return Basis(self.heads, self.count, keys, values, noise_keys, noise_values, grams=grams)


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


def projected(
    conditioning: LocationConditioning, keys: Tensor, values: Tensor, heads: int, norm: KeyNorm | None = None
) -> Basis:
    """The basis from what a layer has made of `wanted(conditioning).stacked`: keys and values `[1, M + N, heads·d]`.

    The projections must be affine; an adapter may be on them, as long as it is that too. norm: what the layer does to
    its keys afterwards; the keys here are those before it. Raises ValueError when it is of another width.
    """
    if norm is not None:
        return _projected_under_norm(conditioning, keys, values, heads, norm)
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


def _projected_under_norm(
    conditioning: LocationConditioning, keys: Tensor, values: Tensor, heads: int, norm: KeyNorm
) -> Basis:
    inner = keys.shape[2]
    if norm.width not in (inner, inner // heads):
        raise ValueError(f"the norm is over {norm.width} elements; expected {inner // heads} or {inner}")
    count, tokens = conditioning.contexts.shape[:2]
    parts = [part for part in (conditioning.noise, conditioning.offset) if part is not None]
    units = [part.directions.shape[:2] for part in parts]
    sizes = [count * tokens, *(unit.numel() for unit in units), 1]
    (keys, *free_keys), key_bias = _unbiased(keys[0], sizes)
    (values, *free_values), value_bias = _unbiased(values[0], sizes)
    contexts, values = (t.unflatten(0, (count, tokens)) for t in (keys, values))
    weight = keys.new_ones(norm.width) if norm.weight is None else norm.weight.to(keys)
    weight = weight.repeat(inner // norm.width)
    own_keys, own_values = (_side_by_side(t, heads) for t in (contexts * weight, values))
    alone = None
    if count == 1 and not parts:
        alone = _normalised(contexts if key_bias is None else contexts + key_bias, norm, weight, heads)

    # What is no context, `[U, R, heads·d]`, and its share of each token, `[U, T, R]`.
    of_keys = [t.unflatten(0, unit) for t, unit in zip(free_keys, units, strict=True)]
    of_values = [t.unflatten(0, unit) for t, unit in zip(free_values, units, strict=True)]
    profiles = [part.tokens.transpose(1, 2).to(keys) for part in parts]
    constant = key_bias is not None or value_bias is not None
    if constant:
        nothing = keys.new_zeros(inner)
        of_keys.append((nothing if key_bias is None else key_bias)[None, None])
        of_values.append((nothing if value_bias is None else value_bias)[None, None])
        profiles.append(keys.new_ones(1, tokens, 1))
    if not profiles:
        none = keys.new_zeros(1, tokens, 0)
        own_keys, own_values = (_with_columns(t, none) for t in (own_keys, own_values))
        return Basis(heads, count, own_keys, own_values, grams=_grams(contexts, None, norm), alone=alone)
    free, profile = _beside(of_keys, 1), _beside(profiles, 2)
    several = len(profile) > 1
    if not several:
        own_keys, own_values = (_with_columns(t, profile) for t in (own_keys, own_values))
    return Basis(
        heads,
        count,
        own_keys,
        own_values,
        noise_keys=_heads_first(free * weight, heads),
        noise_values=_heads_first(_beside(of_values, 1), heads),
        bias=value_bias,
        profiles=profile if several else None,
        grams=_grams(contexts, (free, profile), norm),
        constant=constant,
        alone=alone,
    )


def _beside(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Side by side along an axis, those of one unit for every unit of the others."""
    units = max(map(len, parts))
    return torch.cat([part.expand(units, -1, -1) for part in parts], dim=dim)


def _normalised(contexts: Tensor, norm: KeyNorm, weight: Tensor, heads: int) -> Tensor:
    """The keys of one context `[1, T, heads·d]` as the layer makes them, `[1, heads, T, d]`."""
    exact = contexts.to(torch.promote_types(contexts.dtype, torch.float32)).unflatten(-1, (-1, norm.width))
    divided = exact * (exact.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    return _heads_first(divided.flatten(-2).to(contexts.dtype) * weight, heads)


def _grams(contexts: Tensor, free: tuple[Tensor, Tensor] | None, norm: KeyNorm) -> Grams:
    """From unnormalised keys: contexts `[J, T, heads·d]`, free `[U, R, heads·d]` with profiles `[U, T, R]`."""
    dtype = torch.promote_types(contexts.dtype, torch.float32)
    k = contexts.to(dtype).unflatten(-1, (-1, norm.width)).permute(2, 1, 0, 3)  # [H, T, J, width]
    gram = pairs_of(k @ k.transpose(-1, -2) / norm.width).transpose(1, 2)[None]
    if free is None:
        return Grams(norm.eps, gram)
    directions, profiles = free
    n = directions.to(dtype).unflatten(-1, (-1, norm.width)).transpose(1, 2)  # [U, H, R, width]
    s = profiles.to(dtype)[:, None]  # [U, 1, T, R]
    between = torch.einsum("htjd,uhrd->uhtjr", k, n).mul_(2 / norm.width) * s.unsqueeze(3)
    of_free = pairs_of(n @ n.transpose(-1, -2) / norm.width).unsqueeze(2) * pairs(s)
    return Grams(norm.eps, gram, between.flatten(3).transpose(2, 3), of_free.transpose(2, 3))


def pairs(a: Tensor) -> Tensor:
    """`[…, J]` → the products of each two, `[…, J(J+1)/2]`."""
    first, second = torch.triu_indices(a.shape[-1], a.shape[-1], device=a.device)
    return a[..., first] * a[..., second]


def pairs_of(matrix: Tensor) -> Tensor:
    """Symmetric `[…, J, J]` → `[…, J(J+1)/2]`, with which `pairs` gives the quadratic form."""
    first, second = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], device=matrix.device)
    return matrix[..., first, second] * torch.where(first == second, 1, 2).to(matrix)


def _divisor(grams: Grams, level: Level) -> Tensor:
    """`1/√(‖n_ℓ[t]‖²/d + ε)` at the places of a grouped level, `[g, H, M, T]`."""
    factor = None if level.factor is None else level.factor[:, None]
    squared = torch.matmul(pairs(level.coefficients)[:, None], grams.contexts)
    if factor is not None:
        squared = squared * factor.square()
    if grams.between is not None and grams.free is not None and level.noise is not None:
        mixed = (level.coefficients.unsqueeze(-1) * level.noise.unsqueeze(-2)).flatten(-2)
        between = torch.matmul(mixed[:, None], grams.between)
        squared = squared + (between if factor is None else between * factor)
        squared = squared + torch.matmul(pairs(level.noise)[:, None], grams.free)
    return squared.clamp_min_(0).add_(grams.eps).rsqrt_()


def _with_free_fields(level: Level, constant: bool) -> Level:
    """The offset's fields and, for the biases, ones beside those of the noise, as the columns of a basis under a norm
    are."""
    fields = [field for field in (level.noise, level.offset) if field is not None]
    if constant:
        fields.append(level.coefficients.new_ones(1, level.locations, 1))
    if not fields:
        return level
    rows = max(map(len, fields))
    return replace(level, noise=torch.cat([field.expand(rows, -1, -1) for field in fields], dim=2), offset=None)


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


def blended_attention(
    q: Tensor, basis: Basis, level: Level, scale: float | None = None, own: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Attend from every location to its own blend of the basis contexts.

    q: projected queries `[B, h·w, heads·d]` of one U-Net level; B rows may carry different coefficient maps (frames)
    and different noise contexts (seeds). basis: this layer's projected contexts. level: the conditioning at this level,
    `B` rows or one row for all, float32 at least. scale: of the logits; `1/√d` when None. own: keys and values
    `[B, heads, M, d]` that every location attends to beside its context, in the same softmax; keys under a norm only.
    Returns `[B, h·w, heads·d]` in the dtype of `q`, before the output layer.
    Raises ValueError when the level has another number of locations or rows than the queries, and for own keys beside
    keys without a norm, of which the part that shifts all logits alike is not known here.
    """
    rows, locations, inner = q.shape
    if own is not None and basis.grams is None:
        raise ValueError("own keys stand beside keys under a norm only")
    if level.locations != locations:
        raise ValueError(f"the level has {level.locations} locations, the queries have {locations}")
    if level.rows not in (1, rows):
        raise ValueError(f"the level has {level.rows} rows, the queries have {rows}")
    d = inner // basis.heads
    scale = d**-0.5 if scale is None else scale
    if level.plain and (basis.grams is None or basis.alone is not None):
        if own is not None and basis.bias is None and basis.offset_values is None and level.bias is None:
            return _plain(q, basis, level, scale, own)
        if own is None:
            return _shifted(_plain(q, basis, level, scale), basis, level)
    if basis.grams is not None:
        level = _with_free_fields(level, basis.constant)
        basis = replace(basis, bias=None)
    groups = basis.units if own is None else rows
    grouped = level.grouped(rows, groups)
    queries = q.reshape(groups, -1, basis.heads, d)
    out = torch.empty_like(queries)
    sums = None if own is None else queries.new_empty(queries.shape[:3], dtype=exact(q))
    fused = own is None and basis.grams is None and _fused(q, grouped)
    computed = basis.to(q.dtype if fused else exact(q))
    for of_groups, places in _chunks(groups, queries.shape[1], computed, q.device):
        part_of = computed.joined(of_groups)
        for part in places:
            some, here = queries[of_groups, part], grouped[of_groups, part]
            if fused:
                out[of_groups, part] = _attend_stacked(some, part_of, here, scale)
            else:
                found = None if sums is None else sums[of_groups, part]
                out[of_groups, part] = _attend_explicit(some, part_of, here, scale, found)
    whole = _shifted(out.view(rows, locations, inner), basis, level)
    if own is None or sums is None:
        return whole
    return _merged(q, whole, sums.view(rows, locations, basis.heads), *own, scale)


def exact(q: Tensor) -> torch.dtype:
    """What is computed in that must not be rounded to half precision."""
    return torch.promote_types(q.dtype, torch.float32)


def _shifted(out: Tensor, basis: Basis, level: Level) -> Tensor:
    """With what the value projection makes of its bias and of the offset."""
    if basis.bias is not None:
        out = out + basis.bias
    if basis.offset_values is not None and level.offset is not None:
        offset = level.offset.to(basis.offset_values.dtype)
        out = out + (offset @ basis.offset_values).to(out.dtype)
    return out


def _merged(q: Tensor, out: Tensor, sums: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One softmax over the texts and the own keys: each part's result by its share of the sum of exponentials.

    out `[B, L, heads·d]` and sums (logarithms) `[B, L, heads]`: of the texts. keys, values `[B, heads, M, d]`.
    """
    heads = keys.shape[1]
    beside, own_sums = attention_with_sums(_heads_first(q, heads), keys.to(q.dtype), values.to(q.dtype), scale)
    share = torch.sigmoid(sums - own_sums.transpose(1, 2))[..., None]
    text, image = out.unflatten(2, (heads, -1)), beside.transpose(1, 2)
    return torch.lerp(image.to(share.dtype), text.to(share.dtype), share).to(q.dtype).flatten(2)


def chunk_elements(device: torch.device) -> int:
    """How many elements are held at once."""
    return CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS_ACCELERATOR)


def attention_with_sums(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention `[B, heads, L, d]` and the logarithm of each location's sum of exponentials, `[B, heads, L]`. bias:
    added to the logits of each token, `[B, T]`; of no row is it −inf everywhere."""
    kernel = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if kernel is not None and q.device.type == "cpu" and not torch.is_grad_enabled():
        if bias is None:
            return kernel(q, k, v, scale=scale)
        if "attn_mask" in str(kernel.default._schema):
            mask = bias[:, None, None].to(q.dtype).expand(-1, 1, q.shape[2], -1)
            return kernel(q, k, v, attn_mask=mask, scale=scale)
    out, sums = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=exact(q))
    step = max(64, chunk_elements(q.device) // (q.shape[0] * q.shape[1] * k.shape[2]))
    keys, values = (t.to(exact(q)) for t in (k.transpose(2, 3), v))
    for start in range(0, q.shape[2], step):
        part = slice(start, start + step)
        logits = torch.matmul(q[:, :, part].to(exact(q)), keys).mul_(scale)
        if bias is not None:
            logits += bias[:, None, None].to(logits)
        sums[:, :, part] = logits.logsumexp(-1)
        out[:, :, part] = torch.matmul(logits.softmax(-1), values)
    return out, sums


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
    step = max(64, chunk_elements(device) // (basis.heads * max(columns, tokens) * together))
    places = [slice(start, min(start + step, locations)) for start in range(0, locations, step)]
    return ((slice(group, group + together), places) for group in range(0, groups, together))


def _fused(q: Tensor, level: Level) -> bool:
    """Whether the fused kernel applies and wins: it cannot scale probabilities, and on a CPU two matrix products with a
    softmax between them are as fast (docs/performance.md)."""
    return q.device.type != "cpu" and level.factor is None and level.bias is None


def _plain(q: Tensor, basis: Basis, level: Level, scale: float, own: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """One context for every location: the host's own attention."""
    rows = q.shape[0]
    d = q.shape[2] // basis.heads
    queries = _heads_first(q.to(basis.keys.dtype), basis.heads)
    keys = basis.keys[..., :d] if basis.alone is None else basis.alone
    keys, values = (t.expand(rows, -1, -1, -1) for t in (keys, basis.values[..., :d]))
    if own is not None:
        keys, values = (torch.cat([t, beside.to(t)], dim=2) for t, beside in zip((keys, values), own, strict=True))
    bias = None if level.bias is None else level.bias[:, None, :1].to(queries.dtype)
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
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


def _attend_explicit(queries: Tensor, basis: Basis, level: Level, scale: float, sums: Tensor | None = None) -> Tensor:
    """Two matrix products with a softmax between them; carries the token factor `r`, the bias `b` and the keys' norm.

    In float32 at least, as the fused kernels are inside: a logit of 20 in half precision is off by a hundredth, and a
    blend of large queries may be beyond its range. sums: `[g, M, heads]`, to be filled with the logarithms of the sums
    of exponentials.
    """
    stacked = _stack(queries.to(basis.keys.dtype), basis, level)
    keys, values = basis.keys.transpose(2, 3), basis.values
    d = queries.shape[3]
    width = basis.count * d
    factor = None if level.factor is None else level.factor[:, None]
    if factor is None:
        logits = torch.matmul(stacked, keys)
    else:
        # The factor belongs to the contexts alone: the noise columns take part without it.
        logits = torch.matmul(stacked[..., :width], keys[:, :, :width]).mul_(factor)
        logits += torch.matmul(stacked[..., width:], keys[:, :, width:])
    logits.mul_(scale)
    if basis.grams is not None:
        logits.mul_(_divisor(basis.grams, level))
    if level.bias is not None:
        logits.add_(level.bias[:, None])
    if sums is None:
        probabilities = torch.softmax(logits, dim=-1)
    else:
        of_places = logits.logsumexp(-1, keepdim=True)
        sums.copy_(of_places[..., 0].transpose(1, 2))
        probabilities = logits.sub_(of_places).exp_()
    if factor is None:
        return _contract(torch.matmul(probabilities, values), basis, level, d)
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

    tags: of the layers, where a conditioning may be another for some of them (`LocationConditioning.seen_by`).
    """

    def __init__(self) -> None:
        self.tags: Mapping[Hashable, Tags] = {}
        self._bases: OrderedDict[bytes, dict[Hashable, Basis]] = OrderedDict()
        self._placed: dict[bytes, Wanted] = {}
        self._levels: dict[tuple[Hashable, ...], tuple[LocationConditioning, Level]] = {}
        self._asked: dict[Hashable, list[tuple[LocationConditioning, Wanted]]] = {}

    def plan(self, conditionings: Iterable[LocationConditioning]) -> None:
        """What the next calls see. Forgets the maps of all others and the contexts that were not seen for long, so that
        prompts that change at every step do not fill the memory."""
        seen = {id(one): one for given in conditionings for one in given.variants.values()}
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
        self.tags = {}

    def wanted(self, layer: Hashable, shares: Iterable[Share], like: Tensor) -> Wanted | None:
        """What the layer has not projected yet, on the device and in the dtype of `like`; None for nothing."""
        fresh = {one.conditioning.digest: one.conditioning for one in self._seen(layer, shares)}
        fresh = {digest: one for digest, one in fresh.items() if layer not in self._bases.setdefault(digest, {})}
        if not fresh:
            return None
        asked = self._asked[layer] = [(one, self._place(one, like)) for one in fresh.values()]
        return Wanted(*(torch.cat(parts, dim=1) for parts in zip(*(placed for _, placed in asked), strict=True)))

    def take(
        self,
        layer: Hashable,
        keys: Tensor,
        values: Tensor,
        heads: int,
        dtype: torch.dtype | None = None,
        norm: KeyNorm | None = None,
    ) -> None:
        """The layer's keys and values `[1, M + N, heads·d]` of what was wanted last. dtype: to keep them in; that of
        the keys when None. norm: what the layer does to its keys; they are taken as they are before it."""
        asked = self._asked.pop(layer)
        sizes = [[part.shape[1] for part in parts] for parts in zip(*(placed for _, placed in asked), strict=True)]
        of_contexts, of_directions = sizes
        split = [*of_contexts, *of_directions]
        of_keys, of_values = keys.split(split, dim=1), values.split(split, dim=1)
        for i, (conditioning, _) in enumerate(asked):
            own_keys, own_values = (torch.cat(parts[i :: len(asked)], dim=1) for parts in (of_keys, of_values))
            basis = projected(conditioning, own_keys, own_values, heads, norm)
            self._bases[conditioning.digest][layer] = basis.to(dtype or keys.dtype)

    def attend(
        self,
        layer: Hashable,
        q: Tensor,
        shares: Sequence[Share],
        size: Size,
        scale: float | None = None,
        own: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`blended_attention` of all rows `[rows, h·w, heads·d]`, at a level of `size` (h, w). own: keys and values of
        all rows that stand beside the contexts in the softmax, `[rows, heads, M, d]`."""
        out = []
        shares = self._seen(layer, shares)
        for share in shares:
            basis = self._bases[share.conditioning.digest][layer].pick(share.picks)
            beside = None if own is None else (own[0][share.span], own[1][share.span])
            out.append(blended_attention(q[share.span], basis, self._level(share, size, q), scale, beside))
        if len(out) == 1:
            return out[0]
        whole = torch.empty_like(q)
        for share, part in zip(shares, out, strict=True):
            whole[share.span] = part
        return whole

    def _seen(self, layer: Hashable, shares: Iterable[Share]) -> list[Share]:
        """What a layer sees of some shares."""
        tags = self.tags.get(layer, NAMELESS)
        seen = ((share, share.conditioning.seen_by(tags)) for share in shares)
        return [share if one is share.conditioning else replace(share, conditioning=one) for share, one in seen]

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
