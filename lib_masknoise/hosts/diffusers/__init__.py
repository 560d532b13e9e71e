"""The diffusers host: a scene through a Stable Diffusion 1.x, 2.x or XL pipeline.

    from lib_masknoise.hosts.diffusers import load_pipeline, render
    from lib_masknoise.scene import Scene

    pipe = load_pipeline()                                   # the built-in model, a folder or a .safetensors file
    scene = Scene.read("assets/scenes/demo.json")
    for frame in render(pipe, scene, seed=7):
        frame.image.save(f"{frame.index:04}.png")

`render` binds the pipeline for one batch of frames at a time: the cross-attention processors are exchanged for ours
and a hook on the U-Net tells them the size of the latent. Both are undone when the batch ends, however it ends.
"""

from lib_masknoise.hosts.diffusers.binding import Binding, bind
from lib_masknoise.hosts.diffusers.encoding import CHUNK_TOKENS, encode
from lib_masknoise.hosts.diffusers.loading import default_size, load_pipeline, quiet, usual_guidance
from lib_masknoise.hosts.diffusers.rendering import Frame, Progress, render

__all__ = [
    "CHUNK_TOKENS",
    "Binding",
    "Frame",
    "Progress",
    "bind",
    "default_size",
    "encode",
    "load_pipeline",
    "quiet",
    "render",
    "usual_guidance",
]
