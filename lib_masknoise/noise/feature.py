"""Feature noise: an offset in selected dimensions of the cross-attention features, alike for all tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lib_masknoise.noise import Gate, SeparableNoise, for_rows, gated, spread
from lib_masknoise.noise.fields import moving_fields
from lib_masknoise.scene.dimensions import FOUND, canonical, ranges
from lib_masknoise.scene.errors import Problem, SceneError
from lib_masknoise.scene.layers import ALL
from lib_masknoise.seeded import generator
from lib_masknoise.window import WHOLE, Window

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion

# Directions the offset moves in. Each costs a column of one matrix product; with eight no direction stands
# out.
RANK = 8


@dataclass(frozen=True)
class Subspace:
    """K directions that were found by measuring what they do (`calibrate.style`), another part of each in other layers.

    by_layers: which layers, as in ``noise.feature.layers``, and ``[K, D]`` for them. A mixture of the K by independent
    normal numbers has, in the subspace, the covariance of the model's contexts.
    """

    by_layers: tuple[tuple[str, torch.Tensor], ...]

    @property
    def rank(self) -> int:
        return len(self.by_layers[0][1])

    @property
    def size(self) -> int:
        """D."""
        return self.by_layers[0][1].shape[1]


Subspaces = Mapping[str, Subspace]
"""What a model's profile has for the names of `scene.dimensions.FOUND`."""


def check_dimensions(dimensions: str, size: int, subspaces: Subspaces) -> None:
    """Raises SceneError where a model's contexts of D = size numbers have no such dimensions, or nothing has been found
    for the model."""
    try:
        if dimensions not in FOUND:
            parse_dimensions(dimensions, size)
            return
        if dimensions not in subspaces:
            raise ValueError(
                f'"{dimensions}" is found by measuring what directions do, which was not done for this model yet; '
                "`python -m lib_masknoise calibrate --style` does it, or Find style in the accordion Useful range"
            )
        if subspaces[dimensions].size != size:
            raise ValueError(f"the model's profile has {subspaces[dimensions].size} dimensions, the model {size}")
    except ValueError as error:
        path = "noise.feature.dimensions"
        raise SceneError([Problem(path, str(error).removeprefix(f"{path}: "))]) from None


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
    layers: str = ALL,
    subspaces: Subspaces | None = None,
) -> SeparableNoise | None:
    """The offset u(ℓ) = Σ_r g_r(ℓ)·d_r as separable noise whose tokens are all 1, or None when it is 0.

    d_r ~ N(0, σ²) with σ the spread of the real contexts in each selected dimension, 0 in all others: noise
    in all dimensions at once breaks the correlations between them and with these the image.

    contexts ``[J, T, D]``: the real ones, with their lengths. amount ``[1, H, W]`` or ``[B, H, W]``. feature_size: of
    the fields, as a fraction of the shorter side. frames: of the B rows, of ``total``; seeds: of each. layers: those
    that see it. subspaces: what is known of the model. Raises SceneError where a dimension is not below D, or a
    subspace is not known (see ``check_dimensions``).
    """
    if not amount.any():
        return None
    _, token_count, size = contexts.shape
    name = canonical(dimensions)
    check_dimensions(name, size, subspaces or {})
    subspace = (subspaces or {}).get(name)
    selected = [] if subspace else parse_dimensions(name, size)
    scale = spread(contexts, lengths)

    def draw(seed: int) -> tuple[torch.Tensor, tuple[tuple[Gate, torch.Tensor], ...]]:
        """The directions ``[1, RANK, D]``, and those of single layers."""
        if subspace is not None:
            mixed = torch.randn(RANK, subspace.rank, generator=generator(seed, "feature/subspace"))
            of_layers = tuple(((gate, layers), (mixed @ own)[None]) for gate, own in subspace.by_layers)
            return of_layers[0][1], of_layers
        # All D are drawn and some kept, so that selecting one dimension more leaves the others as they were.
        drawn = torch.randn(RANK, size, generator=generator(seed, "feature/directions")) * scale
        directions = torch.zeros(1, RANK, size)
        directions[0, :, selected] = drawn[:, selected]
        return directions, gated(layers, directions)

    def noise(seed: int, rows: list[int]) -> SeparableNoise:
        directions, by_layers = draw(seed)
        own = amount if len(amount) == 1 else amount[rows]
        fields = moving_fields(
            RANK, own, feature_size, motion, [frames[row] for row in rows], total, seed, "feature/fields", window
        )
        return SeparableNoise(torch.ones(1, RANK, token_count), directions, fields, by_layers)

    return for_rows(seeds, noise)
