"""Passes of img2img that make only a part of a picture: which part, so that masks lie over the picture.

*Only masked* (and scripts built on it, *Ultimate SD Upscale* for one) makes the surroundings of what is painted anew;
the host's own script *SD upscale* makes a picture tile by tile, each a job of its own on one and the same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modules import images, shared
from PIL import Image

from lib_masknoise.window import WHOLE, Window

SD_UPSCALE = "sd upscale"  # in Forge Neo with a capital letter more
USUAL_OVERLAP = 64  # pixels


@dataclass
class Tiles:
    """Where the tiles of *SD upscale* lie, in the order in which they are made. done: how many have been."""

    windows: Sequence[Window]
    done: int = 0
    seed: int | None = None
    """The first tile's: fields that move from there go on from tile to tile."""

    def take(self, count: int) -> list[Window]:
        """The next tiles; after the last one the first comes again, of the next picture."""
        total = len(self.windows)
        taken = [self.windows[(self.done + i) % total] for i in range(count)]
        self.done += count
        return taken


def tiles_of(p: Any) -> Tiles | None:
    """The tiles of a job that is about to be given to *SD upscale*; None of any other."""
    scripts, values = getattr(p, "scripts", None), getattr(p, "script_args", None)
    chosen = values[0] if values else 0
    if scripts is None or values is None or not (isinstance(chosen, int) and chosen > 0):
        return None
    script = scripts.selectable_scripts[chosen - 1]
    if script.title().lower() != SD_UPSCALE:
        return None
    labels = [str(getattr(control, "label", "")).lower() for control in script.controls]
    given = dict(zip(labels, values[script.args_from : script.args_to], strict=False))
    overlap, factor = given["tile overlap"], given["scale factor"]
    width, height = p.init_images[0].size
    if _upscales(given["upscaler"]):
        width, height = (int(side * factor // 8 * 8) for side in (width, height))
    grid = images.split_grid(Image.new("1", (width, height)), p.width, p.height, int(overlap))
    return Tiles(
        [
            (y / height, x / width, (y + tall) / height, (x + wide) / width)
            for y, tall, row in grid.tiles
            for x, wide, _ in row
        ]
    )


def _upscales(upscaler: Any) -> bool:
    """Whether it is another than the first, which leaves the picture as it is. upscaler: its number or its name."""
    if isinstance(upscaler, str):
        return upscaler.lower() != "none"
    return shared.sd_upscalers[upscaler].name != "None"


def only_masked(p: Any) -> Window:
    """The part of the picture that a pass makes: where it is to be pasted, and what the host adds to fill the size."""
    pasted, mask = getattr(p, "paste_to", None), getattr(p, "mask_for_overlay", None)
    if pasted is None or mask is None:
        return WHOLE
    x, y, wide, tall = pasted
    # The host adds to the shorter side what the wanted shape lacks ("resize and fill"), as much on both sides.
    wider, taller = max(wide, tall * p.width / p.height), max(tall, wide * p.height / p.width)
    x, y = x - (wider - wide) / 2, y - (taller - tall) / 2
    width, height = mask.size
    return y / height, x / width, (y + taller) / height, (x + wider) / width
