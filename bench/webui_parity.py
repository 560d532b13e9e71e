"""The same pictures from a running WebUI and from diffusers: how far apart, plain and with a scene.

    python bench/webui_parity.py [--url URL] [--checkpoint textures] [--steps 20] [--seeds 3]

The WebUI needs the built-in model as a single file. Both sides start from the same noise (the WebUI's setting "Random
number generator source" is put to CPU). A sampler's two implementations differ; the plain rows say by how much, and
what a scene's rows have beyond them is ours. Differences are in levels of 255.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `bench`, which no installation includes

from bench.webui_client import WebUI, levels  # noqa: E402
from lib_masknoise.hosts.diffusers import load_pipeline, render  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402

SIZE = (128, 256)
BASE = "a meadow with flowers"
SPLIT = {
    "concepts": [
        {"prompt": "a wheat field", "mask": {"kind": "split", "from": 0.0, "to": 0.36, "feather": 0.24}},
        {"prompt": "an ocean", "mask": {"kind": "split", "from": 0.64, "to": 1.0, "feather": 0.24}},
    ]
}
NOISES = {
    **SPLIT,
    "noise": {"visual": {"strength": 0.6}, "concept": {"strength": 1.0}, "feature": {"strength": 0.3}},
    "motion": {"kind": "circle"},
}
SCENES = {"plain": {"enabled": False}, "two concepts": SPLIT, "two concepts, three noises": NOISES}
# The WebUI's sampler and schedule, and the scheduler of diffusers that is meant to be the same.
SAMPLERS = {
    ("DDIM", "Automatic"): (DDIMScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
    ("Euler", "Automatic"): (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    ("DPM++ 2M", "Karras"): (DPMSolverMultistepScheduler, {"use_karras_sigmas": True, "final_sigmas_type": "zero"}),
}


def main() -> None:
    options = _options()
    settings = {"randn_source": "CPU"} | ({"sd_model_checkpoint": options.checkpoint} if options.checkpoint else {})
    job = {"width": SIZE[1], "height": SIZE[0], "steps": options.steps, "cfg_scale": 4, "negative_prompt": ""}
    job |= {"override_settings": settings, "override_settings_restore_afterwards": False}
    webui = WebUI(options.url, job)
    pipe = load_pipeline(device="cpu", dtype=torch.float32)
    config = pipe.scheduler.config
    print("| sampler | | largest difference | mean | mean between two seeds |\n|---|---|---|---|---|")
    for (sampler, schedule), (scheduler, changes) in SAMPLERS.items():
        pipe.scheduler = scheduler.from_config(config, **changes)
        for name, scene in SCENES.items():
            theirs, ours = [], []
            for seed in range(options.seeds):
                fields = {"seed": seed, "sampler_name": sampler, "scheduler": schedule}
                theirs.append(webui.images(BASE, scene if name != "plain" else None, **fields)[0])
                drawn = {"seed": seed, "steps": options.steps, "size": SIZE, "guidance_scale": 4.0}
                (frame,) = render(pipe, Scene.parse(scene), BASE, **drawn)
                ours.append(np.asarray(frame.image))
            largest, mean = levels(theirs, ours)
            seeds = levels(theirs, np.roll(theirs, 1, axis=0))[1]
            print(f"| {sampler}, {schedule} | {name} | {largest} | {mean:.3f} | {seeds:.1f} |", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--checkpoint", help="the WebUI's name of the built-in model; its current one when left out")
    parser.add_argument("--steps", type=int, default=20, help="a divisor of 1000: else the WebUI's DDIM takes one more")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
