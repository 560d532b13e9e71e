"""Pictures for a model in which subject and style are two things: emoji of several makers, drawn in several manners.

    npm pack @iconify-json/noto @iconify-json/twemoji @iconify-json/openmoji @iconify-json/fluent-emoji-flat
    pip install resvg-py
    python -m tools.small_model.emblems --sets FOLDER --work DIR       -> DIR/emblems.pt

FOLDER has the packages, unpacked to `noto/`, `twemoji/`, … (Apache 2.0, CC BY 4.0, CC BY-SA 4.0, MIT). Nothing of them
is part of this repository. What is made of them is only used to measure (docs/style.md).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SUBJECTS = {
    "apple": "red-apple", "banana": "banana", "carrot": "carrot", "mushroom": "mushroom", "tree": "evergreen-tree",
    "fish": "fish", "car": "automobile", "house": "house", "star": "star", "heart": "red-heart", "key": "key",
    "umbrella": "umbrella",
}  # fmt: skip
MAKERS = {"noto": "noto", "twemoji": "twemoji", "openmoji": "openmoji", "fluent": "fluent-emoji-flat"}
LUMA = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
DRAWN, SIDE = 64, 32
"""Pixels a side: as drawn from the vectors, and of a picture."""


# --- Manners: [B, 3, H, W] from 0 to 1 on white → the same


def _grey(x: Tensor) -> Tensor:
    return (x * LUMA).sum(1, keepdim=True).expand_as(x)


def _tint(dark: Sequence[float], light: Sequence[float]) -> Callable[[Tensor], Tensor]:
    ends = [torch.tensor(end).view(3, 1, 1) for end in (dark, light)]
    return lambda x: torch.lerp(*ends, _grey(x))


def _pastel(x: Tensor) -> Tensor:
    return 0.45 * x + 0.55


def _outline(x: Tensor) -> Tensor:
    """Dark lines where colours change, on white."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2], padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    edge = (across.square() + down.square()).sum(1, keepdim=True).sqrt()
    return (1 - (edge - 0.15).mul(1.6).clamp(0, 0.9)).expand_as(x)


MANNERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sepia": _tint((0.26, 0.13, 0.05), (0.97, 0.91, 0.78)),
    "blueprint": _tint((0.05, 0.15, 0.50), (0.80, 0.90, 1.00)),
    "pastel": _pastel,
    "outline": _outline,
}
"""Applied to a drawing of any maker."""
STYLES = (*MAKERS, *MANNERS)
FEW_SUBJECTS = ("apple", "tree", "fish", "house", "star", "umbrella")
FEW_STYLES = ("twemoji", "openmoji", "sepia", "blueprint", "pastel", "outline")
"""Of all; what a model can be trained on in a few minutes."""
PLAIN = len(STYLES)
"""In place of a style: any maker, and a caption without one."""


def caption(subject: int, style: int) -> str:
    name = list(SUBJECTS)[subject]
    return f"a {name}" if style == PLAIN else f"a {name}, {STYLES[style]} style"


# --- Drawings


def drawings(sets: Path) -> Tensor:
    """`[subjects, makers, 4, DRAWN, DRAWN]` from 0 to 1, with alpha."""
    import resvg_py  # only needed here

    rows = []
    for name in SUBJECTS.values():
        for folder in MAKERS.values():
            icons = json.loads((sets / folder / "icons.json").read_text("utf-8"))
            icon = icons["icons"][name]
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
            text = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}" width="{DRAWN}" height="{DRAWN}">{icon["body"]}</svg>'
            )
            picture = Image.open(BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text)))).convert("RGBA")
            rows.append(torch.from_numpy(np.asarray(picture.resize((DRAWN, DRAWN)), dtype=np.float32) / 255))
    return torch.stack(rows).movedim(-1, 1).unflatten(0, (len(SUBJECTS), len(MAKERS)))


def pictures(
    drawn: Tensor, subjects: Tensor, styles: Tensor, generator: torch.Generator, still: bool = False
) -> Tensor:
    """`[B, 3, SIDE, SIDE]`: subjects and styles `[B]`, placed and turned a little at random, half of them mirrored."""
    count = len(subjects)
    makers = torch.randint(len(MAKERS), (count,), generator=generator)
    makers = torch.where(styles < len(MAKERS), styles, makers)
    size, angle, x, y, mirror = torch.rand(5, count, generator=generator)
    if still:  # by a pixel at most, upright
        size, angle, mirror, x, y = torch.full_like(size, 0.4), angle * 0 + 0.5, mirror * 0, x / 5 + 0.4, y / 5 + 0.4
    size, angle, mirror = 1.05 + 0.25 * size, (angle - 0.5) * 0.3, (mirror < 0.5).float() * 2 - 1
    cos, sin = size * angle.cos(), size * angle.sin()
    shift = (torch.stack([x, y], 1) - 0.5) * 1.2 * (size - 0.95)[:, None]
    theta = torch.stack(
        [torch.stack([mirror * cos, -mirror * sin, mirror * shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)],
        1,
    )
    chosen = drawn[subjects, makers]
    chosen = torch.cat([chosen[:, :3] * chosen[:, 3:], chosen[:, 3:]], 1)  # multiplied, so that edges have no fringe
    grid = F.affine_grid(theta, [count, 4, 2 * SIDE, 2 * SIDE], align_corners=False)
    moved = F.avg_pool2d(F.grid_sample(chosen, grid, align_corners=False), 2)
    made = (moved[:, :3] + 1 - moved[:, 3:]).clamp(0, 1)
    for i, manner in enumerate(MANNERS.values(), len(MAKERS)):
        own = styles == i
        if own.any():
            made[own] = manner(made[own])
    return made


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw the emoji that a model of subjects and styles is trained on.")
    parser.add_argument("--sets", type=Path, required=True, help="folder with the unpacked packages")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.save(drawings(args.sets).half(), args.work / "emblems.pt")


if __name__ == "__main__":
    main()
