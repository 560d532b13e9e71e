"""Visual noise: the initial latent turns towards fresh noise, as far as each location is free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib_masknoise.motion import envelope, mixtures
from lib_masknoise.noise import travel
from lib_masknoise.seeded import generator

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion


def visual(
    noise: torch.Tensor,
    amount: torch.Tensor,
    motion: Motion,
    frames: Sequence[float],
    total: int,
    seed: int,
    seeds: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Initial latents of some frames: ``[C, H, W]`` → ``[B, C, H, W]``, dtype and device of ``noise``.

    x = cos φ·n + sin φ·n′, φ = π/2·amount·envelope, n′ = Σ_k mixture_k·n′_k with white latents n′_k from the
    seed. As cos² + sin² = 1 and the mixture's norm is 1, x is white and exactly N(0, 1) wherever n is.

    noise: the host's own latent n, of variance 1. amount ``[H, W]``, or ``[B, H, W]``: 0 keeps n bit for bit, 1
    reaches n′ fully, more counts as 1. frames: the B frames wanted, of ``total``. Computed on the CPU in float32
    or better, so that every device gives the same latents.

    seeds: the host's own latents of other seeds, each like ``noise``: the way leads through them (`noise.travel`)
    instead of to n′. With their mixture c and c_0 the share of n, φ = amount·arccos c_0 and n′ = Σ_{k>0} c_k·n_k /
    √(1 − c_0²), which is Σ c_k·n_k where the amount is 1, and white N(0, 1) everywhere.
    """
    dtype = torch.promote_types(noise.dtype, torch.float32)
    still = noise.detach().cpu().to(dtype)
    turns = math.pi / 2 * amount.detach().cpu().to(dtype).clamp(max=1.0).expand(len(frames), -1, -1)
    if seeds:
        fresh = [other.detach().cpu().to(dtype) for other in seeds]
        places = [travel.mixture(len(seeds), travel.place(motion, frame, total), motion.loop) for frame in frames]
        envelopes = [2.0 / math.pi * math.acos(min(own, 1.0)) for own, *_ in places]
        norms = [math.sqrt(sum(share**2 for share in others)) or 1.0 for _, *others in places]
        mixing = [[share / norm for share in others] for (_, *others), norm in zip(places, norms, strict=True)]
    else:
        mixing = mixtures(motion, frames, total, seed).tolist()
        envelopes = [envelope(motion, frame, total) for frame in frames]
        fresh = [
            torch.randn(still.shape, dtype=dtype, generator=generator(seed, f"visual/{k}"))
            for k in range(len(mixing[0]))
        ]
    latents = torch.empty(len(frames), *still.shape, dtype=dtype)
    for latent, turn, height, row in zip(latents, turns, envelopes, mixing, strict=True):
        phi = turn * height
        target = sum(m * n for m, n in zip(row, fresh, strict=True))
        latent.copy_(torch.where(phi == 0.0, still, phi.cos() * still + phi.sin() * target))
    return latents.to(noise.device, noise.dtype)
