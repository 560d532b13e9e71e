"""Exact cross-attention in which every location attends to its own context.

With the location embedding `E_ℓ[t] = r_ℓ[t] Σ_j a_j(ℓ) C_j[t] + Σ_r g_r(ℓ) s_r[t] d_r + u(ℓ)`, keys and values are
linear in the context, so nothing of size `[h·w, T, D]` is ever built:

    logits_ℓ[t] = r_ℓ[t] Σ_j a_j(ℓ) (q_ℓ · W_k C_j[t]) + Σ_r g_r(ℓ) (q_ℓ · W_k d_r) s_r[t] + b_ℓ[t]
    out_ℓ       = Σ_j a_j(ℓ) Σ_t r_ℓ[t] p_ℓ[t] W_v C_j[t] + Σ_r g_r(ℓ) (Σ_t p_ℓ[t] s_r[t]) W_v d_r + W_v u(ℓ)

The sums over `j` and `r` become one inner product by stacking: the query `[a_1 q, …, a_J q, g_1 (q·W_k d_1), …]`
against keys `[K_1[t], …, K_J[t], s_1[t], …]`. A concept costs `d` columns, a noise context one. The offset `u` shifts
all logits of a location alike and so drops out of the softmax. The oracle in the tests builds `E_ℓ`; both agree to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.conditioning import Level, LocationConditioning

# Elements of the stacked query held at once. On a CPU a chunk should stay in the cache (docs/performance.md); on an
# accelerator fewer, larger launches win and the bound only keeps the peak memory in check.
CHUNK_ELEMENTS = {"cpu": 2**19}
CHUNK_ELEMENTS_ACCELERATOR = 2**25


@dataclass(frozen=True)
class Basis:
    """The contexts of a LocationConditioning, projected by one attention layer. Made once per sampling pass.

    `keys` and `values` `[heads, T, J·d + R]`: J projected contexts side by side, then R token profiles.
    `noise_keys` and `noise_values` `[heads, R, d]`: the projected noise directions.
    `offset_values` `[S, heads·d]`: the value projection of the offset's directions.
    """

    heads: int
    count: int
    keys: Tensor
    values: Tensor
    noise_keys: Tensor | None = None
    noise_values: Tensor | None = None
    offset_values: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Basis:
        """In another dtype; itself where that is its own."""
        if dtype == self.keys.dtype:
            return self
        tensors = {name: t.to(dtype) for name, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **tensors)


def project(
    conditioning: LocationConditioning,
    to_k: Callable[[Tensor], Tensor],
    to_v: Callable[[Tensor], Tensor],
    heads: int,
    adapt: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Basis:
    """Project the basis contexts with a layer's own `to_k` and `to_v` (modules, so that adapters on them take part).

    Both must be linear without a bias, as they are in every Stable Diffusion U-Net: the blend of projections is the
    projection of the blend only then. adapt: what the host does with a context before each of the two (hypernetworks);
    it need not be linear, and what is blended are its results.
    """
    stacked = stack(conditioning)
    if adapt is None:
        return unstack(conditioning, to_k(stacked), to_v(stacked), heads)
    count = conditioning.contexts.shape[:2].numel()
    adapted = (torch.cat([t, stacked[:, count:]], dim=1) for t in adapt(stacked[:, :count]))
    keys, values = (to(t) for to, t in zip((to_k, to_v), adapted, strict=True))
    return unstack(conditioning, keys, values, heads)


def stack(conditioning: LocationConditioning) -> Tensor:
    """Everything of a conditioning that a layer projects, as one context `[1, M, D]`: the basis contexts one after the
    other, the noise's directions, the offset's directions."""
    parts = [conditioning.contexts.flatten(0, 1)]
    parts += [noise.directions for noise in (conditioning.noise, conditioning.offset) if noise is not None]
    return torch.cat(parts)[None]


def unstack(conditioning: LocationConditioning, keys: Tensor, values: Tensor, heads: int) -> Basis:
    """The basis from what a layer has made of `stack(conditioning)`: keys and values `[1, M, heads·d]`."""
    count, tokens = conditioning.contexts.shape[:2]
    noise, offset = conditioning.noise, conditioning.offset
    sizes = [count * tokens, *(0 if part is None else len(part.directions) for part in (noise, offset))]
    (keys, noise_keys, _), (values, noise_values, offset_values) = keys[0].split(sizes), values[0].split(sizes)
    keys, values = (_side_by_side(_heads_first(t.unflatten(0, (count, tokens)), heads)) for t in (keys, values))
    if noise is None:
        noise_keys = noise_values = None
    else:
        profiles = noise.tokens.T.to(keys).expand(heads, -1, -1)  # [heads, T, R]
        keys, values = (torch.cat([t, profiles], dim=2) for t in (keys, values))
        noise_keys, noise_values = (_heads_first(t[None], heads)[0] for t in (noise_keys, noise_values))
    return Basis(heads, count, keys, values, noise_keys, noise_values, None if offset is None else offset_values)


def blended_attention(q: Tensor, basis: Basis, level: Level, scale: float | None = None) -> Tensor:
    """Attend from every location to its own blend of the basis contexts.

    q: projected queries `[B, h·w, heads·d]` of one U-Net level; B rows may carry different coefficient maps (frames).
    basis: this layer's projected contexts. level: the conditioning at this level, `B` rows or one row for all.
    scale: of the logits; `1/√d` when None. Returns `[B, h·w, heads·d]` in the dtype of `q`, before the output layer.
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
        level = level.flatten(rows)
        queries = q.reshape(rows * locations, basis.heads, d)
        out = torch.empty_like(queries)
        attend = _attend_stacked if _fused(q, level) else _attend_explicit
        for part in _chunks(rows * locations, basis, q.device):
            out[part] = attend(queries[part], basis, level[part], scale)
        out = out.view(rows, locations, inner)
    if basis.offset_values is not None:
        out = out + level.offset.reshape(-1, locations, len(basis.offset_values)) @ basis.offset_values
    return out


def _heads_first(x: Tensor, heads: int) -> Tensor:
    """`[N, T, heads·d]` → `[N, heads, T, d]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _side_by_side(x: Tensor) -> Tensor:
    """`[J, heads, T, d]` → `[heads, T, J·d]`."""
    return x.permute(1, 2, 0, 3).flatten(2)


def _chunks(total: int, basis: Basis, device: torch.device) -> Iterator[slice]:
    tokens, columns = basis.keys.shape[1:]
    limit = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS_ACCELERATOR)
    step = max(64, limit // (basis.heads * max(columns, tokens)))
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def _fused(q: Tensor, level: Level) -> bool:
    """Whether the fused kernel applies and wins: it cannot scale probabilities, and on a CPU two matrix products with a
    softmax between them are as fast (docs/performance.md)."""
    return q.device.type != "cpu" and level.factor is None


def _plain(q: Tensor, basis: Basis, scale: float) -> Tensor:
    """One context for every location: the host's own attention."""
    rows = q.shape[0]
    queries = _heads_first(q, basis.heads)
    keys, values = (t.expand(rows, -1, -1, -1) for t in (basis.keys, basis.values))
    return F.scaled_dot_product_attention(queries, keys, values, scale=scale).transpose(1, 2).flatten(2)


def _stack(queries: Tensor, basis: Basis, level: Level) -> Tensor:
    """`[a_1 q, …, a_J q, g_1 (q·k_1), …, g_R (q·k_R)]`: `[heads, M, J·d + R]`."""
    stacked = (queries.unsqueeze(2) * level.coefficients[:, None, :, None]).flatten(2).transpose(0, 1)
    if basis.noise_keys is None:
        return stacked
    noise = torch.bmm(queries.transpose(0, 1), basis.noise_keys.transpose(1, 2)) * level.noise
    return torch.cat([stacked, noise], dim=2)


def _contract(stacked: Tensor, basis: Basis, level: Level) -> Tensor:
    """The inverse of the stacking on the value side: `[heads, M, J·d + R]` → `[M, heads, d]`."""
    heads, m, columns = stacked.shape
    if basis.noise_values is not None:
        width = columns - basis.noise_values.shape[1]
        noise = torch.bmm(stacked[..., width:] * level.noise, basis.noise_values)
        return _weighted_sum(stacked[..., :width], basis, level) + noise.transpose(0, 1)
    return _weighted_sum(stacked, basis, level)


def _weighted_sum(stacked: Tensor, basis: Basis, level: Level) -> Tensor:
    """`Σ_j a_j o_j` accumulated in place: `[heads, M, J·d]` → `[M, heads, d]`."""
    parts = stacked.unflatten(2, (basis.count, -1)).transpose(0, 1)
    weights = level.coefficients[:, None, :, None]
    out = parts[:, :, 0] * weights[:, :, 0]
    for j in range(1, basis.count):
        out.addcmul_(parts[:, :, j], weights[:, :, j])
    return out


def _attend_explicit(queries: Tensor, basis: Basis, level: Level, scale: float) -> Tensor:
    """Two matrix products with a softmax between them; carries the token factor `r` and the bias `b`.

    In float32 at least, as the fused kernels are inside: a logit of 20 in half precision is off by a hundredth.
    """
    wide = torch.promote_types(queries.dtype, torch.float32)
    stacked, keys, values = (t.to(wide) for t in (_stack(queries, basis, level), basis.keys, basis.values))
    keys = keys.transpose(1, 2)
    if level.factor is None:
        out = torch.bmm(torch.softmax(torch.bmm(stacked, keys).mul_(scale), dim=-1), values)
        return _contract(out.to(queries.dtype), basis, level)
    # The factor belongs to the contexts alone: the noise columns take part without it.
    width = keys.shape[1] - (0 if basis.noise_keys is None else basis.noise_keys.shape[1])
    logits = torch.bmm(stacked[..., :width], keys[:, :width]).mul_(level.factor)
    logits += torch.bmm(stacked[..., width:], keys[:, width:])
    probabilities = torch.softmax(logits.mul_(scale).add_(level.bias), dim=-1)
    contexts = torch.bmm(probabilities * level.factor, values[..., :width])
    noise = torch.bmm(probabilities, values[..., width:])
    return _contract(torch.cat([contexts, noise], dim=2).to(queries.dtype), basis, level)


def _attend_stacked(queries: Tensor, basis: Basis, level: Level, scale: float) -> Tensor:
    """One scaled-dot-product call over the stacked columns."""
    stacked = _stack(queries, basis, level)
    out = F.scaled_dot_product_attention(stacked[None], basis.keys[None], basis.values[None], scale=scale)[0]
    return _contract(out, basis, level)
