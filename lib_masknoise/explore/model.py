"""What the views ask of a host's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from lib_masknoise.conditioning import Encoded
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

Report = Callable[[float], object]
"""Hears how much more is done, in pictures; what it raises ends the sampling."""


HEARD = 0.25
"""A prompt whose context is no further from that of an empty one, as a part of how far the furthest are, says nothing
to the model: a miniature one does not know most words."""


class Stop(Exception):
    """What a `Report` raises to end the sampling; what has been made until then is kept."""


class Moment(NamedTuple):
    """One call of the denoiser. sigma: noise for each part of signal. x_t: the latent `[C, h, w]` it was given, scaled
    to unit variance. x0: the latent that it means the picture to be, prompts and guidance counted in."""

    sigma: float
    x_t: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Recording:
    """A pass: its moments, the last one being what it ended with at sigma 0, and its picture; without both where it was
    interrupted."""

    moments: list[Moment]
    image: Image.Image | None
    interrupted: bool = False


class Model(Protocol):
    """A loaded model. `settings` give seed, steps, size, guidance, negative prompt; where it says so, the prompt."""

    longest: int
    """Tokens of a prompt that make up one chunk: all contexts of prompts no longer than that have one length."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels that the model was made for."""

    def encode(self, prompts: Sequence[str]) -> dict[str, Encoded]:
        """What the text encoder makes of each."""

    def tokens(self, prompt: str) -> int:
        """How many tokens a prompt has."""

    def rendered(
        self, scene: Scene, settings: Settings, frames: Sequence[float], report: Report
    ) -> Iterator[Image.Image]:
        """Frames of a scene over `settings.prompt`, `settings.batch_size` at a time (None: all at once)."""

    def plain(
        self, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, report: Report
    ) -> list[Image.Image]:
        """One batch of pictures by the host alone, each with a prompt and a seed of its own."""

    def blended(
        self, contexts: Sequence[Encoded], seeds: Sequence[int], settings: Settings, report: Report
    ) -> list[Image.Image]:
        """The same with contexts in place of prompts, all of one length."""

    def recorded(self, scene: Scene, settings: Settings, report: Report) -> Recording:
        """One pass of a scene over `settings.prompt`, and what it was at each step. A keyboard interrupt ends it."""

    def decoded(self, latents: Tensor) -> list[Image.Image]:
        """Latents `[B, C, h, w]` as pictures."""


def average(encoded: Encoded) -> Tensor:
    """The mean of a context over its tokens, `[D]` in float64."""
    return encoded.context.double().mean(0)


def heard(vectors: Tensor, nothing: Tensor) -> Tensor:
    """Which of some averaged contexts `[N, D]` say something to the model, `[N]`; nothing: that of an empty prompt."""
    if not len(vectors):
        return torch.zeros(0, dtype=torch.bool)
    away = (vectors - nothing).norm(dim=1)
    return away > HEARD * away.quantile(0.95)


def blend(contexts: Sequence[Encoded], weights: Sequence[float]) -> Encoded:
    """`Σ w_i C_i` of contexts of one length, and of their pooled parts."""
    lengths = {len(one.context) for one in contexts}
    if len(lengths) > 1:
        raise ValueError(f"expected contexts of one length, got {sorted(lengths)}")
    w = torch.tensor(weights, dtype=torch.float64)
    context = torch.einsum("j,jtd->td", w, torch.stack([one.context.double() for one in contexts]))
    pooled = [one.pooled.double() for one in contexts if one.pooled is not None]
    return Encoded(context.float(), torch.einsum("j,jp->p", w, torch.stack(pooled)).float() if pooled else None)
