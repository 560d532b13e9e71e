"""How much faster two workers are than one, and than none: frames a second of the same job on this machine.

    python bench/workers.py [--frames 48] [--rounds 3]

Every process has one thread, so that a worker is worth one core. The pipelines are loaded and warm before the clock
starts. Rounds alternate, because other work comes and goes on a machine; the ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib_masknoise.render import Settings  # noqa: E402
from lib_masknoise.render.ray import cluster  # noqa: E402
from lib_masknoise.render.studio import Images, this_process  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402

SETTINGS = Settings(prompt="an ocean", steps=8, size=(64, 96), batch_size=4, threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    scene = Scene.parse(
        {
            "concepts": [{"prompt": "a wheat field", "mask": {"kind": "split", "axis": "x", "from": 0, "to": 0.4}}],
            "noise": {"visual": {"strength": 1}},
            "motion": {"kind": "circle"},
            "animation": {"frames": arguments.frames},
        }
    )
    batches = [list(range(start, start + 4)) for start in range(0, arguments.frames, 4)]
    rates: dict[str, list[float]] = {"no worker": [], "1 worker": [], "2 workers": []}
    for _ in range(arguments.rounds):
        with this_process(SETTINGS) as studio:
            rates["no worker"].append(rate(studio.images, scene, batches))
        for count in (1, 2):
            with cluster(SETTINGS, count) as studio:
                rates[f"{count} worker{'s' * (count > 1)}"].append(rate(studio.images, scene, batches))
    print("| | frames a second | against 1 worker |\n|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["1 worker"], strict=True))
        print(f"| {name} | {statistics.median(values):.2f} | {ratio:.2f} |")


def rate(images: Images, scene: Scene, batches: list[list[int]]) -> float:
    for _ in images(scene, SETTINGS, batches[:4], lambda frames: None):  # every worker has been at it
        pass
    start = time.perf_counter()
    made = sum(1 for _ in images(scene, SETTINGS, batches, lambda frames: None))
    return made / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
