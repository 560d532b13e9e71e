"""The README's figure: from masks to pictures. `python -m docs.plots.how_it_works`

Renders the demo scene on the built-in model (12 frames of 256×128) and draws, from left to right and top to bottom: the
coefficient maps as colours, the noise amount as heat, one moving field of the concept noise, two frames, and how much
each place changes over the frames.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from lib_masknoise.masks import coefficients, pin, weight_maps
from matplotlib.colors import to_rgb

from lib_masknoise import ASSETS
from lib_masknoise.__main__ import DEMO
from lib_masknoise.hosts.diffusers import load_pipeline, render
from lib_masknoise.noise import amount, smooth_fields
from lib_masknoise.scene import Scene

FRAMES, SIZE = 12, (128, 256)
COLOURS = ("#7a8f6a", "#e6b422", "#2f6fd0")  # the base, then the concepts
TARGET = Path(__file__).parent.parent / "how-it-works.png"


def main() -> None:
    scene = Scene.read(ASSETS / "scenes" / "demo.json").replace({"animation.frames": FRAMES})
    maps = weight_maps(scene, SIZE)
    a = coefficients(maps, [c.weight for c in scene.concepts], scene.blend.mode, scene.blend.scale)
    blended = np.einsum("jhw,jc->hwc", a.numpy(), np.array([to_rgb(colour) for colour in COLOURS]))
    free = amount(pin(maps), scene.noise.concept.strength, scene.noise.exponent)
    options = dict(total=FRAMES, count=1, size=SIZE, feature_size=scene.noise.concept.size, seed=0, purpose="figure")
    field = smooth_fields(scene.motion, [0], **options)[0, 0] * free
    frames = render(load_pipeline(), scene, DEMO.prompt, seed=DEMO.seed, size=SIZE)
    pictures = [np.asarray(frame.image) for frame in frames]
    change = torch.tensor(np.stack(pictures)).float().diff(dim=0).abs().mean((0, 3))

    panels = [
        ("1  coefficients a: wheat, base, ocean", blended.clip(0, 1), {}),
        ("2  noise amount: strength · (1 − pin)^exponent", free, {"cmap": "magma", "vmin": 0}),
        ("3  a field of the concept noise at frame 0", field, {"cmap": "RdBu", "vmin": -1.5, "vmax": 1.5}),
        ("4  frame 0", pictures[0], {}),
        (f"5  frame {FRAMES // 2}", pictures[FRAMES // 2], {}),
        ("6  mean change from frame to frame", change, {"cmap": "magma", "vmin": 0}),
    ]
    figure, axes = plt.subplots(2, 3, figsize=(12, 4.6), layout="constrained")
    for axis, (title, picture, style) in zip(axes.flat, panels, strict=True):
        axis.imshow(picture, **style)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_axis_off()
    figure.savefig(TARGET, dpi=90)


if __name__ == "__main__":
    main()
