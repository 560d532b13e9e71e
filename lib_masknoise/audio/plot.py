"""The numbers over the frames, and the keyframes that stand for them, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray[Any, Any]

WIDTH, HEIGHT = 1120, 250
MARGIN = (46, 30, 16, 30)
"""Left, top, right, bottom, in pixels."""
SMOOTH = 2
"""Times larger that it is drawn, to be averaged down."""
INK, GRID, SOUND, KEYS = "#333333", "#e4e4e4", "#a8c8e4", "#c2410c"
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds between the lines."""
MOST_TICKS = 16
MOST_DOTS = 200


def plot(values: Array, kept: Sequence[int], fps: float, title: str) -> Image.Image:
    """``[F]`` numbers in [0, 1] as an area, and the straight lines between the frames ``kept``, over seconds."""
    left, top, right, bottom = (SMOOTH * side for side in MARGIN)
    image = Image.new("RGB", (SMOOTH * WIDTH, SMOOTH * HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    wide, high = image.width - left - right, image.height - top - bottom

    def place(frame: float, value: float) -> tuple[float, float]:
        return left + wide * frame / max(len(values) - 1, 1), top + high * (1 - value)

    seconds = len(values) / fps
    step = next((tick for tick in TICKS if seconds / tick <= MOST_TICKS), seconds / MOST_TICKS)
    ticks = [round(i * step, 6) for i in range(int((len(values) - 1) / fps / step + 1e-9) + 1)]
    area = [place(f, float(value)) for f, value in enumerate(values)]
    draw.polygon([place(0, 0), *area, place(max(len(values) - 1, 1), 0)], fill=SOUND)
    for second in ticks:
        draw.line([place(second * fps, 0), place(second * fps, 1)], fill=GRID, width=SMOOTH)
    for value in (0, 0.5, 1):
        draw.line([place(0, value), place(max(len(values) - 1, 1), value)], fill=GRID, width=SMOOTH)
    line = [place(f, float(values[f])) for f in kept]
    draw.line(line, fill=KEYS, width=int(1.5 * SMOOTH))
    for x, y in line if len(line) <= MOST_DOTS else []:
        radius = 2.5 * SMOOTH
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=KEYS)
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)

    draw, font = ImageDraw.Draw(image), ImageFont.load_default()

    def write(text: str, x: float, y: float, anchored: float) -> None:
        text = text.encode("latin-1", "replace").decode("latin-1")  # all that Pillow's own font has
        draw.text((x - anchored * draw.textlength(text, font=font), y), text, fill=INK, font=font)

    write(title, MARGIN[0], 8, 0)
    for second in ticks:
        x, y = place(second * fps, 0)
        write(f"{second:g} s", x / SMOOTH, y / SMOOTH + 8, 0.5)
    for value in (0, 0.5, 1):
        write(f"{value:g}", MARGIN[0] - 8, place(0, value)[1] / SMOOTH - 6, 1)
    return image
