"""Draw the plot of docs/motion.md that shows keyframes from a sound, by the program itself: docs/motion-audio.png.

From the repository's root: python -m docs.plots.audio
"""

from __future__ import annotations

import tempfile
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from lib_masknoise.__main__ import main

FOLDER = Path(__file__).parent.parent
RATE, SECONDS, BEAT = 44100, 6, 0.5


def song() -> np.ndarray:
    """A kick on every beat, cymbals between them from 2 s on, a chord that swells: mono ``[n]``."""
    t = np.arange(RATE * SECONDS) / RATE
    kick = np.sin(2 * np.pi * 60 * t) * np.exp(-(t % BEAT) / 0.08)
    cymbal = np.random.default_rng(0).normal(size=len(t)) * np.exp(-((t + BEAT / 2) % BEAT) / 0.03) * (t > 2)
    chord = sum(np.sin(2 * np.pi * f * t) for f in (262, 330, 392)) * np.sin(np.pi * t / SECONDS) ** 2
    return 0.5 * kick + 0.06 * cymbal + 0.08 * chord


def write(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def draw() -> None:
    plots = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "song.wav", song())
        for options in (["--band", "low"], ["--band", "mid"], ["--band", "high"], ["--onsets", "--band", "low"]):
            plot = folder / f"{len(plots)}.png"
            command = ["audio", str(folder / "song.wav"), "--fps", "24", "--plot", str(plot)]
            main([*command, "--out", str(folder / "keys.json"), *options])
            plots.append(Image.open(plot).convert("RGB"))
    width, height = plots[0].size
    sheet = Image.new("RGB", (width, height * len(plots)), "white")
    for i, one in enumerate(plots):
        sheet.paste(one, (0, i * height))
    sheet.quantize(64).save(FOLDER / "motion-audio.png", optimize=True)


if __name__ == "__main__":
    draw()
