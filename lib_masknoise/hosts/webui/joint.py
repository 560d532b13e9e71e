"""Forge and its kin with models in which text and image attend together: all the concepts' texts side by side, for one
sampling pass.

It takes one evaluation of the model, of a longer sequence. Where one text has all the weight, only that one is there,
and the evaluation is the plain one. How the attention of a model comes to weigh the texts is that model's own
(`streams`, `flux`).

What cannot be said so is left to `predictions`: prompts of several parts, and weights that lead away from the base
together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib_masknoise import infotext
from lib_masknoise.hosts.webui.denoising import Denoising
from lib_masknoise.hosts.webui.forge import Options
from lib_masknoise.hosts.webui.predictions import Masks, Weighted, condition_of


class JointAttention:
    """The texts of all concepts side by side in one condition."""

    what = "joint attention"
    instead = (
        "the concepts' tokens stand side by side in the attention of text and image, and a step takes one evaluation "
        "of the model"
    )

    def __init__(self, denoising: Denoising):
        self.denoising = denoising

    def conditions(self, entries: list[Weighted], x: Tensor, several: bool) -> list[Options]:
        if len(entries) > 1:
            found = None if self.denoising.conds.part_count is not None else self.side_by_side(entries, x)
            if found is not None:
                return [found]
            self._say_predictions()
        return Masks().conditions(entries, x, several)

    def side_by_side(self, entries: list[Weighted], x: Tensor) -> Options | None:
        """One condition for all of them; None where it cannot be said so."""
        raise NotImplementedError

    def _say_predictions(self) -> None:
        p: Any = self.denoising.p
        p.extra_generation_params[infotext.BLENDING] = p.extra_generation_params[infotext.BLENDING].replace(
            self.what, Masks.what
        )
        p.comment(f"MaskNoise: with several parts in a prompt, or weights so far from its own, {Masks.instead}")


def joined(entries: list[Weighted], context: Tensor, more: dict[str, Tensor]) -> Options:
    """One condition with the texts of all: what they are together, and what else the model is given of them."""
    first = entries[0][0]
    of_entries = [one["model_conds"] for one, _ in entries]
    own = dict(of_entries[0])
    own["c_crossattn"] = type(own["c_crossattn"])(context)
    if "y" in own:  # the pooled texts, by the area of each, as in the other passes
        pooled = torch.stack([conds["y"].cond for conds in of_entries], dim=1)
        area = torch.stack([weight for _, weight in entries], dim=1).mean(dim=(2, 3)).to(pooled)
        own["y"] = type(own["y"])(torch.einsum("bj,bjp->bp", area, pooled))
    own.update((name, condition_of(tensor)) for name, tensor in more.items())
    return {**first, "cross_attn": context, "strength": 1.0, "model_conds": own}
