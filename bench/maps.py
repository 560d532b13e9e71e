"""How often masks are drawn and pictures decoded, and what the conditioning of painted masks costs.

    python bench/maps.py [--rounds 5]

Drawings and decodings are counted from the scene's JSON on, with nothing remembered from before. A mask that does not
move is to be drawn once a size, a picture decoded once. Seconds are those of the process's CPU, with one thread.
"""

from __future__ import annotations

import argparse
import base64
import io
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import painted  # noqa: E402
from lib_masknoise import maps, preview  # noqa: E402
from lib_masknoise.conditioning import Encoded, condition, condition_negative  # noqa: E402
from lib_masknoise.hosts.webui.rows import Picture, Rows  # noqa: E402
from lib_masknoise.maps import Maps, Size, strokes  # noqa: E402
from lib_masknoise.scene import Scene, pictures  # noqa: E402
from lib_masknoise.ui import live  # noqa: E402

BATCH, SIZE, HIRES = 8, (64, 64), (96, 96)
NOISE = {name: {"strength": 0.5} for name in ("visual", "concept", "feature")}


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    print("| job | masks | sizes | drawn | pictures decoded |\n|---|---|---|---|---|")
    for name, (scene, sizes, work) in JOBS.items():
        with counted() as counts:
            work(Scene.parse(scene))
        row = f"| {name} | {len(scene['concepts'])} | {sizes} | {counts['drawn']} | {counts['decoded']} |"
        print(row, flush=True)
    both, drawing = zip(*(conditioning_seconds() for _ in range(options.rounds)), strict=True)
    print(
        f"\nConditioning of {BATCH} stills with {painted.CONCEPTS} painted masks of {painted.STROKES} strokes at "
        f"{SIZE[0]}×{SIZE[1]}, both sides: {statistics.median(both):.3f} CPU s (least {min(both):.3f}), of which "
        f"drawing {statistics.median(drawing):.3f} (least {min(drawing):.3f})"
    )


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often masks are drawn and pictures decoded in the block."""
    counts: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    forget()
    with ExitStack() as stack:
        for module, name, what in ((maps, "weight_map", "drawn"), (pictures, "decode_pictures", "decoded")):
            stack.enter_context(mock.patch.object(module, name, counting(what, getattr(module, name))))
        yield counts


def forget() -> None:
    """What the process remembers of maps and pictures."""
    strokes._memory.clear()
    pictures._levels.clear()
    pictures._good.clear()


# --- Jobs


def stills(scene: Scene, sizes: tuple[Size, ...] = (SIZE,)) -> None:
    """A batch of stills, each with a seed of its own, at each size one after the other: what a WebUI's job asks for."""
    encoded, base = _encoded()
    for size in sizes:
        rows = Rows(Maps(scene, size), [Picture(0, seed) for seed in range(BATCH)])
        rows.visual(torch.zeros(BATCH, 4, *size))
        rows.positive([[base]] * BATCH, {text: [one] for text, one in encoded.items()})
        rows.negative([base] * BATCH, {})


def previewed(scene: Scene) -> None:
    """What the user interface shows of a scene."""
    live.figures(preview.Preview(scene), (512, 512))


def _pictured() -> dict[str, Any]:
    """Two masks that do not move, one of them a picture, in an animation of 24 frames."""
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    masks = ({"kind": "image", "data": data}, {"kind": "split", "axis": "y", "to": 0.4, "feather": 0.2})
    return {
        "concepts": [{"prompt": prompt, "mask": mask} for prompt, mask in zip("ab", masks, strict=True)],
        "noise": NOISE,
        "motion": {"kind": "circle"},
        "animation": {"frames": 24},
    }


JOBS: dict[str, tuple[dict[str, Any], int, Callable[[Scene], None]]] = {
    f"{BATCH} stills, painted masks": (painted.scene(noise=NOISE), 1, stills),
    "the same with a hires pass": (painted.scene(noise=NOISE), 2, lambda scene: stills(scene, (SIZE, HIRES))),
    "the page's preview of 24 frames": (_pictured(), 3, previewed),
}


# --- Time


def conditioning_seconds() -> tuple[float, float]:
    """CPU seconds of both sides' conditioning, and of the drawing alone."""
    scene = Scene.parse(painted.scene(noise={"concept": {"strength": 0.5}}))
    encoded, base = _encoded()
    forget()
    made = Maps(scene, SIZE)
    start = time.process_time()
    made.weights()
    drawn = time.process_time()
    condition(made, base, encoded, [0] * BATCH, range(BATCH))
    condition_negative(made, base, {}, [0] * BATCH)
    return time.process_time() - start, drawn - start


def _encoded() -> tuple[dict[str, Encoded], Encoded]:
    """The concepts' prompts and the base, random."""
    generator = torch.Generator().manual_seed(0)
    base, *concepts = (Encoded(torch.randn(77, 768, generator=generator)) for _ in range(1 + painted.CONCEPTS))
    return dict(zip("abcd", concepts, strict=True)), base


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
