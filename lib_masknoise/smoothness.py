"""How smoothly an animation moves, in figures, and the frame times at which it would move evenly.

Two distances between frames, both zero for equal images and both metrics, so that steps add up to the length of a
path:

* ``pixel_distance``: root mean square over all values, 0 to 1. Sees everything alike, also what the eye does not.
* ``perceptual_distance``: the normalised Laplacian pyramid distance (Laparra, Ballé, Berardino and Simoncelli,
  Perceptual Image Quality Assessment Using a Normalized Laplacian Pyramid, HVEI 2016). A picture is split into bands
  of detail, and each is divided by its own local amplitude, as the retina and the early visual cortex do: a change of
  contrast counts for more where there was little, fine detail counts no more than coarse shape. It follows people's
  judgement far better than pixels do and about as well as distances of learnt features, and it is thirty lines of
  fixed arithmetic: nothing to download, the same figure on every machine.

What is made of a sequence of steps d: the mean, the largest, and the evenness 1 − Gini(d), which is 1 where all steps
are equal and 1/n where one of n steps does all (He et al., AID: Attention Interpolation of Text-to-Image Diffusion,
NeurIPS 2024, measure interpolations by the same).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MAX_SIDE = 256  # pixels: what is finer moves with what is coarser, and a long render has thousands of frames
MAX_LEVELS = 6
SMALLEST_SIDE = 4  # pixels, of the coarsest level

# σ: the amplitude above which a response no longer grows in proportion, for the bands and for the coarse rest that they
# leave, values from 0 to 1. As in the authors' code (NLP_dist.m), learnt from natural images; its bands have 0.018 to
# 0.025.
BAND_SATURATION, REST_SATURATION = 0.02, 0.28

# Burt and Adelson's low-pass filter (The Laplacian Pyramid as a Compact Image Code, 1983), a = 0.4.
_TAPS = torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05])
_KERNEL = torch.outer(_TAPS, _TAPS).expand(3, 1, 5, 5)

# Rows: luma and the two colour differences of BT.709. The eye's channels are opponent colours, not RGB. sRGB values
# stand for the compression of brightness in the retina.
_OPPONENT = torch.tensor([[0.2126, 0.7152, 0.0722], [-0.1146, -0.3854, 0.5], [0.5, -0.4542, -0.0458]])

Features = tuple[Tensor, ...]


def features(image: Image.Image) -> Features:
    """The normalised Laplacian pyramid of an image: float32 ``[3, h, w]`` a level, from fine to coarse.

    Images whose longer side exceeds 256 pixels are shrunk to that. Each level is a band of luma and two colour
    differences, x / (σ + local mean of |x|); the last one is what the bands leave, normalised alike.
    """
    rgb = _rgb(image)[None]
    longer = max(image.size)
    if longer > MAX_SIDE:
        rgb = F.interpolate(rgb, [max(1, round(side * MAX_SIDE / longer)) for side in rgb.shape[-2:]], mode="area")
    low = torch.einsum("oc,bchw->bohw", _OPPONENT, rgb)
    levels: list[Tensor] = []
    while len(levels) < MAX_LEVELS - 1 and min(low.shape[-2:]) >= 2 * SMALLEST_SIDE:
        coarse = _blurred(low)[..., ::2, ::2]
        levels.append(low - F.interpolate(coarse, low.shape[-2:], mode="bilinear", align_corners=False))
        low = coarse
    saturations = [BAND_SATURATION] * len(levels) + [REST_SATURATION]
    return tuple((x / (s + _blurred(x.abs())))[0] for x, s in zip((*levels, low), saturations, strict=True))


def perceptual_distance(a: Features, b: Features) -> float:
    """The distance of two images by their ``features``: the mean over the levels of the root mean square difference.

    0 for equal images; two unrelated pictures are about 0.5 to 1 apart. Raises ValueError for images of different
    sizes.
    """
    _check_same([x.shape for x in a], [x.shape for x in b])
    return float(np.mean([(x - y).square().mean().sqrt().item() for x, y in zip(a, b, strict=True)]))


def pixel_distance(a: Image.Image, b: Image.Image) -> float:
    """Root mean square difference of two images of one size, RGB values from 0 to 1."""
    _check_same(a.size, b.size)
    return (_rgb(a) - _rgb(b)).square().mean().sqrt().item()


def evenness(steps: Sequence[float]) -> float:
    """1 − Gini coefficient of the steps (each 0 or more): 1 where all are equal, also where nothing moves.

    Gini = Σ_i Σ_j |d_i − d_j| / (2 n² mean), here from the sorted steps.
    """
    d = np.sort(np.asarray(steps, dtype=np.float64))
    n = len(d)
    if n == 0 or d.sum() == 0:
        return 1.0
    ranks = np.arange(1, n + 1)
    return float(1.0 - ((2 * ranks - n - 1) * d).sum() / (n * d.sum()))


def steps(images: Iterable[Image.Image], loop: bool) -> tuple[list[float], list[float]]:
    """The pixel and the perceptual distances between neighbours, one image in memory at a time.

    loop: the images are played in a circle, so that the way from the last to the first is the last step.
    """
    pixel: list[float] = []
    perceptual: list[float] = []
    first: tuple[Image.Image, Features] | None = None
    last = first
    for image in images:
        now = image, features(image)
        if last is not None:
            pixel.append(pixel_distance(last[0], now[0]))
            perceptual.append(perceptual_distance(last[1], now[1]))
        first, last = first or now, now
    if loop and pixel and first and last:
        pixel.append(pixel_distance(last[0], first[0]))
        perceptual.append(perceptual_distance(last[1], first[1]))
    return pixel, perceptual


def measure(images: Iterable[Image.Image], loop: bool) -> dict[str, dict[str, Any]]:
    """The smoothness of a sequence: ``{"pixel": figures, "perceptual": figures}`` of its ``steps``."""
    return {name: figures(d, loop) for name, d in zip(("pixel", "perceptual"), steps(images, loop), strict=True)}


def figures(steps: Sequence[float], loop: bool) -> dict[str, Any]:
    """What the steps of a sequence say: ``mean``, ``largest``, ``largest_at`` (the frame after which it comes),
    ``evenness``, and with ``loop``, where the last step is the closing one, ``closure``: that step divided by the
    largest of the others, at most 1 where the seam cannot be told. None where there is no step to speak of.
    """
    if not steps:
        return {"mean": 0.0, "largest": 0.0, "largest_at": None, "evenness": 1.0, "closure": None}
    inside = max(steps[:-1], default=0.0)
    return {
        "mean": round(float(np.mean(steps)), 6),
        "largest": round(max(steps), 6),
        "largest_at": int(np.argmax(steps)),
        "evenness": round(evenness(steps), 4),
        "closure": round(steps[-1] / inside, 4) if loop and inside > 0 else None,
    }


def coarse_times(total: int, count: int, loop: bool) -> list[float]:
    """``count`` evenly spaced frame times over an animation of ``total`` frames, both ends included: 0 to total − 1,
    or with ``loop`` 0 to total, which shows frame 0 again."""
    return np.linspace(0.0, total if loop else total - 1, count).tolist()


def even_times(times: Sequence[float], steps: Sequence[float], count: int, loop: bool) -> list[float]:
    """``count`` frame times between which a path moves by equal distances.

    times ``[K]``: ascending, where the path was looked at, from its start to its end. steps ``[K − 1]``: the distances
    between. The length of the path is taken as linear between two looks. With ``loop`` the end is the start, and no
    frame lies on it. Where nothing moves at all the times stay evenly spaced. To 4 decimals.
    """
    length = np.concatenate([[0.0], np.cumsum(np.asarray(steps, dtype=np.float64))])
    if length[-1] == 0:
        length = np.asarray(times, dtype=np.float64) - times[0]
    places = np.arange(count) / max(1, count if loop else count - 1)
    return np.round(np.interp(places * length[-1], length, times), 4).tolist()


def _rgb(image: Image.Image) -> Tensor:
    """``[3, H, W]`` float32 from 0 to 1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255)


def _blurred(x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), _KERNEL, groups=3)


def _check_same(a: Any, b: Any) -> None:
    if a != b:
        raise ValueError(f"images of one size are needed, got {a} and {b}")
