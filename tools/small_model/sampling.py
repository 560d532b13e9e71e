"""Plain Euler sampling with a text conditioning per location, without a pipeline in between.

The evaluation and the training need many small samples under exact control of the conditioning; this is the
shortest code that gives them, and it draws its noise from one CPU generator, so a seed means one image
everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from .networks import mixed

TRAIN_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.0120


def alphas_cumprod() -> torch.Tensor:
    """`[1000]` cumulated signal power of the scaled-linear schedule."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


@dataclass
class Regions:
    """Contexts and where each applies.

    contexts: `[B, J, T, D]`; maps: `[B, J, h, w]` at the latent's resolution, summing to 1 over J.
    """

    contexts: torch.Tensor
    maps: torch.Tensor

    def at(self, tokens: int) -> torch.Tensor:
        """`[B, J, L]` coefficients of a level with `tokens` locations (area means of the maps)."""
        height, width = self.maps.shape[-2:]
        factor = round((height * width / tokens) ** 0.5)
        return F.avg_pool2d(self.maps, factor).flatten(2) if factor > 1 else self.maps.flatten(2)


class BlendedAttention:
    """Cross-attention whose context at location l is `sum_j a_j(l) C_j`, computed without building it.

    Keys and values are linear in the context: `logits_l[t] = sum_j a_j(l) q_l.K_j[t]`, likewise the values.
    """

    def __init__(self, regions: Regions):
        self.regions = regions

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, **_):
        query = self._heads(attn.to_q(hidden_states), attn.heads)  # [B, h, L, d]
        if encoder_hidden_states is None:
            key, value = (self._heads(p(hidden_states), attn.heads) for p in (attn.to_k, attn.to_v))
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            out = self._blended(attn, query)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))

    def _blended(self, attn: Attention, query: torch.Tensor) -> torch.Tensor:
        """One attention call over the J contexts, stacked along the head dimension."""
        contexts = self.regions.contexts  # [B, J, T, D]
        a = self.regions.at(query.shape[2]).transpose(1, 2)[:, None, :, :, None]  # [B, 1, L, J, 1]
        key, value = (
            self._heads(p(contexts), attn.heads).permute(0, 2, 3, 1, 4).flatten(3) for p in (attn.to_k, attn.to_v)
        )  # [B, h, T, J d]
        stacked = (a * query[:, :, :, None]).flatten(3)
        out = F.scaled_dot_product_attention(stacked, key, value, scale=attn.scale)
        return (out.unflatten(3, (contexts.shape[1], -1)) * a).sum(3)

    @staticmethod
    def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
        """`[..., T, h d]` -> `[..., h, T, d]`."""
        return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


class BlendedOutputs(BlendedAttention):
    """Cross-attention to each context by itself, whose outputs are blended: `sum_j a_j(l) Attn(q_l, C_j)`."""

    def _blended(self, attn: Attention, query: torch.Tensor) -> torch.Tensor:
        a = self.regions.at(query.shape[2])[:, :, None, :, None]  # [B, J, 1, L, 1]
        outputs = []
        for context in self.regions.contexts.unbind(1):
            key, value = (self._heads(p(context), attn.heads) for p in (attn.to_k, attn.to_v))
            outputs.append(F.scaled_dot_product_attention(query, key, value, scale=attn.scale))
        return (torch.stack(outputs, 1) * a).sum(1)


def hardened(regions: Regions) -> Regions:
    """The same regions with hard edges: each location has the context of its largest map alone."""
    chosen = regions.maps.argmax(1, keepdim=True)
    return Regions(regions.contexts, torch.zeros_like(regions.maps).scatter(1, chosen, 1.0))


def sigmas_and_times(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`[steps + 1]` noise levels ending in 0, and the `[steps]` training times of them (linspace spacing)."""
    power = alphas_cumprod()
    log_sigma = ((1 - power) / power).sqrt().log()
    times = torch.linspace(TRAIN_STEPS - 1, 0, steps)
    low, high = times.floor().long(), times.ceil().long()
    sigma = torch.lerp(log_sigma[low], log_sigma[high], times - low).exp()
    return torch.cat([sigma, torch.zeros(1)]), times


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    regions: Regions,
    empty: torch.Tensor,
    *,
    steps: int = 20,
    cfg: float = 4.0,
    seed: int = 0,
    autocast: bool = False,
    blend: type[BlendedAttention] = BlendedAttention,
) -> torch.Tensor:
    """Euler samples `[B, 4, h, w]`, in the U-Net's (scaled) latent space.

    regions: conditioning of the B rows; empty: `[T, D]` context of the empty prompt; blend: what is blended.
    """
    batch, _, height, width = regions.maps.shape
    doubled = Regions(torch.cat([regions.contexts, empty.expand_as(regions.contexts)]), torch.cat([regions.maps] * 2))
    saved = unet.attn_processors
    unet.set_attn_processor(blend(doubled))
    try:
        sigma, times = sigmas_and_times(steps)
        x = torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed)) * sigma[0]
        for i, time in enumerate(times):
            scaled = x / (sigma[i] ** 2 + 1).sqrt()
            with mixed(autocast):
                eps = unet(torch.cat([scaled] * 2), time, doubled.contexts[:, 0]).sample.float()
            cond, uncond = eps.chunk(2)
            x = x + (uncond + cfg * (cond - uncond)) * (sigma[i + 1] - sigma[i])
    finally:
        unet.set_attn_processor(saved)
    return x


def plain_regions(contexts: torch.Tensor, height: int, width: int) -> Regions:
    """One context `[B, T, D]` a row, everywhere."""
    return Regions(contexts[:, None], torch.ones(len(contexts), 1, height, width))


def ramp_regions(left: torch.Tensor, right: torch.Tensor, height: int, width: int, span: Sequence[float]) -> Regions:
    """`left` to `right` (`[B, T, D]`), linear in x between the fractions `span` of the width."""
    x = (torch.arange(width) + 0.5) / width
    a = ((span[1] - x) / (span[1] - span[0])).clamp(0, 1).expand(len(left), height, width)
    return Regions(torch.stack([left, right], 1), torch.stack([a, 1 - a], 1))
