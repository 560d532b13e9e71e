"""Concept noise: random contexts join the basis, and smooth moving fields say how much of each goes where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib_masknoise.noise import CHUNK, SeparableNoise, for_rows, gated, sinks, spread
from lib_masknoise.noise.fields import moving_fields
from lib_masknoise.scene.layers import ALL
from lib_masknoise.seeded import generator
from lib_masknoise.window import WHOLE, Window

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
    seeds: Sequence[int],
    window: Window = WHOLE,
    layers: str = ALL,
) -> SeparableNoise | None:
    """R = ``rank`` noise contexts B_r[t] = s_r[t]·d_r and their fields, or None when no location has any.

    s_r[t] ~ N(0, 1), but 0 for the attention sinks, which stay untouched; d_r ~ N(0, σ²) with σ the spread of the real
    contexts in each dimension. At amount 1 every other token thus moves by as much as the contexts themselves differ.

    contexts ``[J, T, D]``: the real ones, with their lengths. amount ``[1, H, W]`` or ``[B, H, W]``. feature_size: of
    the fields, as a fraction of the shorter side. frames: of the B rows, of ``total``; seeds: of each. A row's draws
    depend on its seed, R and D alone; a token's on its place too, not on how many there are. layers: those that see it.
    """
    if rank == 0 or not amount.any():
        return None
    _, token_count, dimensions = contexts.shape
    scale = spread(contexts, lengths)

    def noise(seed: int, rows: list[int]) -> SeparableNoise:
        own = amount if len(amount) == 1 else amount[rows]
        moments = [frames[row] for row in rows]
        directions = (torch.randn(rank, dimensions, generator=generator(seed, "concept/directions")) * scale)[None]
        return SeparableNoise(
            _profiles(rank, token_count, seed)[None],
            directions,
            moving_fields(rank, own, feature_size, motion, moments, total, seed, "concept/fields", window),
            gated(layers, directions),
        )

    return for_rows(seeds, noise)


def _profiles(rank: int, count: int, seed: int) -> torch.Tensor:
    """``[R, T]``: drawn chunk by chunk, so that a prompt that grows by a chunk keeps what it had."""
    purposes = ["concept/tokens", *(f"concept/tokens/{chunk}" for chunk in range(1, -(-count // CHUNK)))]
    tokens = torch.cat([torch.randn(rank, CHUNK, generator=generator(seed, each)) for each in purposes], dim=1)
    return tokens[:, :count].masked_fill(sinks(count), 0.0)
