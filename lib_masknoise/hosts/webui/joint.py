"""Forge and its kin with models in which text and image attend together: all the concepts' texts side by side, for one
sampling pass.

It takes one evaluation of the model, of a longer sequence. Where one text has all the weight, only that one is there,
and the evaluation is the plain one. No host lets be said from outside which text counts where: for as long as a call of
the model lasts, the modules that attend have forwards of ours, which attend as `lib_masknoise.joint` does. Which these
are is each model's own (`flux`, `streams`, `single_stream`). So keys and values are blended as in diffusers' pipelines,
texts may be of several lengths, and no mask is built. Weights and presence go along as two more of the model's
conditions, since the rows of a call may be divided differently. The tokens of reference pictures have no place in the
masks: they see every text by its area.

What cannot be said so is left to `predictions`: prompts of several parts, and weights that lead away from the base
together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from modules import shared
from torch import Tensor

from lib_masknoise import infotext
from lib_masknoise.hosts.webui.denoising import Conflict, Denoising
from lib_masknoise.hosts.webui.forge import Options
from lib_masknoise.hosts.webui.predictions import Masks, Weighted, condition_of, taking
from lib_masknoise.hosts.webui.static_text import refuse_taken
from lib_masknoise.joint import Seen, at_tokens, seen, side_by_side
from lib_masknoise.maps import Size, extent

WEIGHTS, PRESENT = "masknoise_weights", "masknoise_present"
"""Among the model's conditions: what each text counts, `[rows, K, h, w]`, and how much of each of its tokens there is,
`[rows, K, T]`."""

KEPT_SIGHTS = 3
"""Calls of the prompts, of the negative prompts and of both: what they see is the same at every step."""


class JointAttention:
    """The texts of all concepts side by side in one condition."""

    what = "joint attention"
    instead = (
        "the concepts' tokens stand side by side in the attention of text and image, and a step takes one evaluation "
        "of the model"
    )

    def __init__(self, denoising: Denoising):
        self.denoising = denoising
        self._known: list[tuple[Tensor, Tensor, Size, int, tuple[Seen, ...]]] = []

    def wrapped(self, options: Options, x: Tensor) -> Options:
        return taking(Masks().wrapped(options, x), WEIGHTS, self._weighed)

    def conditions(self, entries: list[Weighted], x: Tensor, several: bool) -> list[Options]:
        if len(entries) > 1:
            found = None if self.denoising.conds.part_count is not None else self.side_by_side(entries)
            if found is not None:
                return [found]
            self._say_predictions()
        return Masks().conditions(entries, x, several)

    def side_by_side(self, entries: list[Weighted]) -> Options | None:
        """One condition for all of them; None where it cannot be said so."""
        contexts = [one["model_conds"]["c_crossattn"].cond for one, _ in entries]
        lengths = [context.shape[1] for context in contexts]
        filled = torch.stack([F.pad(one, (0, 0, 0, max(lengths) - one.shape[1])) for one in contexts], dim=1)
        try:
            found = side_by_side(filled, torch.stack([weight for _, weight in entries], dim=1), lengths=lengths)
        except ValueError:
            return None
        refuse_taken(self.layers(_model()), "attention")
        more = {WEIGHTS: found.weights, PRESENT: found.present}
        return joined(entries, found.contexts.flatten(1, 2), more)

    def _weighed(self, weights: Tensor, call: Callable[[Options], Tensor], c: Options) -> Tensor:
        """A call of the model whose rows have several texts."""
        present, model = c.pop(PRESENT), _model()

        def before(module: Any, args: tuple[Any, ...]) -> None:
            self.denoising.check_size(extent(args[0]))
            if len(args[0]) != len(weights):
                raise Conflict(
                    f"the model was given {len(args[0])} of {len(weights)} rows: another extension divides what is "
                    "denoised together; switch it off or MaskNoise"
                )

        hook = model.register_forward_pre_hook(before)
        try:
            with self.acting(model, weights, present):
                return call(c)
        finally:
            hook.remove()

    def layers(self, model: Any) -> tuple[Any, ...]:
        """The modules of the model that attend, whose forwards become ours."""
        raise NotImplementedError

    def acting(self, model: Any, weights: Tensor, present: Tensor) -> AbstractContextManager[None]:
        """Within, calls of the model see texts of weights `[rows, K, h, w]` and presence `[rows, K, T]`."""
        raise NotImplementedError

    def beside(self, model: Any, weights: Tensor, present: Tensor) -> Beside:
        """What stands side by side where texts of such weights and presence do."""

        def sights(places: int, device: torch.device) -> tuple[Seen, ...]:
            height, width = (-(-side // getattr(model, "patch_size", 2)) for side in self.denoising.given_size)
            return self._sights(weights, present, (height, width), places, device)

        texts, tokens = present.shape[1:]
        return Beside(texts, tokens, sights)

    def _sights(
        self, weights: Tensor, present: Tensor, size: Size, places: int, device: torch.device
    ) -> tuple[Seen, ...]:
        """What the rows of a call see whose image and references have that many places, found again only where
        something of it changes."""
        for of_weights, of_present, *others, known in self._known:
            if others == [size, places] and _equal(of_weights, weights) and _equal(of_present, present):
                return known
        at = at_tokens(weights.float().cpu(), size, places - math.prod(size))
        known = tuple(one.to(device) for one in seen(at, present.float().cpu()))
        self._known = [(weights, present, size, places, known), *self._known][:KEPT_SIGHTS]
        return known

    def _say_predictions(self) -> None:
        p: Any = self.denoising.p
        p.extra_generation_params[infotext.BLENDING] = p.extra_generation_params[infotext.BLENDING].replace(
            self.what, Masks.what
        )
        p.comment(f"MaskNoise: with several parts in a prompt, or weights so far from its own, {Masks.instead}")


@dataclass(frozen=True)
class Beside:
    """What stands side by side in a call of the model: how many texts, how many tokens each has, and what the rows see,
    given how many places image and references have, and the device."""

    texts: int
    tokens: int
    sights: Callable[[int, torch.device], tuple[Seen, ...]]


@contextmanager
def attending(layers: tuple[Any, ...], forward: Callable[..., Any]) -> Iterator[None]:
    """Within, the layers have that forward, which gets the layer first."""
    try:
        for layer in layers:
            layer.forward = functools.partial(forward, layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def placed(turns: Tensor, beside: Beside, axis: int) -> Tensor:
    """The turns of K·T + L tokens, counted one after the other on that axis, for K texts that stand where the first
    does."""
    length = beside.texts * beside.tokens
    text, image = turns.narrow(axis, 0, beside.tokens), turns.narrow(axis, length, turns.shape[axis] - length)
    return torch.cat([*[text] * beside.texts, image], dim=axis)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """`[…, d]` as d/2 pairs, each times a matrix of `[…, d/2, 2, 2]`."""
    pairs = x.unflatten(-1, (-1, 1, 2))
    return (turns[..., 0] * pairs[..., 0] + turns[..., 1] * pairs[..., 1]).flatten(-2).to(x)


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


def _model() -> Any:
    return shared.sd_model.forge_objects.unet.model.diffusion_model


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.device == other.device and torch.equal(one, other))
