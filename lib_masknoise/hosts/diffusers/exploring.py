"""A pipeline of diffusers as what the views of `lib_masknoise.explore` ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from lib_masknoise.conditioning import Encoded
from lib_masknoise.explore.model import Recording, Stop
from lib_masknoise.explore.requests import Asked
from lib_masknoise.hosts.diffusers.encoding import CHUNK_TOKENS, encode
from lib_masknoise.hosts.diffusers.families import require_unet
from lib_masknoise.hosts.diffusers.loading import default_size
from lib_masknoise.hosts.diffusers.recording import decode, recording
from lib_masknoise.hosts.diffusers.rendering import advancing, check_size, render
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.settings import Settings

Report = Callable[[float], object]


class PipelineHost:
    """See `lib_masknoise.explore.workshop.Host`. turn: a job's turn on the pipeline. name: where it came from."""

    def __init__(self, model: PipelineModel, turn: Callable[[], AbstractContextManager[Any]], name: str | None) -> None:
        self.model, self.turn, self.name = model, turn, name

    def settings(self, asked: Asked) -> Settings:
        problems = [
            Problem(name, f"expected nothing: this pipeline has one {name} only")
            for name in ("sampler", "scheduler")
            if getattr(asked, name)
        ]
        if problems:
            raise SceneError(problems)
        return replace(asked.settings(), model=self.name)

    def state(self) -> Any:
        return self.name

    def progress(self, words: str, done: float, total: float) -> None:
        """Whoever asked is told; there is nobody else."""


class PipelineModel:
    """See `lib_masknoise.explore.model.Model`."""

    longest = CHUNK_TOKENS

    def __init__(self, pipe: DiffusionPipeline) -> None:
        require_unet(pipe, "explore")
        self.pipe = pipe

    @property
    def size(self) -> tuple[int, int]:
        return default_size(self.pipe)

    def encode(self, prompts: Sequence[str]) -> dict[str, Encoded]:
        return encode(self.pipe, prompts)

    def tokens(self, prompt: str) -> int:
        tokenizer = self.pipe.tokenizer or self.pipe.tokenizer_2
        return len(tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids)

    def rendered(
        self, scene: Scene, settings: Settings, frames: Sequence[float], report: Report
    ) -> Iterator[Image.Image]:
        batch = settings.batch_size or len(frames)
        options = {"frames": frames, "batch_size": batch, "on_step": advancing(report), **_options(settings)}
        for frame in render(self.pipe, scene, settings.prompt, settings.negative_prompt, **options):
            yield frame.image

    def plain(
        self, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, report: Report
    ) -> list[Image.Image]:
        inputs = {"prompt": list(prompts), "negative_prompt": [settings.negative_prompt] * len(prompts)}
        return self._sampled(inputs, seeds, settings, report)

    def blended(
        self, contexts: Sequence[Encoded], seeds: Sequence[int], settings: Settings, report: Report
    ) -> list[Image.Image]:
        negative = self.encode([settings.negative_prompt])[settings.negative_prompt]
        inputs = {**self._embeds(contexts, ""), **self._embeds([negative] * len(contexts), "negative_")}
        return self._sampled(inputs, seeds, settings, report)

    def recorded(self, scene: Scene, settings: Settings, report: Report) -> Recording:
        image = None
        interrupted = False
        with recording(self.pipe) as recorder:
            try:
                (image,) = self.rendered(scene, settings, [0], report)
                recorder.complete = True
            except (KeyboardInterrupt, Stop):
                interrupted = True
        return Recording(recorder.moments, image, interrupted)

    def decoded(self, latents: Tensor) -> list[Image.Image]:
        return decode(self.pipe, latents)

    def _embeds(self, contexts: Sequence[Encoded], side: str) -> dict[str, Tensor]:
        def placed(rows: list[Tensor]) -> Tensor:
            return torch.stack(rows).to(self.pipe._execution_device, self.pipe.unet.dtype)

        made = {f"{side}prompt_embeds": placed([one.context for one in contexts])}
        pooled = [one.pooled for one in contexts if one.pooled is not None]
        if pooled:
            made[f"{side}pooled_prompt_embeds"] = placed(pooled)
        return made

    def _sampled(
        self, inputs: dict[str, Any], seeds: Sequence[int], settings: Settings, report: Report
    ) -> list[Image.Image]:
        done = 0.0

        def step_end(pipe: DiffusionPipeline, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            now = (step + 1) / pipe.num_timesteps * len(seeds)
            report(now - done)
            done = now
            return kwargs

        options = _options(settings)
        height, width = options.pop("size") or self.size
        check_size((height, width), self.pipe.vae_scale_factor)
        return self.pipe(
            **inputs,
            height=height,
            width=width,
            num_inference_steps=options["steps"],
            guidance_scale=options["guidance_scale"],
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=step_end,
        ).images


def _options(settings: Settings) -> dict[str, Any]:
    names = ("seed", "steps", "size", "guidance_scale")
    return {name: getattr(settings, name) for name in names}
