"""A1111's settings *Pad prompt/negative prompt*: both sides of an image's guidance get equally many tokens.

The host does so to the contexts that it hands its U-Net. Rows that see a blend have contexts of their own, so it has to
be done to these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from modules import shared
from torch import Tensor

from lib_masknoise.attention import Row
from lib_masknoise.conditioning import LocationConditioning
from lib_masknoise.hosts.webui.rows import CACHED
from lib_masknoise.noise import SeparableNoise

INFOTEXT = {"pad_cond_uncond": "Pad conds", "pad_cond_uncond_v0": "Pad conds v0"}
"""The settings, and their names in the host's infotext."""


def wanted() -> str | None:
    """The one of the settings that acts: the older one comes first, as in the host."""
    return next((name for name in ("pad_cond_uncond_v0", "pad_cond_uncond") if getattr(shared.opts, name, False)), None)


class Padding:
    """Conditionings with other numbers of tokens, each made once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[LocationConditioning, LocationConditioning]] = {}

    def apply(
        self, name: str, positive: Sequence[Row], negative: Row, lengths: tuple[int, int]
    ) -> tuple[list[Row], Row]:
        """What the rows of one image see with a setting. lengths: tokens of its longest prompt and of its longest
        negative prompt."""
        if name == "pad_cond_uncond_v0":
            return list(positive), self._filled(negative, lengths[0], None)
        empty = shared.sd_model.cond_stage_model_empty_prompt[0].detach().float().cpu()
        return [self._filled(row, max(lengths), empty) for row in positive], self._filled(negative, max(lengths), empty)

    def _filled(self, row: Row, length: int, filling: Tensor | None) -> Row:
        given = row.conditioning
        if set(given.lengths) == {length}:
            return row
        key = id(given), length
        if key not in self._known:
            if len(self._known) >= CACHED:
                self._known.pop(next(iter(self._known)))
            self._known[key] = given, filled(given, length, filling)  # the given one stays alive, and so its id
        return replace(row, conditioning=self._known[key][1])


def filled(given: LocationConditioning, length: int, filling: Tensor | None) -> LocationConditioning:
    """With every context of that many tokens: the missing ones from `filling` `[T', D]` over and over, or each
    context's last token where that is None; what is beyond is cut off."""
    contexts = [
        _fill(context[:tokens], length, filling) for context, tokens in zip(given.contexts, given.lengths, strict=True)
    ]
    return replace(
        given,
        contexts=torch.stack(contexts),
        lengths=(length,) * len(contexts),
        noise=_fit(given.noise, length, 0.0),
        offset=_fit(given.offset, length, 1.0),
    )


def _fill(context: Tensor, length: int, filling: Tensor | None) -> Tensor:
    missing = length - len(context)
    if missing <= 0:
        return context[:length]
    tokens = context[-1:] if filling is None else filling.to(context)
    return torch.cat([context, tokens.repeat(-(-missing // len(tokens)), 1)[:missing]])


def _fit(noise: SeparableNoise | None, length: int, filling: float) -> SeparableNoise | None:
    """Concept noise is for a prompt's own tokens, not for the filling; an offset is the same for all."""
    if noise is None or noise.tokens.shape[-1] == length:
        return noise
    tokens = noise.tokens[..., :length]
    return replace(noise, tokens=F.pad(tokens, (0, length - tokens.shape[-1]), value=filling))
