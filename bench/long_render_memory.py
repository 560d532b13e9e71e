"""Memory of one long render, while its frames are made and after its animations are written.

    python bench/long_render_memory.py [--frames 10000] [--size 32]

Small frames of the built-in model with one denoising step, so that 10,000 are made in minutes: what grows with their
number shows more, not less, than beside large ones. Resident memory (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib_masknoise.render import Settings, write  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402

SCENE = {
    "concepts": [{"prompt": "a wheat field", "mask": {"kind": "split", "axis": "x", "from": 0, "to": 0.4}}],
    "noise": {"visual": {"strength": 1}, "concept": {"strength": 1}},
    "motion": {"kind": "walk", "cycles": 100},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32)
    arguments = parser.parse_args()

    scene = Scene.parse({**SCENE, "animation": {"frames": arguments.frames, "formats": ["gif", "mp4"]}})
    settings = Settings(steps=1, size=(arguments.size, arguments.size), batch_size=8)
    looks = {10**n for n in range(2, 9)} | {arguments.frames}
    start = time.perf_counter()

    def report(what: str) -> None:
        print(f"| {what} | {resident():.1f} | {time.perf_counter() - start:.0f} |", flush=True)

    def announce(path: Path) -> None:
        if path.stem.isdecimal() and int(path.stem) + 1 in looks:
            report(f"frame {int(path.stem) + 1:,}")

    print("| after | MiB | seconds |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        summary = write(scene, settings, Path(folder), announce)
        report("the animations and the summary")
        print(f"| highest | {peak():.1f} | |")
        size = len(json.dumps(summary)) / 2**20
    print(f"\n{arguments.frames} frames of {arguments.size}x{arguments.size}; the summary is {size:.1f} MiB of JSON")


def resident() -> float:
    """MiB, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
