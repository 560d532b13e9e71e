"""What makes images: the pipeline in this process, or whatever else hands out a `Studio`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

Advance = Callable[[float], object]
Images = Callable[[Scene, Settings, Sequence[Sequence[float]], Advance], Iterator[Image.Image]]
"""Batches of frame times → their images, in order; `Advance` hears of every (part of a) frame that is made."""


class Studio(NamedTuple):
    images: Images
    machine: Mapping[str, str]
    """What computes, and in which numbers: where it is another kind, a frame's last bits may be others."""


BUILT_IN_GUIDANCE, USUAL_GUIDANCE = 4.0, 7.0


@contextmanager
def this_process(settings: Settings) -> Iterator[Studio]:
    """Make images here, on one pipeline. Raises what `load_pipeline` raises."""
    load_pipeline, render = host()
    from lib_masknoise.hosts.diffusers.rendering import advancing

    pipe = load_pipeline(settings.model, **settings.additions)

    def images(
        scene: Scene, settings: Settings, batches: Sequence[Sequence[float]], advance: Advance
    ) -> Iterator[Image.Image]:
        # One call for all batches, which are of one size but for the last: the prompts are encoded once.
        times = list(chain(*batches))
        for frame in render(pipe, scene, **host_options(settings, times, len(batches[0])), on_step=advancing(advance)):
            yield frame.image

    threads_before = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        yield Studio(images, machine(pipe))
    finally:
        torch.set_num_threads(threads_before)


def machine(pipe: Any) -> dict[str, str]:
    """Where a pipeline computes and in which numbers, as far as a frame's rounding depends on it."""
    if pipe.device.type == "cuda":
        name = torch.cuda.get_device_name(pipe.device)
    elif pipe.device.type == "cpu":
        name = torch.backends.cpu.get_cpu_capability()  # which instructions its sums are made with
    else:
        name = ""
    return {"device": f"{pipe.device.type} {name}".strip(), "dtype": str(pipe.dtype).removeprefix("torch.")}


def host_options(settings: Settings, times: Sequence[float], batch_size: int) -> dict[str, Any]:
    """The arguments of the host's `render` after the pipeline and the scene."""
    return {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "seed": settings.seed,
        "steps": settings.steps,
        "size": settings.size,
        "guidance_scale": settings.guidance_scale,
        "frames": times,
        "batch_size": batch_size,
    }


def guidance(asked: float | None, model: str | None) -> float:
    """The guidance scale that was asked for, else the model's usual one."""
    if asked is not None:
        return asked
    if model is None or not Path(model).is_dir():
        return BUILT_IN_GUIDANCE if model is None else USUAL_GUIDANCE
    from lib_masknoise.hosts.diffusers import usual_guidance

    return usual_guidance(model, USUAL_GUIDANCE)


def host() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`load_pipeline` and `render` of the diffusers host, which takes seconds to import; its libraries' own progress
    bars and hints kept quiet."""
    from lib_masknoise.hosts.diffusers import load_pipeline, quiet, render

    quiet()
    return load_pipeline, render
