"""Checkpoints of the stand-in: the real U-Net of the `ldm` package, small and random, and a text encoder that makes
something of every word."""

from __future__ import annotations

import contextlib
import re
import sys
import zlib
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, WORDS, POOLED = 8, 4, 6
"""Size of a context's token; words of a text chunk, which has one token more; size of a pooled embedding."""
SIZES = 12
"""Numbers at the end of SDXL's vector that say sizes: three pairs, each number embedded in two."""


class ConcatTimestepEmbedderND:
    def __init__(self, input_key: str):
        self.input_key, self.outdim = input_key, 2


class Checkpoint:
    """What the host's `shared.sd_model` is. xl: with pooled embeddings."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32, xl: bool = False):
        self.dtype, self.xl, self.seed = dtype, xl, seed
        self.model = SimpleNamespace(diffusion_model=random_unet(seed, dtype, xl))
        self.sd_checkpoint_info = f"checkpoint {seed}"
        self.cond_stage_model_empty_prompt = self.context("")[None]
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        if xl:
            keys = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
            self.conditioner = SimpleNamespace(embedders=[object(), *map(ConcatTimestepEmbedderND, keys)])

    def apply_model(self, x: Tensor, time: Tensor, cond: Any) -> Tensor:
        """The noise in `x` of variance 1 at steps of the schedule."""
        signal = self.alphas_cumprod[time.long()]
        vector = {"y": cond["vector"].to(x.dtype)} if "vector" in cond else {}
        context = cond["crossattn"] if vector else torch.cat(cond["c_crossattn"], 1)
        return self.model.diffusion_model(x, 50 * ((1 - signal) / signal).sqrt(), context=context, **vector)

    def get_learned_conditioning(self, texts: Any) -> Any:
        """`[n, T, D]`, the shorter texts filled up with empty chunks; for XL with their vectors."""
        contexts = [self.context(text) for text in texts]
        length = max(map(len, contexts))
        empty = self.cond_stage_model_empty_prompt[0]
        filled = [torch.cat([c, *[empty] * ((length - len(c)) // len(empty))]) for c in contexts]
        if not self.xl:
            return torch.stack(filled)
        sizes = torch.tensor([texts.width, texts.height, 0, 0, texts.width, texts.height]) / 64
        vectors = [torch.cat([self.pooled(text), sizes.repeat_interleave(2)]).to(self.dtype) for text in texts]
        return {"crossattn": torch.stack(filled), "vector": torch.stack(vectors)}

    def context(self, text: str) -> Tensor:
        """`[T, D]`: chunks of a first token that is always the same and one for each word, which the chunk colours."""
        chunks = []
        for part in text.split("BREAK"):
            words = re.findall(r"\w+", part)
            chunks += [words[i : i + WORDS] for i in range(0, len(words), WORDS)] or [[]]
        return torch.cat([self._chunk(chunk) for chunk in chunks]).to(self.dtype)

    def pooled(self, text: str) -> Tensor:
        return self._vector(text.strip(), POOLED)

    def _chunk(self, words: list[str]) -> Tensor:
        tokens = torch.stack([self._vector(word, DIM) for word in [*words, *["end"] * (WORDS - len(words))]])
        return torch.cat([3 * self._vector("start", DIM)[None], tokens + 0.2 * tokens.mean(0)])

    def _vector(self, word: str, size: int) -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {word}".encode())))


def random_unet(seed: int, dtype: torch.dtype, xl: bool) -> nn.Module:
    with _without_omegaconf():
        from ldm.modules.diffusionmodules.openaimodel import UNetModel

        unet = UNetModel(
            image_size=8, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=1, channel_mult=(1, 1),
            attention_resolutions=(1, 2), num_heads=2, use_spatial_transformer=True, context_dim=DIM, legacy=False,
        )  # fmt: skip
    if xl:
        unet.num_classes, unet.label_emb = "sequential", nn.Linear(POOLED + SIZES, 128)
    generator = torch.Generator().manual_seed(seed)
    for parameter in unet.parameters():  # all of them, so that nothing depends on what other tests have drawn
        std = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.05
        mean = 1.0 if parameter.dim() == 1 and parameter.mean() == 1 else 0.0
        nn.init.normal_(parameter.detach(), mean, std, generator=generator)
    unet.dtype = dtype
    unet.time_embed.register_forward_pre_hook(lambda module, args: tuple(t.to(dtype) for t in args))
    return unet.to(dtype).requires_grad_(False).eval()


def _without_omegaconf() -> Any:
    """The package asks whether a setting is a list of that library's, which it needs for nothing else."""
    listconfig = ModuleType("omegaconf.listconfig")
    listconfig.ListConfig = type("ListConfig", (), {})
    return mock.patch.dict(sys.modules, {"omegaconf": ModuleType("omegaconf"), "omegaconf.listconfig": listconfig})


@contextlib.contextmanager
def hijacked_ldm() -> Iterator[None]:
    """The host's own changes to the package's classes: attention with hypernetworks and without casts, norms in the
    model's precision, and levels whose size is odd."""
    from ldm.modules import attention
    from ldm.modules.diffusionmodules import openaimodel, util
    from modules import shared
    from modules.hypernetworks.hypernetwork import apply_hypernetworks

    def attend(layer: nn.Module, x: Tensor, context: Tensor | None = None, mask: Any = None) -> Tensor:
        for_keys, for_values = apply_hypernetworks(shared.loaded_hypernetworks, x if context is None else context)
        q, k, v = layer.to_q(x), layer.to_k(for_keys), layer.to_v(for_values)
        dtype = q.dtype
        if getattr(shared.opts, "upcast_attn", False):
            q, k, v = q.float(), k.float(), v.float()
        q, k, v = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=layer.scale)
        return layer.to_out(out.transpose(1, 2).flatten(2).to(dtype))

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def cat(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> Tensor:
            first, second = tensors
            if first.shape[-2:] != second.shape[-2:]:
                first = F.interpolate(first, second.shape[-2:], mode="nearest")
            return torch.cat([first, second], *args, **kwargs)

    own_block = attention.BasicTransformerBlock.forward

    def in_block(block: nn.Module, x: Tensor, context: Tensor | None = None) -> Tensor:
        from tests.standin.forge import Blocks

        return (Blocks.forward if hasattr(block, "place") else own_block)(block, x, context)

    with (
        mock.patch.object(attention.CrossAttention, "forward", attend),
        mock.patch.object(attention.BasicTransformerBlock, "forward", in_block),
        mock.patch.object(util.GroupNorm32, "forward", nn.GroupNorm.forward),
        mock.patch.object(openaimodel, "th", Torch()),
    ):
        yield
