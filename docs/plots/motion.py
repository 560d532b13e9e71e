"""Draw the plots of docs/motion.md from the library itself: docs/motion-*.png.

From the repository's root: python -m docs.plots.motion (needs matplotlib).
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from lib_masknoise.motion import envelope, mixtures
from lib_masknoise.motion.walk import oscillator
from lib_masknoise.noise.fields import smooth_fields
from lib_masknoise.scene import Motion, Scene

matplotlib.use("agg")
matplotlib.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
from matplotlib import pyplot as plt  # noqa: E402

FOLDER = Path(__file__).parent.parent
TOTAL = 48
KEYS = [
    {"frame": 0, "value": 0.0, "easing": "ease-in-out"},
    {"frame": 16, "value": 1.0, "easing": "linear"},
    {"frame": 26, "value": -0.6, "easing": "step"},
    {"frame": 34, "value": 0.4, "easing": "ease-in"},
]


def motion(kind: str, **fields: object) -> Motion:
    return Scene.parse({"motion": {"kind": kind, **fields}}).motion


def save(figure: plt.Figure, name: str) -> None:
    """Write a plot with 64 colours: a third of the size, and no difference to the eye."""
    drawn = io.BytesIO()
    figure.savefig(drawn, bbox_inches="tight", dpi=100)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(FOLDER / name, optimize=True)


def envelopes() -> None:
    """What multiplies the noise: sine and keyframes."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True)
    frames = range(TOTAL + 1)
    for cycles, phase in ((1, 0.0), (2, 0.0), (1, math.pi / 2)):
        m = motion("sine", cycles=cycles, phase=phase)
        values = [envelope(m, f, TOTAL) for f in frames]
        axes[0].plot(frames, values, ".-", markersize=3, label=f"cycles {cycles}, phase {phase:.2f}")
    for loop in (True, False):
        m = motion("keyframes", keyframes=KEYS, loop=loop)
        values = [envelope(m, f, TOTAL) for f in frames]
        axes[1].plot(frames, values, ".-" if loop else ".--", markersize=3, label="loop" if loop else "no loop")
    axes[1].plot([key["frame"] for key in KEYS], [key["value"] for key in KEYS], "ko", markersize=5)
    for axis, title in zip(axes, ("sine", "keyframes: ease-in-out, linear, step, ease-in"), strict=True):
        axis.set(title=title, xlabel="frame")
        axis.legend(fontsize=7, loc="lower left")
    save(figure, "motion-envelopes.png")


MIXTURES = (
    ("circle", motion("circle")),
    ("linear, loop", motion("linear")),
    ("linear, no loop", motion("linear", loop=False)),
    ("simplex, loop", motion("simplex")),
    ("simplex, no loop", motion("simplex", loop=False)),
    ("simplex, loop, cycles 3", motion("simplex", cycles=3)),
    ("walk, momentum 0", motion("walk", cycles=3, momentum=0.0)),
    ("walk, momentum 0.9", motion("walk", cycles=3, momentum=0.9)),
    ("walk, momentum 0.999", motion("walk", cycles=3, momentum=0.999)),
)


def mixing() -> None:
    """The components of the mixtures over the frames; three of the eight of a random one."""
    figure, axes = plt.subplots(3, 3, figsize=(9, 5.4), sharex=True, sharey=True, layout="constrained")
    for axis, (title, m) in zip(axes.flat, MIXTURES, strict=True):
        axis.plot(mixtures(m, range(TOTAL + 1), TOTAL, seed=1)[:, :3].numpy(), ".-", markersize=3)
        axis.set(title=title + (", cycles 3" if m.kind == "walk" else ""))
    for axis in axes[-1]:
        axis.set(xlabel="frame")
    save(figure, "motion-mixtures.png")


def steps() -> None:
    """How far the mixture moves from frame to frame; the last bar of a loop is the step that closes it."""
    figure, axes = plt.subplots(3, 3, figsize=(9, 5.0), sharex=True, layout="constrained")
    for axis, (title, m) in zip(axes.flat, MIXTURES, strict=True):
        rows = mixtures(m, range(TOTAL + int(m.loop)), TOTAL, seed=1)
        sizes = rows.diff(dim=0).norm(dim=1).numpy()
        bars = axis.bar(range(len(sizes)), sizes, width=0.8)
        if m.loop:
            bars[-1].set_color("tab:red")
        axis.set(title=title + (", cycles 3" if m.kind == "walk" else ""))
        axis.set_ylim(0, max(0.3, sizes.max() * 1.1))
    for axis in axes[-1]:
        axis.set(xlabel="frame")
    save(figure, "motion-steps.png")


def oscillator_plots() -> None:
    """The walk's spectrum, and its autocorrelation against 4,000 walks of the library."""
    figure, (spectrum, correlation) = plt.subplots(1, 2, figsize=(9, 2.8))
    ratio, lag, frames = np.linspace(0, 3, 400), np.linspace(0, 4, 300), np.arange(0, 49, 2)
    for momentum in (0.0, 0.5, 0.9, 0.98):
        zeta = 1 - momentum
        power = 1 / ((1 - ratio**2) ** 2 + (2 * zeta * ratio) ** 2)
        (line,) = spectrum.semilogy(ratio, power * zeta, label=f"momentum {momentum}")
        nu, turn = math.sqrt(max(1 - zeta**2, 1e-12)), 2 * math.pi * lag
        theory = np.exp(-zeta * turn) * (np.cos(nu * turn) + zeta / nu * np.sin(nu * turn))
        correlation.plot(lag, theory, color=line.get_color())
        walks = oscillator(motion("walk", cycles=4, momentum=momentum, loop=False), frames, TOTAL, 4000, seed=1)
        measured = (walks * walks[0]).mean(axis=1)
        correlation.plot(frames / 12, measured, ".", color=line.get_color())
    spectrum.set(title="power", xlabel="frequency / own frequency (cycles per animation)")
    spectrum.legend(fontsize=7)
    correlation.set(title="autocorrelation: formula (lines), 4,000 walks (dots)", xlabel="lag in cycles")
    save(figure, "motion-walk.png")


def strips() -> None:
    """One smooth field, every sixth frame, for every kind; envelope included."""
    kinds = ("none", "sine", "circle", "simplex", "walk", "linear", "keyframes")
    shown = range(0, TOTAL + 1, 6)
    figure, axes = plt.subplots(len(kinds), len(shown), figsize=(9, 7.2), layout="constrained")
    for row, kind in zip(axes, kinds, strict=True):
        m = motion(kind, **({"keyframes": KEYS} if kind == "keyframes" else {}))
        fields = smooth_fields(m, shown, TOTAL, 1, (64, 64), 0.25, seed=3, purpose="plot")[:, 0]
        for axis, frame, field in zip(row, shown, fields, strict=True):
            axis.imshow(field.numpy() * envelope(m, frame, TOTAL), cmap="RdBu", vmin=-2.5, vmax=2.5)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            if kind == kinds[0]:
                axis.set_title(f"frame {frame}" if frame < TOTAL else f"frame {frame} = 0", fontsize=8)
        row[0].set_ylabel(kind)
    save(figure, "motion-fields.png")


if __name__ == "__main__":
    envelopes()
    mixing()
    steps()
    oscillator_plots()
    strips()
