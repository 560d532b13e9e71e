"""Transformers of diffusers in which text and image change together: Flux, Stable Diffusion 3, Qwen-Image, Flux 2.

The texts of all concepts, and level-set texts between those that meet, stand side by side (`lib_masknoise.joint`). It
takes one evaluation of the model, of a longer sequence; where one text has all the weight, that is the plain one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.conditioning import Encoded, LocationConditioning
from lib_masknoise.hosts.diffusers.binding import Binding
from lib_masknoise.hosts.diffusers.static_text import Transformer
from lib_masknoise.joint import KNOTS, Seen, Texts, at_tokens, joint_attention, seen, texts
from lib_masknoise.maps import Size, extent
from lib_masknoise.scene import Scene

FLUX_TOKENS = FLUX2_TOKENS = QWEN_TOKENS = 512
SD3_TOKENS = 256


class JointBinding(Binding):
    """Several texts in place of one, and attention that weighs them by place."""

    layers = ".attn.processor"
    knots = KNOTS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._texts = {id(one): texts(one, self.knots) for one in self.all_sides}
        self._placed: dict[tuple[Any, ...], Placed] = {}
        self.placed: Placed | None = None
        """What the call in progress sees."""

    @property
    def tokens(self) -> int:
        """Tokens of a text of the call in progress, and `length` of all its texts."""
        assert self.placed is not None
        return self.placed.contexts.shape[2]

    @property
    def count(self) -> int:
        assert self.placed is not None
        return self.placed.contexts.shape[1]

    @property
    def length(self) -> int:
        return self.count * self.tokens

    def processor(self) -> Any:
        return _JointProcessor(self)

    def told(self, *tokens: int) -> tuple[LocationConditioning, ...]:
        """The sides of guidance that a call's stand-ins tell by their tokens: two for the one without the prompt."""
        sides = self._sides()
        return tuple(sides[0 if count > 1 else -1] for count in dict.fromkeys(tokens))

    def join(
        self, sample: Tensor, size: Size, sides: tuple[LocationConditioning, ...] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What a call sees, at image tokens of `size` (h, w): contexts `[rows, K·T, D]`, pooled texts `[rows, P]`.
        sides: in the order of the rows, each of as many; those of `_sides` when None."""
        sides = self._sides() if sides is None else sides
        if len(sample) % len(sides):
            raise ValueError(f"the model got {len(sample)} rows; expected as many negative as positive ones")
        rows = len(sample) // len(sides)
        key = (*map(id, sides), rows, size, sample.device, sample.dtype)
        if key not in self._placed:  # once a pass, in which the sides of guidance may take turns
            found = _side_by_side([self._texts[id(side)].row(row) for side in sides for row in range(rows)])
            self._placed[key] = self.place(found, size).to(sample)
        self.placed = self._placed[key]
        known = [side.pooled for side in sides if side.pooled is not None]
        pooled = torch.cat([one.to(sample).expand(rows, -1) for one in known]) if known else None
        return self.placed.contexts.flatten(1, 2), pooled

    def place(self, found: Texts, size: Size) -> Placed:
        """Texts at image tokens of `size` (h, w), on the CPU."""
        present = None if bool((found.present == 1).all()) else found.present
        return Placed(found.contexts, seen(self.weights(found, size), found.present), present)

    def weights(self, found: Texts, size: Size) -> Tensor:
        """What each text counts for each image token, `[rows, K, L]`."""
        return at_tokens(found.weights, size)

    def turned(self, x: Tensor, places: Any) -> Tensor:
        """Queries or keys of texts and image, `[rows, heads, K·T + L, d]`, by the model's rotary embedding."""
        from diffusers.models.embeddings import apply_rotary_emb

        return apply_rotary_emb(x, places)

    def joint(self, q: Tensor, k: Tensor, v: Tensor, image_first: bool = False) -> Tensor:
        """Attention of texts and, after or before them, the image, `[rows, heads, K·T + L, d]`."""
        placed = self.placed
        assert placed is not None
        if self.count == 1 and placed.present is None:
            return F.scaled_dot_product_attention(q, k, v)
        image = q.shape[2] - self.length
        split = [image, self.length] if image_first else [self.length, image]
        first, last = zip(*(t.split(split, dim=2) for t in (q, k, v)), strict=True)
        of_text, of_image = (last, first) if image_first else (first, last)
        parts = joint_attention(of_text, of_image, self.count, placed.seen, q.shape[3] ** -0.5)
        return torch.cat(parts[::-1] if image_first else parts, dim=2)


@dataclass(frozen=True)
class Placed:
    """Contexts `[rows, K, T, D]`, what the rows see of them, and how much of each token there is, `[rows, K, T]`, None
    where there is all of all. Where a model needs them: places and fillers, `[rows, K, T]`."""

    contexts: Tensor
    seen: tuple[Seen, ...]
    present: Tensor | None
    places: Tensor | None = None
    fillers: Tensor | None = None

    def to(self, sample: Tensor) -> Placed:
        """Where a sample is, the contexts in its precision."""
        others = (None if t is None else t.to(sample.device) for t in (self.present, self.places, self.fillers))
        return Placed(self.contexts.to(sample), tuple(one.to(sample.device) for one in self.seen), *others)


def _side_by_side(found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Texts:
    """Rows of as many texts as the one with most, and as long as the longest: what is added counts nowhere."""
    texts, tokens = (max(contexts.shape[axis] for contexts, _, _ in found) for axis in (0, 1))
    rows = []
    for contexts, weights, present in found:
        more, longer = texts - len(contexts), tokens - contexts.shape[1]
        whole = [torch.cat([t, t[-1:].expand(more, *t.shape[1:])]) for t in (contexts, present)]
        nowhere = torch.cat([weights, weights.new_zeros(more, *weights.shape[1:])])
        rows.append((F.pad(whole[0], (0, 0, 0, longer)), nowhere, F.pad(whole[1], (0, longer))))
    return Texts(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


class _JointProcessor:
    """A diffusers attention processor for layers of two streams, and of one in which the text stands first."""

    def __init__(self, binding: JointBinding) -> None:
        self.binding = binding

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
        encoder_hidden_states_mask: Tensor | None = None,
        **_: Any,
    ) -> Any:
        heads, more = attn.heads, None
        if hasattr(attn, "to_qkv_mlp_proj"):
            # A layer of one stream hands its mask and its places over without names, and no text between.
            image_rotary_emb = attention_mask if image_rotary_emb is None else image_rotary_emb
            hidden_states, more = _of_both(attn, hidden_states)
            q, k, v = (heads_first(t, heads) for t in hidden_states.chunk(3, dim=-1))
        else:
            q, k, v = (heads_first(layer(hidden_states), heads) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k = normed(attn.norm_q, q), normed(attn.norm_k, k)
        if encoder_hidden_states is not None:
            layers = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
            text_q, text_k, text_v = (heads_first(layer(encoder_hidden_states), heads) for layer in layers)
            text_q, text_k = normed(attn.norm_added_q, text_q), normed(attn.norm_added_k, text_k)
            q, k, v = (torch.cat(pair, dim=2) for pair in ((text_q, q), (text_k, k), (text_v, v)))
        if image_rotary_emb is not None:
            q, k = (self.binding.turned(t, image_rotary_emb) for t in (q, k))
        out = self.binding.joint(q, k, v).transpose(1, 2).flatten(2).to(hidden_states.dtype)
        if more is not None:
            return attn.to_out(torch.cat([out, more], dim=-1))
        if encoder_hidden_states is None:
            return out
        length = encoder_hidden_states.shape[1]
        text, image = out[:, :length], out[:, length:]
        if not getattr(attn, "context_pre_only", False):
            text = attn.to_add_out(text.contiguous())
        for layer in attn.to_out:
            image = layer(image)
        return image, text


def _of_both(attn: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, keys and values in one, and what the two-layer network beside the attention makes of a token: Flux 2's
    layers project both at once."""
    projected = attn.to_qkv_mlp_proj(x)
    joint, beside = projected.split([3 * attn.inner_dim, projected.shape[-1] - 3 * attn.inner_dim], dim=-1)
    return joint, attn.mlp_act_fn(beside)


def heads_first(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def normed(norm: torch.nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


class Joint(Transformer):
    """What these have in common."""

    @property
    def default_size(self) -> Size:
        size = self.pipe.default_sample_size * self.factor
        return size, size

    @torch.no_grad()
    def encode(self, prompts: Iterable[str]) -> dict[str, Encoded]:
        return {prompt: self.encoded(prompt) for prompt in dict.fromkeys(prompts)}

    def encoded(self, prompt: str) -> Encoded:
        raise NotImplementedError

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


def _no_negatives(scene: Scene, negative_prompt: str) -> list[str]:
    if negative_prompt or any(concept.negative for concept in scene.acting.concepts):
        return ["negative prompts: left out, Flux has its guidance for an input, or is distilled without one"]
    return []


class Packed(Joint):
    """Those whose pipelines pack two by two places of the latents into a token."""

    @property
    def multiple(self) -> int:
        return 2 * self.factor

    @property
    def channels(self) -> int:
        return int(self.model.config.in_channels) // 4

    def latents(self, x: Tensor) -> Tensor:
        return self.pipe._pack_latents(x, *x.shape)


class Flux(Packed):
    """Flux 1: texts of 512 tokens that have no place of their own; guidance is an input, so that there is no negative
    prompt."""

    def binding(self, *args: Any) -> Binding:
        return _FluxBinding(*args)

    def guided(self, guidance_scale: float) -> bool:
        return False

    def left_out(self, scene: Scene, negative_prompt: str) -> list[str]:
        return [*super().left_out(scene, negative_prompt), *_no_negatives(scene, negative_prompt)]

    def encoded(self, prompt: str) -> Encoded:
        embeds, pooled, _ = self.pipe.encode_prompt(prompt, None, max_sequence_length=FLUX_TOKENS)
        return Encoded(embeds[0].float().cpu(), pooled[0].float().cpu())

    def maps_of(self, x: Tensor, size: Size) -> Tensor:
        return self.pipe._unpack_latents(x, *size, self.pipe.vae_scale_factor)

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        token = self.empty(rows, 1, self.model.config.joint_attention_dim)
        return {"prompt_embeds": token, "pooled_prompt_embeds": self.empty(rows, len(_pooled(base)))}


class _FluxBinding(JointBinding):
    plain = ("FluxAttnProcessor", "FluxAttnProcessor2_0")
    knots = 0  # every text has 512 tokens, and blended keys are near enough without (docs/architectures.md)

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

    def encoded(self, prompt: str) -> Encoded:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=SD3_TOKENS
        )
        return Encoded(embeds[0].float().cpu(), pooled[0].float().cpu())

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


class QwenImage(Packed):
    """Qwen-Image: texts as long as their prompts, behind one another in places of their own."""

    together = False  # the pipeline evaluates one side after the other

    def binding(self, *args: Any) -> Binding:
        return _QwenBinding(*args)

    def encoded(self, prompt: str) -> Encoded:
        embeds, _ = self.pipe.encode_prompt([prompt], max_sequence_length=QWEN_TOKENS)
        return Encoded(embeds[0].float().cpu())

    def maps_of(self, x: Tensor, size: Size) -> Tensor:
        return self.pipe._unpack_latents(x, *size, self.pipe.vae_scale_factor)[:, :, 0]

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        """The side is told by the number of tokens."""
        tokens = self.empty(rows, 2, self.model.config.joint_attention_dim)
        return {
            "prompt_embeds": tokens[:, :1],
            "prompt_embeds_mask": torch.ones(rows, 1, device=self.device),
            "negative_prompt_embeds": tokens,
            "negative_prompt_embeds_mask": torch.ones(rows, 2, device=self.device),
        }

    def options(self, guidance_scale: float) -> dict[str, Any]:
        return {"true_cfg_scale": guidance_scale}


class _QwenBinding(JointBinding):
    plain = ("QwenDoubleStreamAttnProcessor2_0",)

    def turned(self, x: Tensor, places: Any) -> Tensor:
        of_image, of_text = places
        return complex_turned(x, torch.cat([of_text[: self.tokens].repeat(self.count, 1), of_image]))

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        (_, height, width) = kwargs["img_shapes"][0][0]
        sides = self.told(kwargs["encoder_hidden_states"].shape[1])
        contexts, _ = self.join(kwargs["hidden_states"], (height, width), sides)
        return args, {**kwargs, "encoder_hidden_states": contexts, "encoder_hidden_states_mask": None}


class Flux2(Joint):
    """Flux 2: texts filled up to 512 tokens, each token with a place, which the image's do not have. Guidance is an
    input, so that there is no negative prompt."""

    def binding(self, *args: Any) -> Binding:
        return _Flux2Binding(*args)

    @property
    def factor(self) -> int:
        return 2 * int(self.pipe.vae_scale_factor)  # the pipeline's latents are of two by two places

    @property
    def default_size(self) -> Size:
        size = self.pipe.default_sample_size * int(self.pipe.vae_scale_factor)
        return size, size

    def guided(self, guidance_scale: float) -> bool:
        return False

    def left_out(self, scene: Scene, negative_prompt: str) -> list[str]:
        return [*super().left_out(scene, negative_prompt), *_no_negatives(scene, negative_prompt)]

    def encoded(self, prompt: str) -> Encoded:
        embeds, _ = self.pipe.encode_prompt(prompt, max_sequence_length=FLUX2_TOKENS)
        return Encoded(embeds[0].float().cpu())

    def maps_of(self, x: Tensor, size: Size) -> Tensor:
        return x.transpose(1, 2).unflatten(2, (size[0] // self.factor, size[1] // self.factor))

    def written(self, prompt: str, negative_prompt: str, rows: int) -> dict[str, Any]:
        return {"prompt": [prompt] * rows, "max_sequence_length": FLUX2_TOKENS}

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        return {"prompt_embeds": self.empty(rows, 1, self.model.config.joint_attention_dim)}


class Flux2Klein(Flux2):
    """Flux 2 Klein: where it is not distilled, guidance compares with the negative prompt."""

    together = False  # the pipeline evaluates one side after the other

    def guided(self, guidance_scale: float) -> bool:
        return guidance_scale > 1 and not self.pipe.config.is_distilled

    def left_out(self, scene: Scene, negative_prompt: str) -> list[str]:
        found = super(Flux2, self).left_out(scene, negative_prompt)
        return [*found, *_no_negatives(scene, negative_prompt)] if self.pipe.config.is_distilled else found

    def written(self, prompt: str, negative_prompt: str, rows: int) -> dict[str, Any]:
        given = super().written(prompt, negative_prompt, rows)
        if negative_prompt and not self.pipe.config.is_distilled:  # of which the pipeline takes embeddings only
            embeds, _ = self.pipe.encode_prompt(negative_prompt, max_sequence_length=FLUX2_TOKENS)
            given["negative_prompt_embeds"] = embeds.expand(rows, -1, -1)
        return given

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        """The side is told by the number of tokens."""
        tokens = self.empty(rows, 2, self.model.config.joint_attention_dim)
        return {"prompt_embeds": tokens[:, :1], "negative_prompt_embeds": tokens}


class _Flux2Binding(JointBinding):
    plain = ("Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor")

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        sample, places = kwargs["hidden_states"], kwargs["img_ids"]
        height, width = (int(places[..., axis].max()) + 1 for axis in (1, 2))
        contexts, _ = self.join(sample, (height, width), self.told(kwargs["encoder_hidden_states"].shape[1]))
        of_texts = torch.zeros(contexts.shape[1], places.shape[-1], dtype=places.dtype, device=places.device)
        # The last axis counts the tokens: every text has the places that it has alone.
        of_texts[:, -1] = torch.arange(self.tokens, device=places.device).repeat(self.count)
        return args, {**kwargs, "encoder_hidden_states": contexts, "txt_ids": of_texts}


def complex_turned(x: Tensor, turns: Tensor) -> Tensor:
    """`[…, d]` as d/2 complex numbers times `[…, d/2]`, in its own precision again."""
    return torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * turns).flatten(-2).to(x)


def _pooled(base: Encoded) -> Tensor:
    assert base.pooled is not None  # of the encoders of these pipelines
    return base.pooled
