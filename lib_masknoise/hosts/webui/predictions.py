"""Forge and its kin with models that have no cross-attention to patch (Flux, SD 3, Chroma): what is blended are the
predictions, for one sampling pass.

The host averages what it predicts for any number of conditions, each with a mask. A conditioning modifier, which it
calls before each denoiser call, adds a condition for each concept to that of the prompt, with the concept's weight at
each location for a mask; likewise on the negative side. The weights add up to 1, so that what comes out is
`Σ_j a_j(ℓ) pred_j(ℓ)`, at the price of an evaluation of the model for each concept.

The hosts' masks are for latents `[B, C, h, w]`. Where there is an axis of frames more, `[B, C, T, h, w]`, the weights
go along as one more of the model's conditions, which a wrapper of the model's function takes out and multiplies by.

The host's own conds are what is compiled, so that whatever a model wants in them (pooled embeddings, distilled
guidance) is there. Concept and feature noise live in what a cross-attention sees and have no place here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from modules import shared
from torch import Tensor

from lib_masknoise import infotext
from lib_masknoise.conditioning import NEGLIGIBLE, Encoded, blended_texts, prediction_weights
from lib_masknoise.hosts.webui import facts
from lib_masknoise.hosts.webui.denoising import Conflict, Denoising
from lib_masknoise.hosts.webui.forge import Options, spread
from lib_masknoise.maps import extent

MASKED_DIMENSIONS = 4
"""Axes of the latents that the hosts' masks are for."""

WEIGHT = "masknoise_weight"
"""Among the model's conditions: by how much what it predicts counts, `[rows, h, w]`."""

Weighted = tuple[Options, Tensor]
"""A condition of the host, and how much what it predicts counts at each location of each image: `[B, h, w]`."""


class Combination(Protocol):
    """How several weighted conditions become what the model is given. what, instead: in the infotext and in words."""

    what: str
    instead: str

    def wrapped(self, options: Options, x: Tensor) -> Options:
        """The host's model options with what takes out of the conditions what is not the model's."""

    def conditions(self, entries: list[Weighted], x: Tensor, several: bool) -> list[Options]:
        """The host's conditions that make what the entries say. several: whether there is more than one entry, be it on
        the other side."""


class Masks:
    """The host's own average over conditions with masks: an evaluation for each."""

    what = "predictions"
    instead = (
        "predictions are blended instead of contexts, and a step takes one evaluation of the model for the prompt and "
        "one for each concept"
    )

    def wrapped(self, options: Options, x: Tensor) -> Options:
        return weighing(options) if x.dim() > MASKED_DIMENSIONS else options

    def conditions(self, entries: list[Weighted], x: Tensor, several: bool) -> list[Options]:
        return with_masks(entries, x, several)


class Predictions:
    """A model without cross-attention in Forge, for one sampling pass."""

    def __init__(self, denoising: Denoising, combine: Callable[[Denoising], Combination] = lambda denoising: Masks()):
        self.denoising = denoising
        self.rows, self.conds, self.prompts = denoising.rows, denoising.conds, denoising.prompts
        self._step: int | None = None  # None outside the window: the host does as it does without us
        self._total: Tensor | None = None
        self._known: dict[str, tuple[list[Any], Tensor]] = {}
        self._combination = combine(denoising)
        self._say()

    def __deepcopy__(self, memo: dict[int, Any]) -> Predictions:
        return self

    def _say(self) -> None:
        """What this model cannot do."""
        p, scene, what = self.denoising.p, self.rows.scene, self._combination.what
        model = type(shared.sd_model.forge_objects.unet.model.diffusion_model).__name__
        missing = " and ".join(kind for kind in ("concept", "feature") if getattr(scene.noise, kind).strength)
        if missing:
            what += f", without {missing} noise"
            p.comment(f"MaskNoise: no {missing} noise, which needs cross-attention to act in; {model} offers none")
        if missing or scene.concepts:
            p.extra_generation_params[infotext.BLENDING] = what
        if scene.concepts:
            p.comment(f"MaskNoise: {model} offers no cross-attention to blend in; {self._combination.instead}")

    # --- Before each call of the denoiser

    def bound(self, unet: torch.nn.Module) -> None:
        """Nothing is patched."""

    def released(self) -> None:
        """Nothing was."""

    def plan(self, params: Any) -> None:
        self._step = params.denoiser.step if self.denoising.arrives(params.denoiser) else None

    def patched(self, options: Options) -> Options:
        return options

    def changed(self, x: Tensor, cond: Any, uncond: Any, options: Options) -> tuple[Any, Any, Options]:
        self._total = None
        part_count = self.conds.part_count
        if not self.rows.scene.concepts or (self._step is None and part_count is None):
            return cond, uncond, options
        self.denoising.check_size(extent(x))
        if len(cond) != (part_count or 1) or len(uncond or [None]) != 1 or any("mask" in one for one in cond):
            raise Conflict(
                "the prompt is divided already by another extension (Forge Couple?); switch it off or MaskNoise"
            )
        positive = _needed(self._positive(cond))
        negative = _needed(self._negative(uncond)) if uncond else []
        total = functools.reduce(torch.add, (weight for _, weight in positive))
        if not torch.allclose(total, torch.ones(())):
            self._total = total[:, None]
        several = max(len(positive), len(negative)) > 1
        if several:
            options = self._combination.wrapped(options, x)
        cond = self._combination.conditions(positive, x, several)
        if negative:
            uncond = self._combination.conditions(negative, x, several)
        return cond, uncond, options

    def total_weight(self, like: Tensor) -> Tensor | None:
        return None if self._total is None else self._total.to(like)

    def _positive(self, cond: Sequence[Options]) -> list[Weighted]:
        """The parts of the prompts, and those of every concept's prompt; each counts by its own weight too."""
        own = torch.tensor([[part.weight for part in parts] for parts in self._parts()])[..., None, None]
        if self._step is None:
            whole = torch.ones(len(own), *self.rows.size)
            return [(one, whole * own[:, k]) for k, one in enumerate(cond)]
        encoded = {text: parts[0] for text, parts in self.prompts.at(self._step)[0].items()}
        weights = self._weights_of("prompt", encoded)
        entries = [(one, weights[:, 0] * own[:, k]) for k, one in enumerate(cond)]
        conds = self.prompts.conds_at(self._step)[0]
        for j, text in enumerate(self._texts("prompt", encoded), start=1):
            entries += [(_like(cond[0], one, len(own)), weights[:, j] * weight) for one, weight in conds[text]]
        return entries

    def _negative(self, uncond: Sequence[Options]) -> list[Weighted]:
        if self._step is None:
            return []
        encoded = self.prompts.at(self._step)[1]
        weights = self._weights_of("negative", encoded)
        conds = self.prompts.conds_at(self._step)[1]
        texts = self._texts("negative", encoded)
        own = [_like(uncond[0], conds[text], len(weights)) for text in texts]
        return [(one, weights[:, j]) for j, one in enumerate([uncond[0], *own])]

    def _parts(self) -> list[list[Any]]:
        """The host's parts of each image's prompt, as many of each as it denoises (`Conds.widened`)."""
        widened = []
        for parts in self.conds.own.batch:
            silent = [_Silent] * ((self.conds.part_count or len(parts)) - len(parts))
            widened.append([*parts, *silent])
        return widened

    def _weights_of(self, name: str, encoded: dict[str, Encoded]) -> Tensor:
        """`prediction_weights` of the batch, `[B, 1 + J, h, w]`, for as long as prompts and acting concepts stay the
        same."""
        known, weights = self._known.get(name, ([], None))
        frames = self.rows.frames
        maps = [self.rows.maps_of(i) for i in range(len(frames))]
        given = [*encoded.values(), *maps]
        if weights is None or any(a is not b for a, b in zip(known, given, strict=True)):
            of_each = [prediction_weights(own, name, encoded, [frame]) for own, frame in zip(maps, frames, strict=True)]
            texts = [blended_texts(own.scene, name, encoded) for own in maps]
            weights = _side_by_side(texts, of_each)
            self._known[name] = given, weights
        return weights

    def _texts(self, name: str, encoded: dict[str, Encoded]) -> list[str]:
        """What is blended with the base, in the order of the weights: one after the other where images differ in it."""
        images = range(len(self.rows.frames))
        of_each = (tuple(blended_texts(self.rows.maps_of(i).scene, name, encoded)) for i in images)
        return list(chain.from_iterable(dict.fromkeys(of_each)))


def _side_by_side(texts: Sequence[Sequence[str]], weights: Sequence[Tensor]) -> Tensor:
    """The weights `[1, 1 + J, h, w]` of images in one tensor. texts: what is blended in each; where these differ, their
    weights stand beside each other and count 0 for the others."""
    widths = {tuple(own): len(own) for own in texts}
    rows = []
    for own, weight in zip(texts, weights, strict=True):
        base, concepts = weight[:, :1], weight[:, 1:]
        nothing = torch.zeros_like(base)
        parts = [concepts if key == tuple(own) else nothing.expand(-1, n, -1, -1) for key, n in widths.items()]
        rows.append(torch.cat([base, *parts], dim=1))
    return torch.cat(rows)


class _Silent:
    """A part that a prompt does not have: the host repeats the first one in its place."""

    weight = 0.0


def _needed(entries: list[Weighted]) -> list[Weighted]:
    """Without those that count nowhere: each costs an evaluation of the model."""
    needed = [(one, weight) for one, weight in entries if bool((weight.abs() > NEGLIGIBLE).any())]
    return needed or entries[:1]


def with_masks(entries: list[Weighted], x: Tensor, several: bool) -> list[Options]:
    """The host's average over its conditions is `Σ mask pred / Σ mask`; strengths that add up to 1 keep it from scaling
    the guidance."""
    total = functools.reduce(torch.add, (weight.double() for _, weight in entries))
    total = torch.where(total.abs() > NEGLIGIBLE, total, NEGLIGIBLE)
    masked = []
    for one, weight in entries:
        one = {**one, "strength": 1.0 / len(entries)}
        conds = one["model_conds"]
        if several:
            conds = {**conds, "c_crossattn": _not_repeated(conds["c_crossattn"])}
        if x.dim() == MASKED_DIMENSIONS:
            one["mask"] = weight.to(x)
        elif several:  # without masks the average of n predictions is `Σ pred / n`
            conds = {**conds, WEIGHT: condition_of((weight / total * len(entries)).to(x))}
        masked.append({**one, "model_conds": conds})
    return masked


def weighing(options: Options) -> Options:
    """The host's model options with the wrapper that multiplies what the model predicts by the weights beside it."""

    def weighed(weight: Tensor, call: Callable[[Options], Tensor], c: Options) -> Tensor:
        out = call(c)
        return out * spread(weight, out)

    return taking(options, WEIGHT, weighed)


def taking(
    options: Options, name: str, use: Callable[[Tensor, Callable[[Options], Tensor], Options], Tensor]
) -> Options:
    """The host's model options with a wrapper that takes a condition of ours, which the model does not know, out of
    those of a call. use: given that condition's rows, the host's own way to predict, and the other conditions."""
    inner = options.get("model_function_wrapper")

    def wrapper(apply: Callable[..., Tensor], args: Options) -> Tensor:
        c = dict(args["c"])
        rows = c.pop(name, None)

        def call(c: Options) -> Tensor:
            return apply(args["input"], args["timestep"], **c) if inner is None else inner(apply, {**args, "c": c})

        return call(c) if rows is None else use(rows, call, c)

    return {**options, "model_function_wrapper": wrapper}


def _like(entry: Options, cond: Any, count: int) -> Options:
    """The host's condition of a prompt, for `count` images, that differs from another in the prompt only (not in the
    ControlNet, the inpainting mask, …)."""
    if isinstance(cond, dict):
        rows = {key: value[None].expand(count, *value.shape) for key, value in cond.items()}
    else:
        rows = cond[None].expand(count, *cond.shape)
    (own,) = _compile()(rows)
    return {**entry, **own, "model_conds": {**entry["model_conds"], **own["model_conds"]}}


def _compile() -> Any:
    """The host's function from conds to conditions."""
    found = facts.module("backend.sampling.condition", "modules_forge.forge_sampler")
    return getattr(found, "compile_conditions", None) or found.cond_from_a1111_to_patched_ldm


def condition_of(rows: Tensor) -> Any:
    """A condition of the host's plainest class, with a row for each image."""
    found = facts.module("backend.sampling.condition", "ldm_patched.modules.conds")
    return (getattr(found, "Condition", None) or found.CONDRegular)(rows)


def _not_repeated(cond: Any) -> Any:
    """A condition's text. To evaluate texts of different lengths together, the host repeats the shorter one, which
    changes nothing in cross-attention; where text and image attend together, it would count twice."""
    kind: Any = type(cond)
    return _class_of_same_length(kind)(cond.cond)


@functools.cache
def _class_of_same_length(kind: Any) -> Any:
    if hasattr(kind, "masknoise_same_length"):
        return kind

    def can_concat(self: Any, other: Any) -> bool:
        return self.cond.shape == other.cond.shape

    return type(kind.__name__, (kind,), {"can_concat": can_concat, "masknoise_same_length": True})
