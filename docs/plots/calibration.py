"""Draw docs/calibration.png: the curve of one effect, the band found from it, and pictures along it.

From the repository's root: python -m docs.plots.calibration (a minute; the built-in model).
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lib_masknoise.calibrate import measuring
from lib_masknoise.calibrate.effects import EFFECTS, Case
from lib_masknoise.hosts.diffusers import load_pipeline
from lib_masknoise.hosts.diffusers.calibrating import PipelineProbe
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

OUT = Path(__file__).parents[1] / "calibration.png"
EFFECT = next(one for one in EFFECTS if one.path == "noise.feature.strength")
CASE = Case("a wheat field", "an ocean")
PLACES = (-60, 0, 33, 67, 100, 115, 130)
WIDTH, HEIGHT, LEFT, TOP, SIDE, GAP = 1000, 330, 70, 44, 128, 8
INVISIBLE, USEFUL, BROKEN, LOST, INK, LINE = "#d4d4d4", "#bfe3d1", "#f3cdbf", "#d99c8c", "#222222", "#1f5fa8"
LOW, HIGH = (0.01, 4.0)  # of the changes shown


def main() -> None:
    probe = PipelineProbe(load_pipeline(), None)
    bench = measuring.Bench(probe, Settings(size=(SIDE, SIDE), guidance_scale=4.0), Scene(), lambda more: None)
    look, runs = bench.look(EFFECT, CASE), []
    run = bench.runner(EFFECT, CASE, None)

    def noted(strength: float) -> measuring.Run:
        runs.append(run(strength))
        return runs[-1]

    band = measuring.band(look, noted)
    assert band.visible is not None
    canvas = Image.new("RGB", (WIDTH, TOP + HEIGHT + 60 + SIDE + 30), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)

    def x(scale: float) -> float:
        low, high = math.log(look.scales[0]), math.log(look.scales[-1])
        return LEFT + (WIDTH - LEFT - 20) * (math.log(scale) - low) / (high - low)

    def y(change: float) -> float:
        part = (math.log(min(max(change, LOW), HIGH)) - math.log(LOW)) / (math.log(HIGH) - math.log(LOW))
        return TOP + HEIGHT * (1 - part)

    ends = [look.scales[0], band.visible, band.top, band.end, look.scales[-1]]
    for colour, start, end in zip((INVISIBLE, USEFUL, BROKEN, LOST), ends, ends[1:], strict=False):
        draw.rectangle((x(start), TOP, x(end), TOP + HEIGHT), fill=colour)
    for name, start, end in zip(("invisible", "useful", "broken", "lost"), ends, ends[1:], strict=False):
        draw.text(((x(start) + x(end)) / 2, TOP + 12), name, INK, font, "mm")
    for change in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        draw.line((LEFT, y(change), WIDTH - 20, y(change)), fill="#ffffff" if change != 0.3 else "#888888")
        draw.text((LEFT - 8, y(change)), f"{change:g}", INK, font, "rm")
    for scale in look.scales:
        draw.text((x(scale), TOP + HEIGHT + 12), f"{scale:.2g}", INK, font, "mm")
    for curve, colour in ((look.changes, "#999999"), (band.changes, LINE)):
        points = [(x(scale), y(change)) for scale, change in zip(look.scales, curve, strict=True)]
        draw.line(points, fill=colour, width=3)
        for px, py in points:
            draw.ellipse((px - 4, py - 4, px + 4, py + 4), fill=colour)
    for one in runs:
        px, py = x(one.scale), y(one.change)
        draw.rectangle((px - 6, py - 6, px + 6, py + 6), outline="#c4421a", width=3)
    words = "feature noise, a wheat field: change in distances of two seeds against strength"
    draw.text((LEFT, 18), f"{words}; grey: one call, blue: with the two short runs (squares)", INK, font, "lm")
    strengths = [min(band.value(percent) or 0.0, EFFECT.highest) for percent in PLACES]
    for i, (percent, strength) in enumerate(zip(PLACES, strengths, strict=True)):
        image, left = bench.run(EFFECT, CASE, strength)[0], 20 + i * (SIDE + GAP)
        canvas.paste(image, (left, TOP + HEIGHT + 50))
        draw.text((left + SIDE / 2, TOP + HEIGHT + 38), f"{percent} %", INK, font, "mm")
        draw.text((left + SIDE / 2, TOP + HEIGHT + 64 + SIDE), f"{strength:.2g}", INK, font, "mm")
    canvas.save(OUT, optimize=True)


if __name__ == "__main__":
    main()
