"""The oracle: attention over the location embeddings `E_ℓ`, built one by one. Slow, plain, and the definition."""

import torch
from torch import Tensor

from lib_masknoise.attention import KeyNorm
from lib_masknoise.conditioning import MAX_NORM_FACTOR, LocationConditioning
from lib_masknoise.maps import resize


def location_embeddings(c: LocationConditioning, row: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`E` `[L, T, D]` and the logit bias `[L, T]` of one row at a level, in the contexts' dtype."""
    contexts = c.contexts
    count, tokens, dim = contexts.shape
    a = _map(c.coefficients, row, size, contexts)  # [J, L]
    blend = torch.zeros(a.shape[1], tokens, dim, dtype=contexts.dtype)
    target = torch.zeros(a.shape[1], tokens, dtype=contexts.dtype)
    present = torch.zeros(a.shape[1], tokens, dtype=contexts.dtype)
    for j in range(count):
        blend += a[j][:, None, None] * contexts[j]
        target += a[j].abs()[:, None] * contexts[j].norm(dim=-1)
        present[:, : c.lengths[j]] += a[j].abs()[:, None]
    if c.preserve_norm:
        factor = (target / blend.norm(dim=-1).clamp_min(1e-300)).clamp_max(MAX_NORM_FACTOR)
        blend = blend * torch.where(target > 0, factor, 1.0)[..., None]
    share = present / a.abs().sum(0)[:, None]
    blend = torch.where(share[..., None] > 0, blend / share[..., None], 0.0)
    for noise in (c.noise, c.offset):
        if noise is not None:
            g = _map(noise.fields, row, size, contexts)
            tokens, directions = (t[min(row, len(t) - 1)].to(contexts) for t in (noise.tokens, noise.directions))
            blend = blend + torch.einsum("rl,rt,rd->ltd", g, tokens, directions)
    bias = share.log()
    if c.repeats:
        bias[:, -1] += torch.tensor(c.repeats, dtype=bias.dtype).log()
    return blend, bias


def materialised_attention(
    q: Tensor,
    c: LocationConditioning,
    size: tuple[int, int],
    w_k: Tensor,
    w_v: Tensor,
    heads: int,
    b_k: Tensor | float = 0.0,
    b_v: Tensor | float = 0.0,
    norm: KeyNorm | None = None,
    own: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """q `[B, L, heads·d]`, weights `[heads·d, D]`, biases `[heads·d]` → `[B, L, heads·d]`.

    norm: on the keys. own: keys and values `[B, heads, M, d]` that stand beside every location's own.
    """
    rows = []
    for row in range(len(q)):
        e, bias = location_embeddings(c, row, size)
        k = e @ w_k.T + b_k
        if norm is not None:
            parts = k.unflatten(-1, (-1, norm.width))
            parts = parts / (parts.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            k = (parts if norm.weight is None else parts * norm.weight.to(k)).flatten(-2)
        k = k.unflatten(-1, (heads, -1))  # [L, T, heads, d]
        v = (e @ w_v.T + b_v).unflatten(-1, (heads, -1))
        query = q[row].unflatten(-1, (heads, -1))  # [L, heads, d]
        if own is not None:
            beside_k, beside_v = (t[row].transpose(0, 1).expand(len(k), -1, -1, -1) for t in own)
            k, v = torch.cat([k, beside_k], dim=1), torch.cat([v, beside_v], dim=1)
            bias = torch.nn.functional.pad(bias, (0, beside_k.shape[1]))
        logits = torch.einsum("lhd,lthd->lht", query, k) / query.shape[-1] ** 0.5 + bias[:, None]
        rows.append(torch.einsum("lht,lthd->lhd", logits.softmax(-1), v).flatten(1))
    return torch.stack(rows)


def _map(maps: Tensor, row: int, size: tuple[int, int], like: Tensor) -> Tensor:
    resized = resize(maps, size)
    return resized[min(row, len(resized) - 1)].flatten(1).to(like)
