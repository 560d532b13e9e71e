"""Transformers of diffusers whose text does not change inside the network: Wan 2 and PRX.

Their text gives keys and values and nothing else, in cross-attention (Wan) or beside the image's own keys (PRX), so
that contexts are blended exactly. The keys pass an RMS norm (`attention.KeyNorm`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from lib_masknoise.attention import KeyNorm, Share
from lib_masknoise.conditioning import Encoded
from lib_masknoise.errors import ModelError
from lib_masknoise.hosts.diffusers.binding import Binding
from lib_masknoise.hosts.diffusers.family import Family
from lib_masknoise.maps import Size, extent

WAN_TOKENS = 512
"""What the pipeline fills every prompt up to with zeros, which the network sees."""


def key_norm(norm: Any) -> KeyNorm:
    """Of an RMS norm of PyTorch or of diffusers."""
    weight, eps = getattr(norm, "weight", None), norm.eps
    shape = getattr(norm, "normalized_shape", None) or norm.dim
    if eps is None:
        eps = torch.finfo(torch.float32 if weight is None else weight.dtype).eps
    return KeyNorm(int(shape[-1]), float(eps), weight)


class Transformer(Family):
    """What the families of transformers have in common."""

    @property
    def model(self) -> Any:
        return self.pipe.transformer

    @property
    def channels(self) -> int:
        """Of the latent."""
        return int(self.model.config.in_channels)

    def guided(self, guidance_scale: float) -> bool:
        return guidance_scale > 1

    def noise(self, size: Size, generator: torch.Generator) -> Tensor:
        return randn_tensor((1, self.channels, *size), generator, self.device, self.model.dtype)

    def empty(self, *shape: int) -> Tensor:
        """A stand-in of which only the shape counts."""
        return torch.zeros(*shape, device=self.device, dtype=self.model.dtype)


# --- Wan 2


class Wan(Transformer):
    """Wan 2.x, text to one picture: a video of one frame. The contexts are what its two-layer network makes of the
    encoder's: what is blended must be what the attention projects."""

    together = False  # the side is told by the number of tokens of a call

    def __init__(self, pipe: DiffusionPipeline) -> None:
        super().__init__(pipe)
        if pipe.transformer is None or getattr(pipe, "transformer_2", None) is not None:
            raise ModelError(
                "a Wan with two transformers, one for each half of the steps, which read texts differently; expected "
                "one with a single transformer (Wan 2.1, or 2.2 TI2V 5B)"
            )

    def binding(self, *args: Any) -> Binding:
        return _WanBinding(*args)

    @property
    def factor(self) -> int:
        return int(self.pipe.vae_scale_factor_spatial)

    @property
    def multiple(self) -> int:
        _, height, width = self.model.config.patch_size
        patch = self.factor * max(height, width)
        return patch if patch % 16 == 0 else 2 * patch  # the pipeline itself wants 16

    @property
    def default_size(self) -> Size:
        return 480, 832

    @torch.no_grad()
    def encode(self, prompts: Iterable[str]) -> dict[str, Encoded]:
        embedder = self.model.condition_embedder.text_embedder
        found = {}
        for prompt in dict.fromkeys(prompts):
            embeds, _ = self.pipe.encode_prompt(
                [prompt], do_classifier_free_guidance=False, max_sequence_length=WAN_TOKENS
            )
            embeds = embeds.to(self.device, self.model.dtype)[0]
            length = 1 + int(embeds.any(dim=1).nonzero().max())
            # The row after the text is a zero: what the network makes of that is what fills the text up.
            rows = torch.cat([embeds[:length], torch.zeros_like(embeds[:1])])
            *context, filler = embedder(rows[None])[0].float().cpu()
            found[prompt] = Encoded(torch.stack(context), filler=filler, full=WAN_TOKENS)
        return found

    def noise(self, size: Size, generator: torch.Generator) -> Tensor:
        shape = (1, self.model.config.in_channels, 1, *size)
        return randn_tensor(shape, generator, self.device, torch.float32)[:, :, 0]

    def latents(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2)

    def maps_of(self, x: Tensor, size: Size) -> Tensor:
        return x[:, :, 0]

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        """The side is told by the number of tokens: the pipeline evaluates one side after the other."""
        tokens = self.empty(rows, 2, self.model.config.text_dim)
        return {"prompt_embeds": tokens[:, :1], "negative_prompt_embeds": tokens}

    def options(self, guidance_scale: float) -> dict[str, Any]:
        return {"guidance_scale": guidance_scale, "num_frames": 1}

    def pixels(self, made: Any) -> Any:
        return made.frames[:, 0]


class _WanBinding(Binding):
    """Cross-attention in every block; the keys are normalised over all heads."""

    plain = ("WanAttnProcessor", "WanAttnProcessor2_0")

    def attend(self, attn: Any, x: Tensor) -> Tensor:
        q = attn.norm_q(attn.to_q(x))
        wanted = self._attention.wanted(attn, self._shares, q)
        if wanted is not None:
            stacked = wanted.stacked
            keys, values = attn.to_k(stacked), attn.to_v(stacked)
            self._attention.take(attn, keys, values, attn.heads, norm=key_norm(attn.norm_k))
        return self._attention.attend(attn, q, self._shares, self.size)

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        sample = args[0] if args else kwargs["hidden_states"]
        _, height, width = model.config.patch_size
        self.size = extent(sample)[0] // height, extent(sample)[1] // width
        sides = self._sides()
        rows = tuple(range(len(sample)))
        plain = kwargs["encoder_hidden_states"].shape[1] > 1
        self._shares = (Share(rows, sides[0 if plain else -1], rows),)
        return args, kwargs


# --- PRX


class Prx(Transformer):
    """PRX: the text's keys stand beside the image's in one softmax. Its padding is hidden, so a context is as long as
    its prompt."""

    batches = False  # the pipeline gives a guided batch the times of two rows

    def __init__(self, pipe: DiffusionPipeline) -> None:
        super().__init__(pipe)
        if pipe.vae is None:
            raise ModelError("a PRX without a VAE; expected one with a VAE")

    def binding(self, *args: Any) -> Binding:
        return _PrxBinding(*args)

    @property
    def multiple(self) -> int:
        return self.factor * int(self.model.config.patch_size)

    @property
    def default_size(self) -> Size:
        size = int(self.pipe.get_default_resolution())
        return size, size

    @torch.no_grad()
    def encode(self, prompts: Iterable[str]) -> dict[str, Encoded]:
        found = {}
        for prompt in dict.fromkeys(prompts):
            embeds, mask, *_ = self.pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
            context = embeds[0] if mask is None else embeds[0][mask[0].bool()]
            found[prompt] = Encoded(context.float().cpu())
        return found

    def noise(self, size: Size, generator: torch.Generator) -> Tensor:
        shape = (1, self.pipe.vae.config.latent_channels, *size)
        return randn_tensor(shape, generator, self.device, self.pipe.text_encoder.dtype)

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        token = self.empty(rows, 1, self.model.config.context_in_dim)
        return {"prompt_embeds": token, "negative_prompt_embeds": token}

    def options(self, guidance_scale: float) -> dict[str, Any]:
        # Without the binning, or a picture would be made at another size than was asked for.
        return {"guidance_scale": max(guidance_scale, 1.0), "use_resolution_binning": False}


class _PrxBinding(Binding):
    """Attention of the image to itself and to the text in every block; the keys are normalised in each head."""

    layers = "attention"
    plain = ("PRXAttnProcessor2_0",)

    def attended(self, attn: Any, x: Tensor, given: Mapping[str, Any]) -> Tensor:
        from diffusers.models.transformers.transformer_prx import apply_rope

        split = attn.img_qkv_proj(x).unflatten(-1, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = attn.norm_q(split[0]), attn.norm_k(split[1]), split[2]
        q, k = (apply_rope(t, given["image_rotary_emb"]) for t in (q, k))
        q = q.transpose(1, 2).flatten(2)
        wanted = self._attention.wanted(attn, self._shares, q)
        if wanted is not None:
            keys, values = attn.txt_kv_proj(self.model.txt_in(wanted.stacked)).chunk(2, dim=-1)
            self._attention.take(attn, keys, values, attn.heads, norm=key_norm(attn.norm_added_k))
        return self._attention.attend(attn, q, self._shares, self.size, own=(k, v))

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        sample = args[0] if args else kwargs["hidden_states"]
        patch = model.config.patch_size
        self._share(sample, (extent(sample)[0] // patch, extent(sample)[1] // patch))
        time = kwargs["timestep"]
        if len(time) not in (1, len(sample)):  # one for each side, all of which are the same
            kwargs = {**kwargs, "timestep": time[:1].expand(len(sample))}
        return args, kwargs
