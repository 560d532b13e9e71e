"""What looking costs: a recorded pass against a plain one, and a grid of 24 cells against the plain batches.

    python -m bench.explore [--rounds N] [--steps N] [--size WxH]

Both sides in turn, in CPU seconds of the process (user + system); the median of the rounds' ratios and its quartiles.
The recorded pass is without the decoding of its steps; the grid is with its pictures' files and contact sheet.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lib_masknoise import arguments
from lib_masknoise.explore import views
from lib_masknoise.explore.folder import Folder
from lib_masknoise.explore.grid import Grid
from lib_masknoise.render import Settings
from lib_masknoise.render.studio import host

CELLS = {"24 seeds": Grid("an ocean", tuple(range(24)), (8,), (4.0,)),
         "4 seeds × 2 step counts × 3 guidances": Grid("an ocean", (1, 2, 3, 4), (4, 8), (2.0, 4.0, 8.0))}  # fmt: skip


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(plain: Callable[[], object], ours: Callable[[], object], rounds: int) -> list[float]:
    plain(), ours()  # what is set up once is not counted
    found = []
    for i in range(rounds):
        # In turn which side is first.
        first, second = (plain, ours) if i % 2 == 0 else (ours, plain)
        seconds = {first: cpu_seconds(first), second: cpu_seconds(second)}
        found.append(seconds[ours] / seconds[plain])
    return sorted(found)


def show(name: str, found: list[float]) -> None:
    low, _, high = statistics.quantiles(found, n=4)
    print(f"{name}: {statistics.median(found):.3f}x ({low:.3f} to {high:.3f}, {len(found)} rounds)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser("bench.explore", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=arguments.positive, default=15)
    parser.add_argument("--steps", type=arguments.positive, default=12)
    parser.add_argument("--size", type=arguments.size, default=(128, 128), metavar="WxH")
    options = parser.parse_args()
    load_pipeline, render = host()
    from lib_masknoise.hosts.diffusers.exploring import PipelineModel

    torch.set_num_threads(1)  # so that waiting threads do not count as work
    pipe = load_pipeline()
    model = PipelineModel(pipe)
    settings = Settings(prompt="an ocean", seed=1, steps=options.steps, size=options.size, batch_size=8)
    plain = {"seed": 1, "steps": options.steps, "size": options.size, "guidance_scale": 4.0, "frames": [0]}
    show(
        "a recorded pass against a plain one",
        ratios(
            lambda: list(render(pipe, views.DISABLED, "an ocean", **plain)),
            lambda: model.recorded(views.DISABLED, settings, lambda more: None),
            options.rounds,
        ),
    )
    for name, grid in CELLS.items():

        def batches(grid: Grid = grid) -> None:
            height, width = options.size
            for steps in grid.step_counts:
                for guidance in grid.guidances:
                    for start in range(0, len(grid.seeds), 8):
                        seeds = grid.seeds[start : start + 8]
                        pipe(
                            prompt=[grid.prompt] * len(seeds),
                            negative_prompt=[""] * len(seeds),
                            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                            num_inference_steps=steps,
                            guidance_scale=guidance,
                            height=height,
                            width=width,
                        )

        def ours(grid: Grid = grid) -> None:
            with tempfile.TemporaryDirectory() as folder:
                views.grid(model, settings, grid, None, Folder(Path(folder)), views.silent)

        show(f"a grid of {name} against the plain batches", ratios(batches, ours, max(3, options.rounds // 3)))


if __name__ == "__main__":
    main()
