"""Weight maps of all concepts → how firmly each location is held, and what each context contributes there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pin(maps: Tensor) -> Tensor:
    """How firmly each location is held: the largest of the weight maps [N, H, W] -> [H, W]; 0 without
    concepts."""
    return maps.amax(0) if len(maps) else maps.new_zeros(maps.shape[1:])


def covered(maps: Tensor) -> Tensor:
    """What is left of each layer of a pile to be seen: weight maps [N, H, W], the last on top -> [N, H, W].

    m_i · Π_{j > i} (1 − m_j): a layer covers those before it by its own softness. The results add up to
    1 − Π_j (1 − m_j), never more than 1.
    """
    if len(maps) < 2:
        return maps
    clear = (1 - maps).flip(0).cumprod(0).flip(0)
    return maps * torch.cat([clear[1:], torch.ones_like(maps[:1])])


def coefficients(maps: Tensor, weights: Sequence[float] | Tensor, mode: str, scale: float) -> Tensor:
    """What the base (first) and each concept contribute at each location: weight maps [N, H, W] -> [N + 1, H,
    W].

    a_i = scale · w_i · m_i. In mode "add" the base's coefficient is 1 throughout. In mode "interpolate" it is
    1 − Σ a_i, so that all sum to 1; where masks overlap and the positive a_i sum to more than both 1 and the
    largest of them, these are scaled down to that bound: overlapping concepts share the location, while one
    weight above 1 may still extrapolate. Coefficients are continuous in the maps.
    """
    if mode not in ("interpolate", "add"):
        raise ValueError(f'expected mode "interpolate" or "add", got {mode!r}')
    weights = torch.as_tensor(weights, dtype=maps.dtype, device=maps.device)
    parts = scale * weights[:, None, None] * maps
    if mode == "add":
        return torch.cat([maps.new_ones(1, *maps.shape[1:]), parts])
    positive = parts.clamp(min=0)
    total, bound = positive.sum(0), pin(positive).clamp(min=1)
    parts = torch.where(parts > 0, parts * (bound / torch.maximum(total, bound)), parts)
    return torch.cat([1 - parts.sum(0, keepdim=True), parts])
