"""A small transformer of one stream, a text and then the image, under the names of Neo's Z-Image and Lumina 2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.standin.model import DIM

BLOCK = 4
"""What Z-Image fills texts and image up to a multiple of; a text of the stand-in has a multiple of 5 tokens."""


def apply_rope(q: Tensor, k: Tensor, turns: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.einsum("...ij,...j->...i", turns, t.unflatten(-1, (-1, 2))).flatten(-2) for t in (q, k))


class OneStream(nn.Module):
    """multiple: what texts and image are filled up to a multiple of (Z-Image), None: they are not (Lumina 2)."""

    def __init__(self, seed: int, dtype: torch.dtype, multiple: int | None = None, width: int = 24, channels: int = 4):
        super().__init__()
        self.patch_size, self.pad_tokens_multiple = 2, multiple
        self.x_embedder, self.out = nn.Linear(4 * channels, width), nn.Linear(width, 4 * channels)
        self.cap_embedder, self.time = nn.Sequential(nn.RMSNorm(DIM), nn.Linear(DIM, width)), nn.Linear(1, width)
        self.context_refiner, self.noise_refiner, self.layers = (
            nn.ModuleList(Layer(width) for _ in range(count)) for count in (1, 1, 2)
        )
        if multiple:
            self.x_pad_token, self.cap_pad_token = (nn.Parameter(torch.empty(1, width)) for _ in range(2))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            std = 1.0 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            nn.init.normal_(parameter.detach(), std=std, generator=generator)
        self.to(dtype).requires_grad_(False).eval()

    def rope_embedder(self, places: Tensor) -> Tensor:
        """Places `[rows, M, 3]` → `[rows, 1, M, 6, 2, 2]`, four of a head's numbers for each axis."""
        angles = (places[..., None] * torch.tensor([1.0, 0.2]).to(places)).flatten(2)
        cos, sin = angles.cos(), angles.sin()
        return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))[:, None]

    def patchify_and_embed(
        self, x: Tensor, cap_feats: Tensor, cap_mask: Any, t: Tensor, num_tokens: Any, transformer_options: Any = None
    ) -> tuple[Any, ...]:
        rows, _, height, width = x.shape
        multiple = self.pad_tokens_multiple or 1
        if more := -cap_feats.shape[1] % multiple:
            cap_feats = torch.cat([cap_feats, self.cap_pad_token.expand(rows, more, -1)], dim=1)
        length = cap_feats.shape[1]
        tokens = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        tokens = self.x_embedder(tokens)
        of_text = F.pad(torch.arange(1, length + 1)[:, None], (0, 2))
        of_image = torch.cartesian_prod(torch.tensor([length + 1]), torch.arange(height // 2), torch.arange(width // 2))
        if more := -tokens.shape[1] % multiple:
            tokens = torch.cat([tokens, self.x_pad_token.expand(rows, more, -1)], dim=1)
            of_image = F.pad(of_image, (0, 0, 0, more))
        places = torch.cat([of_text, of_image]).to(x)[None].expand(rows, -1, -1)
        turns = self.rope_embedder(places).movedim(1, 2)
        for layer in self.context_refiner:
            cap_feats = layer(cap_feats, cap_mask, turns[:, :length], transformer_options=transformer_options)
        for layer in self.noise_refiner:
            tokens = layer(tokens, None, turns[:, length:], t, transformer_options=transformer_options)
        return torch.cat([cap_feats, tokens], dim=1), None, [(height, width)] * rows, [length] * rows, turns

    def forward(self, x: Tensor, time: Tensor, context: Tensor, transformer_options: Any = None) -> Tensor:
        size = x.shape[2:]
        x = F.pad(x, (0, size[1] % 2, 0, size[0] % 2))
        t = self.time(time[:, None] / 50)
        tokens, mask, sizes, lengths, turns = self.patchify_and_embed(
            x, self.cap_embedder(context), None, t, None, transformer_options=transformer_options
        )
        for layer in self.layers:
            tokens = layer(tokens, mask, turns, t, transformer_options=transformer_options)
        tokens, images = self.out(tokens), []
        for row, length, (height, width) in zip(tokens, lengths, sizes, strict=True):
            patches = row[length : length + height * width // 4].view(height // 2, width // 2, 2, 2, -1)
            images.append(patches.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2))
        return torch.stack(images)[..., : size[0], : size[1]]


class Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attention, self.feed_forward = Attention(width), nn.Linear(width, width)

    def forward(
        self, x: Tensor, x_mask: Any, freqs_cis: Tensor, t: Tensor | float = 0.0, transformer_options: Any = None
    ) -> Tensor:
        shift = t[:, None] if isinstance(t, Tensor) else t
        normed = F.layer_norm(x, x.shape[2:]) + shift
        x = x + self.attention(normed, x_mask, freqs_cis, transformer_options=transformer_options)
        return x + F.gelu(self.feed_forward(x))


class Attention(nn.Module):
    """Two heads for the queries and one for keys and values."""

    def __init__(self, width: int):
        super().__init__()
        self.n_local_heads, self.n_local_kv_heads, self.n_rep, self.head_dim = 2, 1, 2, width // 2
        self.qkv, self.out = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim)

    def forward(self, x: Tensor, x_mask: Any, freqs_cis: Tensor, transformer_options: Any = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (4, self.head_dim)).split([2, 1, 1], dim=2)
        q, k = apply_rope(self.q_norm(q), self.k_norm(k), freqs_cis)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, *(t.expand(-1, 2, -1, -1) for t in (k, v)), attn_mask=x_mask)
        return self.out(out.transpose(1, 2).flatten(2))
