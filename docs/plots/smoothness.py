"""Draw the plot and print the tables of docs/long-renders.md about smoothness, on the built-in model.

From the repository's root: python -m docs.plots.smoothness (needs matplotlib; some minutes).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from docs.plots.motion import KEYS, TOTAL, plt, save
from lib_masknoise import smoothness
from lib_masknoise.render import Settings, write
from lib_masknoise.render.studio import this_process
from lib_masknoise.scene import Scene

MOTIONS: dict[str, dict[str, Any]] = {
    "sine": {"kind": "sine"},
    "circle": {"kind": "circle"},
    "simplex": {"kind": "simplex"},
    "walk": {"kind": "walk", "cycles": 2},
    "linear": {"kind": "linear"},
    "linear, no loop": {"kind": "linear", "loop": False},
    "keyframes": {"kind": "keyframes", "keyframes": KEYS[:2] + [{**KEYS[2], "easing": "ease-in-out"}] + KEYS[3:]},
}


def scene(motion: dict[str, Any]) -> Scene:
    return Scene.parse(
        {
            "concepts": [{"prompt": "a wheat field", "mask": {"kind": "split", "axis": "x", "from": 0, "to": 0.4}}],
            "noise": {"visual": {"strength": 1}, "concept": {"strength": 1}},
            "motion": motion,
            "animation": {"frames": TOTAL, "formats": ["sheet"]},
        }
    )


def rendered(motion: dict[str, Any], even: bool) -> tuple[list[float], list[float], dict[str, Any]]:
    """(frame times, perceptual steps, all figures)"""
    settings = Settings(prompt="an ocean", seed=5, steps=4, size=(64, 96), threads=1, even=even)
    with tempfile.TemporaryDirectory() as folder:
        summary = write(scene(motion), settings, Path(folder))
        frames = sorted(Path(folder, "frames").glob("*.png"))
        _, steps = smoothness.steps(map(Image.open, frames), motion.get("loop", True))
    return summary["times"], steps, summary["smoothness"]


def main() -> None:
    print("| motion | evenness | even | largest ÷ mean step | even | closure | even | pixels: evenness | even |")
    print("|---" * 9 + "|")
    figure, axes = plt.subplots(2, len(MOTIONS), figsize=(13, 4.2), sharex=True, layout="constrained")
    for (name, motion), (above, below) in zip(MOTIONS.items(), axes.T, strict=True):
        both = [rendered(motion, even) for even in (False, True)]
        cells = []
        for value in (evenness, peak, closure, lambda figures: f"{figures['pixel']['evenness']:.2f}"):
            cells += [value(figures) for _, _, figures in both]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        for times, steps, _ in both:
            above.plot(steps, ".-", markersize=3)
            below.plot(times, ".-", markersize=2)
        above.set(title=name, ylim=(0, None))
        below.set(xlabel="frame")
    axes[0, 0].set_ylabel("perceptual step")
    axes[1, 0].set_ylabel("time shown")
    axes[0, 0].legend(["plain", "--even"], fontsize=7)
    save(figure, "smoothness-even.png")


def looks() -> None:
    """How many looks at the motion `--even` needs: evenness of 48 frames placed by more or fewer."""
    print("\n| looks | plain | " + " | ".join(str(2 * TOTAL // every) for every in (8, 4, 2, 1)) + " |")
    print("|---" * 6 + "|")
    settings = Settings(prompt="an ocean", steps=4, size=(64, 96), threads=1)
    with this_process(settings) as studio:
        for name in ("sine", "simplex"):

            def made(times: list[float], name: str = name) -> list[Image.Image]:
                batches = [times[start : start + 4] for start in range(0, len(times), 4)]
                return list(studio.images(scene(MOTIONS[name]), settings, batches, lambda frames: None))

            seen = made(smoothness.coarse_times(TOTAL, 2 * TOTAL + 1, loop=True)[:-1])
            cells = [smoothness.measure(seen[::2], loop=True)]
            for every in (8, 4, 2, 1):
                _, steps = smoothness.steps(seen[::every], loop=True)
                times = smoothness.coarse_times(TOTAL, len(steps) + 1, loop=True)
                cells.append(smoothness.measure(made(smoothness.even_times(times, steps, TOTAL, loop=True)), loop=True))
            print(f"| {name} | " + " | ".join(map(evenness, cells)) + " |", flush=True)


def evenness(figures: dict[str, Any]) -> str:
    return f"{figures['perceptual']['evenness']:.2f}"


def peak(figures: dict[str, Any]) -> str:
    return f"{figures['perceptual']['largest'] / figures['perceptual']['mean']:.2f}"


def closure(figures: dict[str, Any]) -> str:
    value = figures["perceptual"]["closure"]
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
    looks()
