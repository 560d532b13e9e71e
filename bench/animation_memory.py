"""Peak memory of writing animations of 50, 1,000 and 4,000 frames, in each format.

    python bench/animation_memory.py [--counts 50 1000 4000] [--size 256]

Each figure is the peak resident memory of a process of its own that writes the one file (Linux and macOS).
The frames are noisy and all of different colours, so nothing is small only because the pictures are simple.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib_masknoise import animation  # noqa: E402

DIFFERENT_FRAMES = 100  # files; a longer animation plays them again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 1000, 4000])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--child", nargs=3, metavar=("FORMAT", "COUNT", "FRAMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], int(arguments.child[1]), Path(arguments.child[2]))
        return

    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), arguments.size)
        print(f"Peak memory in MiB (seconds, MiB of the file), frames of {arguments.size}x{arguments.size}")
        print("| format | " + " | ".join(f"{count} frames" for count in arguments.counts) + " |")
        print("|---" * (1 + len(arguments.counts)) + "|")
        for name in animation.ENDINGS:
            cells = [measure(name, count, folder) for count in arguments.counts]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def draw(folder: Path, size: int) -> None:
    y, x = np.mgrid[0:size, 0:size] / size
    random = np.random.default_rng(0)
    for index in range(DIFFERENT_FRAMES):
        turn = 2 * np.pi * index / DIFFERENT_FRAMES
        waves = np.sin(6 * x + turn), np.cos(9 * y - turn), np.sin(7 * (x + y) + 2 * turn)
        pixels = 128 + 110 * np.stack(waves, axis=-1) + random.normal(0, 8, (size, size, 3))
        frame = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        frame.save(folder / f"{index:03}.png", compress_level=1)


def measure(name: str, count: int, frames: str) -> str:
    command = [sys.executable, __file__, "--child", name, str(count), frames]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def child(name: str, count: int, folder: Path) -> None:
    files = sorted(folder.glob("*.png"))
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        paths = (files[index % len(files)] for index in range(count))
        (path,) = animation.write(paths, out, "a", [name], fps=24, metadata={"scene": "s" * 10_000})
        seconds = time.perf_counter() - start
        size = path.stat().st_size / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(f"{peak:.1f} ({seconds:.0f} s, {size:.1f})")


if __name__ == "__main__":
    main()
