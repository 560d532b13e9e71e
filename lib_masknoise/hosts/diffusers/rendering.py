"""A scene → frames, a batch at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
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
from lib_masknoise.hosts.diffusers import additions, styles
from lib_masknoise.hosts.diffusers.asking import Asking
from lib_masknoise.hosts.diffusers.binding import Binding
from lib_masknoise.hosts.diffusers.encoding import CHUNK_TOKENS
from lib_masknoise.hosts.diffusers.families import family
from lib_masknoise.hosts.diffusers.family import Family
from lib_masknoise.maps import Maps
from lib_masknoise.networks import without_tags
from lib_masknoise.noise.feature import Subspaces
from lib_masknoise.noise.initial import FIRST, ordered
from lib_masknoise.noise.latent import visual
from lib_masknoise.prompt_syntax import plain
from lib_masknoise.scene import Scene, layers
from lib_masknoise.wildcards import Wildcards, expand


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
    wildcards: Wildcards | None = None,
    subspaces: Subspaces | None = None,
) -> Iterator[Frame]:
    """Render frames of a scene, in order, a batch at a time; every frame is handed out as soon as its batch is done.

    prompt, negative_prompt: the base. seed: of the image; also the scene's when `scene.noise.seed` is -1.
    size: (height, width) in pixels, multiples of 8, of 16 for most transformers; the model's own size when None.
    guidance_scale: 1 or less turns guidance and the negative prompts off. frames: which frames (0-based, fractions
    too); all of `scene.animation.frames` when None. A LoRA that a prompt names (`<lora:NAME:0.8>`) is in the weights
    meanwhile. A frame does not depend on the others: any subset, order and batch size gives the same images. on_step:
    called after every denoising step; an exception it raises ends the render and leaves the pipeline as it was.
    subspaces: what is known of the model (`calibrate.style`), what its profile has when None. wildcards: the files
    that concepts' prompts may name (`wildcards.expand`). Raises SceneError for a missing one,
    BrokenOutput where a batch comes out as no pictures: numbers that are not finite, or a picture that the model's
    safety checker has blackened. Warns of what the model cannot do.
    """
    scene = expand(scene, seed, wildcards)
    kind = family(pipe)
    size = size or kind.default_size
    check_size(size, kind.multiple)
    for remark in kind.left_out(scene, negative_prompt):
        warnings.warn(remark, stacklevel=2)
    total = scene.animation.frames
    frames = range(total) if frames is None else frames
    with additions.loras_of(pipe, [prompt, negative_prompt, *prompts(scene), *negatives(scene)]):
        job = Job(pipe, scene, (prompt, negative_prompt), seed, steps, size, guidance_scale, subspaces=subspaces)
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
    attention: see `bind`. subspaces: see `render`. kind: of the pipeline; one that is kept has looked through it
    already.
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
        subspaces: Subspaces | None = None,
        kind: Family | None = None,
    ):
        self.family = kind or family(pipe)
        if not scene.enabled and _written(pipe, prompts_of_image):
            scene, maps = Scene.parse({"animation": scene.animation.to_dict()}), None  # one that changes nothing
        scene = self.family.doable(scene)
        layers.check(scene.noise, self.family.tags.values())
        self.subspaces = styles.known(pipe, scene) if subspaces is None else subspaces
        self.pipe, self.scene, self.prompts, self.seed = pipe, scene, prompts_of_image, seed
        self.steps, self.size, self.guidance_scale = steps, size, guidance_scale
        self.noise_seed = seed if scene.noise.seed < 0 else scene.noise.seed
        self.maps = maps or Maps(scene, (size[0] // self.family.factor, size[1] // self.family.factor))
        self.encoded = encoded or self.family.encode([*prompts_of_image, *prompts(scene), *negatives(scene)])
        self.encoded_negative = self.family.negatives(self.encoded, [prompts_of_image[1], *negatives(scene)])
        self.attention = attention
        self.latents: Tensor | None = None
        """What the last batch was decoded from."""
        self._ordered: Tensor | None = None
        self.base, self.base_negative = self.encoded[prompts_of_image[0]], self.encoded_negative[prompts_of_image[1]]

    def images(self, frames: Sequence[float], on_step: Callable[[float], None]) -> list[Image.Image]:
        """Sample and decode a batch of frames; `on_step` hears the fraction of the steps done."""
        # One generator a frame, all with the image's seed: what a sampler draws along the way is the same in every
        # frame, so pinned regions hold still with ancestral samplers too.
        generators = [torch.Generator("cpu").manual_seed(self.seed) for _ in frames]
        if not self.scene.enabled:
            together = len(generators) if self.family.batches else 1
            parts = [generators[i : i + together] for i in range(0, len(generators), together)]
            return [image for part in parts for image in self._host_alone(part, on_step)]
        noise = torch.cat([self.noise(generator) for generator in generators])[0]
        latents = self.family.latents(self.initial(noise, frames))
        with self.bound(frames) as binding:

            def step_end(pipe: DiffusionPipeline, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
                binding.on_step_end(pipe, step, timestep, kwargs)
                self.latents = kwargs["latents"]
                on_step(binding.fraction)
                return kwargs

            return self._sample(
                generators,
                step_end,
                latents=latents,
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
            own = [t.to(self.family.device, self.pipe.unet.dtype).expand(count, -1, -1) for t in contexts]
            return self._sample(generators, step_end, prompt_embeds=own[0], negative_prompt_embeds=own[1])
        prompt, negative_prompt = map(without_tags, self.prompts)
        return self._sample(generators, step_end, **self.family.written(prompt, negative_prompt, count))

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
            generator=generators,
            callback_on_step_end=checked,
            output_type="np",  # in which a number that is not finite can still be told from black
            **self.family.options(self.guidance_scale),
        )
        pixels = self.family.pixels(made)
        if not np.isfinite(pixels).all():
            raise BrokenOutput("the model's VAE gives numbers that are not finite, after the last step")
        if any(getattr(made, "nsfw_content_detected", None) or ()):
            raise BrokenOutput(
                "the model's safety checker has blackened a picture; a folder without safety_checker/ has none"
            )
        return VaeImageProcessor.numpy_to_pil(pixels)

    def _sides(
        self, frames: Sequence[float], position: float
    ) -> tuple[LocationConditioning, LocationConditioning | None]:
        """What both sides see at a fraction of the steps."""
        maps, seeds = self.maps.at(position), [self.noise_seed] * len(frames)
        encoded = {text: self.encoded[text] for text in prompts(self.scene)}
        positive = condition(maps, self.base, encoded, frames, seeds, self.subspaces)
        if not self.guided:
            return positive, None
        encoded = {text: self.encoded_negative[text] for text in negatives(self.scene)}
        return positive, condition_negative(maps, self.base_negative, encoded, frames)

    @property
    def guided(self) -> bool:
        """Whether the pipeline samples with guidance and so has rows without the prompt."""
        return self.family.guided(self.guidance_scale)

    def bound(self, frames: Sequence[float]) -> AbstractContextManager[Binding]:
        """The model attending to some frames' conditioning, in one pass."""
        blend, first = self.scene.blend, self._sides(frames, 0.0)
        outside = unblended(self.base), unblended(self.base_negative) if self.guided else None
        starts = sorted(
            {at for concept in self.maps.scene.concepts for at in (concept.start, concept.end) if 0 < at < 1}
        )
        later = [(at, *self._sides(frames, at)) for at in starts]
        return self.family.bind(first, outside, (blend.start, blend.end), self.attention, later)

    def noise(self, generator: torch.Generator) -> Tensor:
        """The unit-variance noise the pipeline itself would draw for this image, `[1, C, H, W]`."""
        return self.family.noise(self.maps.size, generator)

    def initial(self, noise: Tensor, frames: Sequence[float]) -> Tensor:
        """The initial latents of some frames, `[B, C, h, w]`, from the image's noise `[C, h, w]`: in the order that the
        scene wants, which is the same for all frames, and then with the visual noise."""
        if self.scene.noise.initial.acts:
            if self._ordered is None:
                (weights,) = self.maps.weights([FIRST])
                self._ordered = ordered(noise, self.scene.noise.initial, weights, self.noise_seed, Asking(self))
            noise = self._ordered
        motion = self.scene.noise.visual.motion or self.scene.motion
        free = self.maps.amount("visual", frames)
        seeds = self.scene.noise.visual.stops
        others = [self.noise(torch.Generator("cpu").manual_seed(seed))[0] for seed in seeds]
        return visual(noise, free, motion, frames, self.maps.total, self.noise_seed, others)

    def stand_in_embeds(self, rows: int) -> dict[str, Any]:
        """What the pipeline wants to be given as embeddings, for some rows."""
        return self.family.stand_ins(self.base, rows)


def _written(pipe: DiffusionPipeline, texts: Iterable[str]) -> bool:
    """Whether prompts have something in them (emphasis, BREAK, comments) that the pipeline alone does not read."""
    return getattr(pipe, "unet", None) is not None and not all(map(plain, map(without_tags, texts)))


def check_size(size: tuple[int, int], factor: int) -> None:
    for name, value in zip(("height", "width"), size, strict=True):
        if value < factor or value % factor:
            raise ValueError(f"{name}: expected a multiple of {factor} pixels, got {value}")
