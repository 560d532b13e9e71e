"""Concept noise: random contexts join the basis, and smooth moving fields say how much of each goes where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib_masknoise.noise import SeparableNoise, generator, moving_fields, spread

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion


def concept_noise(
    contexts: torch.Tensor,
    lengths: Sequence[int],
    amount: torch.Tensor,
    rank: int,
    feature_size: float,
    motion: Motion,
    frames: Sequence[float],
    total: int,
    seed: int,
) -> SeparableNoise | None:
    """R = ``rank`` noise contexts B_r[t] = s_r[t]·d_r and their fields, or None when no location has any.

    s_r[t] ~ N(0, 1), but 0 for the first token, the attention sink, which stays untouched; d_r ~ N(0, σ²)
    with σ the spread of the real contexts in each dimension. At amount 1 every other token thus moves by as
    much as the contexts themselves differ.

    contexts ``[J, T, D]``: the real ones, with their lengths. amount ``[H, W]``, or
    ``[B, H, W]``. feature_size: of the fields,
    as a fraction of the shorter side. frames: the B frames wanted, of ``total``. The draws depend on (seed,
    R, T, D) alone.
    """
    if rank == 0 or not amount.any():
        return None
    _, token_count, dimensions = contexts.shape
    tokens = torch.randn(rank, token_count, generator=generator(seed, "concept/tokens"))
    tokens[:, 0] = 0.0
    directions = torch.randn(rank, dimensions, generator=generator(seed, "concept/directions"))
    fields = moving_fields(rank, amount, feature_size, motion, frames, total, seed, "concept/fields")
    return SeparableNoise(tokens, directions * spread(contexts, lengths), fields)
