"""Smooth random fields that move: what the noises follow."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lib_masknoise.motion import envelope, kind, mixtures
from lib_masknoise.motion.clock import revolution
from lib_masknoise.motion.opensimplex import SimplexField, missing
from lib_masknoise.seeded import generator
from lib_masknoise.window import WHOLE, Window

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion, Scene

# Fields are evaluated on a lattice of this pitch, in OpenSimplex's units, and interpolated. At 1/4 that takes
# 0.2 % of the variance an axis on average, 0.3 % at worst, and is off the exact value by 0.5 % (root mean
# square).
PITCH = 0.25

REMEMBERED_FIELDS = 64
"""Static fields kept at their lattices: a batch after the other mixes the same ones."""


def moving_fields(
    rank: int,
    amount: torch.Tensor,
    feature_size: float,
    motion: Motion,
    frames: Sequence[float],
    total: int,
    seed: int,
    purpose: str,
    window: Window = WHOLE,
) -> torch.Tensor:
    """Coefficient maps of R noise contexts, ``[B, R, H, W]``: smooth fields · amount · envelope / √R.

    Their squares add up to amount²·envelope² on average, however many contexts share it. amount ``[H, W]``, or
    ``[B, H, W]`` where it changes from frame to frame.
    """
    height, width = amount.shape[-2:]
    amount = amount.reshape(-1, 1, height, width)
    fields = smooth_fields(motion, frames, total, rank, (height, width), feature_size, seed, purpose, window)
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
    window: Window = WHOLE,
) -> torch.Tensor:
    """Smooth independent random fields of mean 0 and variance 1 at every frame, ``[B, count, H, W]`` float32.

    frames: the B frames wanted, of ``total``; they may be fractions. feature_size: OpenSimplex's unit, about
    the distance at which two locations become independent, as a fraction of the shorter side. window: the part of the
    picture that is (H, W) large; fields go on from one to the next. ``simplex`` moves
    through a further dimension of OpenSimplex (with ``loop`` two, around a circle); all other kinds mix static
    fields by ``mixtures``. The envelope is not included.

    A value depends on no other frame, field or size asked for: the lattice stands still in OpenSimplex's
    space, the knots in time follow from (total, loop, cycles), and all arithmetic is elementwise, since a
    matrix product may round differently in another batch. It is quickest to ask for all frames of a job at
    once: neighbours share evaluations.
    """
    top, left, bottom, right = window
    whole = size[0] / (bottom - top), size[1] / (right - left)
    unit = min(whole) * feature_size
    (y, rows), (x, columns) = (
        _lattice(n, unit, start * all_of_it) for n, start, all_of_it in zip(size, (top, left), whole, strict=True)
    )
    if kind(motion).path(motion, 0, total) is not None:
        y, x = np.meshgrid(y, x, indexing="ij")
        coarse = _travelling(motion, frames, total, count, y, x, generator(seed, purpose))
    else:
        mixing = mixtures(motion, frames, total, seed).numpy()
        coarse = _mixed(
            mixing, [_static(count, tuple(y), tuple(x), seed, f"{purpose}/{k}") for k in range(mixing.shape[1])]
        )
    fields = torch.empty(len(frames), count, *size)
    for field, knots in zip(fields, coarse, strict=True):
        field.copy_(torch.from_numpy(rows.along(1, columns.along(2, knots))))
    return fields


def require(scene: Scene) -> None:
    """Raises ModuleNotFoundError, which says how to install it, where a scene's noise needs a package that is missing.

    Smooth fields need it, and so does whatever follows their kind of motion.
    """
    noise = scene.noise
    smooth = noise.concept.strength or noise.feature.strength
    moving = noise.visual.motion or scene.motion
    travels = noise.visual.strength and kind(moving).path(moving, 0, 1) is not None
    message = missing()
    if message is not None and (smooth or travels):
        raise ModuleNotFoundError(message, name="opensimplex")


def _mixed(mixing: np.ndarray, static: Sequence[np.ndarray]) -> np.ndarray:
    """K static fields ``[count, rows, columns]`` mixed by ``[B, K]``: ``[B, count, rows, columns]``."""
    mixed = np.zeros((len(mixing), *static[0].shape))
    for k, field in enumerate(static):
        mixed += mixing[:, k, None, None, None] * field
    return mixed


@functools.lru_cache(REMEMBERED_FIELDS)
def _static(count: int, y: tuple[float, ...], x: tuple[float, ...], seed: int, purpose: str) -> np.ndarray:
    """``count`` fields that stand still, at a lattice's points: ``[count, rows, columns]``."""
    rng = generator(seed, purpose)
    rows, columns = np.meshgrid(y, x, indexing="ij")
    return np.stack([SimplexField.draw(2, rng).at(rows, columns) for _ in range(count)])


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
    path = [kind(motion).path(motion, knot * total / knots, total) or () for knot in times.knots.tolist()]
    when = [np.array(t)[:, None, None] for t in zip(*path, strict=True)]
    fields = [SimplexField.draw(2 + len(when), rng) for _ in range(count)]
    return np.stack([times.along(0, field.at(y, x, *when)) for field in fields], axis=1)


def _lattice(n: int, unit: float, start: float = 0.0) -> tuple[np.ndarray, _Interpolation]:
    """Where along an axis of n elements, the first at ``start``, to evaluate, in units of so many elements, and how to
    get from there to the elements' centres: a lattice, or the centres themselves if they are fewer."""
    places = (np.arange(n) + 0.5 + start) / unit
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
