"""Forge's way in the stand-in: checkpoints whose models are patched on clones, and how their predictions come about.

The U-Net is the real one of the `ldm` package, with blocks that ask for patches. The transformers are small: text and
image attend together, as in Flux and its kin.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.standin.conditions import compile_conditions
from tests.standin.model import DIM, POOLED, SIZES, Checkpoint
from tests.standin.single_stream import BLOCK, OneStream

COND, UNCOND = 0, 1
FULL = 16
"""Tokens that the static transformer's texts are filled up to."""


class ForgeCheckpoint(Checkpoint):
    """kind: "unet", "transformer", "blocks transformer", of blocks that attend by a function of this module, "placed
    transformer", which does too and counts the tokens of its text, "frames transformer", whose latents have an axis of
    frames, "streams transformer", the same with weights and places of its own for text and image, "static transformer",
    with text that stays what it is, "video transformer", of more than one frame, which reads its text in layers of its
    own before, or "one stream transformer", a text and then the image, "filled" (Z-Image) or not (Lumina 2)."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32, xl: bool = False, kind: str = "unet"):
        super().__init__(seed, dtype, xl)
        self.kind, self.is_wan = kind, kind.startswith(("frames", "static", "video", "streams"))
        self.frames = 2 if kind.startswith("video") else 1
        if kind != "unet":
            classes = {
                "blocks transformer": Flux, "placed transformer": Placed, "static transformer": Static,
                "video transformer": Video, "streams transformer": Streams, "one stream transformer": OneStream,
                "one stream transformer, filled": functools.partial(OneStream, multiple=BLOCK),
            }  # fmt: skip
            self.model.diffusion_model = classes.get(kind, Transformer)(seed, dtype)
        else:
            name_blocks(self.model.diffusion_model)
        if xl:  # the host knows its vector's sizes by other names than A1111
            del self.conditioner
            self.embedder, self.text_processing_engine_l = SimpleNamespace(dim=SIZES // 6), object()
        sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
        self.patcher = Patcher(Model(self.model.diffusion_model, sigmas))
        self.forge_objects = SimpleNamespace(unet=self.patcher)

    def get_learned_conditioning(self, texts: Any) -> Any:
        if self.kind == "unet":
            return super().get_learned_conditioning(texts)
        if self.kind.startswith(("static", "video")):
            filled = [F.pad(one, (0, 0, 0, FULL - len(one))) for one in map(self.context, texts)]
            return [one[None] for one in filled] if self.kind.startswith("static") else torch.stack(filled)
        if self.kind.startswith(("streams", "one stream")):
            return [self.context(text) for text in texts]
        contexts = super().get_learned_conditioning(texts)
        vectors = torch.stack([self.pooled(text) for text in texts]).to(self.dtype)
        guidance = torch.full((len(texts),), float(getattr(texts, "distilled_cfg_scale", None) or 3.5))
        return {"crossattn": contexts, "vector": vectors, "guidance": guidance.to(self.dtype)}


class Patcher:
    """A model and what is patched on it. Clones have the model in common."""

    def __init__(self, model: Model):
        self.model, self.load_device = model, torch.device("cpu")
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Patcher:
        clone = Patcher(self.model)
        clone.model_options = copy.deepcopy(self.model_options)
        return clone

    def add_conditioning_modifier(self, modifier: Callable[..., tuple]) -> None:
        self.model_options.setdefault("conditioning_modifiers", []).append(modifier)

    def patch(self, name: str, patch: Callable[..., Any]) -> None:
        self.model_options["transformer_options"].setdefault("patches", {}).setdefault(name, []).append(patch)

    def replace_attn2(self, patch: Callable[..., Tensor], block: str, number: int) -> None:
        replace = self.model_options["transformer_options"].setdefault("patches_replace", {})
        replace.setdefault("attn2", {})[block, number] = patch


class Model:
    """What the host calls: predictions from a U-Net or a transformer."""

    def __init__(self, diffusion_model: nn.Module, sigmas: Tensor):
        self.diffusion_model = diffusion_model
        self.computation_dtype = next(diffusion_model.parameters()).dtype
        self.predictor = SimpleNamespace(sigmas=sigmas)

    def apply_model(self, x: Tensor, sigma: Tensor, c_crossattn: Tensor, transformer_options: Any, **rest: Any) -> Any:
        sigma = sigma.reshape(-1, *[1] * (x.dim() - 1))
        scaled, time = x / (1 + sigma**2).sqrt(), 50 * sigma.flatten()
        Blocks.options = {**transformer_options, "original_shape": list(x.shape)}
        try:
            rest = {key: one.to(x.dtype) for key, one in rest.items()}
            if isinstance(self.diffusion_model, Static | OneStream):
                rest["transformer_options"] = transformer_options
            noise = self.diffusion_model(scaled, time, context=c_crossattn, **rest)
        finally:
            Blocks.options = None
        return x - sigma * noise


# --- A denoiser call


def denoised(patcher: Patcher, params: Any, weights: list[list[float]], scale: float, seed: int, opts: Any) -> Tensor:
    """weights: of each image's parts. opts: `conditions_together`, how many there is memory for at once (None: for
    all); `merges_options`, whether the model's options are built anew for each call, as reForge does."""
    parts = min(map(len, weights))
    count = max(map(len, weights))
    cond = []
    for k in range(parts):
        rows = [i * count + k for i in range(len(weights))]
        (one,) = compile_conditions(_rows(params.text_cond, rows))
        cond.append({**one, "strength": weights[-1][k]})
    uncond = compile_conditions(params.text_uncond)
    x, sigma, model, options = params.x, params.sigma, patcher.model, patcher.model_options
    for modifier in options.get("conditioning_modifiers", []):
        model, x, sigma, uncond, cond, scale, options, seed = modifier(
            model, x, sigma, uncond, cond, scale, options, seed
        )
    strength = sum(one.get("strength", 1.0) for one in cond)
    positive, negative = predictions(model, cond, None if scale == 1 else uncond, x, sigma, options, opts)
    out = negative + (positive - negative) * scale * (1.0 if math.isclose(strength, 1.0) else strength)
    for function in options.get("sampler_post_cfg_function", []):
        out = function({"denoised": out, "cond_denoised": positive, "uncond_denoised": negative, "input": x})
    return out


def _rows(cond: Any, rows: list[int]) -> Any:
    return {key: value[rows] for key, value in cond.items()} if isinstance(cond, dict) else cond[rows]


def predictions(
    model: Model, cond: list, uncond: list | None, x: Tensor, sigma: Tensor, options: Any, opts: Any
) -> list[Tensor]:
    """The average over the conditions of each side, each with its mask; 0 for a side without any."""
    waiting = [(one, side) for side, conds in ((COND, cond), (UNCOND, uncond or [])) for one in conds]
    sums, counts = torch.zeros(2, *x.shape).to(x), torch.full((2, *x.shape), 1e-37).to(x)
    while waiting:
        prepared = [
            {key: one.process_cond(len(x), x.device) for key, one in entry["model_conds"].items()}
            for entry, _ in waiting
        ]
        alike = [i for i, conds in enumerate(prepared) if _joins(conds, prepared[0])][::-1][: opts.conditions_together]
        chunks = [waiting[i][1] for i in alike]
        conds = [prepared[i] for i in alike]
        joined = {key: conds[0][key].concat([one[key] for one in conds[1:]]) for key in conds[0]}
        own = options.get("transformer_options", {})
        own = _merged(own) if opts.merges_options else own
        transformer_options = {**own, "cond_or_uncond": chunks, "sigmas": sigma}
        many = len(chunks)
        c = {**joined, "transformer_options": transformer_options}
        given = {"input": torch.cat([x] * many), "timestep": torch.cat([sigma] * many), "c": c}
        wrapper = options.get("model_function_wrapper", lambda apply, g: apply(g["input"], g["timestep"], **g["c"]))
        out = wrapper(model.apply_model, given)
        for i, one in zip(alike, out.chunk(many), strict=True):
            entry, side = waiting[i]
            mask = entry.get("mask")
            assert mask is None or mask.shape[1:] == x.shape[2:4]
            mask = torch.ones_like(x) if mask is None else mask[:, None].repeat(len(x) // len(mask), x.shape[1], 1, 1)
            mult = mask * entry.get("strength", 1.0)
            sums[side] += one * mult
            counts[side] += mult
        waiting = [one for i, one in enumerate(waiting) if i not in alike]
    return list(sums / counts)


def _merged(options: Any) -> Any:
    """Nested dictionaries and lists built anew, as plain ones."""
    if isinstance(options, dict):
        return {key: _merged(value) for key, value in options.items()}
    return list(options) if isinstance(options, list) else options


def _joins(one: dict[str, Any], first: dict[str, Any]) -> bool:
    return one is first or (one.keys() == first.keys() and all(one[key].can_concat(first[key]) for key in one))


# --- The U-Net's blocks


class Blocks:
    """The U-Net's transformer blocks, which ask for patches. options: of the U-Net call in progress."""

    options: dict[str, Any] | None = None

    @staticmethod
    def forward(block: nn.Module, x: Tensor, context: Tensor | None = None) -> Tensor:
        options = Blocks.options or {}
        x = block.attn1(block.norm1(x)) + x
        return block.ff(block.norm3(y := Blocks._cross(block, block.norm2(x), context, options) + x)) + y

    @staticmethod
    def _cross(block: nn.Module, n: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        layer, value = block.attn2, context
        extra = {key: one for key, one in options.items() if not key.startswith("patches")}
        extra = {**extra, "n_heads": layer.heads, "block": block.place, "block_index": 0}
        for patch in options.get("patches", {}).get("attn2_patch", []):
            n, context, value = patch(n, context, value, extra)
        replacement = options.get("patches_replace", {}).get("attn2", {}).get(block.place)
        if replacement is None:
            return layer(n, context=context)
        return layer.to_out(replacement(layer.to_q(n), layer.to_k(context), layer.to_v(value), extra))


def name_blocks(unet: nn.Module) -> None:
    """Each transformer block's place, as the host counts them."""
    sides = (("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks))
    for side, blocks in sides:
        for number, block in enumerate(blocks):
            for module in block.modules():
                if hasattr(module, "attn2"):
                    module.place = (side, number)


# --- Transformers


class Transformer(nn.Module):
    """Text tokens and image tokens, which attend together; a vector and distilled guidance turn everything."""

    def __init__(self, seed: int, dtype: torch.dtype, width: int = 16, channels: int = 4):
        super().__init__()
        self.text, self.image, self.out = nn.Linear(DIM, width), nn.Linear(channels, width), nn.Linear(width, channels)
        self.vector = nn.Linear(POOLED + 2, width)
        self.patch_size = 1
        self.build(width)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter.detach(), std=parameter[0].numel() ** -0.5, generator=generator)
        self.to(dtype).requires_grad_(False).eval()

    def build(self, width: int) -> None:
        self.joint_blocks = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))

    def forward(self, x: Tensor, time: Tensor, context: Tensor, y: Tensor, guidance: Tensor) -> Tensor:
        vector = self.vector(torch.cat([y, (time / 50)[:, None], guidance[:, None] / 4], dim=1))
        tokens = torch.cat([self.text(context), self.image(x.flatten(2).transpose(1, 2))], dim=1)
        for block in self.joint_blocks:
            q, k, v = (t[:, None] for t in block(F.layer_norm(tokens + vector[:, None], tokens.shape[2:])).chunk(3, -1))
            tokens = tokens + F.scaled_dot_product_attention(2 * q, k, v)[:, 0]
        return self.out(tokens[:, context.shape[1] :]).transpose(1, 2).unflatten(2, x.shape[2:])


def attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, mask: Any = None) -> Tensor:
    """By which the blocks of Flux and its kin attend in every host: `[rows, heads, L, d]` → `[rows, L, heads·d]`."""
    q, k = (torch.einsum("...ij,...j->...i", pe, t.unflatten(-1, (-1, 2))).flatten(-2) for t in (q, k))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Flux(Transformer):
    """Two streams in one block and one in another; text tokens have no place of their own."""

    counts_text = False

    def build(self, width: int) -> None:
        self.double_blocks, self.single_blocks = (
            nn.ModuleList([DoubleBlock(width)]),
            nn.ModuleList([SingleBlock(width)]),
        )

    def forward(self, x: Tensor, time: Tensor, context: Tensor, y: Tensor, guidance: Tensor, **kwargs: Any) -> Tensor:
        assert not kwargs
        vector = self.vector(torch.cat([y, (time / 50)[:, None], guidance[:, None] / 4], dim=1))
        (height, width), length = x.shape[2:], context.shape[1]
        of_text = torch.zeros(length, 3)
        of_text[:, 0] = torch.arange(length) * self.counts_text
        of_image = torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width))
        pe = rope(torch.cat([of_text, of_image]).to(x), (0.9, 1.0, 0.3)).expand(len(x), 1, -1, -1, -1, -1)
        image, text = self.image(x.flatten(2).transpose(1, 2)), self.text(context)
        for block in self.double_blocks:
            image, text = block(img=image, txt=text, vec=vector, pe=pe)
        tokens = torch.cat([text, image], dim=1)
        for block in self.single_blocks:
            tokens = block(tokens, vec=vector, pe=pe)
        return self.out(tokens[:, length:]).transpose(1, 2).unflatten(2, (height, width))


class Placed(Flux):
    """Every text token counts by where it stands (Flux 2)."""

    counts_text = True


def rope(places: Tensor, speeds: tuple[float, ...]) -> Tensor:
    """Places `[L, axes]`, each axis with a speed of its own → turns `[1, 1, L, axes + 1, 2, 2]`, the last of which is
    none."""
    angles = F.pad(places * torch.tensor(speeds).to(places), (0, 1))
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))[None, None]


def heads_of(layer: nn.Module, x: Tensor, vec: Tensor) -> Tensor:
    """Queries, keys and values `[3, rows, heads, L, d]`."""
    given = layer(F.layer_norm(x + vec[:, None], x.shape[2:]))
    return given.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)


class DoubleBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.img, self.txt = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor, attn_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        q, k, v = torch.cat([heads_of(self.txt, txt, vec), heads_of(self.img, img, vec)], dim=3)
        attn = attention(q, k, v, pe=pe, mask=attn_mask)
        return img + attn[:, txt.shape[1] :], txt + attn[:, : txt.shape[1]]


class SingleBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, vec: Tensor, pe: Tensor, *, attn_mask: Any = None) -> Tensor:
        return x + attention(*heads_of(self.linear, x, vec), pe=pe, mask=attn_mask)


class Static(nn.Module):
    """Image tokens of two by two places, which attend to themselves and to a text that stays what it is (Anima)."""

    def __init__(self, seed: int, dtype: torch.dtype, width: int = 16, channels: int = 4):
        super().__init__()
        self.image, self.out = nn.Linear(4 * channels, width), nn.Linear(width, 4 * channels)
        self.time = nn.Linear(1, width)
        self.build(width)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            std = 1.0 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            nn.init.normal_(parameter.detach(), std=std, generator=generator)
        self.to(dtype).requires_grad_(False).eval()

    def build(self, width: int) -> None:
        self.patch_spatial = 2
        self.blocks = nn.ModuleList(StaticBlock(Attention(width, width), Attention(width, DIM)) for _ in range(2))

    def forward(self, x: Tensor, time: Tensor, context: Tensor, transformer_options: Any) -> Tensor:
        rows, channels, frames, height, width = x.shape
        x = F.pad(x, (0, width % 2, 0, height % 2, 0, 0))
        patches = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 4, 6, 1)  # [B, T, h, w, 2, 2, C]
        shape = patches.shape[:4]
        tokens = self.image(patches.flatten(4).flatten(1, 3)) + self.time(time[:, None] / 50)[:, None]
        tokens = self.through_blocks(tokens, context, transformer_options, shape[2:])
        out = self.out(tokens).unflatten(1, shape[1:]).unflatten(4, (2, 2, channels))
        out = out.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return out[..., :height, :width]

    def through_blocks(self, tokens: Tensor, context: Tensor, options: Any, size: Any) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, context, options)
        return tokens


class StaticBlock(nn.Module):
    def __init__(self, own: nn.Module, cross: nn.Module):
        super().__init__()
        self.self_attn, self.cross_attn = own, cross

    def forward(self, x: Tensor, context: Tensor, options: Any) -> Tensor:
        normed = F.layer_norm(x, x.shape[2:])
        x = x + self.self_attn(normed, normed[:, None], transformer_options=options)
        return x + self.cross_attn(F.layer_norm(x, x.shape[2:]), context, transformer_options=options)


class Video(Static):
    """Two layers read the text before the blocks (Wan)."""

    def build(self, width: int) -> None:
        self.patch_size = (1, 2, 2)
        self.text_embedding = nn.Sequential(nn.Linear(DIM, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(VideoBlock(VideoAttention(width), VideoAttention(width)) for _ in range(2))

    def forward(self, x: Tensor, time: Tensor, context: Tensor, transformer_options: Any) -> Tensor:
        return super().forward(x, time, self.text_embedding(context), transformer_options)


class VideoBlock(StaticBlock):
    """Whose cross-attention hears nothing of the model's options."""

    def forward(self, x: Tensor, context: Tensor, options: Any) -> Tensor:
        normed = F.layer_norm(x, x.shape[2:])
        x = x + self.self_attn(normed, normed)
        return x + self.cross_attn(F.layer_norm(x, x.shape[2:]), context, context_img_len=None)


class VideoAttention(nn.Module):
    """Under the names and with the norms of Wan's, over all heads."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.num_heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, context: Tensor, **kwargs: Any) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context))
        )
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Attention(nn.Module):
    """Under the names and with the norms of Anima's."""

    def __init__(self, width: int, of_text: int, heads: int = 2):
        super().__init__()
        self.n_heads, self.head_dim = heads, width // heads
        self.q_proj, self.output_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(of_text, width, bias=False) for _ in range(2))
        self.q_norm, self.k_norm = (nn.RMSNorm(self.head_dim, eps=1e-6) for _ in range(2))
        self.v_norm, self.output_dropout = nn.Identity(), nn.Identity()

    def forward(
        self, x: Tensor, context: Tensor | None = None, rope_emb: Any = None, transformer_options: Any = None
    ) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.n_heads, self.head_dim)).flatten(1, -3).transpose(1, 2)
            for t in (self.q_proj(x), self.k_proj(context), self.v_proj(context))
        )
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.output_proj(out.transpose(1, 2).flatten(2))


class Streams(Static):
    """Text and image attend together; both have weights of their own, and places that turn queries and keys, a text's
    behind the image's (Qwen-Image)."""

    def build(self, width: int) -> None:
        self.patch_size = 2
        self.txt_norm, self.txt_in = nn.RMSNorm(DIM, eps=1e-6), nn.Linear(DIM, width)
        self.transformer_blocks = nn.ModuleList(StreamBlock(width) for _ in range(2))

    def through_blocks(self, tokens: Tensor, context: Tensor, options: Any, size: Any) -> Tensor:
        height, width = size
        text = self.txt_in(self.txt_norm(context))
        of_image = torch.cartesian_prod(torch.arange(height) - height // 2, torch.arange(width) - width // 2)
        of_text = max(height, width) // 2 + torch.arange(text.shape[1])[:, None].expand(-1, 2)
        places = torch.cat([of_text, of_image]).to(tokens)
        turns = rope(places.repeat_interleave(2, 1)[:, :3], (1.0, 0.3, 1.0)).transpose(1, 2)
        turns = turns.expand(len(tokens), *turns.shape[1:])
        for block in self.transformer_blocks:
            text, tokens = block(
                hidden_states=tokens, encoder_hidden_states=text, encoder_hidden_states_mask=None,
                image_rotary_emb=turns,
            )  # fmt: skip
        return tokens


class StreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attn = StreamAttention(width)
        self.img_mlp, self.txt_mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, encoder_hidden_states_mask: Any,
        image_rotary_emb: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        image, text = self.attn(
            hidden_states=F.layer_norm(hidden_states, hidden_states.shape[2:]),
            encoder_hidden_states=F.layer_norm(encoder_hidden_states, encoder_hidden_states.shape[2:]),
            encoder_hidden_states_mask=encoder_hidden_states_mask,
            image_rotary_emb=image_rotary_emb,
        )
        image, text = hidden_states + image, encoder_hidden_states + text
        return text + F.gelu(self.txt_mlp(text)), image + F.gelu(self.img_mlp(image))


class StreamAttention(nn.Module):
    """Under the names and with the norms of Qwen-Image's."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads = heads
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            setattr(self, name, nn.Linear(width, width))
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            setattr(self, name, nn.RMSNorm(width // heads, eps=1e-6))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, encoder_hidden_states_mask: Any = None,
        attention_mask: Any = None, image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        image, text = hidden_states, encoder_hidden_states
        text_q, text_k, text_v, q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1))
            for x, layers in (
                (text, (self.add_q_proj, self.add_k_proj, self.add_v_proj)), (image, (self.to_q, self.to_k, self.to_v)),
            )
            for layer in layers
        )  # fmt: skip
        q = torch.cat([self.norm_added_q(text_q), self.norm_q(q)], dim=1)
        k = torch.cat([self.norm_added_k(text_k), self.norm_k(k)], dim=1)
        q, k = (
            torch.einsum("...ij,...j->...i", image_rotary_emb, t.unflatten(-1, (-1, 2))).flatten(-2) for t in (q, k)
        )
        q, k, v = (t.transpose(1, 2) for t in (q, k, torch.cat([text_v, v], dim=1)))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask).transpose(1, 2).flatten(2)
        image = self.to_out[1](self.to_out[0](out[:, text.shape[1] :]))
        return image, self.to_add_out(out[:, : text.shape[1]])
