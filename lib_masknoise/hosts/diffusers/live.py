"""Live painting on a pipeline of diffusers."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch import Tensor

from lib_masknoise.attention import AttentionPass
from lib_masknoise.conditioning import Encoded, negatives, prompts
from lib_masknoise.hosts.diffusers.encoding import encode
from lib_masknoise.hosts.diffusers.families import family, require_unet
from lib_masknoise.hosts.diffusers.rendering import Job, check_size
from lib_masknoise.live import FAINT, STEPS, Step, Turns, Wish
from lib_masknoise.live.decoding import linear_rgb, tiny_decoder, to_picture
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Problem, SceneError
from lib_masknoise.wildcards import Wildcards

WITHOUT_NOISE = (EulerDiscreteScheduler, DDIMScheduler)
"""Schedulers of one evaluation a step that add no noise of their own."""
REMEMBERED_PROMPTS = 64

TINY = {0.18215: "madebyollin/taesd", 0.13025: "madebyollin/taesdxl"}
"""Tiny autoencoders by the scaling factor of what they stand for; used where they have been fetched already."""


@contextmanager
def one_core_left(device: torch.device) -> Iterator[None]:
    """Where the CPU computes, a thread fewer than usual: the browser that draws the strokes needs a core of its own.
    Threads that wait for it cost more than the one that is missing (docs/live.md)."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(threads - 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class LiveHost:
    """A pipeline as the host of an `Engine`. turns: shared with whatever else uses the pipeline. wildcards: files that
    concepts' prompts may name."""

    def __init__(self, pipe: DiffusionPipeline, turns: Turns | None = None, wildcards: Wildcards | None = None) -> None:
        require_unet(pipe, "live painting")
        self.pipe, self._family = pipe, family(pipe)
        self.turns = turns or Turns()
        self._wildcards = wildcards or Wildcards()
        self.factor = pipe.vae_scale_factor
        self.decode = decoder(pipe)
        self._encoded: OrderedDict[str, Encoded] = OrderedDict()
        self._attention = AttentionPass()

    def turn(self) -> AbstractContextManager[None]:
        return self.turns.live()

    def busy(self) -> bool:
        return self.turns.busy

    def setting(self) -> Hashable:
        return None  # one pipeline, which stays as it is

    def wildcards(self) -> Wildcards:
        return self._wildcards

    def check(self, wish: Wish) -> None:
        made = wish.settings
        sides = {"width": made.size[1], "height": made.size[0]}
        wrong = [
            Problem(name, f"expected a multiple of {self.factor}, got {side}")
            for name, side in sides.items()
            if side % self.factor
        ]
        named = {"sampler": made.sampler, "scheduler": made.scheduler}
        wrong += [
            Problem(path, f"expected none: a pipeline has its own; got {name}") for path, name in named.items() if name
        ]
        if wrong:
            raise SceneError(tuple(wrong))

    @torch.no_grad()
    def sketch(
        self, wish: Wish, maps: Maps, frame: float, last: Tensor | None, step: Step, steps: int = STEPS
    ) -> Tensor:
        """Few steps with the pipeline's own kind of scheduler, on one of its own."""
        with one_core_left(self._family.device):
            return self._sketch(wish, maps, frame, last, step, steps)

    def _sketch(self, wish: Wish, maps: Maps, frame: float, last: Tensor | None, step: Step, steps: int) -> Tensor:
        job = self._job(wish, maps, self._attention)
        pipe, device = self.pipe, job.family.device
        generator = torch.Generator("cpu").manual_seed(wish.settings.seed)
        noise = job.initial(job.noise(generator)[0], [frame])
        if last is not None and last.shape != noise.shape:
            last = None
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        total = min(steps, wish.settings.steps)
        if total == 1:
            last = None
        scheduler.set_timesteps(total, device=device)
        faint = _faint_at_last(scheduler, noise)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        options = pipe.prepare_extra_step_kwargs(generator, 0.0)
        if last is None:
            first, x = 0, noise * scheduler.init_noise_sigma
        else:
            first, x = stepped(scheduler, last, noise, options)
        times = scheduler.timesteps[first:]
        asked = len(times) - 1 if faint and len(times) > 1 else len(times)
        predicted = noise
        with job.bound([frame]) as binding:
            added = self._added(job)
            for i, t in enumerate(times):
                if i == asked:  # so little noise is left that what was found last will do
                    x = scheduler.step(predicted, t, x, **options, return_dict=False)[0]
                    break
                binding.fraction = (first + i) / (first + len(times))
                rows = scheduler.scale_model_input(torch.cat([x, x]) if job.guided else x, t)
                predicted = pipe.unet(rows, t, **added, return_dict=False)[0]
                if job.guided:
                    plain, prompted = predicted.chunk(2)
                    predicted = plain + wish.settings.guidance_scale * (prompted - plain)
                x = scheduler.step(predicted, t, x, **options, return_dict=False)[0]
                step()
        return x

    def full(self, wish: Wish, maps: Maps, frame: float, step: Step) -> tuple[Image.Image, Tensor]:
        """What `render` makes, to the last bit. The contexts are projected anew, once a pass: what the sketches know
        was projected in other company, and a matrix product may round otherwise there."""
        job = self._job(wish, maps, None)
        (image,) = job.images([frame], lambda fraction: step())
        assert job.latents is not None  # a step has been made
        return image, job.latents

    def _job(self, wish: Wish, maps: Maps, attention: AttentionPass | None) -> Job:
        made = wish.settings
        check_size(made.size, self.factor)
        texts = made.prompt, made.negative_prompt
        known = self._encodings([*texts, *prompts(wish.scene), *negatives(wish.scene)])
        return Job(
            self.pipe,
            wish.scene,
            texts,
            made.seed,
            made.steps,
            made.size,
            made.guidance_scale,
            maps=maps,
            encoded=known,
            attention=attention,
            kind=self._family,
        )

    def _encodings(self, texts: Iterable[str]) -> dict[str, Encoded]:
        """Each prompt is encoded when it is first seen."""
        texts = list(dict.fromkeys(texts))
        self._encoded.update(encode(self.pipe, [text for text in texts if text not in self._encoded]))
        for text in texts:
            self._encoded.move_to_end(text)
        found = {text: self._encoded[text] for text in texts}
        while len(self._encoded) > REMEMBERED_PROMPTS:
            self._encoded.popitem(last=False)
        return found

    def _added(self, job: Job) -> dict[str, Any]:
        """What the U-Net wants beside rows and time."""
        pipe = self.pipe
        embeds = job.stand_in_embeds(2 if job.guided else 1)
        given: dict[str, Any] = {"encoder_hidden_states": embeds["prompt_embeds"], "timestep_cond": None}
        width = pipe.unet.config.time_cond_proj_dim
        if width is not None:
            scale = torch.tensor([job.guidance_scale - 1.0])
            given["timestep_cond"] = pipe.get_guidance_scale_embedding(scale, embedding_dim=width).to(
                job.family.device, pipe.unet.dtype
            )
        if isinstance(pipe, StableDiffusionXLPipeline):
            pooled = embeds["pooled_prompt_embeds"]
            encoder = pipe.text_encoder_2
            ids = pipe._get_add_time_ids(
                job.size, (0, 0), job.size, pooled.dtype, text_encoder_projection_dim=encoder.config.projection_dim
            )
            rows = ids.to(pooled.device).repeat(len(pooled), 1)
            given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": rows}
        return given


def stepped(scheduler: Any, last: Tensor, noise: Tensor, options: dict[str, Any]) -> tuple[int, Tensor]:
    """The first step without its U-Net call: as if that had found `last` under the noise. All are ``[1, C, h, w]``.

    The scheduler itself makes the step, so one that draws noise of its own (LCM, TCD, ancestral ones) draws what it
    would have drawn, and one that remembers predictions remembers this one. Returns how many of its timesteps that
    were, and where they lead.
    """
    count = getattr(scheduler, "order", 1)
    x = scheduler.add_noise(last, noise, scheduler.timesteps[:1])
    for t in scheduler.timesteps[:count]:
        scheduler.scale_model_input(x, t)  # some want to have been asked
        x = scheduler.step(_prediction(scheduler, last, noise, t), t, x, **options, return_dict=False)[0]
    return count, x


def _faint_at_last(scheduler: Any, like: Tensor) -> bool:
    """Whether the last step begins with hardly any noise, and what the step before has found will do: the noise itself,
    which is the same at every time where the scheduler adds none. It has not begun yet."""
    times = scheduler.timesteps
    if not isinstance(scheduler, WITHOUT_NOISE) or scheduler.config.prediction_type != "epsilon":
        return False
    return float(_relative_sigma(scheduler, like, times[-1])) < FAINT


def _prediction(scheduler: Any, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a perfect U-Net says of `x0` with that noise on it, in the terms that the scheduler expects."""
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        signal = 1 / (1 + float(_relative_sigma(scheduler, x0, t)) ** 2) ** 0.5
        return signal * noise - (1 - signal**2) ** 0.5 * x0
    return x0 if kind == "sample" else noise


def _relative_sigma(scheduler: Any, like: Tensor, t: Tensor) -> Tensor:
    """How strong the noise is at a timestep, relative to the picture, whatever the scheduler scales both by."""
    one, none = torch.ones_like(like[:, :1, :1, :1]), torch.zeros_like(like[:, :1, :1, :1])
    signal, noise = scheduler.add_noise(one, none, t[None]), scheduler.add_noise(none, one, t[None])
    return (noise / signal).flatten()[0]


def decoder(pipe: DiffusionPipeline) -> Callable[[Tensor], Image.Image]:
    """The quickest decoder there is for a pipeline's latents: its own where that is a tiny one already; a tiny one that
    was distilled from it; a linear map to colours; else its own."""
    vae, scale = pipe.vae, float(pipe.vae.config.scaling_factor)
    if isinstance(vae, AutoencoderTiny):
        return lambda latent: to_picture(_decoded(vae, latent / scale))
    tiny = tiny_decoder(vae.decoder.state_dict())
    if tiny is not None:
        tiny = tiny.to(pipe._execution_device, vae.dtype)
        return lambda latent: to_picture(_run(tiny, latent.to(vae.dtype)))
    known = next((name for factor, name in TINY.items() if abs(factor - scale) < 1e-4), None)
    fetched = known and _fetched(known, pipe)
    if fetched:
        return lambda latent: to_picture(_decoded(fetched, latent.to(fetched.dtype)))
    if linear_rgb(torch.zeros(1, vae.config.latent_channels, 1, 1), scale) is not None:
        return lambda latent: _linear(latent, scale)
    return lambda latent: to_picture(_decoded(vae, latent.to(vae.dtype) / scale))


def _linear(latent: Tensor, scale: float) -> Image.Image:
    rgb = linear_rgb(latent, scale)
    assert rgb is not None  # the model is known
    return to_picture(rgb)


def _fetched(name: str, pipe: DiffusionPipeline) -> AutoencoderTiny | None:
    """A tiny autoencoder that lies on this machine already."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tiny = AutoencoderTiny.from_pretrained(name, torch_dtype=pipe.vae.dtype, local_files_only=True)
    except (OSError, ValueError):
        return None
    return tiny.to(pipe._execution_device)


@torch.no_grad()
def _run(tiny: torch.nn.Module, latent: Tensor) -> Tensor:
    return tiny(latent)


@torch.no_grad()
def _decoded(vae: Any, latent: Tensor) -> Tensor:
    return vae.decode(latent, return_dict=False)[0] / 2 + 0.5
