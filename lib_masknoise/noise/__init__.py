"""What the three noises share: seeded randomness, the amount of noise at a location, smooth moving fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lib_masknoise.motion import envelope, generator, mixtures, revolution, simplex_path
from lib_masknoise.simplex import SimplexField

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion

__all__ = ["SeparableNoise", "amount", "generator", "moving_fields", "smooth_fields", "spread"]

# Fields are evaluated on a lattice of this pitch, in OpenSimplex's units, and interpolated. At 1/4 that takes
# 0.2 % of the variance an axis on average, 0.3 % at worst, and is off the exact value by 0.5 % (root mean
# square).
PITCH = 0.25


@dataclass(frozen=True)
class SeparableNoise:
    """R noise contexts whose tokens all lie along one direction each: B_r[t] = tokens[r, t]·directions[r].

    The location embedding gains Σ_r fields[b, r](ℓ)·B_r. Separable because a general B_r ``[T, D]`` costs
    attention as much as a whole concept, T more keys and values, while ``tokens ⊗ directions`` costs one
    column: a direction is projected once, its logit is the query's product with it times a scalar for each
    token.

    tokens ``[R, T]``, directions ``[R, D]``, fields ``[B, R, H, W]`` (noise amount, envelope and 1/√R
    included), all float32 on the CPU.
    """

    tokens: torch.Tensor
    directions: torch.Tensor
    fields: torch.Tensor


def amount(pin: torch.Tensor, strength: float, exponent: float) -> torch.Tensor:
    """Noise amount, strength·(1 − pin)^exponent, of the shape of ``pin`` (each in [0, 1]).

    A location with pin 1 gets 0 whatever the exponent, also 0: what is held fully never moves.
    """
    free = (1.0 - pin).clamp(0.0, 1.0)
    return torch.where(free > 0.0, strength * free**exponent, torch.zeros_like(free))


def spread(contexts: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Standard deviation of the real contexts in each dimension: ``[J, T, D]`` → ``[D]`` float32.

    Taken over all contexts and their tokens from 1 up to each one's length: the first token is the attention
    sink, the same for every prompt and of a far larger norm, and what follows the length is padding. 0 where
    no token is left. Raises ValueError when the number of lengths is not J.
    """
    tokens = [context[1:length] for context, length in zip(contexts.detach().cpu().float(), lengths, strict=True)]
    stacked = torch.cat(tokens)
    if len(stacked) == 0:
        return torch.zeros(contexts.shape[-1])
    return stacked.std(dim=0, correction=0)


def moving_fields(
    rank: int,
    amount: torch.Tensor,
    feature_size: float,
    motion: Motion,
    frames: Sequence[float],
    total: int,
    seed: int,
    purpose: str,
) -> torch.Tensor:
    """Coefficient maps of R noise contexts, ``[B, R, H, W]``: smooth fields · amount · envelope / √R.

    Their squares add up to amount²·envelope² on average, however many contexts share it. amount ``[H, W]``, or
    ``[B, H, W]`` where it changes from frame to frame.
    """
    height, width = amount.shape[-2:]
    amount = amount.reshape(-1, 1, height, width)
    fields = smooth_fields(motion, frames, total, rank, (height, width), feature_size, seed, purpose)
    envelopes = torch.tensor([envelope(motion, frame, total) for frame in frames], dtype=torch.float32)
    return fields * (amount.detach().cpu().float() / math.sqrt(rank)) * envelopes[:, None, None, None]


def smooth_fields(
    motion: Motion,
    frames: Sequence[float],
    total: int,
    count: int,
    size: tuple[int, int],
    feature_size: float,
    seed: int,
    purpose: str,
) -> torch.Tensor:
    """Smooth independent random fields of mean 0 and variance 1 at every frame, ``[B, count, H, W]`` float32.

    frames: the B frames wanted, of ``total``; they may be fractions. feature_size: OpenSimplex's unit, about
    the distance at which two locations become independent, as a fraction of the shorter side. ``simplex`` moves
    through a further dimension of OpenSimplex (with ``loop`` two, around a circle); all other kinds mix static
    fields by ``mixtures``. The envelope is not included.

    A value depends on no other frame, field or size asked for: the lattice stands still in OpenSimplex's
    space, the knots in time follow from (total, loop, cycles), and all arithmetic is elementwise, since a
    matrix product may round differently in another batch. It is quickest to ask for all frames of a job at
    once: neighbours share evaluations.
    """
    places = [(np.arange(n) + 0.5) / (min(size) * feature_size) for n in size]
    (y, rows), (x, columns) = (_lattice(p) for p in places)
    y, x = np.meshgrid(y, x, indexing="ij")
    if motion.kind == "simplex":
        coarse = _travelling(motion, frames, total, count, y, x, generator(seed, purpose))
    else:
        coarse = _mixed(mixtures(motion, frames, total, seed).numpy(), count, y, x, seed, purpose)
    fields = torch.empty(len(frames), count, *size)
    for field, knots in zip(fields, coarse, strict=True):
        field.copy_(torch.from_numpy(rows.along(1, columns.along(2, knots))))
    return fields


def _mixed(mixing: np.ndarray, count: int, y: np.ndarray, x: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Static fields mixed by ``mixing`` ``[B, K]`` at the lattice's points: ``[B, count, rows, columns]``."""
    mixed = np.zeros((len(mixing), count, *y.shape))
    for k in range(mixing.shape[1]):
        rng = generator(seed, f"{purpose}/{k}")
        static = np.stack([SimplexField.draw(2, rng).at(y, x) for _ in range(count)])
        mixed += mixing[:, k, None, None, None] * static
    return mixed


def _travelling(
    motion: Motion,
    frames: Sequence[float],
    total: int,
    count: int,
    y: np.ndarray,
    x: np.ndarray,
    rng: torch.Generator,
) -> np.ndarray:
    """Fields that move through OpenSimplex's time, at the lattice's points: ``[B, count, rows, columns]``.

    Time has a lattice too, which divides the path evenly, so that on the circle it meets its own start. Where
    that would take more knots than there are frames, the frames themselves are evaluated.
    """
    knots = math.ceil(2.0 * math.pi * motion.cycles / PITCH)
    if knots < total:
        turns = np.array([revolution(frame, total, motion.loop) for frame in frames]) / (2.0 * math.pi)
        times = _Interpolation.between(turns * knots, period=knots if motion.loop else None)
    else:
        knots = total
        times = _Interpolation.none([frame % total if motion.loop else frame for frame in frames])
    path = [simplex_path(motion, knot * total / knots, total) for knot in times.knots.tolist()]
    when = [np.array(t)[:, None, None] for t in zip(*path, strict=True)]
    fields = [SimplexField.draw(2 + len(when), rng) for _ in range(count)]
    return np.stack([times.along(0, field.at(y, x, *when)) for field in fields], axis=1)


def _lattice(places: np.ndarray) -> tuple[np.ndarray, _Interpolation]:
    """Where along an axis to evaluate, and how to get from there to ``places``: a lattice, or the places
    themselves if they are fewer."""
    interpolation = _Interpolation.between(places / PITCH)
    if len(interpolation.knots) < len(places):
        return interpolation.knots * PITCH, interpolation
    return places, _Interpolation.none(range(len(places)))


@dataclass(frozen=True)
class _Interpolation:
    """From values at knots to values at n points, each a weighted sum of a few knots.

    knots ``[m]``: where they are, in units of their pitch. index, weights ``[taps, n]``: positions in ``knots``.
    """

    knots: np.ndarray
    index: np.ndarray
    weights: np.ndarray

    @classmethod
    def between(cls, points: np.ndarray, period: int | None = None) -> _Interpolation:
        """Six-point cubic convolution at ``points``, in knots; on a circle when there is a ``period``."""
        nearest = np.floor(points).astype(np.int64) + np.arange(-2, 4)[:, None]
        wrapped = nearest if period is None else nearest % period
        knots, index = np.unique(wrapped, return_inverse=True)
        return cls(knots, index.reshape(nearest.shape), _six_point_kernel(points - nearest))

    @classmethod
    def none(cls, points: Sequence[float]) -> _Interpolation:
        """The points are knots."""
        knots, index = np.unique(np.array(points, dtype=np.float64), return_inverse=True)
        return cls(knots, index.reshape(1, -1), np.ones((1, len(index))))

    def along(self, axis: int, values: np.ndarray) -> np.ndarray:
        """Replace one axis of ``values``, the knots, by the points."""
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        return sum(
            values.take(index, axis) * weights.reshape(shape)
            for index, weights in zip(self.index, self.weights, strict=True)
        )


def _six_point_kernel(distance: np.ndarray) -> np.ndarray:
    """Keys' fourth-order cubic (Cubic Convolution Interpolation for Digital Image Processing, 1981)."""
    d = np.abs(distance)
    near = (4 / 3 * d - 7 / 3) * d**2 + 1
    middle = ((-7 / 12 * d + 3) * d - 59 / 12) * d + 5 / 2
    far = ((1 / 12 * d - 2 / 3) * d + 7 / 4) * d - 3 / 2
    return np.where(d < 1, near, np.where(d < 2, middle, np.where(d < 3, far, 0.0)))
