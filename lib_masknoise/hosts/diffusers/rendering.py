"""A scene → frames, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from lib_masknoise.attention import AttentionPass
from lib_masknoise.conditioning import (
    Encoded,
    LocationConditioning,
    condition,
    condition_negative,
    negatives,
    prompts,
    unblended,
)
from lib_masknoise.errors import BrokenOutput
from lib_masknoise.hosts.diffusers import additions
from lib_masknoise.hosts.diffusers.binding import Binding, bind
from lib_masknoise.hosts.diffusers.encoding import CHUNK_TOKENS, encode
from lib_masknoise.hosts.diffusers.loading import default_size
from lib_masknoise.maps import Maps
from lib_masknoise.networks import without_tags
from lib_masknoise.noise.latent import visual
from lib_masknoise.scene import Scene


@dataclass(frozen=True)
class Frame:
    """One finished frame: its `index` in the animation and its RGB `image`."""

    index: float
    image: Image.Image


@dataclass(frozen=True)
class Progress:
    """What `render` reports after each denoising step: frames done before this batch, frames of this batch, frames in
    all, and the fraction of this batch's steps that is done."""

    done: int
    batch: int
    total: int
    fraction: float

    @property
    def frames(self) -> float:
        return self.done + self.batch * self.fraction


def advancing(advance: Callable[[float], object]) -> Callable[[Progress], None]:
    """An `on_step` by which `advance` hears of every part of a frame that is made."""
    done = 0.0

    def on_step(progress: Progress) -> None:
        nonlocal done
        more, done = progress.frames - done, progress.frames
        advance(more)

    return on_step


def render(
    pipe: DiffusionPipeline,
    scene: Scene,
    prompt: str = "",
    negative_prompt: str = "",
    *,
    seed: int = 0,
    steps: int = 20,
    size: tuple[int, int] | None = None,
    guidance_scale: float = 4.0,
    frames: Sequence[float] | None = None,
    batch_size: int = 4,
    on_step: Callable[[Progress], None] | None = None,
) -> Iterator[Frame]:
    """Render frames of a scene, in order, a batch at a time; every frame is handed out as soon as its batch is done.

    prompt, negative_prompt: the base. seed: of the image; also the scene's when `scene.noise.seed` is -1.
    size: (height, width) in pixels, multiples of 8; the model's own size when None. guidance_scale: 1 or less turns
    guidance and the negative prompts off. frames: which frames (0-based, fractions too); all of
    `scene.animation.frames` when None. A LoRA that a prompt names (`<lora:NAME:0.8>`) is in the weights meanwhile. A
    frame does not depend on the others: any subset, order and batch size gives the same images. on_step: called after
    every denoising step; an exception it raises ends the render and leaves the
    pipeline as it was. Raises BrokenOutput where a batch comes out as no pictures: numbers that are not finite, or a
    picture that the model's safety checker has blackened.
    """
    size = size or default_size(pipe)
    check_size(size, pipe.vae_scale_factor)
    total = scene.animation.frames
    frames = range(total) if frames is None else frames
    with additions.loras_of(pipe, [prompt, negative_prompt, *prompts(scene), *negatives(scene)]):
        job = Job(pipe, scene, (prompt, negative_prompt), seed, steps, size, guidance_scale)
        for start in range(0, len(frames), batch_size):
            batch = frames[start : start + batch_size]

            def step(fraction: float, done: int = start, count: int = len(batch)) -> None:
                if on_step is not None:
                    on_step(Progress(done, count, len(frames), fraction))

            for index, image in zip(batch, job.images(batch, step), strict=True):
                yield Frame(index, image)


class Job:
    """A scene on a pipeline, with everything encoded that all its frames share.

    maps, encoded: where they are known already; the second must have every prompt of the scene and the image.
    attention: see `bind`.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        scene: Scene,
        prompts_of_image: tuple[str, str],
        seed: int,
        steps: int,
        size: tuple[int, int],
        guidance_scale: float,
        maps: Maps | None = None,
        encoded: Mapping[str, Encoded] | None = None,
        attention: AttentionPass | None = None,
    ):
        self.pipe, self.scene, self.prompts, self.seed = pipe, scene, prompts_of_image, seed
        self.steps, self.size, self.guidance_scale = steps, size, guidance_scale
        self.noise_seed = seed if scene.noise.seed < 0 else scene.noise.seed
        self.maps = maps or Maps(scene, (size[0] // pipe.vae_scale_factor, size[1] // pipe.vae_scale_factor))
        self.encoded = encoded or encode(pipe, [*prompts_of_image, *prompts(scene), *negatives(scene)])
        self.attention = attention
        self.latents: Tensor | None = None
        """What the last batch was decoded from."""
        self.base, self.base_negative = (self.encoded[prompt] for prompt in prompts_of_image)

    def images(self, frames: Sequence[float], on_step: Callable[[float], None]) -> list[Image.Image]:
        """Sample and decode a batch of frames; `on_step` hears the fraction of the steps done."""
        # One generator a frame, all with the image's seed: what a sampler draws along the way is the same in every
        # frame, so pinned regions hold still with ancestral samplers too.
        generators = [torch.Generator("cpu").manual_seed(self.seed) for _ in frames]
        if not self.scene.enabled:
            return self._host_alone(generators, on_step)
        noise = torch.cat([self.noise(generator) for generator in generators])[0]
        with self.bound(frames) as binding:

            def step_end(pipe: DiffusionPipeline, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
                binding.on_step_end(pipe, step, timestep, kwargs)
                self.latents = kwargs["latents"]
                on_step(binding.fraction)
                return kwargs

            return self._sample(
                generators,
                step_end,
                latents=self.initial(noise, frames),
                **self.stand_in_embeds(len(frames)),
            )

    def _host_alone(self, generators: list[torch.Generator], on_step: Callable[[float], None]) -> list[Image.Image]:
        def step_end(pipe: DiffusionPipeline, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            self.latents = kwargs["latents"]
            on_step((step + 1) / pipe.num_timesteps)
            return kwargs

        count = len(generators)
        if additions.clip_skip(self.pipe) > 1 and not isinstance(self.pipe, StableDiffusionXLPipeline):
            # Not every version of diffusers finds the layer in every version of transformers.
            contexts = [one.context[: CHUNK_TOKENS + 2] for one in (self.base, self.base_negative)]
            own = [t.to(self.pipe._execution_device, self.pipe.unet.dtype).expand(count, -1, -1) for t in contexts]
            return self._sample(generators, step_end, prompt_embeds=own[0], negative_prompt_embeds=own[1])
        prompt, negative_prompt = ([without_tags(text)] * count for text in self.prompts)
        return self._sample(generators, step_end, prompt=prompt, negative_prompt=negative_prompt)

    def _sample(
        self, generators: list[torch.Generator], step_end: Callable[..., Any], **inputs: Any
    ) -> list[Image.Image]:
        height, width = self.size

        def checked(pipe: DiffusionPipeline, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if not bool(kwargs["latents"].isfinite().all()):
                raise BrokenOutput(f"the model's numbers are not finite after step {step + 1} of {pipe.num_timesteps}")
            return step_end(pipe, step, timestep, kwargs)

        made = self.pipe(
            **inputs,
            height=height,
            width=width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=generators,
            callback_on_step_end=checked,
            output_type="np",  # in which a number that is not finite can still be told from black
        )
        if not np.isfinite(made.images).all():
            raise BrokenOutput("the model's VAE gives numbers that are not finite, after the last step")
        if any(getattr(made, "nsfw_content_detected", None) or ()):
            raise BrokenOutput(
                "the model's safety checker has blackened a picture; a folder without safety_checker/ has none"
            )
        return self.pipe.image_processor.numpy_to_pil(made.images)

    def _positive(self, frames: Sequence[float]) -> LocationConditioning:
        return condition(self.maps, self.base, self._own(prompts), frames, [self.noise_seed] * len(frames))

    def _own(self, texts: Callable[[Scene], list[str]]) -> dict[str, Encoded]:
        return {text: self.encoded[text] for text in texts(self.scene)}

    @property
    def guided(self) -> bool:
        """Whether the pipeline samples with guidance and so has rows without the prompt."""
        return self.guidance_scale > 1 and self.pipe.unet.config.time_cond_proj_dim is None

    def bound(self, frames: Sequence[float]) -> AbstractContextManager[Binding]:
        """The U-Net attending to some frames' conditioning, in one pass."""
        scene, positive = self.scene, self._positive(frames)
        negative = plain_negative = None
        if self.guided:
            negative = condition_negative(self.maps, self.base_negative, self._own(negatives), frames)
            plain_negative = unblended(self.base_negative)
        outside = (unblended(self.base), plain_negative)
        return bind(self.pipe.unet, positive, negative, outside, (scene.blend.start, scene.blend.end), self.attention)

    def noise(self, generator: torch.Generator) -> Tensor:
        """The unit-variance noise the pipeline itself would draw for this image, `[1, C, H, W]`."""
        shape = (1, self.pipe.unet.config.in_channels, *self.maps.size)
        return randn_tensor(shape, generator, self.pipe._execution_device, self.pipe.unet.dtype)

    def initial(self, noise: Tensor, frames: Sequence[float]) -> Tensor:
        """The initial latents of some frames with the visual noise, `[B, C, h, w]`."""
        motion = self.scene.noise.visual.motion or self.scene.motion
        free = self.maps.amount("visual", frames)
        return visual(noise, free, motion, frames, self.maps.total, self.noise_seed)

    def stand_in_embeds(self, rows: int) -> dict[str, Tensor]:
        """What the pipeline wants to be given as embeddings. Only their shapes count: the binding has the contexts,
        each with its own length, so rows of unequal length need no padding and no second U-Net call."""

        def repeated(t: Tensor) -> Tensor:
            return t.to(self.pipe._execution_device, self.pipe.unet.dtype).expand(rows, *t.shape)

        context = repeated(self.base.context[: CHUNK_TOKENS + 2])
        embeds = {"prompt_embeds": context, "negative_prompt_embeds": context}
        if self.base.pooled is not None:
            pooled = repeated(self.base.pooled)
            embeds |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled}
        return embeds


def check_size(size: tuple[int, int], factor: int) -> None:
    for name, value in zip(("height", "width"), size, strict=True):
        if value < factor or value % factor:
            raise ValueError(f"{name}: expected a multiple of {factor} pixels, got {value}")
