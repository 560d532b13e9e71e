"""The pictures and plots of docs/quality.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench.quality_measures import CONCEPTS
from bench.quality_sampling import METHODS

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "masknoise", "svg.fonttype": "none", "font.size": 9, "axes.grid": True})
matplotlib.rcParams.update({"grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False})

from matplotlib import pyplot as plt  # noqa: E402  (after the backend is chosen)

# Images by pair and method, or frames by noise; empty where an experiment has plots alone.
Pictures = dict[Any, Any]
COLOURS = {
    "conditioning": "#0b6e99",
    "outputs": "#d1633c",
    "predictions": "#7a5195",
    "hard": "#888888",
    "preserve_norm": "#3a9d5d",
}
LABEL_HEIGHT = 15
QUALITY = 70  # of the JPEGs: the textures are fine-grained and the files should stay small


def write(name: str, figures: dict, shown: Pictures, folder: Path) -> None:
    """The files of one experiment: NAME.jpg where there are pictures, NAME.svg where there is a plot."""
    if name in ("ramps", "wide"):
        _ramp_sheet(shown).save(folder / f"{name}.jpg", quality=QUALITY)
        _save(_passages(figures), folder / f"{name}.svg")
    if name == "ramps":
        _save(_matrix(figures), folder / "fidelity.svg")
    if name == "adjectives":
        _save(_brightness(figures), folder / "adjectives.svg")
    if name == "extrapolation":
        _save(_extrapolation(figures), folder / "extrapolation.svg")
    if name == "motion":
        _frames(shown["all three"]).save(folder / "motion.jpg", quality=QUALITY)
        _save(_motion(figures), folder / "motion.svg")


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def _ramp_sheet(shown: Pictures) -> Image.Image:
    """A row for each pair, a column for each method, at three quarters of the size."""
    tiles = {pair: [_tile(image) for image in images.values()] for pair, images in shown.items()}
    methods, width = list(next(iter(shown.values()))), next(iter(tiles.values()))[0].shape[1]
    rows = [np.concatenate([_strip(METHODS[method].label, width) for method in methods], 1)]
    for (left, right), of_pair in tiles.items():
        rows += [_strip(f"{CONCEPTS[left]} to {CONCEPTS[right]}", width * len(methods))]
        rows += [np.concatenate(of_pair, 1)]
    return Image.fromarray(np.concatenate(rows))


def _tile(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[0] * 3 // 4, image.shape[1] * 3 // 4
    tile = Image.new("RGB", (width + 4, height + 2), "white")
    tile.paste(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS), (2, 0))
    return np.asarray(tile)


def _labelled(image: np.ndarray, text: str) -> np.ndarray:
    tile = _tile(image)
    return np.concatenate([_strip(text, tile.shape[1]), tile])


def _strip(text: str, width: int) -> np.ndarray:
    strip = Image.new("RGB", (width, LABEL_HEIGHT), "white")
    ImageDraw.Draw(strip).text((3, 1), text, fill="black", font=ImageFont.load_default(11))
    return np.asarray(strip)


def _frames(frames: np.ndarray) -> Image.Image:
    """Every third frame, and where the frames differ."""
    steps = np.abs(np.diff(np.concatenate([frames, frames[:1]]).astype(int), axis=0)).mean((0, 3))
    change = np.repeat((steps / steps.max() * 255).astype(np.uint8)[..., None], 3, -1)
    tiles = [_labelled(frame, f"frame {3 * i}") for i, frame in enumerate(frames[::3])]
    tiles += [_labelled(change, "mean change from frame to frame"), np.full_like(tiles[0], 255)]
    return Image.fromarray(np.concatenate([np.concatenate(tiles[i : i + 2], 1) for i in (0, 2, 4)]))


def _places(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def _passages(figures: dict) -> plt.Figure:
    """The classifier's probabilities of left and right concept against x, and the sharpness."""
    figure, (passage, sharp) = plt.subplots(1, 2, figsize=(9, 2.8))
    for method, means in figures["means"].items():
        left, right = np.array(means["passage"])
        options = {"color": COLOURS[method], "linewidth": 1.4}
        passage.plot(_places(len(left)), left, "--", **options)
        passage.plot(_places(len(right)), right, label=METHODS[method].label, **options)
        sharp.plot(_places(len(right)), means["sharpness"], **options)
    for axis, title in (
        (passage, "probability of left (dashed) and right concept"),
        (sharp, "mean absolute Laplacian of the luminance"),
    ):
        axis.axvspan(*figures["span"], color="#000000", alpha=0.05, linewidth=0)
        axis.set(xlabel="x (the ramp is shaded)", title=title, xlim=(0, 1))
        axis.set_ylim(bottom=0)
    passage.legend(frameon=False, fontsize=7)
    return figure


def _matrix(figures: dict) -> plt.Figure:
    """Fidelity of each concept (row) beside each other one (column)."""
    matrix = np.full((len(CONCEPTS), len(CONCEPTS)), np.nan)
    for row in figures["pairs"]:
        (a, b), (left, right) = row["pair"], row["conditioning"]["fidelity"]
        matrix[a, b], matrix[b, a] = left, right
    figure, axis = plt.subplots(figsize=(7, 6))
    axis.imshow(matrix, cmap="RdYlGn", vmin=0.6, vmax=1.05)
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(CONCEPTS)), CONCEPTS, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(CONCEPTS)), CONCEPTS)
    axis.set(title="fidelity (%) of the row's concept beside the column's")
    axis.grid(False)
    return figure


def _brightness(figures: dict) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(4.5, 2.8))
    for method in ("conditioning", "outputs", "predictions"):
        curve = np.mean([row[method]["luminance"] for row in figures["concepts"]], 0)
        axis.plot(_places(len(curve)), curve, color=COLOURS[method], label=METHODS[method].label, linewidth=1.4)
    axis.set(xlabel="x", title="luminance from “a dark …” to “a bright …”", xlim=(0, 1))
    axis.legend(frameon=False, fontsize=7)
    return figure


def _extrapolation(figures: dict) -> plt.Figure:
    """Both axes: what a weight outside 0 … 1 does to the brightness, and to the concepts."""
    figure, (adjective, concepts) = plt.subplots(1, 2, figsize=(9, 2.8))
    for method in ("conditioning", "outputs"):
        options = {"color": COLOURS[method], "marker": "o", "markersize": 3, "linewidth": 1.4}
        rows = figures["adjective"]
        weights = sorted(rows[0]["weights"], key=float)
        mean = [np.mean([_of(row["weights"][w], method)["luminance"] for row in rows]) for w in weights]
        adjective.plot(list(map(float, weights)), mean, label=METHODS[method].label, **options)
        for side, style in enumerate(("--", "-")):
            rows = figures["concepts"]
            mean = [np.mean([_of(row["weights"][w], method)["shares"][side] for row in rows]) for w in weights]
            concepts.plot(list(map(float, weights)), mean, linestyle=style, **options)
    adjective.set(xlabel="weight of “a dark …” over “a …”", title="luminance")
    concepts.set(xlabel="weight of B over A", title="share of patches: A (dashed), B")
    adjective.legend(frameon=False, fontsize=7)
    return figure


def _of(figures: dict, method: str) -> dict:
    return figures.get(method, figures)


def _motion(figures: dict) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(6, 2.8))
    for label, found in figures["noises"].items():
        axis.plot(_places(len(found["profile"])), found["profile"], label=label, linewidth=1.2)
    axis.set(xlabel="x", title="mean change from frame to frame (levels of 255)", xlim=(0, 1), yscale="log")
    axis.legend(frameon=False, fontsize=7)
    return figure
