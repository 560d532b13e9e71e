"""Noise the world is drawn from: tileable maps made once, read at any coordinate, offset and scale.

Reading a stored map by bilinear interpolation is many times faster than drawing fresh noise, and it allows the
coordinates to be bent: by perspective, a rotation or a warp. With a random map and offset for each use, pictures do
not repeat.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

SIDE = 256  # side of a tile in its own pixels
TILES = 24
CELL = 16  # pixels between the seeds of the Voronoi tiles
WAVE = 16  # wavelength of the smooth tiles in pixels
SEED = 20240


def wave_tiles(generator: torch.Generator, count: int) -> torch.Tensor:
    """`[count, 256, 256]` smooth isotropic noise of unit variance, about WAVE pixels from crest to crest."""
    frequency = torch.fft.fftfreq(SIDE) * WAVE
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt()
    band = torch.exp(-0.5 * ((radius - 0.75) / 0.35) ** 2)
    white = torch.randn(count, SIDE, SIDE, generator=generator)
    tiles = torch.fft.ifft2(torch.fft.fft2(white) * band).real
    return tiles / tiles.std((1, 2), keepdim=True)


def cell_tiles(generator: torch.Generator, count: int) -> torch.Tensor:
    """`[count, 3, 256, 256]` Voronoi cells: distance to the seed and to the edge (in cells), the cell's number.

    The number lies in [0, 1); all three wrap round.
    """
    side = SIDE // CELL
    seeds = torch.rand(count, 2, side, side, generator=generator) * 0.8 + 0.1
    numbers = torch.rand(count, side, side, generator=generator)
    at = (torch.arange(SIDE) + 0.5) / CELL
    y, x = at.view(1, -1, 1).expand(count, SIDE, SIDE), at.view(1, 1, -1).expand(count, SIDE, SIDE)
    row, column = y.long(), x.long()
    b = torch.arange(count).view(-1, 1, 1)
    first = torch.full((count, SIDE, SIDE), 9.0)
    second, number = first.clone(), torch.zeros_like(first)
    for dy in (-2, -1, 0, 1, 2):
        for dx in (-2, -1, 0, 1, 2):
            r, c = (row + dy) % side, (column + dx) % side
            away_y, away_x = row + dy + seeds[b, 0, r, c] - y, column + dx + seeds[b, 1, r, c] - x
            distance = (away_y**2 + away_x**2).sqrt()
            closer = distance < first
            second = torch.where(closer, first, torch.minimum(second, distance))
            number = torch.where(closer, numbers[b, r, c], number)
            first = torch.where(closer, distance, first)
    return torch.stack([first, (second - first) / 2, number], 1)


def star_tiles(generator: torch.Generator, count: int) -> torch.Tensor:
    """`[count, 256, 256]` points of light of several sizes, in [0, 1]."""
    tiles = torch.zeros(count, SIDE, SIDE)
    at = torch.arange(SIDE).float()
    for tile in tiles:
        for _ in range(420):
            y, x, u, v = torch.rand(4, generator=generator).tolist()
            y, x, radius, light = y * SIDE, x * SIDE, 0.55 + 0.75 * u**4, 0.25 + 0.75 * v**2
            away = [torch.remainder(at - centre + SIDE / 2, SIDE) - SIDE / 2 for centre in (y, x)]
            near = [torch.nonzero(a.abs() < 5)[:, 0] for a in away]
            spot = torch.exp(-(away[0][near[0]][:, None] ** 2 + away[1][near[1]][None] ** 2) / radius**2) * light
            window = (near[0][:, None], near[1][None])
            tile[window] = torch.maximum(tile[window], spot)
    return tiles


@functools.lru_cache(maxsize=1)
def bank() -> dict[str, torch.Tensor]:
    """All tiles `[TILES, C, 258, 258]`, with one wrapped pixel round them. Made on first use, always the same."""
    generator = torch.Generator().manual_seed(SEED)
    tiles = {
        "wave": wave_tiles(generator, TILES)[:, None],
        "cell": cell_tiles(generator, TILES),
        "star": star_tiles(generator, TILES)[:, None],
    }
    return {name: F.pad(values, (1, 1, 1, 1), mode="circular") for name, values in tiles.items()}


class Draws:
    """The random choices of a batch of pictures: one stream a picture, so a picture does not depend on its batch.

    Each choice has a slot of its own by name, so that leaving one part out changes no other.
    seeds: one number a picture.
    """

    SLOTS = 64  # readings of tiles
    NUMBERS = 2048  # other numbers

    def __init__(self, seeds: list[int]):
        generators = [torch.Generator().manual_seed(int(seed) & 0x7FFFFFFFFFFFFFFF) for seed in seeds]
        drawn = torch.stack([torch.rand(3 * self.SLOTS + self.NUMBERS, generator=g) for g in generators])
        self._places = drawn[:, : 3 * self.SLOTS].unflatten(1, (self.SLOTS, 3))
        self._numbers = drawn[:, 3 * self.SLOTS :]

    def numbers(self, start: int, *shape: int) -> torch.Tensor:
        """`[B, *shape]` numbers in [0, 1), those from `start` on."""
        count = math.prod(shape)
        if start + count > self.NUMBERS:
            raise ValueError(f"start: expected at most {self.NUMBERS - count}, not {start}")
        return self._numbers[:, start : start + count].reshape(-1, *shape)

    def read(
        self, slot: int, kind: str, x: torch.Tensor, y: torch.Tensor, scale: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """A tile of `kind` at the coordinates `x`, `y` in pixels, each picture's at a place of its own.

        slot: which of the places; scale: pixels of the picture for one of the tile. `x` and `y` broadcast to
        `[B, H, W]`. Returns `[B, H, W]`, for cells `[B, 3, H, W]`.
        """
        chosen, top, left = self._places[:, slot].unbind(1)
        tile = bank()[kind][(chosen * TILES).long()]
        u, v = torch.remainder(x / (scale * SIDE) + left.view(-1, 1, 1), 1.0), y / (scale * SIDE) + top.view(-1, 1, 1)
        grid = torch.stack(torch.broadcast_tensors(u, torch.remainder(v, 1.0)), -1)
        grid = grid * (2 * SIDE / (SIDE + 2)) + (2 / (SIDE + 2) - 1)
        out = F.grid_sample(tile, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return out if kind == "cell" else out[:, 0]
