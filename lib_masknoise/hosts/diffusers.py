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

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from lib_masknoise import builtin_model, keyframes
from lib_masknoise.attention import Basis, blended_attention, project
from lib_masknoise.conditioning import (
    Encoded,
    Level,
    LocationConditioning,
    condition,
    condition_negative,
    unblended,
)
from lib_masknoise.masks import level_with
from lib_masknoise.noise import amount
from lib_masknoise.noise.latent import visual
from lib_masknoise.scene import Scene

# Processors that compute plain cross-attention: replacing one changes nothing but the contexts.
PLAIN_PROCESSORS = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)
CHUNK_TOKENS = 75  # a text encoder's 77 positions less the begin and end tokens


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


def load_pipeline(
    model: str | Path | None = None, device: str | None = None, dtype: torch.dtype | None = None
) -> DiffusionPipeline:
    """Load a text-to-image pipeline of the Stable Diffusion 1.x, 2.x or XL family.

    model: None for the built-in model, a folder in the diffusers layout, or a single `.safetensors` file.
    device: CUDA, else Apple's MPS, else the CPU when None. dtype: float16 on CUDA, float32 elsewhere when None.
    Raises FileNotFoundError when there is nothing at `model`, ValueError when it is not such a model.
    """
    path = builtin_model() if model is None else Path(model)
    if not path.exists():
        raise FileNotFoundError(f"no model at {path}: expected a diffusers folder or a .safetensors file")
    device = device or _best_device()
    dtype = dtype or (torch.float16 if device.startswith("cuda") else torch.float32)
    with warnings.catch_warnings():
        # diffusers 0.42 renames `torch_dtype`; its old name is the one that all supported versions know.
        warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
        if path.is_dir():
            pipe = DiffusionPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
        else:
            pipe = _load_single_file(path, dtype)
    if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise ValueError(f"{path} holds a {type(pipe).__name__}; expected Stable Diffusion 1.x, 2.x or XL")
    pipe.set_progress_bar_config(disable=True)  # `render` has its own, which knows about frames
    return pipe.to(device)


def encode(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[Encoded]:
    """Encode prompts of any length: each 75 tokens become a chunk with its own begin and end token, encoded alone and
    joined, so that a prompt of n chunks gives a context of 77·n tokens. Prompts of one chunk give what the pipeline's
    own `encode_prompt` gives. The pooled embedding is that of the first chunk."""
    return [_encode(pipe, prompt) for prompt in prompts]


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
    `scene.animation.frames` when None. A frame does not depend on the others: any subset, order and batch size gives
    the same images. on_step: called after every denoising step; an exception it raises ends the render and leaves the
    pipeline as it was.
    """
    size = size or _default_size(pipe)
    _check_size(size, pipe.vae_scale_factor)
    total = scene.animation.frames
    frames = range(total) if frames is None else frames
    job = _Job(pipe, scene.acting, (prompt, negative_prompt), seed, steps, size, guidance_scale)
    for start in range(0, len(frames), batch_size):
        batch = frames[start : start + batch_size]

        def step(fraction: float, done: int = start, count: int = len(batch)) -> None:
            if on_step is not None:
                on_step(Progress(done, count, len(frames), fraction))

        for index, image in zip(batch, job.images(batch, step), strict=True):
            yield Frame(index, image)


@contextmanager
def bind(
    unet: UNet2DConditionModel,
    positive: LocationConditioning,
    negative: LocationConditioning | None,
    outside: tuple[LocationConditioning, LocationConditioning | None] | None = None,
    window: tuple[float, float] = (0.0, 1.0),
) -> Iterator[Binding]:
    """Make a U-Net attend to a location conditioning until the block ends, however it ends.

    positive: for the conditional rows, one map for all or one per row. negative: for the rows without the prompt; None
    when guidance is off and there are none. outside: both sides for the steps outside `window`, which is given in
    fractions of the steps. Report the steps with `callback_on_step_end=binding.on_step_end`.
    Raises ValueError when a cross-attention layer is not a plain one (an IP-Adapter, say).
    """
    binding = Binding(unet, positive, negative, outside, window)
    try:
        binding.install()
        yield binding
    finally:
        binding.close()


class Binding:
    """What is installed on a U-Net during one sampling pass; `bind` makes it and takes it away."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        positive: LocationConditioning,
        negative: LocationConditioning | None,
        outside: tuple[LocationConditioning, LocationConditioning | None] | None,
        window: tuple[float, float],
    ):
        self.unet = unet
        self.window = window
        self.inside = self._in_row_order(positive, negative)
        self.outside = self._in_row_order(*outside) if outside else self.inside
        self.fraction = 0.0
        self.size = (0, 0)
        self._levels: dict[tuple[int, int], Level] = {}
        self._bases: dict[tuple[int, int], Basis] = {}
        self._processors: dict[str, Any] = {}
        self._hook = None

    def install(self) -> None:
        processors = dict(self.unet.attn_processors)
        for name, processor in processors.items():
            if "attn2" in name and not isinstance(processor, PLAIN_PROCESSORS):
                raise ValueError(
                    f"{name} is a {type(processor).__name__}: expected plain cross-attention; unload what replaced it"
                )
        self._processors = processors
        ours = _BlendedAttnProcessor(self)
        self._hook = self.unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)
        self.unet.set_attn_processor({k: ours if "attn2" in k else p for k, p in processors.items()})

    def close(self) -> None:
        """Put everything back. Safe at any time, also twice."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._processors:
            self.unet.set_attn_processor(self._processors)
            self._processors = {}
        self._levels.clear()
        self._bases.clear()

    def on_step_end(self, pipe: DiffusionPipeline, step: int, timestep: Any, kwargs: dict) -> dict:
        """`callback_on_step_end` of the pipeline: counts denoiser calls, so samplers with two a step are right too."""
        self.fraction = (step + 1) / pipe.num_timesteps
        return kwargs

    def attend(self, attn: Attention, x: Tensor) -> Tensor:
        """Cross-attention of one layer: `[rows, h·w, C]` → `[rows, h·w, heads·d]` before its output layer."""
        q = attn.to_q(x)
        size = level_with(self.size, x.shape[1])
        sides = self._sides()
        parts = [
            blended_attention(part, self._basis(attn, side), self._level(side, size), attn.scale)
            for side, part in zip(sides, q.chunk(len(sides)), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def _in_row_order(
        positive: LocationConditioning, negative: LocationConditioning | None
    ) -> tuple[LocationConditioning, ...]:
        """In the order of the pipeline's rows: the negative ones first."""
        return (positive,) if negative is None else (negative, positive)

    def _place(self, sample: Tensor) -> None:
        """Move the conditioning to where the U-Net computes. An offloaded U-Net only shows that when it is called."""
        context = self.inside[0].contexts
        if (context.device, context.dtype) != (sample.device, sample.dtype):
            self.inside, self.outside = (
                tuple(side.to(sample.device, sample.dtype) for side in sides) for sides in (self.inside, self.outside)
            )

    def _sides(self) -> tuple[LocationConditioning, ...]:
        start, end = self.window
        return self.inside if start <= self.fraction < end else self.outside

    def _before_unet(self, unet: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        sample = args[0] if args else kwargs["sample"]
        self.size = tuple(sample.shape[-2:])
        self._place(sample)
        sides = self._sides()
        if len(sample) % len(sides):
            raise ValueError(f"the U-Net got {len(sample)} rows; expected as many negative as positive ones")
        added = kwargs.get("added_cond_kwargs") or {}
        if "text_embeds" in added:
            rows = len(sample) // len(sides)
            pooled = torch.cat([side.pooled.expand(rows, -1) for side in sides])
            kwargs = {**kwargs, "added_cond_kwargs": {**added, "text_embeds": pooled}}
        return args, kwargs

    def _level(self, side: LocationConditioning, size: tuple[int, int]) -> Level:
        key = (id(side), *size)
        if key not in self._levels:
            self._levels[key] = side.level(size)
        return self._levels[key]

    def _basis(self, attn: Attention, side: LocationConditioning) -> Basis:
        key = (id(attn), id(side))
        if key not in self._bases:
            self._bases[key] = project(side, attn.to_k, attn.to_v, attn.heads)
        return self._bases[key]


class _BlendedAttnProcessor:
    """A diffusers attention processor: the layer's own projections around the binding's attention."""

    def __init__(self, binding: Binding):
        self.binding = binding

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = self.binding.attend(attn, hidden_states)
        for layer in attn.to_out:  # the output projection and its dropout
            out = layer(out)
        return out


class _Job:
    """A scene on a pipeline, with everything encoded that all its frames share."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        scene: Scene,
        prompts: tuple[str, str],
        seed: int,
        steps: int,
        size: tuple[int, int],
        guidance_scale: float,
    ):
        self.pipe, self.scene, self.prompts, self.seed = pipe, scene, prompts, seed
        self.steps, self.size, self.guidance_scale = steps, size, guidance_scale
        self.latent_size = (size[0] // pipe.vae_scale_factor, size[1] // pipe.vae_scale_factor)
        self.noise_seed = seed if scene.noise.seed < 0 else scene.noise.seed
        concepts, negatives = keyframes.prompts(scene), keyframes.negatives(scene)
        different = dict.fromkeys([*prompts, *concepts, *filter(None, negatives)])
        encoded = dict(zip(different, encode(pipe, list(different)), strict=True))
        self.base, self.base_negative = (encoded[prompt] for prompt in prompts)
        self.concepts = [encoded[prompt] for prompt in concepts]
        self.negatives = [encoded[prompt] if prompt else None for prompt in negatives]

    def images(self, frames: Sequence[float], on_step: Callable[[float], None]) -> list[Image.Image]:
        """Sample and decode a batch of frames; `on_step` hears the fraction of the steps done."""
        # One generator a frame, all with the image's seed: what a sampler draws along the way is the same in every
        # frame, so pinned regions hold still with ancestral samplers too.
        generators = [torch.Generator("cpu").manual_seed(self.seed) for _ in frames]
        if not self.scene.enabled:
            return self._host_alone(generators, on_step)
        noise = torch.cat([self._noise(generator) for generator in generators])[0]
        positive = self._positive(frames)
        with self._bound(positive, frames) as binding:

            def step_end(pipe: DiffusionPipeline, step: int, timestep: Any, kwargs: dict) -> dict:
                binding.on_step_end(pipe, step, timestep, kwargs)
                on_step(binding.fraction)
                return kwargs

            return self._sample(
                generators,
                step_end,
                latents=self._initial(noise, positive.pins, frames),
                **self._stand_in_embeds(len(frames)),
            )

    def _host_alone(self, generators: list[torch.Generator], on_step: Callable[[float], None]) -> list[Image.Image]:
        def step_end(pipe: DiffusionPipeline, step: int, timestep: Any, kwargs: dict) -> dict:
            on_step((step + 1) / pipe.num_timesteps)
            return kwargs

        prompt, negative_prompt = ([text] * len(generators) for text in self.prompts)
        return self._sample(generators, step_end, prompt=prompt, negative_prompt=negative_prompt)

    def _sample(self, generators: list[torch.Generator], step_end: Callable, **inputs: Any) -> list[Image.Image]:
        height, width = self.size
        return self.pipe(
            **inputs,
            height=height,
            width=width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=generators,
            callback_on_step_end=step_end,
        ).images

    def _positive(self, frames: Sequence[float]) -> LocationConditioning:
        scene = self.scene
        options = (self.latent_size, self.noise_seed, frames, scene.animation.frames)
        return condition(scene, self.base, self.concepts, *options)

    def _bound(self, positive: LocationConditioning, frames: Sequence[float]) -> AbstractContextManager[Binding]:
        scene = self.scene
        negative = plain_negative = None
        if self.guidance_scale > 1 and self.pipe.unet.config.time_cond_proj_dim is None:
            options = (self.latent_size, frames, scene.animation.frames)
            negative = condition_negative(scene, self.base_negative, self.negatives, *options)
            plain_negative = unblended(self.base_negative)
        outside = (unblended(self.base), plain_negative)
        return bind(self.pipe.unet, positive, negative, outside, (scene.blend.start, scene.blend.end))

    def _noise(self, generator: torch.Generator) -> Tensor:
        """The unit-variance noise the pipeline itself would draw for this image, `[1, C, H, W]`."""
        shape = (1, self.pipe.unet.config.in_channels, *self.latent_size)
        return randn_tensor(shape, generator, self.pipe._execution_device, self.pipe.unet.dtype)

    def _initial(self, noise: Tensor, pins: Tensor, frames: Sequence[float]) -> Tensor:
        """The initial latents of some frames with the visual noise, `[B, C, H, W]`."""
        scene = self.scene
        free = amount(pins, scene.noise.visual.strength, scene.noise.exponent)
        motion = scene.noise.visual.motion or scene.motion
        return visual(noise, free, motion, frames, scene.animation.frames, self.noise_seed)

    def _stand_in_embeds(self, rows: int) -> dict[str, Tensor]:
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


def _encode(pipe: DiffusionPipeline, prompt: str) -> Encoded:
    """One prompt through one text encoder (SD1, SD2) or two (SDXL), chunk by chunk."""
    if isinstance(pipe, StableDiffusionXLPipeline):
        encoders = [(pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)]
        encoders = [pair for pair in encoders if pair[1] is not None]  # the refiner has the second alone
    else:
        encoders = [(pipe.tokenizer, pipe.text_encoder)]
    chunked = [_chunks(tokenizer, prompt) for tokenizer, _ in encoders]
    count = max(map(len, chunked))
    contexts, pooled = [], None
    for (tokenizer, encoder), ids in zip(encoders, chunked, strict=True):
        ids = torch.cat([ids, _chunks(tokenizer, "").expand(count - len(ids), -1)]).to(encoder.device)
        with torch.no_grad():
            if isinstance(pipe, StableDiffusionXLPipeline):
                out = encoder(ids, output_hidden_states=True)
                context, pooled = out.hidden_states[-2], out[0][0].float().cpu()
            else:
                context = encoder(ids, attention_mask=_attention_mask(tokenizer, encoder, ids))[0]
        contexts.append(context.flatten(0, 1).float().cpu())
    return Encoded(torch.cat(contexts, dim=-1), pooled)


def _chunks(tokenizer: Any, prompt: str) -> Tensor:
    """Token ids `[n, 77]`: the prompt in pieces of 75 tokens, each between a begin and an end token and padded."""
    length = tokenizer.model_max_length - 2
    ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
    pieces = [ids[start : start + length] for start in range(0, max(len(ids), 1), length)]
    pad = tokenizer.pad_token_id
    rows = [
        [tokenizer.bos_token_id, *piece, tokenizer.eos_token_id, *[pad] * (length - len(piece))] for piece in pieces
    ]
    return torch.tensor(rows)


def _attention_mask(tokenizer: Any, encoder: torch.nn.Module, ids: Tensor) -> Tensor | None:
    """Only some text encoders (Stable Diffusion 2's configs among them, where set) hide the padding."""
    if not getattr(encoder.config, "use_attention_mask", False):
        return None
    # Position of the first end token: the padding may be the same token, and what lies behind the end is padding.
    end = (ids == tokenizer.eos_token_id).int().argmax(dim=1, keepdim=True)
    return (torch.arange(ids.shape[1], device=ids.device) <= end).long()


def _load_single_file(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """A checkpoint file. Its configuration is a diffusers folder of the same name beside it, else the standard one of
    its family, which diffusers fetches once and keeps."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a .safetensors file or a diffusers folder")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as checkpoint:
        is_xl = any(key.startswith("conditioner.embedders.1.") for key in checkpoint.keys())
    pipeline = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    folder = path.with_suffix("")
    config = {"config": str(folder), "local_files_only": True} if folder.is_dir() else {}
    try:
        return pipeline.from_single_file(path, torch_dtype=dtype, **config)
    except OSError as error:
        raise ValueError(
            f"{path}: its configuration could not be fetched; put the configuration files of its diffusers layout "
            f"into a folder named {folder.name} beside it"
        ) from error


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _default_size(pipe: DiffusionPipeline) -> tuple[int, int]:
    sample = pipe.unet.config.sample_size
    height, width = (sample, sample) if isinstance(sample, int) else sample
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def _check_size(size: tuple[int, int], factor: int) -> None:
    for name, value in zip(("height", "width"), size, strict=True):
        if value < factor or value % factor:
            raise ValueError(f"{name}: expected a multiple of {factor} pixels, got {value}")
