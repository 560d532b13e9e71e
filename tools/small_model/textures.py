"""Procedural textures: fourteen concepts, each separable from the others by colour and by structure.

Every texture is a short formula over smooth noise and jittered cells. The patch classifier and the model
were trained on exactly these pictures: a change of a constant or of the order of the random draws changes
the data.

    python -m tools.small_model.textures preview.png      one row a concept, with its adjectives
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from .patch_classifier import CONCEPTS

Colour = Sequence[float]
TAU = 6.283
ADJECTIVES = ("", "bright", "dark", "blurry", "warm", "cold", "faded", "coarse")
BASE_ADJECTIVES = 4  # the first four; the classifier knows these


@dataclass
class Canvas:
    """Size and random stream of one batch of pictures; all noise of a texture is drawn through it."""

    batch: int
    height: int
    width: int
    generator: torch.Generator

    def __post_init__(self) -> None:
        shape = (self.batch, self.height, self.width)
        self.y = torch.arange(self.height).float().view(1, -1, 1).expand(shape)
        self.x = torch.arange(self.width).float().view(1, 1, -1).expand(shape)

    def scalar(self, low: float, high: float) -> float:
        """One uniform number for the whole batch."""
        return float(low + (high - low) * torch.rand(1, generator=self.generator))

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """`[B, 1, 1]` uniform numbers, one a picture."""
        return (low + (high - low) * torch.rand(self.batch, generator=self.generator)).view(self.batch, 1, 1)

    def noise(self, scale_y: float, scale_x: float | None = None) -> torch.Tensor:
        """`[B, H, W]` smooth noise of about unit variance; the scales are its grain in pixels."""
        scale_x = scale_x or scale_y
        rows, columns = math.ceil(self.height / scale_y) + 4, math.ceil(self.width / scale_x) + 4
        z = torch.randn(self.batch, 1, rows, columns, generator=self.generator)
        size = (int(rows * scale_y), int(columns * scale_x))
        z = F.interpolate(z, size=size, mode="bicubic", align_corners=False)
        top, left = (
            int(torch.randint(0, max(1, int(s)), (1,), generator=self.generator)) + int(s) for s in (scale_y, scale_x)
        )
        return z[:, 0, top : top + self.height, left : left + self.width] * 1.3

    def cells(self, size: float, jitter: float = 0.8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Voronoi cells on a jittered grid: distances to the two nearest seeds, its id in [0, 1)."""
        rows, columns = int(self.height / size) + 5, int(self.width / size) + 5
        seed_y, seed_x, ids = (torch.rand(self.batch, rows, columns, generator=self.generator) for _ in range(3))
        seed_y, seed_x = (s.sub(0.5).mul(jitter).add(0.5) for s in (seed_y, seed_x))
        cell_y, cell_x = (self.y / size).long() + 2, (self.x / size).long() + 2
        b = torch.arange(self.batch).view(-1, 1, 1)
        first = torch.full((self.batch, self.height, self.width), 1e9)
        second, nearest = first.clone(), torch.zeros_like(first)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                iy, ix = cell_y + dy, cell_x + dx
                py, px = (iy - 2 + seed_y[b, iy, ix]) * size, (ix - 2 + seed_x[b, iy, ix]) * size
                distance = ((py - self.y) ** 2 + (px - self.x) ** 2).sqrt()
                closer = distance < first
                second = torch.where(closer, first, torch.minimum(second, distance))
                nearest = torch.where(closer, ids[b, iy, ix], nearest)
                first = torch.where(closer, distance, first)
        return first, second, nearest


def _rgb(colour: Colour) -> torch.Tensor:
    return torch.as_tensor(colour).view(1, 3, 1, 1)


def gradient(colours: Sequence[Colour], t: torch.Tensor) -> torch.Tensor:
    """`[B, 3, H, W]`: the colour at t in [0, 1] along evenly spaced colours."""
    t = t.clamp(0, 1) * (len(colours) - 1)
    return sum((1 - (t - i).abs()).clamp(0, 1).unsqueeze(1) * _rgb(c) for i, c in enumerate(colours))


def paint(image: torch.Tensor, colour: Colour, alpha: torch.Tensor) -> torch.Tensor:
    """`colour` over `image` with the opacity `alpha` `[B, H, W]`, clamped to [0, 1]."""
    return image + (_rgb(colour) - image) * alpha.clamp(0, 1).unsqueeze(1)


def wheat_field(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Upright golden rows, swaying."""
    period = c.uniform(9, 12)
    stalks = torch.sin(TAU * (c.x + 4 * c.noise(40, 24)) / period + phase)
    t = 0.5 + 0.38 * stalks + 0.22 * c.noise(28, 6)
    return gradient([(0.50, 0.31, 0.04), (0.86, 0.63, 0.14), (0.99, 0.87, 0.45)], t)


def ocean(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Level blue waves with foam on the crests."""
    period = c.uniform(13, 18)
    waves = torch.sin(TAU * (c.y + 4 * c.noise(18, 40)) / period + phase)
    t = 0.5 + 0.36 * waves + 0.18 * c.noise(8, 24)
    image = gradient([(0.01, 0.13, 0.42), (0.06, 0.33, 0.68), (0.30, 0.60, 0.90)], t)
    return paint(image, (0.92, 0.97, 1.0), ((waves + 0.35 * c.noise(10, 16)) - 0.95) * 2.5)


def forest(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Round dark-green crowns from above."""
    centre, _, tree = c.cells(15.0)
    t = 1 - centre / 11.0 + 0.5 * (tree - 0.5) + 0.12 * c.noise(6)
    return gradient([(0.01, 0.08, 0.03), (0.05, 0.24, 0.06), (0.17, 0.44, 0.12)], t)


def desert(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Oblique dunes with a long and a short flank."""
    angle, period = c.uniform(0.45, 0.75), c.uniform(28, 38)
    u = (c.x * torch.sin(angle) + c.y * torch.cos(angle) + 8 * c.noise(48)) / period + phase
    saw = u - u.floor()
    dune = torch.where(saw < 0.78, saw / 0.78, (1 - saw) / 0.22)
    t = 0.1 + 0.8 * dune + 0.07 * c.noise(8)
    return gradient([(0.60, 0.43, 0.30), (0.80, 0.63, 0.46), (0.94, 0.81, 0.64)], t)


def night_sky(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Stars of several sizes on near-black blue."""
    t = 0.35 + 0.25 * c.noise(48)
    image = gradient([(0.005, 0.005, 0.03), (0.03, 0.03, 0.11), (0.07, 0.05, 0.18)], t)
    distance, _, star = c.cells(13.0, 0.7)
    radius = 0.9 + 1.5 * star
    return paint(image, (1.0, 1.0, 0.97), torch.exp(-((distance / radius) ** 2)) * (0.55 + 0.6 * star))


def lava(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Glowing cracks between black plates."""
    first, second, plate = c.cells(c.scalar(15, 19))
    edge = (second - first) / 2
    t = torch.exp(-((edge / 2.6) ** 2)) * 1.0 + 0.10 * c.noise(14) + 0.12 * plate
    return gradient([(0.06, 0.02, 0.02), (0.55, 0.05, 0.01), (0.95, 0.30, 0.02), (1.0, 0.72, 0.15)], t)


def snow(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Soft white mounds with bluish hollows."""
    t = 0.6 + 0.30 * c.noise(26, 34) + 0.06 * c.noise(7)
    return gradient([(0.76, 0.83, 0.96), (0.90, 0.94, 0.995), (0.98, 0.985, 1.0)], t)


def brick_wall(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Running bond with pale mortar; every brick has its own red."""
    height, width = c.scalar(12, 15), c.scalar(25, 30)
    top, left = c.uniform(0, height), c.uniform(0, width)
    y = c.y + top + 0.5 * c.noise(40)
    row = (y / height).floor()
    x = c.x + left + (row % 2) * width / 2 + 0.5 * c.noise(40)
    column = (x / width).floor()
    dy, dx = y - row * height, x - column * width
    joint = torch.minimum(torch.minimum(dy, height - dy), torch.minimum(dx, width - dx))
    brick = torch.frac(torch.sin(row * 12.9898 + column * 78.233 + phase * 7) * 43758.5453).abs()
    image = gradient([(0.40, 0.12, 0.08), (0.56, 0.21, 0.14), (0.68, 0.32, 0.22)],
                     brick * 0.8 + 0.1 + 0.12 * c.noise(5))  # fmt: skip
    return paint(image, (0.74, 0.70, 0.65), (1.9 - joint) * 1.2)


def meadow_with_flowers(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Light green with round flowers in five colours."""
    t = 0.5 + 0.22 * c.noise(14, 7) + 0.2 * c.noise(34)
    image = gradient([(0.30, 0.62, 0.15), (0.48, 0.78, 0.25), (0.66, 0.90, 0.40)], t)
    distance, _, flower = c.cells(12.5, 0.7)
    petals = torch.tensor([(0.95, 0.15, 0.2), (1.0, 0.92, 0.2), (1.0, 1.0, 1.0), (0.85, 0.25, 0.85), (1.0, 0.55, 0.15)])
    colour = petals[(flower * 4.999).long()].permute(0, 3, 1, 2)
    return image + (colour - image) * ((3.6 - distance) / 1.6).clamp(0, 1).unsqueeze(1)


def storm_clouds(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Grey billows of three sizes."""
    t = 0.5 + 0.36 * c.noise(36, 48) + 0.22 * c.noise(15, 20) + 0.10 * c.noise(7)
    return gradient([(0.16, 0.17, 0.19), (0.33, 0.345, 0.365), (0.56, 0.57, 0.58)], t)


def coral(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Pink ridges along the zero lines of noise."""
    ridge = 1 - (c.noise(17).abs() * 1.6).clamp(0, 1)
    t = 0.15 + 0.75 * ridge + 0.12 * c.noise(6)
    return gradient([(0.74, 0.20, 0.38), (0.93, 0.45, 0.55), (1.0, 0.76, 0.76)], t)


def ice(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Turquoise floes with dark cracks."""
    first, second, floe = c.cells(24.0, 0.95)
    edge = (second - first) / 2
    image = gradient([(0.40, 0.78, 0.84), (0.56, 0.89, 0.92), (0.74, 0.96, 0.97)],
                     0.5 + 0.7 * (floe - 0.5) + 0.2 * c.noise(24))  # fmt: skip
    return paint(image, (0.05, 0.50, 0.60), (2.0 - edge) * 0.9)


def marsh(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Brown ground, grey-green pools and dark reeds."""
    water = ((c.noise(18, 40) + 0.1) * 2.0 + 0.5).clamp(0, 1)
    image = gradient([(0.27, 0.22, 0.08), (0.38, 0.35, 0.13), (0.48, 0.46, 0.20)], 0.5 + 0.3 * c.noise(9, 14))
    # written as base + difference * t, not as a gradient: the float rounding is part of the data set
    dark, light = _rgb((0.17, 0.25, 0.24)), _rgb((0.36, 0.45, 0.42))
    pool = dark + (light - dark) * (0.5 + 0.4 * c.noise(5, 30)).clamp(0, 1).unsqueeze(1)
    image = image + (pool - image) * water.unsqueeze(1)
    sway = c.noise(30, 20)
    reeds = torch.sin(TAU * (c.x + 3 * sway) / c.uniform(12, 15) + phase)
    return paint(image, (0.12, 0.11, 0.03), ((reeds + 0.25 * c.noise(20, 10)) - 0.72) * 3.5 * 0.85)


def sunset_sky(c: Canvas, phase: torch.Tensor) -> torch.Tensor:
    """Level bands from yellow to violet with thin bright clouds."""
    period = c.uniform(150, 230)
    u = (c.y + 6 * c.noise(20, 90)) / period + phase / TAU
    band = (torch.remainder(u, 1.0) * 2 - 1).abs()
    t = band + 0.05 * c.noise(5, 40)
    image = gradient(
        [(1.0, 0.78, 0.32), (1.0, 0.52, 0.22), (0.90, 0.32, 0.38), (0.55, 0.20, 0.50), (0.30, 0.13, 0.45)], t
    )
    return paint(image, (1.0, 0.86, 0.62), (c.noise(7, 60) - 1.1) * 0.6)


GENERATORS: dict[str, Callable[[Canvas, torch.Tensor], torch.Tensor]] = {
    name: globals()[name.replace(" ", "_")] for name in CONCEPTS
}


def texture(concept: str, batch: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """`[B, 3, H, W]` pictures of a concept in [0, 1], each with a slight colour cast of its own."""
    canvas = Canvas(batch, height, width, generator)
    phase = canvas.uniform(0, TAU)
    image = GENERATORS[concept](canvas, phase)
    gain = 1 + 0.05 * torch.randn(batch, 1, 1, 1, generator=generator)
    gain = gain + 0.02 * torch.randn(batch, 3, 1, 1, generator=generator)
    return (image * gain.clamp(0.85, 1.15)).clamp(0, 1)


def blur(image: torch.Tensor, sigma: float = 3.0) -> torch.Tensor:
    """Gaussian blur of `[B, C, H, W]`, mirrored at the edges."""
    reach = int(3 * sigma)
    t = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-(t**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(image.shape[1], 1, 1, 1)
    channels = image.shape[1]
    image = F.conv2d(F.pad(image, (reach, reach, 0, 0), mode="reflect"), kernel, groups=channels)
    kernel = kernel.transpose(2, 3)
    return F.conv2d(F.pad(image, (0, 0, reach, reach), mode="reflect"), kernel, groups=channels)


def fade(image: torch.Tensor) -> torch.Tensor:
    """Washed out: less colour, less contrast."""
    luma = (image * _rgb((0.299, 0.587, 0.114))).sum(1, keepdim=True)
    return (0.55 * image + 0.30 * luma + 0.15 * 0.75).clamp(0, 1)


def coarsen(image: torch.Tensor) -> torch.Tensor:
    """The upper left 5/8 of the picture, enlarged to its size: every structure 1.6 times as large."""
    size = image.shape[-2:]
    part = image[..., : size[0] * 5 // 8, : size[1] * 5 // 8]
    return F.interpolate(part, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


MANNERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda image: image,
    "bright": lambda image: (image.clamp(1e-4, 1) ** 0.72 * 1.06).clamp(0, 1),
    "dark": lambda image: image * 0.66,
    "blurry": blur,
    "warm": lambda image: (image * _rgb((1.10, 0.98, 0.80))).clamp(0, 1),
    "cold": lambda image: (image * _rgb((0.82, 0.98, 1.14))).clamp(0, 1),
    "faded": fade,
    "coarse": coarsen,
}


def adjective(image: torch.Tensor, word: str) -> torch.Tensor:
    """`image` in the manner of an adjective; "" leaves it as it is."""
    return MANNERS[word](image)


def main() -> None:
    """Write a preview picture: a row a concept, three plain examples and one of each adjective."""
    from PIL import Image

    parser = argparse.ArgumentParser(description="Preview of the procedural textures.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator, rows = torch.Generator().manual_seed(args.seed), []
    for concept in CONCEPTS:
        image = texture(concept, 4, 128, 128, generator)
        tiles = [*image[:3]] + [adjective(image[3:], word)[0] for word in ADJECTIVES[1:]]
        rows.append(torch.cat(tiles, 2))
    sheet = torch.cat(rows, 1).permute(1, 2, 0).mul(255).round().byte()
    Image.fromarray(sheet.numpy()).save(args.out)


if __name__ == "__main__":
    main()
