"""The pictures of docs/explore.md, in docs/explore/: the views on the built-in model, each as one picture.

python -m tools.explore [VIEW ...]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lib_masknoise.explore import map as maps
from lib_masknoise.explore import views
from lib_masknoise.explore.folder import Folder
from lib_masknoise.explore.grid import Grid, label_font, wrapped
from lib_masknoise.render import Settings

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "explore"
PAPER, INK = (255, 255, 255), (20, 20, 20)
FIRST, SECOND = "a wheat field", "an ocean"
CELL = 128


def journey(model: Any, folder: Path) -> list[Path]:
    made = views.journey(model, _settings("a forest", steps=20), None, Folder(folder), views.silent)
    shown = [made["steps"][i] for i in (0, 4, 8, 12, 16, 20)]
    rows = [[(folder / step[name], f"noise {step['sigma']:.2g}" if name == "x0" else "") for step in shown]
            for name in views.PICTURED]  # fmt: skip
    moving = PICTURES / "journey.webp"
    shutil.copyfile(folder / made["animation"][0], moving)
    return [moving, _table(rows, "journey")]


def between(model: Any, folder: Path) -> list[Path]:
    names = maps.read_prompts(maps.BUILT_IN)
    made = views.between(
        model, _settings(FIRST), SECOND, Folder(folder), views.silent, stops=9, even=True, reach=0.5, bridges=5,
        names=names,
    )  # fmt: skip
    stops = [(folder / stop["file"], f"{stop['t']:.2f}") for stop in made["stops"]]
    passage = [(folder / made["passage"]["file"], "no bridge")]
    passage += [(folder / one["file"], f"{one['prompt']}, {one['distance']:.2f}") for one in made["bridges"]]
    return [_table([stops], "between"), _table([passage], "bridges")]


def prompt_map(model: Any, folder: Path) -> list[Path]:
    """Each place's picture where it lies, the prompts as points with as many names as there is room for."""
    entries = maps.read_prompts(maps.BUILT_IN)
    settings = _settings("", steps=10, size=(64, 64))
    made = views.prompt_map(model, settings, entries, Folder(folder), views.silent, columns=12)
    heard = [point for point in made["points"] if point["heard"]]
    xs, ys = [point["x"] for point in heard], [point["y"] for point in heard]
    scale = 64 * 12 / (max(xs) - min(xs))
    width, height = round((max(xs) - min(xs)) * scale) + 160, round((max(ys) - min(ys)) * scale) + 60
    sheet = Image.new("RGB", (width, height), PAPER)

    def at(x: float, y: float) -> tuple[int, int]:
        return round((x - min(xs)) * scale) + 40, round((max(ys) - y) * scale) + 30

    for place in made["places"]:
        x, y = at(place["x"], place["y"])
        with Image.open(folder / place["file"]) as image:
            sheet.paste(image, (x - 32, y - 32))
    draw, font, taken = ImageDraw.Draw(sheet), label_font(), []
    for point in heard:
        x, y = at(point["x"], point["y"])
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), PAPER, INK)
        box = draw.textbbox((x + 6, y - 8), point["prompt"], font=font)
        if box[2] < width and not any(
            box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken
        ):
            taken.append(box)
            draw.text((x + 6, y - 8), point["prompt"], INK, font=font, stroke_width=3, stroke_fill=PAPER)
    return [_save(sheet, "map")]


def grid(model: Any, folder: Path) -> list[Path]:
    wanted = Grid("snow next to lava", (3,), (2, 5, 20), (1.0, 4.0), by_word=True)
    settings = _settings(wanted.prompt, size=(96, 96))
    made = views.grid(model, settings, wanted, None, Folder(folder), views.silent)
    with Image.open(folder / made["sheet"]) as sheet:
        return [_save(sheet.convert("RGB"), "grid")]


VIEWS: dict[str, Callable[[Any, Path], list[Path]]] = {
    "journey": journey,
    "between": between,
    "map": prompt_map,
    "grid": grid,
}


def _settings(prompt: str, steps: int = 16, size: tuple[int, int] = (CELL, CELL)) -> Settings:
    return Settings(prompt=prompt, seed=3, steps=steps, size=size, batch_size=8)


def _table(rows: list[list[tuple[Path, str]]], name: str) -> Path:
    """Pictures in rows, what each is under it where anything is."""
    font = label_font()
    lines = 3 if any(len(text) > 16 for row in rows for _, text in row) else 1
    heights = [CELL + (18 * lines if any(text for _, text in row) else 0) + 4 for row in rows]
    made = Image.new("RGB", (max(map(len, rows)) * (CELL + 4), sum(heights)), PAPER)
    draw = ImageDraw.Draw(made)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for i, (path, text) in enumerate(row):
            with Image.open(path) as image:
                made.paste(image.resize((CELL, CELL)), (i * (CELL + 4), top))
            draw.multiline_text((i * (CELL + 4), top + CELL + 2), wrapped(font, text, CELL), INK, font=font)
        top += height
    return _save(made, name)


def _save(image: Image.Image, name: str) -> Path:
    path = PICTURES / f"{name}.jpg"
    image.save(path, quality=88)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("tools.explore", description=__doc__.splitlines()[0])
    parser.add_argument("views", nargs="*", metavar="VIEW", help=f"of {', '.join(VIEWS)} (default: all)")
    options = parser.parse_args(argv)
    if wrong := set(options.views) - set(VIEWS):
        parser.error(f"no such view: {', '.join(sorted(wrong))}; there are {', '.join(VIEWS)}")
    from lib_masknoise.render.studio import host

    load_pipeline, _ = host()
    from lib_masknoise.hosts.diffusers.exploring import PipelineModel

    model = PipelineModel(load_pipeline())
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in options.views or VIEWS:
        with tempfile.TemporaryDirectory() as folder:
            for path in VIEWS[name](model, Path(folder)):
                print(path, flush=True)


if __name__ == "__main__":
    main()
