"""Feature noise: an offset in selected dimensions of the cross-attention features, alike for all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib_masknoise.noise import SeparableNoise, for_rows, spread
from lib_masknoise.noise.fields import moving_fields
from lib_masknoise.scene.dimensions import canonical, ranges
from lib_masknoise.seeded import generator
from lib_masknoise.window import WHOLE, Window

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
    seeds: Sequence[int],
    window: Window = WHOLE,
) -> SeparableNoise | None:
    """The offset u(ℓ) = Σ_r g_r(ℓ)·d_r as separable noise whose tokens are all 1, or None when it is 0.

    d_r ~ N(0, σ²) with σ the spread of the real contexts in each selected dimension, 0 in all others: noise
    in all dimensions at once breaks the correlations between them and with these the image.

    contexts ``[J, T, D]``: the real ones, with their lengths. amount ``[1, H, W]`` or ``[B, H, W]``. feature_size: of
    the fields, as a fraction of the shorter side. frames: of the B rows, of ``total``; seeds: of each. Raises
    ValueError where a dimension is not below D (see ``parse_dimensions``).
    """
    if not amount.any():
        return None
    _, token_count, size = contexts.shape
    selected = parse_dimensions(dimensions, size)
    scale = spread(contexts, lengths)

    def noise(seed: int, rows: list[int]) -> SeparableNoise:
        # All D are drawn and some kept, so that selecting one dimension more leaves the others as they were.
        drawn = torch.randn(RANK, size, generator=generator(seed, "feature/directions")) * scale
        directions = torch.zeros(RANK, size)
        directions[:, selected] = drawn[:, selected]
        own = amount if len(amount) == 1 else amount[rows]
        fields = moving_fields(
            RANK, own, feature_size, motion, [frames[row] for row in rows], total, seed, "feature/fields", window
        )
        return SeparableNoise(torch.ones(1, RANK, token_count), directions[None], fields)

    return for_rows(seeds, noise)
