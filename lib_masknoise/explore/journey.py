"""How noise becomes a picture: one pass of the model, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_masknoise.explore.model import Model, Recording
from lib_masknoise.explore.plane import principal

DECODED_TOGETHER = 4
COLOUR_REACH = 2.5  # standard deviations of the last x0 that a colour channel spans on either side of its mean


@dataclass(frozen=True, eq=False)
class Colours:
    """Latents as colours: red, green and blue are the three principal components of one latent's values over its
    locations. Made once and used for all steps, so that a colour means the same in each of them.

    mean `[C]`, axes `[3, C]`, spread `[3]`: the standard deviation of each component; explained: its share.
    """

    mean: np.ndarray
    axes: np.ndarray
    spread: np.ndarray
    explained: tuple[float, ...]

    @classmethod
    def of(cls, latent: Tensor) -> Colours:
        """Fitted on a latent `[C, h, w]`."""
        values = _locations(latent)
        mean, axes, explained = principal(values, 3)
        spread = ((values - mean) @ axes.T).std(0)
        return cls(mean, axes, np.maximum(spread, 1e-12), tuple(float(share) for share in explained))

    def picture(self, latent: Tensor, size: tuple[int, int]) -> Image.Image:
        """A latent `[C, h, w]` in these colours, each location a square, at a size (height, width) in pixels."""
        components = (_locations(latent) - self.mean) @ self.axes.T
        levels = 0.5 + components / (2 * COLOUR_REACH * self.spread)
        pixels = np.clip(levels * 255, 0, 255).round().astype(np.uint8).reshape(*latent.shape[1:], 3)
        return Image.fromarray(pixels).resize(size[::-1], Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Step:
    """What there is to see at one step: the picture the model is heading for, the noisy one, x0 in colours, and both
    latents' places in the plane."""

    sigma: float
    x0: Image.Image
    x_t: Image.Image
    pca: Image.Image
    path_x0: tuple[float, float]
    path_x_t: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Path:
    """Both paths through the space of latents, in the plane that holds most of them together. x0, x_t: `[S, 2]`."""

    x0: np.ndarray
    x_t: np.ndarray
    explained: tuple[float, float]

    @classmethod
    def of(cls, recording: Recording) -> Path:
        sides = [
            torch.stack([getattr(moment, name).double().flatten() for moment in recording.moments]).numpy()
            for name in ("x0", "x_t")
        ]
        both = np.concatenate(sides)
        mean, axes, explained = principal(both, 2)
        x0, x_t = ((side - mean) @ axes.T for side in sides)
        return cls(x0, x_t, (float(explained[0]), float(explained[1])))


def steps(model: Model, recording: Recording, path: Path, colours: Colours, size: tuple[int, int]) -> Iterator[Step]:
    """Every moment of a recording as pictures of a size (height, width), decoded a few at a time; of a complete one the
    last picture is the pass's own, bit for bit."""
    moments = recording.moments
    for start in range(0, len(moments), DECODED_TOGETHER):
        some = moments[start : start + DECODED_TOGETHER]
        x0 = model.decoded(torch.stack([moment.x0 for moment in some]))
        x_t = model.decoded(torch.stack([moment.x_t for moment in some]))
        for i, moment in enumerate(some, start):
            pictures = x0[i - start], x_t[i - start]
            if i == len(moments) - 1 and recording.image is not None:
                pictures = recording.image, recording.image
            of_x0, of_x_t = ((float(side[i][0]), float(side[i][1])) for side in (path.x0, path.x_t))
            yield Step(moment.sigma, *pictures, colours.picture(moment.x0, size), of_x0, of_x_t)


def colours(recording: Recording) -> Colours:
    """Those of the last x0."""
    return Colours.of(recording.moments[-1].x0)


def _locations(latent: Tensor) -> np.ndarray:
    """`[C, h, w]` → `[h·w, C]` in float64."""
    return latent.double().flatten(1).T.numpy()
