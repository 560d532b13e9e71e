"""Time smooth fields: 120 frames × 8 channels × 64×64 of every kind of motion. Target: 2 s on two cores."""

from __future__ import annotations

import argparse
import time
from types import SimpleNamespace

from lib_masknoise.noise.fields import smooth_fields

KINDS = ("none", "sine", "circle", "simplex", "walk", "linear", "keyframes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--size", default="64x64", help="width x height")
    parser.add_argument("--feature-size", type=float, default=0.25)
    options = parser.parse_args()
    width, height = (int(n) for n in options.size.split("x"))

    print(f"{options.frames} frames x {options.count} channels x {height}x{width} (height x width)")
    print(f"{'kind':<10} {'loop':<5} {'wall s':>7} {'CPU s':>7}")
    for kind in KINDS:
        for loop in (True, False):
            motion = SimpleNamespace(kind=kind, cycles=1, phase=0.0, momentum=0.9, loop=loop)
            wall, cpu = time.perf_counter(), time.process_time()
            smooth_fields(
                motion, range(options.frames), options.frames, options.count, (height, width),
                options.feature_size, seed=1, purpose="bench",
            )  # fmt: skip
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{kind:<10} {'yes' if loop else 'no':<5} {wall:7.2f} {cpu:7.2f}")


if __name__ == "__main__":
    main()
