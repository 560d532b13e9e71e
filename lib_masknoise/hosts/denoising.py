"""What A1111 and Forge have in common inside a sampling pass: what every row of every denoiser call is conditioned on.

Both call a callback before each denoiser call, with a row for each part of each image's prompt and one for each image's
negative prompt. `Denoising` plans there what the rows see. How the rows come to see it is each host's own: `a1111.Pass`
and `forge.Pass`. Everything is installed by entering a pass and gone when it is left, however it is left.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from modules import prompt_parser, script_callbacks, shared
from torch import Tensor

from lib_masknoise.conditioning import Encoded, Level, LocationConditioning
from lib_masknoise.hosts.prompts import ConceptPrompts, padded_alike, sampler_name, size_embedding_width
from lib_masknoise.hosts.rows import Parts, Row, Rows, Share
from lib_masknoise.masks import Size, level_with, resize

RESCALING = re.compile(r"\b(Dy|SMEA|Intern)\b", re.IGNORECASE)
"""reForge's samplers that also denoise the latent at half and at 1.25 times its size."""


class Conflict(RuntimeError):
    """Another extension has taken what this one needs. The message says which and what to do."""


class Denoising:
    """One sampling pass. A context manager, to be entered once.

    p: the host's job. rows: the pass's conditionings. prompts: the concepts' prompts, encoded for this pass. sampler:
    the host's, about to sample.
    """

    def __init__(self, p: Any, rows: Rows, prompts: ConceptPrompts, sampler: Any):
        self.p, self.rows, self.prompts, self.sampler = p, rows, prompts, sampler
        blend = rows.scene.blend
        self.window = blend.start, blend.end
        self._error: Exception | None = None
        self._given_size = rows.size
        self._planned: list[Row] | None = None  # None outside the window: the host does as it does without us
        self._weights: Tensor | None = None
        self._cond: Any = None  # the host's own, before `_widened`
        self._get_conds: dict[str, Any] | None = None  # what `p` itself had of that name, before ours
        self._part_count: int | None = None
        # Of the conditionings in `_planned`, which they name by id.
        self._placed: dict[tuple, LocationConditioning] = {}
        self._levels: dict[tuple, Level] = {}
        self._bases: dict[tuple, Any] = {}

    def __enter__(self) -> Denoising:
        try:
            self._bind()
            self._replace_conds()
            self._listen()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Put everything back. Safe at any time, also twice."""
        for callback in self._callbacks():
            script_callbacks.remove_callbacks_for_function(callback)
        if self._get_conds is not None:
            vars(self.p).pop("get_conds", None)
            vars(self.p).update(self._get_conds)
            self._get_conds = None
        self._unbind()
        for known in (self._placed, self._levels, self._bases):
            known.clear()

    # --- Each host's own

    def _bind(self) -> None:
        """Install what makes the rows see what is planned, on the U-Net in use now: the refiner may have exchanged it
        for another in the middle of a pass."""
        raise NotImplementedError

    def _unbind(self) -> None:
        raise NotImplementedError

    def _callbacks(self) -> Sequence[Callable[[Any], None]]:
        return [self._before_denoiser]

    def _listen(self) -> None:
        script_callbacks.on_cfg_denoiser(self._before_denoiser)

    # --- Before each call of the denoiser

    def _before_denoiser(self, params: Any) -> None:
        """The host swallows what a callback raises; a picture other than the one asked for would come out. So the error
        waits for the U-Net."""
        try:
            self._bind()
            self._plan(params)
        except Exception as error:
            self._error = error

    def _plan(self, params: Any) -> None:
        self._planned = None
        denoiser = params.denoiser
        bases, negatives = self._bases_at(params, denoiser.step)
        if self._inside(denoiser):
            concepts, concept_negatives = self.prompts.at(denoiser.step)
            positive = self.rows.positive(bases, concepts)
            negative = self.rows.negative(negatives, concept_negatives)
            _make_alike(params)
            _set_vectors(params, positive, negative)
            self._planned = [*positive, *negative]
            self._forget_others(self._planned)
        weights = self._guidance_weights(bases)
        self._weights = None if weights is None else resize(weights, tuple(params.x.shape[-2:]))

    def _inside(self, denoiser: Any) -> bool:
        """Whether a call of the denoiser is one of those that the scene is for."""
        start, end = self.window
        position = denoiser.step / max(denoiser.total_steps, 1)
        if position >= 1:  # DPM adaptive calls it more often than announced: that belongs to the end
            return start < end == 1
        return start <= position < end

    def _bases_at(self, params: Any, step: int) -> tuple[list[Parts], list[Encoded]]:
        """The images' own prompts and negative prompts at a step, as other extensions have left them."""
        bases, negatives = self.prompts.base(self._cond, self.sampler.sampler_extra_args["uncond"], step)
        rows = iter(context_of(params.text_cond))
        given = []
        for parts in bases:
            count = self._part_count or len(parts)
            own = list(itertools.islice(rows, count))[: len(parts)]
            parts = [self.prompts.as_given(one, row) for one, row in zip(parts, own, strict=True)]
            given.append(self.rows.widened(parts, count))
        if params.text_uncond is None:
            return given, []  # Forge at CFG 1
        rows = context_of(params.text_uncond)
        return given, [self.prompts.as_given(one, row) for one, row in zip(negatives, rows, strict=True)]

    def _forget_others(self, rows: Sequence[Row]) -> None:
        """Prompts that change at every step must not fill the memory."""
        alive = {id(row.conditioning) for row in rows}
        for known in (self._placed, self._levels, self._bases):
            for key in [key for key in known if key[0] not in alive]:
                del known[key]

    def _place(self, conditioning: LocationConditioning, like: Tensor) -> LocationConditioning:
        key = id(conditioning), like.device, like.dtype
        if key not in self._placed:
            self._placed[key] = conditioning.to(like.device, like.dtype)
        return self._placed[key]

    def _level(self, share: Share, size: Size, like: Tensor) -> Level:
        key = id(share.conditioning), share.picks, size
        if key not in self._levels:
            self._levels[key] = self._place(share.conditioning, like).level(size).pick(share.picks)
        return self._levels[key]

    def _size(self, locations: int) -> Size:
        return level_with(self._given_size, locations)

    def _check_size(self, size: Size) -> None:
        """What the U-Net is given must be the whole latent, of whichever size."""
        self._given_size = size
        if size != self.rows.size and not self._rescales(size):
            (h, w), (height, width) = size, self.rows.size
            raise Conflict(
                f"the U-Net was given a piece of {h}×{w} of a latent of {height}×{width}: another extension samples in "
                "tiles (Tiled Diffusion?), and masks know the whole image only; switch it off or MaskNoise"
            )

    def _rescales(self, size: Size) -> bool:
        """Whether it is the whole latent at another size. The sampler's name tells: a tile may have the same shape."""
        (h, w), (height, width) = size, self.rows.size
        return bool(RESCALING.search(sampler_name(self.p))) and abs(h * width - w * height) < max(height, width)

    # --- Prompts made of parts whose guidance is added up: `a AND b:0.5`

    def _replace_conds(self) -> None:
        """Have the host denoise as many parts as the prompt with the most parts has, also after the refiner, which
        encodes everything anew."""
        original = self.p.get_conds

        def get_conds() -> tuple[Any, Any]:
            cond, uncond = original()
            self.prompts.encode(self.p)
            return self._widened(cond), uncond

        conds = self.sampler.sampler_extra_args
        conds["cond"] = self._widened(conds["cond"])
        self._get_conds = {name: value for name, value in vars(self.p).items() if name == "get_conds"}
        self.p.get_conds = get_conds

    def _widened(self, cond: Any) -> Any:
        """The host's conds with a row for every part; the weights of the parts become ours to apply."""
        self._cond = cond
        parts = max(self.prompts.part_count, *map(len, cond.batch))
        weighted = self.prompts.weighted or any(entry.weight != 1.0 for image in cond.batch for entry in image)
        self._part_count = parts if self.rows.scene.concepts and (parts > 1 or weighted) else None
        if self._part_count is None:
            return cond
        batch = []
        for image in cond.batch:
            rows = [*image, *[image[0]] * (parts - len(image))]
            batch.append([prompt_parser.ComposableScheduledPromptConditioning(row.schedules) for row in rows])
        return prompt_parser.MulticondLearnedConditioning(cond.shape, batch)

    def _guidance_weights(self, bases: Sequence[Parts]) -> Tensor | None:
        """By how much the guidance of each row counts: `[rows, 1, h, w]`; None where the host applies the weights."""
        if self._part_count is None:
            return None
        ones = torch.ones(self.rows.size)
        flat = [one for parts in bases for one in parts]
        if self._planned is None:
            maps = [ones * one.weight for one in flat]
        else:
            maps = [ones if row.weight is None else row.weight for row in self._planned[: len(flat)]]
        return torch.stack(maps)[:, None]


def context_of(cond: Any) -> Tensor | None:
    """`[rows, T, D]` of the host's conds of a step, which are a dictionary for SDXL; None of None."""
    return cond["crossattn"] if isinstance(cond, dict) else cond


def _make_alike(params: Any) -> None:
    """Prompt and negative prompt with equally many tokens: the host then makes one U-Net call for both."""
    if params.text_uncond is None:
        return
    cond, uncond = padded_alike(context_of(params.text_cond), context_of(params.text_uncond))
    if isinstance(params.text_cond, dict):
        params.text_cond["crossattn"], params.text_uncond["crossattn"] = cond, uncond
    else:
        params.text_cond, params.text_uncond = cond, uncond


def _set_vectors(params: Any, positive: Sequence[Row], negative: Sequence[Row]) -> None:
    """The pooled embeddings of SDXL, blended. The rest of its vector, the image's size, stays the host's."""
    if not isinstance(params.text_cond, dict) or "vector" not in params.text_cond:
        return
    for cond, rows in ((params.text_cond, positive), (params.text_uncond, negative)):
        if cond is None:
            continue
        width = cond["vector"].shape[1] - size_embedding_width(shared.sd_model)
        for vector, row in zip(cond["vector"], rows, strict=True):
            vector[:width] = row.pooled[:width]
