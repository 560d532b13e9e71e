"""Transformers of diffusers in which text and image change together: Flux and Stable Diffusion 3.

The texts of all concepts, and level-set texts between those that meet, stand side by side (`lib_masknoise.joint`). It
takes one evaluation of the model, of a longer sequence; where one text has all the weight, that is the plain one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.conditioning import Encoded
from lib_masknoise.hosts.diffusers.binding import Binding
from lib_masknoise.hosts.diffusers.static_text import Transformer
from lib_masknoise.joint import KNOTS, joint_attention, log_weights, texts
from lib_masknoise.maps import Size, extent
from lib_masknoise.scene import Scene

FLUX_TOKENS = 512
SD3_TOKENS = 256


class JointBinding(Binding):
    """Several texts in place of one, and attention that weighs them by place."""

    layers = ".attn.processor"
    knots = KNOTS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._texts = {id(one): texts(one, self.knots) for one in self.all_sides}
        self._placed: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self.weights: Tensor = torch.zeros(1, 1, 1)

    @property
    def length(self) -> int:
        """Text tokens of the call in progress."""
        return self.tokens * self.weights.shape[1]

    def processor(self) -> Any:
        return _JointProcessor(self)

    def join(self, sample: Tensor, size: Size) -> tuple[Tensor, Tensor | None]:
        """What a call sees, at image tokens of `size` (h, w): contexts `[rows, K·T, D]`, pooled texts `[rows, P]`."""
        sides, rows = self._share(sample, size)
        key = (*map(id, sides), rows, size, sample.device, sample.dtype)
        if key not in self._placed:
            found = [self._texts[id(side)].row(row) for side in sides for row in range(rows)]
            contexts, weights = _side_by_side(found)
            self._placed = {key: (contexts.to(sample), log_weights(weights, size).to(sample.device, torch.float32))}
        contexts, self.weights = self._placed[key]
        self.tokens = contexts.shape[2]
        known = [side.pooled for side in sides if side.pooled is not None]
        pooled = torch.cat([one.to(sample).expand(rows, -1) for one in known]) if known else None
        return contexts.flatten(1, 2), pooled

    def joint(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of texts and, after them, the image, `[rows, heads, K·T + L, d]`."""
        if self.weights.shape[1] == 1:
            return F.scaled_dot_product_attention(q, k, v)
        split = [self.length, q.shape[2] - self.length]
        text, image = zip(*(t.split(split, dim=2) for t in (q, k, v)), strict=True)
        return torch.cat(joint_attention(text, image, self.weights, q.shape[3] ** -0.5), dim=2)


def _side_by_side(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Rows of as many texts as the one with most: what is added counts nowhere."""
    most = max(len(contexts) for contexts, _ in found)
    rows = []
    for contexts, weights in found:
        more = most - len(contexts)
        nowhere = weights.new_zeros(more, *weights.shape[1:])
        rows.append((torch.cat([contexts, contexts[-1:].expand(more, -1, -1)]), torch.cat([weights, nowhere])))
    contexts, weights = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return contexts, weights


class _JointProcessor:
    """A diffusers attention processor for layers of Flux and Stable Diffusion 3, which differ in what stands first."""

    def __init__(self, binding: JointBinding) -> None:
        self.binding = binding

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        **_: Any,
    ) -> Any:
        heads = attn.heads
        q, k, v = (_heads(layer(hidden_states), heads) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k = _normed(attn.norm_q, q), _normed(attn.norm_k, k)
        if encoder_hidden_states is not None:
            layers = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
            text_q, text_k, text_v = (_heads(layer(encoder_hidden_states), heads) for layer in layers)
            text_q, text_k = _normed(attn.norm_added_q, text_q), _normed(attn.norm_added_k, text_k)
            q, k, v = (torch.cat(pair, dim=2) for pair in ((text_q, q), (text_k, k), (text_v, v)))
        if image_rotary_emb is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            q, k = (apply_rotary_emb(t, image_rotary_emb) for t in (q, k))
        out = self.binding.joint(q, k, v).transpose(1, 2).flatten(2).to(hidden_states.dtype)
        if encoder_hidden_states is None:
            return out
        length = encoder_hidden_states.shape[1]
        text, image = out[:, :length], out[:, length:]
        if not getattr(attn, "context_pre_only", False):
            text = attn.to_add_out(text.contiguous())
        for layer in attn.to_out:
            image = layer(image)
        return image, text


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _normed(norm: torch.nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


class Joint(Transformer):
    """What both have in common."""

    def left_out(self, scene: Scene, negative_prompt: str) -> list[str]:
        name, found = type(self.pipe).__name__, []
        if scene.enabled and scene.noise.feature.strength:
            found.append(f"noise.feature: left out, a {name} has no cross-attention; the other noises are there")
        if scene.enabled and scene.blend.preserve_norm:
            found.append(f"blend.preserve_norm: left out, the texts of a {name} change inside the network")
        return found

    def doable(self, scene: Scene) -> Scene:
        feature = scene.noise.feature.copy(update={"strength": 0.0})
        return scene.copy(update={"noise": scene.noise.copy(update={"feature": feature})})


class Flux(Joint):
    """Flux 1: texts of 512 tokens that have no place of their own; guidance is an input, so that there is no negative
    prompt."""

    def binding(self, *args: Any) -> Binding:
        return _FluxBinding(*args)

    @property
    def multiple(self) -> int:
        return 2 * self.factor

    @property
    def default_size(self) -> Size:
        size = self.pipe.default_sample_size * self.factor
        return size, size

    def guided(self, guidance_scale: float) -> bool:
        return False

    def left_out(self, scene: Scene, negative_prompt: str) -> list[str]:
        found = super().left_out(scene, negative_prompt)
        if negative_prompt or any(concept.negative for concept in scene.acting.concepts):
            found.append("negative prompts: left out, Flux has its guidance for an input")
        return found

    @torch.no_grad()
    def encode(self, prompts: Iterable[str]) -> dict[str, Encoded]:
        found = {}
        for prompt in dict.fromkeys(prompts):
            embeds, pooled, _ = self.pipe.encode_prompt(prompt, None, max_sequence_length=FLUX_TOKENS)
            found[prompt] = Encoded(embeds[0].float().cpu(), pooled[0].float().cpu())
        return found

    @property
    def channels(self) -> int:
        return int(self.model.config.in_channels) // 4

    def latents(self, x: Tensor) -> Tensor:
        return self.pipe._pack_latents(x, *x.shape)

    def maps_of(self, x: Tensor, size: Size) -> Tensor:
        return self.pipe._unpack_latents(x, *size, self.pipe.vae_scale_factor)

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        token = self.empty(rows, 1, self.model.config.joint_attention_dim)
        return {"prompt_embeds": token, "pooled_prompt_embeds": self.empty(rows, len(_pooled(base)))}


class _FluxBinding(JointBinding):
    plain = ("FluxAttnProcessor", "FluxAttnProcessor2_0")

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        sample, places = kwargs["hidden_states"], kwargs["img_ids"]
        height, width = (int(places[..., axis].max()) + 1 for axis in (1, 2))
        contexts, pooled = self.join(sample, (height, width))
        of_texts = kwargs["txt_ids"][:1].expand(contexts.shape[1], -1)
        changed = {"encoder_hidden_states": contexts, "pooled_projections": pooled, "txt_ids": of_texts}
        return args, {**kwargs, **changed}


class StableDiffusion3(Joint):
    """Stable Diffusion 3 and 3.5: texts of 77 tokens of two CLIPs and 256 of T5."""

    def binding(self, *args: Any) -> Binding:
        return _Sd3Binding(*args)

    @property
    def multiple(self) -> int:
        return self.factor * int(self.model.config.patch_size)

    @property
    def default_size(self) -> Size:
        size = self.pipe.default_sample_size * self.factor
        return size, size

    @torch.no_grad()
    def encode(self, prompts: Iterable[str]) -> dict[str, Encoded]:
        found = {}
        for prompt in dict.fromkeys(prompts):
            embeds, _, pooled, _ = self.pipe.encode_prompt(
                prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=SD3_TOKENS
            )
            found[prompt] = Encoded(embeds[0].float().cpu(), pooled[0].float().cpu())
        return found

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        token = self.empty(rows, 1, self.model.config.joint_attention_dim)
        pooled = self.empty(rows, len(_pooled(base)))
        return {
            "prompt_embeds": token,
            "negative_prompt_embeds": token,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": pooled,
        }


class _Sd3Binding(JointBinding):
    plain = ("JointAttnProcessor2_0",)

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        sample, patch = kwargs["hidden_states"], model.config.patch_size
        contexts, pooled = self.join(sample, (extent(sample)[0] // patch, extent(sample)[1] // patch))
        return args, {**kwargs, "encoder_hidden_states": contexts, "pooled_projections": pooled}


def _pooled(base: Encoded) -> Tensor:
    assert base.pooled is not None  # of the encoders of these pipelines
    return base.pooled
