"""What the three noises share: the amount of noise at a location, noise contexts, the spread they are scaled by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from lib_masknoise.scene import layers

CHUNK = 77
"""Tokens that CLIP encodes at a time, each chunk with a begin token of its own."""


@dataclass(frozen=True)
class SeparableNoise:
    """R noise contexts whose tokens all lie along one direction each: B_r[t] = tokens[r, t]·directions[r].

    The location embedding gains Σ_r fields[b, r](ℓ)·B_r. Separable because a general B_r ``[T, D]`` costs
    attention as much as a whole concept, T more keys and values, while ``tokens ⊗ directions`` costs one
    column: a direction is projected once, its logit is the query's product with it times a scalar for each
    token.

    tokens ``[U, R, T]``, directions ``[U, R, D]``, fields ``[B, R, H, W]`` (noise amount, envelope and 1/√R included),
    all float32 on the CPU. U is 1 where all rows have the same noise contexts (one seed), else B.
    """

    tokens: torch.Tensor
    directions: torch.Tensor
    fields: torch.Tensor
    by_layers: tuple[tuple[Gate, torch.Tensor], ...] = ()
    """Where not all layers see the noise alike: directions like the above for those that a gate opens to. A layer sees
    the first of them that are for it, and no noise where none are."""

    def form(self, tags: layers.Tags) -> int:
        """Which of its forms a layer with these tags sees."""
        for form, (gate, _) in enumerate(self.by_layers):
            if all(layers.opened(text, tags) for text in gate):
                return form
        return CLOSED if self.by_layers else 0

    @property
    def forms(self) -> dict[int, SeparableNoise | None]:
        """What layers see of it."""
        if not self.by_layers:
            return {0: self}
        open_to = enumerate(replace(self, directions=directions, by_layers=()) for _, directions in self.by_layers)
        return {**dict(open_to), CLOSED: None}


Gate = tuple[str, ...]
"""Texts as of ``noise.feature.layers``, all of which must name a layer."""
CLOSED = -1


def gated(text: str, directions: torch.Tensor) -> tuple[tuple[Gate, torch.Tensor], ...]:
    """`SeparableNoise.by_layers` of directions that are the same in all layers that the text names."""
    return () if text == layers.ALL else (((text,), directions),)


def for_rows(seeds: Sequence[int], make: Callable[[int, list[int]], SeparableNoise]) -> SeparableNoise:
    """The noise of B rows, each with a seed of its own. make: from a seed and the rows that have it, their noise."""
    rows_of: dict[int, list[int]] = {}
    for row, seed in enumerate(seeds):
        rows_of.setdefault(seed, []).append(row)
    parts = [make(seed, rows) for seed, rows in rows_of.items()]
    if len(parts) == 1:
        return parts[0]
    order = [(part, i) for part, rows in zip(parts, rows_of.values(), strict=True) for i in range(len(rows))]
    places = [row for rows in rows_of.values() for row in rows]
    in_order = [entry for _, entry in sorted(zip(places, order, strict=True), key=lambda pair: pair[0])]
    return SeparableNoise(
        torch.stack([part.tokens[0] for part, _ in in_order]),
        torch.stack([part.directions[0] for part, _ in in_order]),
        torch.stack([part.fields[i] for part, i in in_order]),
        tuple(
            (gate, torch.stack([part.by_layers[form][1][0] for part, _ in in_order]))
            for form, (gate, _) in enumerate(parts[0].by_layers)
        ),
    )


def amount(pin: torch.Tensor, strength: float, exponent: float) -> torch.Tensor:
    """Noise amount, strength·(1 − pin)^exponent, of the shape of ``pin`` (each in [0, 1]).

    A location with pin 1 gets 0 whatever the exponent, also 0: what is held fully never moves.
    """
    free = (1.0 - pin).clamp(0.0, 1.0)
    return torch.where(free > 0.0, strength * free**exponent, torch.zeros_like(free))


def spread(contexts: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Standard deviation of the real contexts in each dimension: ``[J, T, D]`` → ``[D]`` float32.

    Taken over all contexts and their tokens up to each one's length, without the sinks; what follows the length is
    padding. 0 where no token is left. Raises ValueError when the number of lengths is not J.
    """
    known = contexts.detach().cpu().float()
    tokens = [context[:length][~sinks(length)] for context, length in zip(known, lengths, strict=True)]
    stacked = torch.cat(tokens)
    if len(stacked) == 0:
        return torch.zeros(contexts.shape[-1])
    return stacked.std(dim=0, correction=0)


def sinks(length: int) -> torch.Tensor:
    """Which of a context's tokens are attention sinks, the same for every prompt and of a far larger norm: the first,
    and in CLIP's contexts the first of each chunk. ``[length]`` bool."""
    found = torch.zeros(length, dtype=torch.bool)
    found[: 1 if length % CHUNK else length : CHUNK] = True
    return found
