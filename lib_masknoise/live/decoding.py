"""Latents → pictures, quickly enough to paint by: approximations of an autoencoder's decoder.

`TinyDecoder` is distilled from one autoencoder and serves only it: `tiny_decoder` looks up which by the autoencoder's
own weights. `linear_rgb` is a matrix from a latent's channels to red, green and blue, at the latent's size.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lib_masknoise import ASSETS

FILE = ASSETS / "live_decoder.npz"
FINGERPRINT = "fingerprint"
WIDTHS = (64, 48)
BLOCKS = (4, 1)

# Least-squares fits of the decoders of Stable Diffusion 1 and 2, and of XL, as the WebUIs use them for their previews
# ("Approx cheap"). Rows: the latent's channels, as the U-Net sees them; columns: red, green, blue, from -1 to 1.
LINEAR = {
    0.18215: (
        (0.298, 0.207, 0.208),
        (0.187, 0.286, 0.173),
        (-0.158, 0.189, 0.264),
        (-0.184, -0.271, -0.473),
    ),
    0.13025: (
        (0.3448, 0.4168, 0.4395),
        (-0.1953, -0.0290, 0.0250),
        (0.1074, 0.0886, -0.0163),
        (-0.3730, -0.2499, -0.2088),
    ),
}
"""By the autoencoder's scaling factor."""


class TinyDecoder(nn.Module):
    """Latents ``[B, C, h, w]``, scaled as the U-Net sees them → ``[B, 3, 8h, 8w]``, about 0 to 1."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        first, second = WIDTHS
        self.into = nn.Conv2d(channels, first, 3, padding=1)
        self.coarse = nn.ModuleList(nn.Conv2d(first, first, 3, padding=1) for _ in range(BLOCKS[0]))
        self.up = nn.Conv2d(first, 4 * second, 3, padding=1)
        self.fine = nn.ModuleList(nn.Conv2d(second, second, 3, padding=1) for _ in range(BLOCKS[1]))
        self.out = nn.Conv2d(second, 3 * 16, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.into(latents)
        for conv in self.coarse:
            x = x + conv(F.silu(x))
        x = F.pixel_shuffle(self.up(F.silu(x)), 2)
        for conv in self.fine:
            x = x + conv(F.silu(x))
        return F.pixel_shuffle(self.out(F.silu(x)), 4) + 0.5

    def save(self, path: Path, fingerprint: str) -> None:
        """In half precision, with the fingerprint of the autoencoder that it stands for."""
        arrays: dict[str, Any] = {name: tensor.half().numpy() for name, tensor in self.state_dict().items()}
        arrays[FINGERPRINT] = np.array(fingerprint)
        np.savez_compressed(path, **arrays)


def fingerprint(decoder: Mapping[str, Tensor]) -> str:
    """Of a decoder's weights: whose it is, whatever precision they are kept in and whatever the library calls and
    orders them (a linear layer is a convolution of one pixel elsewhere)."""
    samples = []
    for tensor in decoder.values():
        sample = tensor.detach().flatten()[:16].cpu().float().round(decimals=2).add(0.0)
        samples.append(f"{tensor.numel()} {zlib.crc32(sample.numpy().tobytes())}")
    return hashlib.blake2b(" ".join(sorted(samples)).encode(), digest_size=8).hexdigest()


def tiny_decoder(decoder: Mapping[str, Tensor], path: Path = FILE) -> TinyDecoder | None:
    """The distilled decoder that stands for an autoencoder's, None where there is none for it."""
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        if str(arrays[FINGERPRINT]) != fingerprint(decoder):
            return None
        weights = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files if name != FINGERPRINT}
    made = TinyDecoder(weights["into.weight"].shape[1])
    made.load_state_dict(weights)
    return made.eval().requires_grad_(False)


def linear_rgb(latents: Tensor, scaling_factor: float) -> Tensor | None:
    """Latents ``[B, 4, h, w]`` as the U-Net sees them → ``[B, 3, h, w]`` from 0 to 1; None for an unknown model."""
    known = next((rows for factor, rows in LINEAR.items() if abs(factor - scaling_factor) < 1e-4), None)
    if known is None or latents.shape[1] != len(known):
        return None
    matrix = torch.tensor(known, dtype=torch.float32)
    return (torch.einsum("bchw,cr->brhw", latents.float().cpu(), matrix) / 2 + 0.5).clamp(0, 1)


def to_picture(rgb: Tensor) -> Image.Image:
    """``[1, 3, H, W]`` from 0 to 1 → a picture."""
    pixels = (rgb[0].float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))
