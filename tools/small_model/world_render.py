"""The renderer of the world: attributes and seeds to pictures.

    render(attributes, seeds, height, width) -> [B, 3, height, width] in [0, 1]

A picture is made of parts that every attribute changes smoothly: the view (where the horizon lies), the ground with
its relief, water where the relief lies below the level, masonry, rows of plants from the back to the front, the sky,
and over all of it light and mist. Random draws depend on the seed alone, never on the attributes, so a small step of
the attributes is a small step of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .world import ATTRIBUTES, INDEX
from .world_noise import Draws

TAU = 6.2831853
ROWS = 13  # rows of plants
BLADES = 512  # plants of a row that the random numbers repeat after
MELTS = 0.70  # temperature from which stone glows
Colour = tuple[float, float, float]
LEAF = [(0, (0.02, 0.09, 0.03)), (0.45, (0.13, 0.36, 0.07)), (1, (0.52, 0.74, 0.22))]
GOLD = [(0, (0.26, 0.15, 0.02)), (0.45, (0.74, 0.50, 0.12)), (1, (1.0, 0.88, 0.46))]


def ease(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Smooth step from 0 at `low` to 1 at `high` (which may be the smaller one)."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def rgb(colour: Colour) -> torch.Tensor:
    """`[1, 3, 1, 1]`."""
    return torch.tensor(colour).view(1, 3, 1, 1)


def mix(image: torch.Tensor, other: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """`other` `[B or 1, 3, H or 1, W or 1]` over `image` with the opacity `amount` `[B, H or 1, W or 1]`."""
    return torch.lerp(image, other, amount.unsqueeze(1))


def along(t: torch.Tensor, stops: Sequence[tuple[float, Colour]]) -> torch.Tensor:
    """`[B, 3, H, W]`: the colour at `t` `[B, H, W]` on a line through coloured stops."""
    out = rgb(stops[0][1])
    for (low, before), (high, after) in zip(stops, stops[1:], strict=False):
        step = ((t - low) / (high - low)).clamp(0, 1).unsqueeze(1)
        out = torch.addcmul(out, step, rgb(after) - rgb(before))
    return out


@dataclass
class View:
    """Where each pixel of a batch looks. Lengths are pixels of a picture 256 high.

    v: `[1, H, 1]` from 0 (top) to 1; x: `[1, 1, W]` from the middle; horizon: `[B, 1, 1]`, as v, may lie outside;
    far: `[B, H, 1]` distance of the ground relative to the lowest row (1 there); gx, gy: `[B, H, W]` on the ground.
    """

    v: torch.Tensor
    x: torch.Tensor
    horizon: torch.Tensor
    far: torch.Tensor
    gx: torch.Tensor
    gy: torch.Tensor

    @classmethod
    def of(cls, sky: torch.Tensor, height: int, width: int) -> View:
        """The view with the share `sky` `[B, 1, 1]` of sky: at 0 the horizon lies far above the picture."""
        v = ((torch.arange(height) + 0.5) / height).view(1, -1, 1)
        x = ((torch.arange(width) + 0.5 - width / 2) * (256 / height)).view(1, 1, -1)
        horizon = sky - 2.2 * (1 - sky / 0.22).clamp(min=0) ** 2 + 0.35 * ((sky - 0.8) / 0.2).clamp(min=0) ** 2
        near = 1.04 - horizon.clamp(max=0.99)
        depth = (v - horizon).clamp(min=0.012)
        far = (near / depth).clamp(max=30)
        centre = near / ((horizon.clamp(0, 0.99) + 1.04) / 2 - horizon)  # turns and changes of scale leave it in place
        return cls(v, x, horizon, far, x * far, (256 * near * (centre - far)).expand(-1, height, width))


class Scene:
    """One picture while it is drawn; B is 1. Parts that the attributes make invisible are not computed.

    attributes: `[1, K]`.
    """

    def __init__(self, attributes: torch.Tensor, seeds: Sequence[int], height: int, width: int):
        self.a = {name: attributes[:, i].view(-1, 1, 1) for name, i in INDEX.items()}
        self.draws = Draws(list(seeds))
        self.view = View.of(self.a["sky"], height, width)
        self.coarse = 2 ** ((self.a["scale"] - 0.5) * 2)
        angle = self.a["direction"] * (TAU / 2)
        self.cos, self.sin = angle.cos(), angle.sin()
        # what is too fine for a pixel far away loses its contrast
        self.clear = 1 / (1 + (self.view.far / 7) ** 2)

    def picture(self) -> torch.Tensor:
        """`[B, 3, H, W]` in [0, 1]."""
        a, view = self.a, self.view
        if float(view.horizon) >= 1.01:  # nothing but sky
            image = self._sky()
        else:
            image = self._hazed(self._plants(self._ground()))
        if 0 < float(view.horizon) < 1.01:
            edge = (view.horizon + self._hill_line() - view.v) * 256
            image = mix(image, self._sky(), (edge + 0.5).clamp(0, 1))
        if float(a["fog"]) == 0:
            return image.clamp(0, 1)
        mist = along(a["light"], [(0, (0.07, 0.08, 0.12)), (0.4, (0.72, 0.58, 0.52)), (0.8, (0.84, 0.87, 0.89))])
        far = 1 - torch.exp(-0.55 * view.far)
        veil = self.draws.read(0, "wave", view.x.expand_as(view.gx), (view.v * 900).expand_as(view.gx), 7.0)
        amount = a["fog"] * (0.45 + 0.5 * far + 0.10 * veil).clamp(0, 0.93)
        return mix(image, mist, amount).clamp(0, 1)

    # ------------------------------------------------------------------ light

    def _sunlight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour of the sun's light and of the shadows, `[B, 3, 1, 1]` each."""
        light = self.a["light"]
        sun = along(light, [(0, (0.10, 0.13, 0.24)), (0.2, (0.24, 0.22, 0.34)), (0.4, (1.02, 0.66, 0.44)),
                            (0.65, (1.0, 0.90, 0.74)), (0.9, (1.06, 1.04, 0.98))])  # fmt: skip
        shade = along(light, [(0, (0.04, 0.06, 0.14)), (0.2, (0.12, 0.12, 0.24)), (0.4, (0.34, 0.24, 0.36)),
                              (0.65, (0.38, 0.42, 0.52)), (0.9, (0.42, 0.48, 0.58))])  # fmt: skip
        gloom = ease(self.a["cloud"], 0.45, 1.0).unsqueeze(1)
        grey = sun.mean(1, keepdim=True) * rgb((0.66, 0.70, 0.76))
        return sun + gloom * (grey - sun), shade * (1 - 0.1 * gloom)

    def _lit(self, albedo: torch.Tensor, shade: torch.Tensor) -> torch.Tensor:
        """`albedo` `[B, 3, H, W]` in the light; shade: `[B, H, W]`, 0 in shadow, 1 facing the sun, above: glare."""
        sun, shadow = self._sunlight()
        return albedo * (shadow + (sun - shadow) * shade.unsqueeze(1))

    # ---------------------------------------------------------------- ground

    def _turned(self, stretch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ground coordinates along (shortened by `stretch`) and across the grain."""
        gx, gy = self.view.gx, self.view.gy
        return (gx * self.cos + gy * self.sin) / stretch, gy * self.cos - gx * self.sin

    def _relief(self) -> dict[str, torch.Tensor]:
        """Noise of the ground `[B, H, W]` each, and the height made of it."""
        a, read, c = self.a, self.draws.read, self.coarse
        u, w = self._turned(1 + 2.5 * a["grain"])
        n = {
            "big": read(1, "wave", u, w, 6.0 * c),
            "mid": read(2, "wave", u, w, 2.2 * c),
            "fine": read(3, "wave", u, w, 0.8 * c) * self.clear,
            "grit": read(4, "wave", self.view.gx, self.view.gy, 0.28) * self.clear**2,
        }
        edges = read(5, "cell", self.view.gx + 2.5 * n["mid"], self.view.gy + 2.5 * n["fine"], 2.0 * c)
        n["dome"], n["edge"], n["number"] = edges.unbind(1)
        phase = w / (30 * c) + 0.45 * n["big"] + 0.06 * n["mid"]
        wave = torch.sin(TAU / 2 * phase).abs()  # sharp troughs at 0: turned over, sharp crests
        n["ripple"] = 0.7 - wave
        n["bands"] = phase
        return n

    def _ground(self) -> torch.Tensor:
        """The ground without plants, lit, `[B, 3, H, W]`."""
        a, n = self.a, self._relief()
        rock, hot = a["rock"], a["temperature"]
        stony = ease(rock, 0.3, 0.9)
        ripples = a["grain"] * (1 - stony)
        blocks = stony * (1 - 0.75 * a["grain"])
        round_top = 2.2 * n["edge"].clamp(max=0.16) + 0.5 * (0.6 - n["dome"]) + 0.6 * (n["number"] - 0.5)
        height = a["relief"] * (0.7 * n["big"] + 0.30 * n["mid"] + 0.10 * n["fine"])
        height = height + 0.7 * ripples * n["ripple"] + blocks * (0.3 + 0.7 * a["relief"]) * round_top
        strata = stony * a["grain"]
        ledge = torch.sin(TAU * n["bands"]) + 0.5 * torch.sin(TAU * 2.7 * n["bands"] + 1)
        height = height + 0.30 * strata * ledge
        n["height"] = height
        albedo = self._albedo(n, stony, strata, ledge, blocks)
        slope = self._slope(height) * self.clear
        shade = (0.62 + 0.20 * slope * (0.6 + a["relief"]) + 0.05 * n["grit"]).clamp(0, 1.25)
        cracked = self._cracks(n["edge"], blocks + (1 - a["grain"]) * ease(rock, 0.1, 0.45) * ease(hot, 0.56, 0.63))
        shade = shade * (1 - 0.75 * cracked * (1 - ease(hot, MELTS, 0.9)))
        image = self._lit(albedo, shade)
        if float(a["temperature"]) > MELTS:
            image = self._glow(image, n, stony)
        image = self._undergrowth(image, n)
        if float(a["built"]) > 0:
            image = self._masonry(image, n)
        self.water = torch.zeros_like(height)
        return self._water(image, n) if float(a["wetness"]) > 0 else image

    @staticmethod
    def _slope(height: torch.Tensor) -> torch.Tensor:
        """How much the height falls towards the lower right, in steps that do not depend on the size."""
        slope = torch.zeros_like(height)
        slope[:, 1:, 1:] = height[:, 1:, 1:] - height[:, :-1, :-1]
        slope[:, 0, :], slope[:, :, 0] = slope[:, 1, :], slope[:, :, 1]
        return (slope * (-12 * 256 / height.shape[1] * height.shape[1] / 256)).clamp(-3, 3)

    @staticmethod
    def _cracks(edge: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
        return (1 - edge / 0.10).clamp(0, 1) * amount.clamp(0, 1)

    def _albedo(self, n, stony, strata, ledge, blocks) -> torch.Tensor:
        """Colour of the ground before the light."""
        a, hot = self.a, self.a["temperature"]
        tone = (0.5 + 0.16 * n["mid"] + 0.10 * n["fine"] + 0.05 * n["grit"]).clamp(0, 1)
        soil = along(tone, [(0, (0.24, 0.17, 0.11)), (1, (0.58, 0.46, 0.32))])
        sand = along(tone, [(0, (0.80, 0.60, 0.38)), (1, (1.0, 0.86, 0.62))])
        loose = mix(soil, sand, ease(hot, 0.52, 0.66) * (1 - ease(a["rock"], 0.12, 0.5)))
        grey = along(tone, [(0, (0.34, 0.34, 0.36)), (1, (0.78, 0.77, 0.76))])
        red = along((0.5 + 0.22 * ledge + 0.1 * n["fine"]).clamp(0, 1),
                    [(0, (0.45, 0.16, 0.08)), (0.5, (0.78, 0.38, 0.20)), (1, (0.96, 0.70, 0.46))])  # fmt: skip
        stone = mix(grey, red, ease(hot, 0.54, 0.66) * (0.12 + 0.88 * a["grain"]))
        stone = stone * (1 + 0.45 * blocks * (n["number"] - 0.5)).unsqueeze(1)
        albedo = mix(loose, stone, stony)
        ash = along(tone, [(0, (0.13, 0.12, 0.13)), (1, (0.42, 0.39, 0.39))])
        albedo = mix(albedo, ash, ease(hot, MELTS, 0.82))
        settled = 0.5 + 0.55 * n["mid"] * (0.4 + a["relief"]) + 0.3 * n["fine"] - 0.9 * blocks * (n["dome"] - 0.5)
        cover = ease(1.45 * ease(hot, 0.46, 0.14) + 0.35 * settled * ease(hot, 0.5, 0.3), 0.62, 0.82)
        snow = along((0.55 + 0.18 * n["big"] + 0.08 * n["fine"]).clamp(0, 1),
                     [(0, (0.80, 0.87, 0.98)), (1, (1.0, 1.0, 1.0))])  # fmt: skip
        n["snow"] = cover
        return mix(albedo, snow, cover)

    def _glow(self, image: torch.Tensor, n: dict[str, torch.Tensor], stony: torch.Tensor) -> torch.Tensor:
        """Molten stone in the cracks, brighter and wider with heat."""
        melt = ease(self.a["temperature"], MELTS, 0.96) * stony
        width = 0.035 + 0.075 * melt
        heat = melt * torch.exp(-((n["edge"] / width) ** 2)) + 0.85 * melt * ease(
            n["number"] + 0.10 * n["mid"], 0.80, 1.1
        )
        heat = heat + 0.30 * melt * torch.exp(-n["edge"] / 0.16)
        glow = along(heat.clamp(0, 1.3), [(0, (0.0, 0.0, 0.0)), (0.35, (0.55, 0.05, 0.01)), (0.7, (0.98, 0.34, 0.04)),
                                          (1.15, (1.0, 0.86, 0.34))])  # fmt: skip
        return torch.maximum(image * (1 - 0.6 * heat.clamp(0, 1)).unsqueeze(1), glow)

    def _undergrowth(self, image: torch.Tensor, n: dict[str, torch.Tensor]) -> torch.Tensor:
        """Low growth that covers the ground between the rows of plants."""
        a = self.a
        cover = ease(a["plants"] * 1.15 + 0.22 * n["mid"] + 0.16 * n["fine"] - 0.5 * n["snow"], 0.45, 0.8)
        cover = cover * ease(a["plants"], 0.0, 0.5) * (1 - a["built"])
        tone = (0.42 + 0.17 * n["fine"] + 0.10 * n["mid"] + 0.12 * n["grit"] - 0.12 * a["height"]).clamp(0, 1)
        leaf = mix(along(tone, LEAF), along(tone, GOLD), a["hue"])
        self.low = cover
        return mix(image, self._lit(leaf, 0.35 + 0.75 * tone), cover)

    # ----------------------------------------------------------------- water

    def _water(self, image: torch.Tensor, n: dict[str, torch.Tensor]) -> torch.Tensor:
        """Water where the ground lies below the level; floes on it where it is cold."""
        a, view = self.a, self.view
        wet, wind, read = a["wetness"], a["wind"], self.draws.read
        wide = read(24, "wave", view.gx, view.gy, 13.0 * self.coarse)
        shallow = n["height"] * (0.7 - 0.4 * ease(wet, 0.6, 1.0)) + 0.35 * wide
        depth = 2.9 * (wet - 0.52) - shallow - 3.0 * ease(wet, 0.12, 0.0) + 1.6 * ease(wet, 0.75, 1.0)
        depth = depth - 2.2 * a["built"]
        water = (depth / 0.035).clamp(0, 1)
        u, w = self._turned(2.6 + 0 * wind)
        c = self.coarse
        swell = read(6, "wave", u + 6 * n["big"], w, 2.0 * c)
        chop = read(7, "wave", u, w + 6 * swell, 0.8 * c) * self.clear
        tiny = read(8, "wave", u * 1.6, w, 0.32) * self.clear**2
        waves = swell * (0.3 + 0.7 * wind) + 0.55 * chop + 0.25 * tiny
        rough = 0.10 + 0.90 * wind
        tone = (0.46 + 0.24 * waves * rough).clamp(0.05, 1.1)
        deep = ease(depth, 0.0, 1.8)
        body = along(deep, [(0, (0.30, 0.52, 0.50)), (0.3, (0.10, 0.42, 0.50)), (1, (0.02, 0.17, 0.34))])
        sky = self._zenith(ease(view.far * 0.2, 0, 1) * 0.8 + 0.1)
        mirror = (0.20 + 0.30 * ease(view.far, 1, 6) + 0.42 * (tone - 0.46) + 0.28 * (1 - wind) ** 2).clamp(0, 0.95)
        sun, _ = self._sunlight()
        surface = mix(body * (0.35 * sun + 0.65 * sun.mean(1, keepdim=True)) * (0.55 + tone).unsqueeze(1), sky, mirror)
        crest = waves + 0.5 * n["fine"]
        lace = (1 - 2.2 * (chop + 0.4 * tiny).abs()).clamp(0, 1)
        foam = ease(crest * rough, 0.75, 1.7) * ease(wind, 0.3, 0.8) * (0.35 + 0.65 * lace)
        shore = (1 - ((depth - 0.10 - 0.05 * chop).abs() / 0.07)).clamp(0, 1) * ease(wind, 0.12, 0.3) * 0.8
        white = sun * rgb((0.93, 0.97, 1.0))
        surface = mix(surface, white, (foam + shore * (1 - deep)).clamp(0, 0.95))
        glint = ease(0.7 * chop + tiny, 1.6, 2.6) * (1 - ease(a["cloud"], 0.3, 0.7)) * (0.25 + 0.5 * wind)
        surface = mix(surface, sun * 1.1, glint)
        if float(a["temperature"]) < 0.36:
            surface = self._floes(surface, n)
        damp = ((depth + 0.30) / 0.30).clamp(0, 1) * ease(wet, 0.02, 0.2) * (1 - n["snow"])
        self.water = water
        return mix(image * (1 - 0.42 * damp).unsqueeze(1), surface, water)

    def _floes(self, water: torch.Tensor, n: dict[str, torch.Tensor]) -> torch.Tensor:
        """Ice: first single floes, at the coldest a closed sheet with cracks."""
        cold = ease(self.a["temperature"], 0.36, 0.03)
        floe = self.draws.read(9, "cell", self.view.gx + 4 * n["fine"], self.view.gy + 4 * n["mid"], 2.6 * self.coarse)
        dome, edge, number = floe.unbind(1)
        gap = 0.30 * (1 - cold) + 0.015
        there = ((edge - gap) / 0.05).clamp(0, 1) * ease(1.25 * cold - number, -0.06, 0.06)
        tone = (0.55 + 0.5 * (number - 0.5) + 0.14 * n["fine"] + 0.10 * n["big"]).clamp(0, 1)
        ice = along(tone, [(0, (0.42, 0.74, 0.86)), (0.55, (0.70, 0.91, 0.96)), (1, (0.94, 0.99, 1.0))])
        rim = (1 - ((edge - gap - 0.07).abs() / 0.05)).clamp(0, 1)
        ice = self._lit(ice, 0.72 + 0.35 * rim + 0.06 * n["grit"] + 0.2 * (0.5 - dome))
        return mix(water, ice, there)

    # --------------------------------------------------------------- masonry

    def _masonry(self, image: torch.Tensor, n: dict[str, torch.Tensor]) -> torch.Tensor:
        """A wall that faces the camera; where it is not whole, single stones are missing."""
        a, view = self.a, self.view
        tall = 2 ** ((a["scale"] - 0.5) * 1.6) * 20
        wide = tall * (2.1 - 0.5 * a["rock"])
        shift = self.draws.numbers(0, 2)
        uneven = a["rock"] * 2.0
        y = view.v * 256 + shift[:, 0].view(-1, 1, 1) * 40 + uneven * n["big"]
        row = (y / tall).floor()
        x = view.x + shift[:, 1].view(-1, 1, 1) * 90 + (torch.remainder(row, 2)) * wide / 2 + uneven * n["mid"] * 0.5
        column = (x / wide).floor()
        dy, dx = y - row * tall, x - column * wide
        joint = torch.minimum(torch.minimum(dy, tall - dy), torch.minimum(dx, wide - dx))
        number = torch.frac(
            torch.sin(row * 12.9898 + column * 78.233 + shift[:, :1].unsqueeze(2) * 40) * 43758.547
        ).abs()
        other = torch.frac(number * 57.31)
        red = ease(a["temperature"], 0.48, 0.62)
        grey = along((0.5 + 0.9 * (number - 0.5) + 0.10 * n["fine"]).clamp(0, 1),
                     [(0, (0.40, 0.39, 0.38)), (1, (0.80, 0.76, 0.70))])  # fmt: skip
        brick = along((0.5 + 0.9 * (number - 0.5) + 0.10 * n["fine"]).clamp(0, 1),
                      [(0, (0.44, 0.15, 0.10)), (0.6, (0.70, 0.29, 0.19)), (1, (0.82, 0.44, 0.30))])  # fmt: skip
        stone = mix(grey, brick, red)
        mortar = mix(rgb((0.42, 0.40, 0.38)), rgb((0.80, 0.76, 0.70)), red)
        bevel = ((joint - 1.3) / 3).clamp(0, 1) * (1 - (joint / tall * 1.1)).clamp(0, 1)
        facing = torch.where(dy < dx, 1.0, -1.0) * (1 - ((joint - 1.5) / 2.5).clamp(0, 1)) * 0.22
        albedo = mix(mortar.expand_as(stone), stone, ((joint - 1.2) / 0.9).clamp(0, 1))
        green = ease(a["plants"] * (0.8 + 0.4 * n["mid"] + 0.3 * n["fine"]), 0.35, 0.7) * 0.85
        leaf = along((0.5 + 0.3 * n["fine"] + 0.2 * n["grit"]).clamp(0, 1),
                     [(0, (0.10, 0.20, 0.05)), (1, (0.42, 0.56, 0.18))])  # fmt: skip
        albedo = mix(albedo, leaf, green * ease(n["big"] + 0.5 * n["mid"], -0.9, 0.9))
        cap = ease(a["temperature"], 0.34, 0.16) * ((5 - dy) / 2).clamp(0, 1)
        albedo = mix(albedo, rgb((0.94, 0.97, 1.0)), cap)
        shade = 0.70 + facing * bevel.clamp(max=1) + 0.06 * n["grit"] + 0.05 * n["mid"]
        wall = self._lit(albedo, shade)
        whole = ease(a["built"] * 1.5 + 0.55 * (other - 0.5) + 0.16 * n["big"] - 0.5, 0.13, 0.17)
        self.wall = whole
        return mix(image, wall, whole)

    # ---------------------------------------------------------------- plants

    def _plants(self, ground: torch.Tensor) -> torch.Tensor:
        """Rows of plants from the back to the front over `ground`, mirrored where they stand in water."""
        a, view, draws = self.a, self.view, self.draws
        if float(a["plants"]) == 0:
            return ground
        batch, rows, columns = view.gx.shape
        tree = ease(a["height"], 0.66, 0.95)
        y = view.v * 256
        near = 1.04 - view.horizon.clamp(max=0.99)
        closest, farthest = near * 1.12, (0.02 - view.horizon).clamp(min=0.03)
        spread, offsets, numbers = draws.numbers(2, ROWS), draws.numbers(2 + ROWS, ROWS), draws.numbers(64, 3, BLADES)
        tone, seen, dots, kind = (torch.zeros(batch, rows, columns) for _ in range(4))
        shadow = torch.zeros(batch, rows, columns)
        lean = (a["direction"] - 0.5) * 1.6 * a["grain"]
        for k in range(ROWS):
            share = k / (ROWS - 1)
            depth = farthest * (closest / farthest) ** share
            size = depth / near  # 1 at the lowest row
            base = (view.horizon + depth) * 256
            row = Row.of(self, size, tree, lean, spread[:, k], numbers, offsets[:, k])
            top = base - row.height + row.shift
            cover = ((y - top) * (0.8 / (0.4 + size)) + 0.5).clamp(0, 1) * row.there
            inside = ((y - top) / row.height.clamp(min=1.0)).clamp(0, 1.6)
            cover = cover * ((1.5 - inside) * 3).clamp(0, 1)
            value = row.tone - (0.42 + 0.9 * tree) * inside
            tone, seen = tone + cover * (value - tone), seen + cover * (1 - seen)
            dot = row.dot(y, top, view.x)
            dots = dots * (1 - cover) + dot * (1 - dots * (1 - cover))
            kind = kind + dot * (row.number - kind)
            mirrored = ((base + row.height * 0.7 - y) / 2).clamp(0, 1) * ((y - base) / 2).clamp(0, 1) * row.there
            shadow = torch.maximum(shadow * (1 - cover), mirrored)
        return self._coloured(ground, tree, tone, seen, dots, kind, shadow)

    def _coloured(self, ground, tree, tone, seen, dots, kind, shadow) -> torch.Tensor:
        """The rows' tones as colours, lit, over the ground."""
        a, view = self.a, self.view
        x, y = view.gx / view.far, view.v * 256
        blades, leaves = (self.draws.read(slot, "wave", x, y * tall, 0.26) for slot, tall in ((10, 0.25), (25, 1.0)))
        leafy = torch.lerp(blades, leaves, tree)
        clump = self.draws.read(11, "wave", x, y * 0.9, 0.75)
        tone = (tone + (0.13 - 0.03 * tree) * leafy + 0.05 * clump).clamp(0, 1)
        green = along(tone, LEAF)
        wood = along(tone, [(0, (0.01, 0.06, 0.03)), (0.45, (0.07, 0.24, 0.07)), (1, (0.34, 0.52, 0.16))])
        gold = along(tone, GOLD)
        leaf = mix(mix(green, wood, tree), gold, a["hue"])
        frost = ease(a["temperature"], 0.42, 0.2)
        leaf = mix(leaf, along(tone, [(0, (0.10, 0.14, 0.18)), (0.5, (0.60, 0.68, 0.76)), (1, (1, 1, 1))]),
                   frost * ease(tone, 0.35, 0.65))  # fmt: skip
        scorched = ease(a["temperature"], MELTS, 0.9)
        leaf = leaf * (1 - 0.8 * scorched).unsqueeze(1)
        purple = ease(a["bloom"], 0.3, 0.9) * ease(a["grain"], 0.3, 0.8)
        petals = along(kind, [(0, (0.95, 0.20, 0.22)), (0.22, (0.98, 0.86, 0.20)), (0.45, (1.0, 0.98, 0.95)),
                              (0.70, (0.86, 0.36, 0.86)), (1, (1.0, 0.55, 0.18))])  # fmt: skip
        violet = along((tone * 1.2).clamp(0, 1), [(0, (0.24, 0.12, 0.42)), (1, (0.70, 0.50, 0.94))])
        petals = mix(petals, violet, purple)
        spike = ease(tone, 0.30, 0.62) * purple
        leaf = mix(leaf, petals, torch.maximum(dots * ease(a["bloom"], 0.0, 0.6), spike))
        image = mix(ground, ground * rgb((0.30, 0.38, 0.30)), shadow * self.water * 0.75)
        return mix(image, self._lit(leaf, 0.35 + 0.75 * tone), seen)

    # ------------------------------------------------------------------- sky

    def _zenith(self, low: torch.Tensor) -> torch.Tensor:
        """Clear sky by height; low: `[B, H, W]`, 1 at the horizon, 0 overhead."""
        light = self.a["light"]
        top = along(light, [(0, (0.008, 0.012, 0.05)), (0.2, (0.07, 0.07, 0.22)), (0.4, (0.30, 0.24, 0.48)),
                            (0.6, (0.26, 0.46, 0.76)), (1, (0.13, 0.40, 0.82))])  # fmt: skip
        middle = along(light, [(0, (0.02, 0.03, 0.10)), (0.2, (0.22, 0.14, 0.34)), (0.4, (0.90, 0.42, 0.42)),
                               (0.6, (0.56, 0.68, 0.84)), (1, (0.38, 0.64, 0.92))])  # fmt: skip
        rim = along(light, [(0, (0.05, 0.07, 0.17)), (0.2, (0.52, 0.26, 0.36)), (0.4, (1.0, 0.72, 0.34)),
                            (0.6, (0.92, 0.84, 0.76)), (1, (0.78, 0.89, 0.97))])  # fmt: skip
        t = low.clamp(0, 1)
        return mix(mix(top, middle, ease(t, 0.0, 0.55)), rim, ease(t, 0.45, 1.0))

    def _sky(self) -> torch.Tensor:
        """Sky with stars, northern lights and clouds, `[B, 3, H, W]`."""
        a, view, read = self.a, self.view, self.draws.read
        over = (view.horizon - view.v).clamp(min=0)
        high = over / view.horizon.clamp(min=0.2)
        image = self._zenith((1 - high).expand_as(view.gx))
        plane = 1 / (over + 0.42 + 0.5 * ease(a["cloud"], 0.5, 1.0))
        x, y = view.x * plane, (256 * plane).expand_as(view.gx) * (1.2 + 1.3 * ease(a["cloud"], 0.5, 1.0))
        flat_y = (view.v * 256).expand_as(view.gx)
        flat_x = view.x.expand_as(view.gx)
        night = ease(a["light"], 0.30, 0.05)
        stars = read(12, "star", flat_x, flat_y, 1.15) * night
        image = torch.maximum(image, (stars * 1.1).unsqueeze(1) * rgb((1.0, 0.98, 0.94)))
        image = self._aurora(image, flat_x, flat_y, high, night)
        return self._clouds(image, x, y, high)

    def _aurora(self, image, x, y, high, night) -> torch.Tensor:
        """Curtains of light in the night of cold places."""
        strength = night * ease(self.a["temperature"], 0.40, 0.12)
        if float(strength) == 0:
            return image
        fold = self.draws.read(13, "wave", x, y * 0.35, 5.0)
        other = self.draws.read(14, "wave", x, y * 0.25, 9.0)
        for shift, power in ((0.0, 1.0), (0.22, 0.7)):
            foot = 0.30 + shift + 0.10 * fold + 0.07 * other
            above = high - foot
            curtain = torch.exp(-above.clamp(min=0) / 0.28) * (above / 0.045).clamp(0, 1)
            rays = self.draws.read(15, "wave", x + 22 * fold, y * 0.05, 0.55)
            glow = (strength * power * curtain * (0.72 + 0.25 * rays + 0.16 * other)).clamp(0, 1)
            hue = along((above / 0.55).clamp(0, 1), [(0, (0.26, 0.98, 0.55)), (0.5, (0.14, 0.70, 0.62)),
                                                     (1, (0.52, 0.22, 0.72))])  # fmt: skip
            image = image + hue * glow.unsqueeze(1) * (1 - 0.5 * image)
        return image

    def _clouds(self, image, x, y, high) -> torch.Tensor:
        a, read = self.a, self.draws.read
        cloud, light = a["cloud"], a["light"]
        puff = [read(16 + i, "wave", x, y, s) for i, s in enumerate((9.0, 4.2, 2.0, 0.95, 0.45))]
        weights = (0.62, 0.42, 0.26, 0.15, 0.08)
        thick = sum(w * p for w, p in zip(weights, puff, strict=True))
        cut = 1.15 - 2.3 * cloud.clamp(max=0.75) - 1.7 * ease(cloud, 0.4, 0.68)
        density = ((thick - cut) / (0.55 + 0.3 * cloud)).clamp(0, 1) * ease(cloud, 0.0, 0.12)
        lit = torch.zeros_like(thick)
        lit[:, 3:, 3:] = thick[:, 3:, 3:] - thick[:, :-3, :-3]
        billow = sum(w * p.abs() for w, p in zip((0.5, 0.3, 0.2), puff[1:4], strict=True))
        storming = ease(cloud, 0.5, 1.0)
        side = (0.52 + (0.85 - 0.35 * storming) * lit - 0.16 * ease(density, 0.5, 1.0)).clamp(0, 1)
        white = along(side, [(0, (0.58, 0.64, 0.74)), (1, (1.0, 1.0, 1.0))])
        dark = (0.75 * side + 0.55 * (billow - 0.55) + 0.20 * puff[0] - 0.02).clamp(0, 1)
        storm = along(dark, [(0, (0.10, 0.11, 0.15)), (0.6, (0.34, 0.36, 0.42)), (1, (0.66, 0.68, 0.72))])
        body = mix(white, storm, storming)
        dusk = along(side, [(0, (0.42, 0.20, 0.40)), (0.5, (0.95, 0.42, 0.36)), (1, (1.0, 0.84, 0.50))])
        nightly = along(side, [(0, (0.02, 0.03, 0.07)), (1, (0.17, 0.19, 0.28))])
        red = ease(light, 0.16, 0.36) * (1 - ease(light, 0.46, 0.62)) * (1 - 0.6 * ease(cloud, 0.5, 1.0))
        body = mix(body, dusk, red)
        body = mix(body, nightly, ease(light, 0.32, 0.08))
        return mix(image, body, ease(density, 0.0, 0.75))

    # ------------------------------------------------------------ the distance

    def _hill_line(self) -> torch.Tensor:
        """Height of the hills over the horizon as a share of the picture, `[B, 1, W]` (negative: up)."""
        a, x = self.a, self.view.x.expand(len(self.view.horizon), 1, -1)
        zero = torch.zeros_like(x)
        ridge = [self.draws.read(21 + i, "wave", x, zero, s) for i, s in enumerate((7.0, 2.5, 0.9))]
        line = (0.55 + 0.5 * ridge[0] + 0.2 * ridge[1] + 0.07 * ridge[2]).clamp(min=0)
        return -line * 0.16 * a["relief"] ** 1.5 * (1 - ease(a["wetness"], 0.7, 0.95))

    def _hazed(self, ground: torch.Tensor) -> torch.Tensor:
        """The distance takes the colour of the sky; hills stand in the colour of what lies before them."""
        view = self.view
        if float(view.horizon) <= -1:
            return ground
        band = ((view.v - view.horizon).abs() < 0.06).float() + 1e-4
        near = (ground * band.unsqueeze(1)).sum((2, 3), keepdim=True) / (band.sum((1, 2)) * ground.shape[3]).view(
            -1, 1, 1, 1
        )
        rim = self._zenith(torch.ones_like(view.horizon) * 0.85)
        above = ((view.horizon - view.v) * 256 + 0.5).clamp(0, 1)
        hills = mix(near.expand_as(ground), rim, torch.full_like(above, 0.35))
        ground = mix(ground, hills, above.expand_as(view.gx))
        haze = (1 - torch.exp(-0.07 * (view.far - 1).clamp(min=0))) * (1 - above)
        return mix(ground, rim, haze.expand_as(view.gx))


@dataclass
class Row:
    """One row of plants: `[B, 1, W]` each. height and shift in pixels, tip: x of the plant's tip; number: in [0, 1)."""

    height: torch.Tensor
    there: torch.Tensor
    tone: torch.Tensor
    shift: torch.Tensor
    tip: torch.Tensor
    tip_height: torch.Tensor
    number: torch.Tensor
    size: torch.Tensor
    bloom: torch.Tensor

    @classmethod
    def of(cls, scene: Scene, size, tree, lean, spread, numbers, offset) -> Row:
        """A row. size: its scale by perspective `[B, 1, 1]`; numbers: `[B, 3, BLADES]` that its plants take in turn.

        Blades and crowns have widths of their own and grow and shrink where they stand: plants that became wider
        would all have to move.
        """
        a, x = scene.a, scene.view.x
        coarse = scene.coarse**0.5
        wide = coarse * (0.35 + 0.65 * size)
        tall = (0.8 + 0.2 * coarse) * size
        low = (3 + 60 * a["height"].clamp(max=0.8) ** 1.2) * tall * (1 - tree)
        row = cls._stand(scene, size, 4.2 * wide, low, 0.0, lean, numbers, offset)
        if float(tree) > 0:
            crowns = cls._stand(scene, size, 23 * wide, 122 * tall * tree, 1.0, lean, numbers, offset)
            above = (crowns.height >= row.height).float()
            for name in ("height", "tone", "shift", "tip", "tip_height", "number"):
                setattr(row, name, torch.lerp(getattr(row, name), getattr(crowns, name), above))
        row.height = row.height + torch.sin(x * 0.017 + TAU * spread.view(-1, 1, 1)) * 5 * size * ease(
            a["plants"], 0.3, 0.9
        )
        row.there = (
            ease(row.height / (3 * tall), 0.1, 0.5) * ease(a["plants"], 0.0, 0.06) * (1 - ease(a["sky"], 0.97, 1.0))
        )
        return row

    @classmethod
    def _stand(cls, scene: Scene, size, wide, tall, crown: float, lean, numbers, offset) -> Row:
        """Plants of one kind, `wide` pixels from one to the next and up to `tall` high; crown: 0 blades, 1 trees."""
        a, x = scene.a, scene.view.x
        first = offset.view(-1, 1, 1) * BLADES
        q = (x / wide + first).expand(len(size), 1, x.shape[2])
        cell = q.floor()
        best = torch.full_like(q, -1.0)
        tip, tone, number, tip_height, shift = (torch.zeros_like(q) for _ in range(5))
        for step in (-1, 0, 1):
            i = cell + step
            index = torch.remainder(i, BLADES).long()[:, 0]
            tallness, where, mark = (numbers[:, j].gather(1, index).unsqueeze(1) for j in range(3))
            grown = ease(a["plants"] * 1.25 - (mark * 7.13) % 1.0, 0.0, 0.18)
            full = (0.62 + 0.38 * tallness) * grown
            centre = i + 0.25 + 0.5 * where + lean * 0.5
            away = q - centre
            t = (away.abs() / (0.85 + 0.25 * crown)).clamp(0, 1)
            shape = full * (cls._crown(a, t) if crown else 1 - t**0.8)
            higher = shape > best
            best = torch.where(higher, shape, best)
            shift = torch.where(higher, (tallness * 5.77) % 1.0 - 0.5, shift)
            tip = torch.where(higher, (centre - first) * wide, tip)
            tip_height = torch.where(higher, full * tall, tip_height)
            round_ = crown * (0.34 * t**2 + 0.16 * t * away.sign() - 0.10)  # crowns are round and lit from the left
            tone = torch.where(higher, 0.62 + 0.30 * (tallness - 0.5) + 0.16 * (mark - 0.5) - round_, tone)
            number = torch.where(higher, mark, number)
        floor = 0.30 * ease(a["plants"], 0.45, 1.0)
        height = (best.clamp(min=0) + floor) * tall
        shift = shift * 22 * size * (1 - 0.5 * a["grain"])
        return cls(height, height, tone, shift, tip, tip_height, number, size, a["bloom"])

    @staticmethod
    def _crown(a, t: torch.Tensor) -> torch.Tensor:
        """Outline of a tree: round, in the cold that of a fir."""
        crown = (1 - t**2.4) ** 0.6
        return crown + (1 - t - crown) * ease(a["temperature"], 0.42, 0.22)

    def dot(self, y: torch.Tensor, top: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Flower at the plant's tip, `[B, H, W]` opacity."""
        base = top + self.height
        radius = (3.3 * self.size + 0.6) * (0.7 + 0.6 * self.number)
        dy, dx = (y - (base - self.tip_height)) / 1.2, x - self.tip
        return ((radius - (dx**2 + dy**2).sqrt()) / 1.1).clamp(0, 1) * self.there * ease(self.bloom, 0.02, 0.3)


@torch.no_grad()
def render(attributes: torch.Tensor, seeds: Sequence[int], height: int = 256, width: int = 256) -> torch.Tensor:
    """Pictures `[B, 3, height, width]` in [0, 1] of the attributes `[B, K]` (each in [0, 1]) and one seed each.

    Raises ValueError on another shape, on attributes outside [0, 1] and on another number of seeds.
    """
    if attributes.ndim != 2 or attributes.shape[1] != len(ATTRIBUTES):
        raise ValueError(f"attributes: expected [B, {len(ATTRIBUTES)}], not {list(attributes.shape)}")
    if len(seeds) != len(attributes):
        raise ValueError(f"seeds: expected {len(attributes)}, one a picture, not {len(seeds)}")
    if not bool(((attributes >= 0) & (attributes <= 1)).all()):
        raise ValueError("attributes: expected numbers from 0 to 1")
    rows = zip(attributes.float().split(1), seeds, strict=True)
    return torch.cat([Scene(row, [seed], height, width).picture() for row, seed in rows])
