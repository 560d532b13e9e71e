"""What a scene costs in a running WebUI: a denoising step's CPU time against the plain step.

    python bench/webui_overhead.py [--url URL] [--checkpoint sd15] [--size 256] [--steps 2] [--rounds 5]

The WebUI must run on this machine, with nothing else to do. Every round does each job in turn, every second round in
the other order, and what is compared is always of the same round; a first job, uncounted, loads the model. Time is user
and system seconds of the server's process. A step is the difference of two jobs, one with `--steps` more steps than the
other, by these steps; a pass is what a job of 20 steps takes by these two, prompts, masks and decoding included.
`--without` leaves jobs out; "Regional Prompter, …" and "Forge Couple" need these extensions, in A1111 and in Forge.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `bench`, which no installation includes

from bench.webui_client import WebUI  # noqa: E402

NAMES = ("a wheat field", "an ocean", "a forest", "red bricks")
MASKS = (
    {"kind": "split", "axis": "x", "from": 0.0, "to": 0.3, "feather": 0.2},
    {"kind": "split", "axis": "x", "from": 0.7, "to": 1.0, "feather": 0.2},
    {"kind": "ellipse", "x": 0.5, "y": 0.3, "rx": 0.2, "ry": 0.2, "feather": 0.2},
    {"kind": "rect", "left": 0.3, "top": 0.7, "right": 0.7, "feather": 0.1},
)
CONCEPTS = {"concepts": [{"prompt": name, "mask": mask} for name, mask in zip(NAMES, MASKS, strict=True)]}
NOISES = {
    **CONCEPTS,
    "noise": {"visual": {"strength": 0.5}, "concept": {"strength": 0.5}, "feature": {"strength": 0.5}},
    "motion": {"kind": "circle"},
}
PASS = 20
SHORT, LONG = "a meadow", ", ".join(["a meadow with flowers"] * 28)  # 75 and 150 tokens with the padding
REGIONS = " BREAK ".join(NAMES)


def _regional_prompter(mode: str) -> dict[str, list]:
    """Its arguments: active, four columns of one width, `mode`; everything else at its default."""
    settings = [True, False, "Matrix", "Columns", "Mask", "Prompt", "1,1,1,1", "0.2", False, False, False, mode]
    return {"regional prompter": [*settings, [False], "0", "0", "0.4", None, "0", "0", False]}


FORGE_COUPLE = {"forge couple": [True, False, "Basic", "", "Horizontal", "None", 0.5]}
"""Its arguments: active, also in the hires pass, a region for each line of the prompt, side by side, no background."""


# Name: (the plain job that it is compared with, the job)
JOBS = {
    "plain": ("plain", {"prompt": SHORT}),
    "4 concepts": ("plain", {"prompt": SHORT, "scene": CONCEPTS}),
    "4 concepts, three noises": ("plain", {"prompt": SHORT, "scene": NOISES}),
    "150 tokens, plain": ("150 tokens, plain", {"prompt": LONG}),
    "150 tokens, 4 concepts, three noises": ("150 tokens, plain", {"prompt": LONG, "scene": NOISES}),
    "Regional Prompter, attention": ("plain", {"prompt": REGIONS, "scripts": _regional_prompter("Attention")}),
    "Regional Prompter, latent": ("plain", {"prompt": REGIONS, "scripts": _regional_prompter("Latent")}),
    "Forge Couple": ("plain", {"prompt": "\n".join(NAMES), "scripts": FORGE_COUPLE}),
}


def main() -> None:
    options = _options()
    settings = {"sd_model_checkpoint": options.checkpoint} if options.checkpoint else {}
    job = {"width": options.size, "height": options.size, "sampler_name": "Euler", "seed": 1}
    job |= {"cfg_scale": 7, "override_settings": settings, "override_settings_restore_afterwards": False}
    webui = WebUI(options.url, job)
    process = webui.process()
    jobs = {name: of_name for name, of_name in JOBS.items() if name not in options.without}
    webui.images(SHORT, steps=1)
    rounds: list[dict[str, Cost]] = []
    for i in range(options.rounds):
        names = list(jobs)[:: -1 if i % 2 else 1]
        costs = {name: _cost(webui, process, jobs[name][1], options.steps) for name in names}
        rounds.append(costs)
        for name in names:
            print(f"round {i + 1}: {name}: {costs[name]}; load {os.getloadavg()[0]:.1f}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(rounds))
        _report(jobs, rounds)


class Cost(NamedTuple):
    """CPU and wall seconds of one more step, and CPU seconds of a job of PASS steps."""

    cpu: float
    wall: float
    whole: float


def _cost(webui: WebUI, process: Any, fields: dict, steps: int) -> Cost:
    def now() -> tuple[float, float]:
        times = process.cpu_times()
        return times.user + times.system, time.monotonic()

    def job(count: int) -> tuple[float, float]:
        start = now()
        webui.images(**fields, steps=count)
        end = now()
        return end[0] - start[0], end[1] - start[1]

    one, more = job(1), job(1 + steps)
    cpu, wall = ((m - o) / steps for o, m in zip(one, more, strict=True))
    return Cost(cpu, wall, one[0] + (PASS - 1) * cpu)


def _report(jobs: dict, rounds: list[dict[str, Cost]]) -> None:
    print(f"\n{len(rounds)} rounds\n| job | step, CPU s | against plain: step | lowest – highest | {PASS}-step job |")
    print("|---|---|---|---|---|")
    for name, (plain, _) in jobs.items():
        step, whole = ([getattr(of[name], k) / getattr(of[plain], k) for of in rounds] for k in ("cpu", "whole"))
        seconds = statistics.median(of[name].cpu for of in rounds)
        print(
            f"| {name} | {seconds:.2f} | {statistics.median(step):.3f} | {min(step):.3f} – {max(step):.3f} "
            f"| {statistics.median(whole):.3f} |",
            flush=True,
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--checkpoint", help="the WebUI's name of a model; its current one when left out")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="+", default=[], choices=list(JOBS)[1:], metavar="JOB")
    parser.add_argument("--out", type=Path, help="a JSON file for the times of every round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
