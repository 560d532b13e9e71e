"""What seed, steps, guidance and words do: every combination, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from lib_masknoise.explore.model import Model, Report
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

MAX_CELLS = 4096
MARGIN = 6
FONT_SIZE = 13
PAPER, INK = (255, 255, 255), (20, 20, 20)


class Cell(NamedTuple):
    """One picture's settings. words: how many words of the prompt; None for all, where that is no axis."""

    prompt: str
    words: int | None
    seed: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Grid:
    """The axes. Rows are seeds, and in each the step counts; columns are guidances, and in each the words."""

    prompt: str
    seeds: tuple[int, ...]
    step_counts: tuple[int, ...]
    guidances: tuple[float, ...]
    by_word: bool = False

    @property
    def words(self) -> tuple[int | None, ...]:
        return tuple(range(1, len(self.prompt.split()) + 1)) if self.by_word else (None,)

    @property
    def rows(self) -> list[tuple[int, int]]:
        return [(seed, steps) for seed in self.seeds for steps in self.step_counts]

    @property
    def columns(self) -> list[tuple[float, int | None]]:
        return [(guidance, words) for guidance in self.guidances for words in self.words]

    @property
    def cells(self) -> list[Cell]:
        """Row by row. Raises ValueError where there are none, or too many."""
        found = [
            Cell(self.first_words(words), words, seed, steps, guidance)
            for seed, steps in self.rows
            for guidance, words in self.columns
        ]
        if not 0 < len(found) <= MAX_CELLS:
            raise ValueError(f"expected 1 to {MAX_CELLS} cells, got {len(found)}")
        return found

    def first_words(self, count: int | None) -> str:
        return self.prompt if count is None else " ".join(self.prompt.split()[:count])


def pictures(
    model: Model, cells: Iterable[Cell], scene: Scene, settings: Settings, report: Report
) -> Iterator[tuple[Cell, Image.Image]]:
    """The cells' pictures, in the order they are made: those of one step count and guidance share a batch of
    `settings.batch_size`, as a batch has one schedule. With an enabled scene, each cell is a pass of its own."""

    def schedule(cell: Cell) -> tuple[int, float]:
        return cell.steps, cell.guidance

    for (steps, guidance), of_schedule in groupby(sorted(cells, key=schedule), key=schedule):
        same = list(of_schedule)
        here = replace(settings, steps=steps, guidance_scale=guidance)
        size = 1 if scene.enabled else settings.batch_size or len(same)
        for start in range(0, len(same), size):
            some = same[start : start + size]
            if scene.enabled:
                own = replace(here, prompt=some[0].prompt, seed=some[0].seed)
                images: Sequence[Image.Image] = list(model.rendered(scene, own, [0], report))
            else:
                images = model.plain([cell.prompt for cell in some], [cell.seed for cell in some], here, report)
            yield from zip(some, images, strict=True)


def sheet(grid: Grid, images: dict[Cell, Image.Image]) -> Image.Image:
    """All cells in rows and columns, what stands for each at the edges; a cell without a picture stays empty."""
    font = label_font()
    cells, columns = grid.cells, grid.columns
    width, height = next(iter(images.values())).size
    left_labels = [_row_label(grid, *row) for row in grid.rows]
    top_labels = [_column_label(grid, *column) for column in columns]
    left = max(_text_size(font, label)[0] for label in left_labels) + 2 * MARGIN
    broken = [wrapped(font, label, width) for label in top_labels]
    top = max(_text_size(font, label)[1] for label in broken) + 2 * MARGIN
    made = Image.new("RGB", (left + len(columns) * (width + 2), top + len(grid.rows) * (height + 2)), PAPER)
    draw = ImageDraw.Draw(made)
    for column, label in enumerate(broken):
        draw.multiline_text((left + column * (width + 2), MARGIN), label, INK, font=font)
    for row, label in enumerate(left_labels):
        draw.multiline_text((MARGIN, top + row * (height + 2) + MARGIN), label, INK, font=font)
    for i, cell in enumerate(cells):
        if cell in images:
            row, column = divmod(i, len(columns))
            made.paste(images[cell], (left + column * (width + 2), top + row * (height + 2)))
    return made


def _row_label(grid: Grid, seed: int, steps: int) -> str:
    return f"seed {seed}\n{steps} step" + "s" * (steps != 1)


def _column_label(grid: Grid, guidance: float, words: int | None) -> str:
    label = f"guidance {guidance:g}"
    return label if words is None else f"{label}\n{grid.first_words(words)}"


def label_font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(FONT_SIZE)
    except TypeError:  # Pillow before 10.1 has one size, a bitmap
        return ImageFont.load_default()


def _text_size(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str) -> tuple[int, int]:
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return int(box[2]) + 1, int(box[3]) + 1


def wrapped(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, width: int) -> str:
    """Broken between words so that no line is wider than a picture, if it can be."""
    lines = []
    for line in text.split("\n"):
        current = ""
        for word in line.split(" "):
            longer = f"{current} {word}".strip()
            if current and _text_size(font, longer)[0] > width:
                lines.append(current)
                current = word
            else:
                current = longer
        lines.append(current)
    return "\n".join(lines)
