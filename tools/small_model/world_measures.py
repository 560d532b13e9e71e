"""What pictures show between two places of the world, by ground truth.

A picture that leads from place A (left) to place B (right) is read patch by patch (`WorldTruth`). As every mixture of
two places has a true picture, four questions have answers: does a place where the map says `a` look like a whole
picture of the mixture `a`; is the middle seen half-way, or still one of the ends, or neither; does the grain run in
one direction there, or in both of the ends' at once; do the attributes change in one direction along the way. The
renderer's own pictures and a crossfade of two pictures are the two standards to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .world import BY_NAME, Middle, between
from .world_render import render
from .world_truth import READ, WorldTruth

DIFFERENT = 0.15  # attributes that differ less between the ends say nothing about the way
SPREAD = 0.12  # typical scatter of a reading, the unit of distances
POINTS = 9  # of a way, an odd number


@dataclass(frozen=True)
class Way:
    """The way between two places as it is read, by the attributes whose readings change on it.

    names: of the attributes; points: `[POINTS, N]` mean readings of true pictures from the left end to the right one.
    Readings and not the attributes themselves: not every attribute shows from its first step on (floes need cold,
    and hardly a stone of a ruin is seen among trees), and the reader has errors of its own.
    """

    names: tuple[str, ...]
    points: np.ndarray

    @property
    def left(self) -> np.ndarray:
        return self.points[0]

    @property
    def middle(self) -> np.ndarray:
        return self.points[len(self.points) // 2]

    @property
    def right(self) -> np.ndarray:
        return self.points[-1]

    @classmethod
    def over(cls, middle: Middle, truth: WorldTruth, count: int = 4, first_seed: int = 30_000_000) -> Way:
        """The way over a middle, read off `count` true pictures of each point.

        Raises ValueError where nothing that can be read changes on it.
        """
        a, b = (BY_NAME[name].attributes for name in middle.parents)
        seeds, rows = list(range(first_seed, first_seed + count)), []
        for share in np.linspace(0, 1, POINTS):
            images = render(between(a, b, float(share)).repeat(count, 1), seeds, 128, 128)
            values = truth.attributes(images.permute(0, 2, 3, 1))
            rows.append([values[name].mean() for name in READ])
        points = np.array(rows)
        chosen = np.abs(points[-1] - points[0]) >= DIFFERENT
        if not chosen.any():
            raise ValueError(f"middle: nothing that can be read changes on the way over {middle.name}")
        return cls(tuple(name for name, take in zip(READ, chosen, strict=True) if take), points[:, chosen])

    def read(self, truth: WorldTruth, images: np.ndarray | Tensor) -> np.ndarray:
        """`[S, H, W, 3]` -> `[S, R, C, N]` values of the way's attributes."""
        values = truth.attributes(images)
        return np.stack([values[name] for name in self.names], -1)

    def distance(self, values: np.ndarray) -> np.ndarray:
        """How far `[M, N]` values lie from the way's nearest point, `[M]`."""
        best = np.full(len(values), np.inf)
        for start, end in zip(self.points, self.points[1:], strict=False):
            step = end - start
            t = np.clip((values - start) @ step / max(step @ step, 1e-12), 0, 1)
            best = np.minimum(best, np.linalg.norm(values - (start + t[:, None] * step), axis=1))
        return best


def inconsistency(ramp: np.ndarray, levels: np.ndarray, constant: dict[float, np.ndarray]) -> float:
    """Mean difference between columns of a ramp and whole pictures of the same mixture.

    ramp: `[S, R, C, N]` readings; levels: `[C]` share of the right end in each column; constant: readings of pictures
    of one mixture by its share. Each share is compared with the columns nearest to it.
    """
    off = []
    for share, readings in constant.items():
        nearest = np.abs(levels - share) <= np.abs(levels - share).min() + 1e-6
        off.append(np.abs(ramp[:, :, nearest].mean((0, 1, 2)) - readings.mean((0, 1, 2))).mean())
    return float(np.mean(off))


def seen(readings: np.ndarray, way: Way) -> dict[str, float]:
    """Share of patches that are nearest to the left end, the middle and the right end, and how far off they lie.

    off: mean distance of a patch from the nearest point of the way, in units of a reading's scatter.
    """
    flat = readings.reshape(-1, readings.shape[-1])
    ends = np.stack([way.left, way.middle, way.right])
    nearest = np.linalg.norm(flat[:, None] - ends[None], axis=-1).argmin(1)
    shares = np.bincount(nearest, minlength=3) / len(flat)
    off = way.distance(flat).mean() / (SPREAD * np.sqrt(len(way.names)))
    return dict(zip(("left", "middle", "right"), shares.tolist(), strict=True)) | {"off": float(off)}


def backward(ramp: np.ndarray, way: Way) -> float:
    """How much of the way the attributes go in the wrong direction, column by column; 0 where all are monotone."""
    curve = ramp.mean((0, 1)) * np.sign(way.right - way.left)  # [C, N], rising
    steps = np.diff(curve, axis=0)
    wrong = -np.minimum(steps, 0).sum(0)
    return float((wrong / np.abs(way.right - way.left)).mean())


def orientations(images: np.ndarray | Tensor, bins: int = 36) -> np.ndarray:
    """`[bins]` share of the structure's energy by the direction it runs in, over half a turn from level.

    From the power spectrum, in which two patterns laid over each other both show; the gradient of their sum has a
    direction of its own. images: `[S, H, W, 3]` uint8 or in [0, 1].
    """
    y = torch.as_tensor(np.asarray(images)).float().mean(-1)
    height, width = y.shape[1:]
    window = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
    power = torch.fft.fft2((y - y.mean((1, 2), keepdim=True)) * window).abs().square().mean(0)
    fy, fx = torch.fft.fftfreq(height)[:, None].expand_as(power), torch.fft.fftfreq(width)[None].expand_as(power)
    radius = (fy**2 + fx**2).sqrt()
    weight = power * radius**2 * ((radius > 2.5 / min(height, width)) & (radius < 0.35))
    turn = torch.remainder(torch.atan2(fy, fx) / torch.pi + 0.5, 1)  # across the wave's own direction
    number = (turn * bins).round().long() % bins
    energy = torch.zeros(bins).scatter_add(0, number.flatten(), weight.flatten())
    return (energy / energy.sum().clamp(min=1e-9)).numpy()


def ghosting(images: np.ndarray | Tensor, left: float, right: float, width: float = 0.06) -> float:
    """Structure along both ends' directions at once, against that along the direction between them.

    left, right: directions of the grain in half turns; width: half the angle counted as one direction. 0 where nothing
    runs along the rarer of the two ends' directions; above 1 where more does than along the direction half-way.
    """
    share = orientations(images)
    at = np.arange(len(share)) / len(share)

    def along(direction: float) -> float:
        away = np.abs(at - direction % 1)
        return float(share[np.minimum(away, 1 - away) <= width].sum())

    return min(along(left), along(right)) / max(along((left + right) / 2), 1e-9)
