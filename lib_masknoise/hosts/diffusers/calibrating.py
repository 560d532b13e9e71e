"""A pipeline of diffusers as what `lib_masknoise.calibrate` measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from lib_masknoise.calibrate.style import Found, Subject
from lib_masknoise.hosts.diffusers.additions import loras_of
from lib_masknoise.hosts.diffusers.exploring import PipelineModel
from lib_masknoise.hosts.diffusers.recording import meant, noise_level
from lib_masknoise.hosts.diffusers.rendering import Job
from lib_masknoise.hosts.diffusers.styles import model_hash
from lib_masknoise.hosts.diffusers.styling import PipelineSubject
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

BUILT_IN = "built-in"


class PipelineProbe(PipelineModel):
    """See `lib_masknoise.calibrate.measuring.Probe`. name: where the pipeline came from, None for the built-in one."""

    def __init__(self, pipe: DiffusionPipeline, name: str | None) -> None:
        super().__init__(pipe)
        self.name = name

    def identity(self) -> tuple[str, str]:
        return model_hash(self.name), Path(self.name).stem if self.name else BUILT_IN

    def styled(self, settings: Settings, measure: Callable[[Subject], Found]) -> Found:
        return measure(PipelineSubject(self.pipe, settings.size))

    @torch.no_grad()
    def heading(
        self, scene: Scene, settings: Settings, frames: Sequence[float], x_t: Tensor, step: int, sigma: float
    ) -> Tensor:
        pipe, scheduler = self.pipe, self.pipe.scheduler
        prompts = settings.prompt, settings.negative_prompt
        size = settings.size or self.size
        with loras_of(pipe, [*prompts, *(concept.prompt for concept in scene.concepts)]):
            job = Job(pipe, scene, prompts, settings.seed, settings.steps, size, settings.guidance_scale)
            with job.bound(frames), _one_call(scheduler, step) as heard:
                exploding = float(scheduler.init_noise_sigma) != 1.0
                x = x_t * (1 + sigma**2) ** 0.5 / float(scheduler.init_noise_sigma) if exploding else x_t
                try:
                    pipe(
                        **job.stand_in_embeds(len(frames)),
                        latents=x.to(job.family.device, job.family.model.dtype),
                        height=size[0],
                        width=size[1],
                        num_inference_steps=settings.steps,
                        output_type="latent",
                        **job.family.options(settings.guidance_scale),
                    )
                except _Heard:
                    pass
        (x0,) = heard
        return x0


class _Heard(Exception):
    """There is what was wanted: the pass ends."""


@contextmanager
def _one_call(scheduler: Any, step: int) -> Iterator[list[Tensor]]:
    """Have passes begin at a step of theirs and end with it; what the model was heading for there."""
    own = {name: vars(scheduler).get(name) for name in ("set_timesteps", "step")}
    set_timesteps = scheduler.set_timesteps
    kind = scheduler.config.get("prediction_type", "epsilon")
    heard: list[Tensor] = []

    def later(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.timesteps = scheduler.timesteps[step:]
        begin_at(step)  # its table of noise levels stays whole

    def once(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        heard.append(meant(kind, *noise_level(scheduler, timestep), sample, model_output)[1])
        raise _Heard

    def begin_at(index: int | None) -> None:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(index)

    scheduler.set_timesteps, scheduler.step = later, once
    try:
        yield heard
    finally:
        for name, value in own.items():
            delattr(scheduler, name)
            if value is not None:
                setattr(scheduler, name, value)
        begin_at(None)
