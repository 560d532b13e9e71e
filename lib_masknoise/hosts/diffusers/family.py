"""What a kind of pipeline decides about a render."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from lib_masknoise.attention import AttentionPass
from lib_masknoise.conditioning import Encoded, LocationConditioning
from lib_masknoise.hosts.diffusers.binding import Binding, Later, installed
from lib_masknoise.hosts.diffusers.blocks import layer_tags
from lib_masknoise.hosts.diffusers.encoding import CHUNK_TOKENS, encode
from lib_masknoise.maps import Size
from lib_masknoise.scene import Scene
from lib_masknoise.scene.layers import Tags

Sides = tuple[LocationConditioning, "LocationConditioning | None"]
"""The conditioning of the rows with the prompt, and of those without it where guidance has such rows."""


class Family:
    """Stable Diffusion 1.x, 2.x and XL, and what the others differ in.

    batches: whether the host alone can make several guided pictures in one call. together: whether rows of a call may
    see one side and the other, in the order of `Binding`'s.
    """

    batches = True
    together = True

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe

    @property
    def model(self) -> Any:
        """What predicts the noise."""
        return self.pipe.unet

    @cached_property
    def device(self) -> torch.device:
        """Where the model computes, also where its weights are elsewhere meanwhile. Asking the pipeline takes
        milliseconds: it looks through all its modules."""
        return self.pipe._execution_device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the model, which looks through its parameters for it."""
        return self.model.dtype

    @property
    def factor(self) -> int:
        """Pixels to a place of the latent."""
        return int(self.pipe.vae_scale_factor)

    @property
    def multiple(self) -> int:
        """What a picture's height and width must be multiples of, in pixels."""
        return self.factor

    @property
    def default_size(self) -> Size:
        """The size of picture that the model was made for: (height, width) in pixels."""
        sample = self.model.config.sample_size
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * self.factor, width * self.factor

    def left_out(self, scene: Scene, negative_prompt: str) -> list[str]:
        """What of a scene such a model cannot do, in words."""
        return []

    def doable(self, scene: Scene) -> Scene:
        """The scene without what such a model cannot do and would stumble over."""
        return scene

    @cached_property
    def tags(self) -> dict[str, Tags]:
        """Of the cross-attention layers, by the names of their processors; empty where they have none."""
        return layer_tags(self.model)

    def encode(self, prompts: Iterable[str]) -> dict[str, Encoded]:
        """The contexts that are blended, one for each different prompt."""
        return encode(self.pipe, prompts)

    def negatives(self, encoded: Mapping[str, Encoded], texts: Iterable[str]) -> Mapping[str, Encoded]:
        """What some of the texts that are encoded are as negative prompts: the same, but where a pipeline writes
        something before one kind of prompt."""
        return encoded

    def guided(self, guidance_scale: float) -> bool:
        """Whether the pipeline samples with guidance and so evaluates rows without the prompt."""
        return guidance_scale > 1 and self.model.config.time_cond_proj_dim is None

    def noise(self, size: Size, generator: torch.Generator) -> Tensor:
        """The noise that the pipeline itself would draw for a picture whose latent has that size, `[1, C, h, w]`."""
        shape = (1, self.model.config.in_channels, *size)
        return randn_tensor(shape, generator, self.device, self.dtype)

    def latents(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` as the pipeline takes them."""
        return x

    def maps_of(self, x: Tensor, size: Size) -> Tensor:
        """The inverse of `latents`, for a picture of `size` in pixels."""
        return x

    def given(self, x: Tensor) -> Any:
        """What the pipeline makes of `latents` for the model's call."""
        return x

    def heard(self, output: Any) -> Tensor:
        """What the model's output is to the scheduler, as `maps_of` takes it."""
        return output[0] if isinstance(output, tuple) else output.sample

    def when(self, called: float, first: float, time: float) -> float:
        """What the pipeline calls a time for the model, where it called the first one of the scheduler's so: pipelines
        have units of their own, and a single step may be the one at 0, which tells nothing."""
        return time * (called / first if first else 1.0)

    def bind(
        self,
        inside: Sides,
        outside: Sides,
        window: tuple[float, float],
        attention: AttentionPass | None,
        later: Later = (),
    ) -> AbstractContextManager[Binding]:
        """The model attending to a conditioning until the block ends; see `binding.bind`."""
        return installed(self.binding(self.model, *inside, outside, window, attention, later))

    def binding(self, *args: Any) -> Binding:
        """What is installed on such a model meanwhile; the arguments are those of `Binding`."""
        return Binding(*args)

    def written(self, prompt: str, negative_prompt: str, rows: int) -> dict[str, Any]:
        """What the pipeline alone is given for some pictures of both prompts."""
        return {"prompt": [prompt] * rows, "negative_prompt": [negative_prompt] * rows}

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        """What the pipeline wants to be given as embeddings. Only their shapes count: the binding has the contexts,
        each with its own length, so rows of unequal length need no padding and no second call of the model."""

        def repeated(t: Tensor) -> Tensor:
            return t.to(self.device, self.dtype).expand(rows, *t.shape)

        context = repeated(base.context[: CHUNK_TOKENS + 2])
        embeds = {"prompt_embeds": context, "negative_prompt_embeds": context}
        if base.pooled is not None:
            pooled = repeated(base.pooled)
            embeds |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled}
        return embeds

    def options(self, guidance_scale: float) -> dict[str, Any]:
        """Further arguments of the pipeline's call."""
        return {"guidance_scale": guidance_scale}

    def pixels(self, made: Any) -> Any:
        """Of what the pipeline returns, `[B, H, W, 3]` from 0 to 1."""
        return made.images
