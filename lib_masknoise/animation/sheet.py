"""The contact sheet: frames beside each other in one PNG file."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image

from lib_masknoise.animation.film import Film, Format
from lib_masknoise.animation.video import png_comment, png_info

_FRAMES = 24
_GAP = 4  # pixels
_SIDE = 4096  # pixels, at most
_BACKGROUND = (32, 32, 32)


def _write(target: Path, film: Film, comment: str | None) -> None:
    """At most 24 evenly chosen frames, first to last, in rows; shrunk so that no side exceeds 4096 pixels."""
    chosen = _choice(len(film.paths))
    root = math.ceil(math.sqrt(len(chosen)))
    columns = min((root, root + 1), key=lambda columns: -len(chosen) % columns)  # fewer empty cells
    rows = math.ceil(len(chosen) / columns)

    width, height = film.size
    axes = ((columns, width), (rows, height))
    shrink = min(1.0, *((_SIDE - _GAP * (cells - 1)) / (cells * side) for cells, side in axes))
    cell = max(1, int(width * shrink)), max(1, int(height * shrink))
    step = (cell[0] + _GAP, cell[1] + _GAP)
    sheet = Image.new("RGB", (columns * step[0] - _GAP, rows * step[1] - _GAP), _BACKGROUND)
    for place, image in enumerate(film.images(film.paths[index] for index in chosen)):
        if image.size != cell:
            image = image.resize(cell, Image.Resampling.LANCZOS)
        sheet.paste(image, (place % columns * step[0], place // columns * step[1]))

    sheet.save(target, "PNG", pnginfo=png_info(comment))


def _choice(count: int) -> list[int]:
    if count <= _FRAMES:
        return list(range(count))
    return [round(place * (count - 1) / (_FRAMES - 1)) for place in range(_FRAMES)]


FORMAT = Format("-sheet.png", "PNG", math.inf, _write, lambda film: len(_choice(len(film.paths))), png_comment)
