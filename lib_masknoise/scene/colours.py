"""Colour-coded pictures: flat colours, each of which stands for something, and the pixels between them.

What a pixel is made of is found in three steps: the flat colours of the picture; the pixels that are one of them,
within a tolerance (JPEG); and of the others (smoothed edges, soft brushes) the two colours that lie around them and
between which they fit best, with the share of each. The shares of all colours add up to 1 at every pixel.

`javascript/masknoise_1_colours.js` does the same on the canvas.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

TOLERANCE = 0.05
"""Of each channel, as a fraction of its range: 12 levels, more than a JPEG of usual quality strays inside an area."""
FLAT = 3
"""Levels by which a pixel of a flat area differs from its neighbours at most; a soft edge changes faster."""
LEAST = 0.002
"""Share of the picture below which a colour is none of its flat ones."""
MOST = 30
"""Flat colours of one picture: each is a bit of a number."""
CANDIDATES = 4096
NONE = 255
"""In place of a colour's number: transparent."""
BACKGROUNDS = ("#ffffff", "#000000")
"""Colours that usually stand for nothing."""


class ColourMap(NamedTuple):
    """A picture as shares of its flat colours.

    colours: uint8 ``[K, 3]``, the most frequent first. shares: of the picture, K numbers. first, second: uint8
    ``[H, W]``, the numbers of the two colours of each pixel. amount: uint8 ``[H, W]``, the first one's share times 255.
    """

    colours: Array
    shares: Array
    first: Array
    second: Array
    amount: Array

    @property
    def names(self) -> list[str]:
        return ["#" + bytes(colour.tolist()).hex() for colour in self.colours]

    def of(self, k: int) -> Array:
        """One colour's shares, uint8 ``[H, W]``."""
        values = np.where(self.first == k, self.amount, 0)
        return np.where((self.second == k) & (self.first != k), 255 - self.amount, values).astype(np.uint8)

    def find(self, colour: str, tolerance: float = TOLERANCE) -> int:
        """The number of a colour. Raises ValueError, which lists those there are."""
        if len(self.colours):
            distances = np.abs(self.colours.astype(int) - parsed(colour)).max(1)
            nearest = int(distances.argmin())
            if distances[nearest] <= tolerance * 255:
                return nearest
        raise ValueError(f"{colour} is no flat colour of the picture, which has {self.listed()}")

    def listed(self, numbers: Sequence[int] | None = None) -> str:
        """Colours with their shares, in words."""
        numbers = range(len(self.colours)) if numbers is None else numbers
        return ", ".join(f"{self.names[k]} ({self.shares[k]:.1%})" for k in numbers) or "none"


def parsed(colour: str) -> Array:
    """``#rrggbb`` as three levels. Raises ValueError."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        raise ValueError(f'expected a colour such as "#ff8000", got "{colour[:40]}"')
    return np.array(list(bytes.fromhex(colour[1:])), int)


def unmix(pixels: Array, tolerance: float = TOLERANCE) -> ColourMap:
    """What the pixels of a picture, uint8 ``[H, W, 4]``, are made of. A pixel whose alpha is below one half is nothing.

    tolerance: by how much a pixel may differ from a flat colour in any channel, as a fraction of the channel's range.
    """
    opaque = pixels[..., 3] >= 128
    rgb = pixels[..., :3].astype(np.int16)
    colours = _flat_colours(rgb, opaque, tolerance)
    first = np.full(opaque.shape, NONE, np.uint8)
    second, amount = first.copy(), np.full(opaque.shape, 255, np.uint8)
    if not len(colours):
        return ColourMap(colours, np.zeros(0), first, second, amount)
    sure = _nearest(rgb, colours, first, tolerance) & opaque
    first[~sure] = NONE
    places = np.nonzero(opaque & ~sure)
    around = _around(first, len(colours), sure)[places]
    first[places], second[places], amount[places] = _between(rgb[places], colours.astype(float), around)
    found = ColourMap(colours, np.zeros(len(colours)), first, second, amount)
    shares = np.array([float(found.of(k).mean()) / 255 for k in range(len(colours))])
    return found._replace(shares=shares)


def _flat_colours(rgb: Array, opaque: Array, tolerance: float) -> Array:
    """The colours of flat areas, uint8 ``[K, 3]``, the most frequent first: of those nearer to each other than the
    tolerance, the most frequent one."""
    flat = opaque.copy()
    flat[:, 1:] &= np.abs(np.diff(rgb, axis=1)).max(-1) <= FLAT
    flat[1:] &= np.abs(np.diff(rgb, axis=0)).max(-1) <= FLAT
    levels = rgb[flat].astype(np.int32)
    codes, counts = np.unique(levels[:, 0] << 16 | levels[:, 1] << 8 | levels[:, 2], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:CANDIDATES]
    colours: list[Array] = []
    sums: list[int] = []
    for code, count in zip(codes[order], counts[order], strict=True):
        colour = np.array([code >> 16, code >> 8 & 255, code & 255])
        near = [np.abs(colour - other).max() for other in colours]
        if near and min(near) <= tolerance * 255:
            sums[int(np.argmin(near))] += int(count)
        else:
            colours.append(colour)
            sums.append(int(count))
    largest = sorted(range(len(colours)), key=lambda k: -sums[k])[:MOST]
    kept = [colours[k] for k in largest if sums[k] >= LEAST * opaque.size]
    return np.array(kept, np.uint8).reshape(-1, 3)


def _nearest(rgb: Array, colours: Array, numbers: Array, tolerance: float) -> Array:
    """Write the number of the nearest colour into ``numbers``; where it is within the tolerance."""
    best = np.full(numbers.shape, 256, np.int16)
    for k, colour in enumerate(colours.astype(np.int16)):
        distance = np.abs(rgb - colour).max(-1)
        nearer = distance < best
        best[nearer], numbers[nearer] = distance[nearer], k
    return best <= tolerance * 255


def _around(numbers: Array, count: int, sure: Array) -> Array:
    """Which colours are near each pixel: int64 ``[H, W]``, a bit each. By blocks: those of its own and of the eight
    around it."""
    height, width = numbers.shape
    side = max(8, max(height, width) // 64)
    bits = np.where(sure, np.int64(1) << np.minimum(numbers, MOST).astype(np.int64), 0)
    padded = np.pad(bits, ((0, -height % side), (0, -width % side)))
    blocks = padded.reshape(padded.shape[0] // side, side, -1, side)
    blocks = np.bitwise_or.reduce(np.bitwise_or.reduce(blocks, axis=3), axis=1)
    wide = np.pad(blocks, 1)
    rows, columns = blocks.shape
    near: Array = np.zeros_like(blocks)
    for i, j in itertools.product(range(3), repeat=2):
        near |= wide[i : i + rows, j : j + columns]
    return near.repeat(side, 0)[:height].repeat(side, 1)[:, :width]


def _between(rgb: Array, colours: Array, around: Array) -> tuple[Array, Array, Array]:
    """The two of the colours around each of n pixels on the line between which it lies best, and the first's share."""
    count, pixels = len(colours), rgb.astype(float)
    first = np.zeros(len(pixels), np.uint8)
    second, amount = first.copy(), np.full(len(pixels), 255, np.uint8)
    everywhere = np.where(around == 0, (1 << count) - 1, around)
    best = np.full(len(pixels), np.inf)
    for k in range(count):
        here = (everywhere >> k & 1).astype(bool)
        distance = np.where(here, ((pixels - colours[k]) ** 2).sum(-1), np.inf)
        nearer = distance < best
        best[nearer], first[nearer], second[nearer] = distance[nearer], k, k
    for a, b in itertools.combinations(range(count), 2):
        here = np.nonzero(everywhere >> a & everywhere >> b & 1)[0]
        if not len(here):
            continue
        way = colours[a] - colours[b]
        share = ((pixels[here] - colours[b]) @ way / (way @ way)).clip(0, 1)
        distance = ((pixels[here] - colours[b] - share[:, None] * way) ** 2).sum(-1)
        nearer = distance < best[here] - 1e-9
        chosen = here[nearer]
        best[chosen], first[chosen], second[chosen] = distance[nearer], a, b
        amount[chosen] = np.rint(share[nearer] * 255)
    return first, second, amount
