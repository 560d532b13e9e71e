"""Feature noise: an offset in selected dimensions of the cross-attention features, alike for all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib_masknoise.noise import SeparableNoise, generator, moving_fields, spread
from lib_masknoise.scene.dimensions import canonical, ranges

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion

# Directions the offset moves in. Each costs a column of one matrix product; with eight no direction stands
# out.
RANK = 8


def parse_dimensions(spec: str | Sequence[int], size: int) -> list[int]:
    """The dimensions named by ``"all"``, ``"0-63,100"`` (ranges include both ends) or a list of numbers.

    Ascending, without repetitions, each in 0 … size − 1. Raises ValueError naming the first range that does
    not fit.
    """
    chosen = ranges(canonical(spec))
    if chosen is None:
        return list(range(size))
    for part in chosen:
        if part[-1] >= size:
            name = f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}"
            raise ValueError(f'noise.feature.dimensions: "{name}" goes beyond the last dimension, {size - 1}')
    return sorted({dimension for part in chosen for dimension in part})


def feature_noise(
    contexts: torch.Tensor,
    lengths: Sequence[int],
    amount: torch.Tensor,
    dimensions: str | Sequence[int],
    feature_size: float,
    motion: Motion,
    frames: Sequence[float],
    total: int,
    seed: int,
) -> SeparableNoise | None:
    """The offset u(ℓ) = Σ_r g_r(ℓ)·d_r as separable noise whose tokens are all 1, or None when it is 0.

    d_r ~ N(0, σ²) with σ the spread of the real contexts in each selected dimension, 0 in all others: noise
    in all dimensions at once breaks the correlations between them and with these the image.

    contexts ``[J, T, D]``: the real ones, with their lengths. amount ``[H, W]``, or
    ``[B, H, W]``. feature_size: of the fields,
    as a fraction of the shorter side. frames: the B frames wanted, of ``total``. Raises ValueError where a
    dimension is not below D (see ``parse_dimensions``).
    """
    if not amount.any():
        return None
    _, token_count, size = contexts.shape
    selected = parse_dimensions(dimensions, size)
    directions = torch.zeros(RANK, size)
    # All D are drawn and some kept, so that selecting one dimension more leaves the others as they were.
    drawn = torch.randn(RANK, size, generator=generator(seed, "feature/directions"))
    directions[:, selected] = (drawn * spread(contexts, lengths))[:, selected]
    fields = moving_fields(RANK, amount, feature_size, motion, frames, total, seed, "feature/fields")
    return SeparableNoise(torch.ones(RANK, token_count), directions, fields)
