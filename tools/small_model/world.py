"""The world: a space of continuous attributes, the places named in it, and the places between them.

A picture is a function of its attributes and a seed (`world_render.render`). A named place is a point of the space
with a little room round it; a middle is a place that lies between two others and has a name of its own, such as the
paddy between a wheat field and a lake. Any straight line between two points is a row of pictures that change by small
steps, so for every mixture of two places there is a true picture.

    python -m tools.small_model.world sheet.png                     every place and middle
    python -m tools.small_model.world lines.png --between           the way from place to place over each middle
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

# name: (value of a plain place, what 0 and 1 mean)
_SCALES = {
    "wetness": (0.0, "dry, all water"),
    "wind": (0.35, "calm, breaking waves"),
    "plants": (0.0, "bare, grown over"),
    "height": (0.2, "moss, trees"),
    "hue": (0.1, "green plants, golden ones"),
    "bloom": (0.0, "no flowers, many"),
    "grain": (0.2, "no direction, ripples and rows"),
    "direction": (0.0, "angle of the grain in half turns: level at 0, upright at 0.5"),
    "scale": (0.5, "fine, coarse"),
    "temperature": (0.5, "ice and snow, mild, dry heat, molten"),
    "rock": (0.1, "sand and soil, stone"),
    "relief": (0.35, "flat, rugged"),
    "built": (0.0, "nature, masonry"),
    "light": (0.85, "night, dusk at 0.4, noon"),
    "cloud": (0.15, "clear, storm"),
    "fog": (0.0, "clear, mist"),
    "sky": (0.0, "how much of the picture is sky"),
}
ATTRIBUTES = tuple(_SCALES)
INDEX = {name: i for i, name in enumerate(ATTRIBUTES)}
# How far single pictures of a place stray from its point; a place keeps its light, weather and view.
_ROOM = {"wind": 0.08, "direction": 0.03, "scale": 0.12, "relief": 0.08, "hue": 0.06, "light": 0.06, "cloud": 0.06,
         "temperature": 0.025, "sky": 0.0, "built": 0.02, "bloom": 0.06, "height": 0.03, "fog": 0.02}  # fmt: skip
ROOM = torch.tensor([_ROOM.get(name, 0.05) for name in ATTRIBUTES])


def point(values: Mapping[str, float] | None = None, **more: float) -> torch.Tensor:
    """`[K]` attributes in [0, 1]; those not named have the value of a plain place. Raises ValueError."""
    values = {**(values or {}), **more}
    for name, value in values.items():
        if name not in _SCALES:
            raise ValueError(f"{name}: no such attribute; expected one of {', '.join(ATTRIBUTES)}")
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, not {value!r}")
    return torch.tensor([float(values.get(name, _SCALES[name][0])) for name in ATTRIBUTES])


@dataclass(frozen=True)
class Place:
    """A named point of the world. names: the first is the place's own, the others mean the same."""

    names: tuple[str, ...]
    attributes: torch.Tensor

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Middle(Place):
    """A named place between two others. held_out: training shows neither it nor the way over it."""

    parents: tuple[str, str] = ("", "")
    held_out: bool = False


def _place(names: str, **values: float) -> Place:
    return Place(tuple(names.split(", ")), point(values))


PLACES = (
    _place("wheat field, wheat, grain field", plants=1, height=0.5, hue=1, grain=0.8, direction=0.5, temperature=0.6),
    _place("meadow, flower meadow, flowers", plants=1, height=0.3, hue=0.22, bloom=1, direction=0.5, light=0.95),
    _place("marsh, swamp, bog", wetness=0.55, wind=0.05, plants=0.45, height=0.32, hue=0.4, direction=0.5,
           relief=0.3, light=0.7, cloud=0.4),
    _place("reed bed, reeds", wetness=0.75, wind=0.1, plants=0.95, height=0.62, hue=0.62, grain=0.8, direction=0.5,
           temperature=0.5),
    _place("forest, woods, trees", plants=1, height=1, hue=0.05, direction=0.5, relief=0.5, light=0.75, scale=0.6),
    _place("moss, mossy ground", plants=0.95, height=0.02, hue=0.14, rock=0.55, relief=0.6, light=0.8, scale=0.4),
    _place("beach, shore, seashore", wetness=0.52, wind=0.35, grain=0.05, direction=0.12, temperature=0.66, rock=0.16,
           relief=0.5, scale=0.35),
    _place("desert, sand dunes, dunes", grain=1, direction=0.2, temperature=0.68, rock=0, relief=0.6, light=0.9),
    _place("ocean, sea, rough sea", wetness=1, wind=0.85, grain=0.8, relief=0.2, light=0.8),
    _place("lake, calm water", wetness=1, wind=0.06, grain=0.5, relief=0.2, light=0.8, cloud=0.3),
    _place("snow, snow field", temperature=0.14, rock=0, relief=0.5, grain=0.3, direction=0.08, light=0.9),
    _place("ice, cracked ice, glacier ice", wetness=1, wind=0, temperature=0, rock=0.3, relief=0.25, light=0.85),
    _place("rock, bare rock, rocks", rock=1, relief=0.85, grain=0, temperature=0.54, light=0.75, cloud=0.3, scale=0.75),
    _place("pebbles, gravel", rock=1, relief=0.35, grain=0, scale=0.05, temperature=0.56, light=0.8),
    _place("canyon, red cliffs", rock=0.9, relief=0.7, grain=1, direction=0.03, temperature=0.67, light=0.8),
    _place("dry earth, cracked mud", rock=0.45, relief=0.25, grain=0, temperature=0.65, light=0.9),
    _place("lava, molten lava", rock=1, relief=0.5, grain=0, temperature=1, light=0.35),
    _place("ash, volcanic ash", rock=0.15, relief=0.6, grain=0.5, direction=0.3, temperature=0.85, light=0.55,
           cloud=0.6),
    _place("city wall, stone wall", built=1, rock=0.8, temperature=0.45, scale=0.7, relief=0.5, light=0.75),
    _place("brick wall, bricks", built=1, rock=0.2, temperature=0.64, scale=0.3, relief=0.35, light=0.8),
    _place("blue sky, clear sky", sky=1, cloud=0.02, light=1),
    _place("clouds, white clouds", sky=1, cloud=0.62, light=0.95),
    _place("storm, storm clouds", sky=1, cloud=1, light=0.6, wind=0.9),
    _place("sunset, sunset sky", sky=1, cloud=0.32, light=0.4),
    _place("night sky, stars", sky=1, cloud=0, light=0),
    _place("aurora, northern lights", sky=1, cloud=0, light=0.08, temperature=0.05),
    _place("mist, fog", fog=1, sky=0.4, plants=0.6, height=0.95, light=0.75, cloud=0.6, relief=0.6),
    _place("lavender field, lavender", plants=1, height=0.42, hue=0.3, bloom=1, grain=1, direction=0.5,
           temperature=0.66),
)  # fmt: skip
BY_NAME = {place.name: place for place in PLACES}


def between(a: torch.Tensor, b: torch.Tensor, t: float = 0.5) -> torch.Tensor:
    """The point at the share `t` of the way from `a` to `b`."""
    return torch.lerp(a, b, t)


def _middle(names: str, left: str, right: str, held_out: bool = False) -> Middle:
    attributes = between(BY_NAME[left].attributes, BY_NAME[right].attributes)
    return Middle(tuple(names.split(", ")), attributes, (left, right), held_out)


MIDDLES = (
    _middle("flooded field, rice paddy", "wheat field", "lake", held_out=True),
    _middle("savanna, dry grassland", "wheat field", "desert"),
    _middle("mangroves, flooded forest", "forest", "lake"),
    _middle("tundra, frozen heath", "meadow", "snow", held_out=True),
    _middle("winter forest, snowy forest", "forest", "snow"),
    _middle("drift ice, pack ice", "ocean", "ice"),
    _middle("ruin, overgrown wall", "city wall", "forest", held_out=True),
    _middle("mossy wall", "brick wall", "moss"),
    _middle("steppe, stony grassland", "meadow", "rock"),
    _middle("cooling lava, crusted lava", "lava", "rock"),
    _middle("tide flats, mud flats", "dry earth", "lake", held_out=True),
    _middle("snowy rocks, alpine rocks", "rock", "snow"),
    _middle("buried wall, sunken city", "city wall", "desert"),
    _middle("afterglow, evening sky", "sunset", "night sky", held_out=True),
    _middle("breaking storm, clearing sky", "storm", "blue sky"),
    _middle("young forest, brushwood", "meadow", "forest"),
)  # fmt: skip
NAMED: dict[str, Place] = {place.name: place for place in (*PLACES, *MIDDLES)}
HELD_OUT = tuple(middle for middle in MIDDLES if middle.held_out)
HELD_OUT_SPAN = (0.2, 0.8)  # of the way between the parents of a held-out middle, which training leaves out


def stray(place: Place, random: Random, amount: float = 1.0) -> torch.Tensor:
    """`[K]` attributes of one picture of `place`, at random within its room."""
    offsets = torch.tensor([random.uniform(-1, 1) for _ in ATTRIBUTES])
    return (place.attributes + amount * ROOM * offsets).clamp(0, 1)


def withheld(a: str, b: str) -> bool:
    """Whether the way between two places leads over a held-out middle."""
    return any(set(middle.parents) == {a, b} for middle in HELD_OUT)


def adjusted(attributes: torch.Tensor, changes: Mapping[str, float]) -> torch.Tensor:
    """`attributes` `[K]` with some of them set. Raises ValueError."""
    point(changes)
    out = attributes.clone()
    for name, value in changes.items():
        out[INDEX[name]] = value
    return out


# Scenes with a horizon, for contact sheets.
SCENES = (
    ("lavender field", {"sky": 0.35, "light": 0.45}),
    ("flooded field", {"sky": 0.4, "light": 0.42, "cloud": 0.4}),
    ("drift ice", {"sky": 0.4, "light": 0.05, "temperature": 0.1}),
    ("canyon", {"sky": 0.4, "light": 0.5}),
    ("winter forest", {"sky": 0.35}),
    ("ocean", {"sky": 0.4, "cloud": 0.9}),
    ("lake", {"sky": 0.4, "light": 0.4, "cloud": 0.35}),
    ("wheat field", {"sky": 0.36, "cloud": 0.5}),
)


def _sheet(rows: Sequence[torch.Tensor], path: Path) -> None:
    from PIL import Image

    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    Image.fromarray(sheet.permute(1, 2, 0).mul(255).round().byte().numpy()).save(path, quality=76)


def main() -> None:
    """Write a contact sheet."""
    from .world_render import render

    parser = argparse.ArgumentParser(description="Contact sheets of the world.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--between", action="store_true", help="a row a middle, from one parent to the other")
    parser.add_argument("--view", type=float, help="share of sky, for scenes with a horizon")
    parser.add_argument("--size", type=int, nargs=2, default=(192, 192), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.between:
        steps = torch.linspace(0, 1, args.columns).tolist()
        ways = [[BY_NAME[name].attributes for name in middle.parents] for middle in MIDDLES]
        rows = [[between(*ends, t) for t in steps] for ends in ways]
        seeds = [[args.seed + i] * args.columns for i in range(len(rows))]
    else:
        points = [place.attributes for place in NAMED.values()]
        scenes = [adjusted(NAMED[name].attributes, changes) for name, changes in SCENES]
        points += scenes[: -len(points) % args.columns]
        points = points[: len(points) // args.columns * args.columns]
        rows = [points[i : i + args.columns] for i in range(0, len(points), args.columns)]
        seeds = [[args.seed + i * args.columns + j for j in range(args.columns)] for i in range(len(rows))]
    if args.view is not None:
        rows = [[adjusted(p, {"sky": args.view}) for p in row] for row in rows]
    _sheet([render(torch.stack(row), s, *args.size) for row, s in zip(rows, seeds, strict=True)], args.out)


if __name__ == "__main__":
    main()
