"""What A1111 and Forge have in common inside a sampling pass: what every row of every denoiser call is conditioned on.

Both call a callback before each denoiser call, with a row for each part of each image's prompt and one for each image's
negative prompt. `Denoising` plans there what the rows see. How the rows come to see it is each host's own, a `Method`.
`sampling` puts the parts of a pass together; everything is installed by entering it and gone when it is left, however
it is left.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from modules import prompt_parser, script_callbacks, shared
from torch import Tensor

from lib_masknoise.attention import AttentionPass, Row
from lib_masknoise.conditioning import Encoded
from lib_masknoise.hosts.webui.padding import INFOTEXT, Padding
from lib_masknoise.hosts.webui.prompts import ConceptPrompts, padded_alike, sampler_name, size_embedding_width
from lib_masknoise.hosts.webui.rows import Parts, Rows
from lib_masknoise.maps import Size, extent, level_with, resize
from lib_masknoise.scene import layers
from lib_masknoise.scene.layers import Tags

RESCALING = re.compile(r"\b(Dy|SMEA|Intern)\b", re.IGNORECASE)
"""reForge's samplers that also denoise the latent at half and at 1.25 times its size."""


class Conflict(RuntimeError):
    """Another extension has taken what this one needs. The message says which and what to do."""


class Planned:
    """What the rows of a call of the model see."""

    def __init__(self) -> None:
        self.attention = AttentionPass()
        self.planned: list[Row] | None = None
        """What each row sees, the prompts' first; None outside the window: the host does as it does without us."""
        self.given_size: Size = (0, 0)

    def name_layers(self, tags: Mapping[Hashable, Tags]) -> None:
        """What the layers of the model in use are called."""
        self.attention.tags = tags

    def check(self) -> None:
        """Raise what went wrong before the call."""

    def check_size(self, size: Size) -> None:
        """What size the latent has that the U-Net is given."""
        self.given_size = size

    def size_of(self, locations: int) -> Size:
        """The level with that many locations."""
        return level_with(self.given_size, locations)


class Method(Protocol):
    """How one host's model comes to see what is planned."""

    denoising: Denoising

    def bind(self) -> None:
        """Install it on the model in use now: the refiner may have exchanged it for another in the middle of a pass."""

    def close(self) -> None:
        """Put everything back. Safe at any time, also twice."""

    def plan(self, params: Any) -> None:
        """What the coming call of the denoiser sees."""

    def after_denoiser(self, params: Any) -> None:
        """What has to be done with what the call predicted, in hosts that ask."""


@contextmanager
def sampling(
    p: Any, rows: Rows, prompts: ConceptPrompts, sampler: Any, method: Callable[[Denoising], Method]
) -> Iterator[Method]:
    """One sampling pass with the scene in it.

    p: the host's job. rows: the pass's conditionings. prompts: the concepts' prompts, encoded for this pass. sampler:
    the host's, about to sample. method: the host's way, of a pass.
    """
    denoising = Denoising(p, rows, prompts, sampler)
    with ExitStack() as stack:
        made = method(denoising)
        stack.callback(made.close)
        made.bind()
        stack.enter_context(denoising.conds.widened())
        stack.enter_context(_listening(denoising, made))
        yield made


@contextmanager
def _listening(denoising: Denoising, method: Method) -> Iterator[None]:
    def before(params: Any) -> None:
        """The host swallows what a callback raises; a picture other than the one asked for would come out. So the error
        waits for the model's call."""
        try:
            method.bind()
            method.plan(params)
        except Exception as error:
            denoising.error = error

    try:
        script_callbacks.on_cfg_denoiser(before)
        script_callbacks.on_cfg_denoised(method.after_denoiser)
        yield
    finally:
        for callback in (before, method.after_denoiser):
            script_callbacks.remove_callbacks_for_function(callback)


class Denoising(Planned):
    """What the rows of a sampling pass see at each call of the denoiser."""

    def __init__(self, p: Any, rows: Rows, prompts: ConceptPrompts, sampler: Any):
        super().__init__()
        self.p, self.rows, self.prompts, self.sampler = p, rows, prompts, sampler
        self.conds = Conds(p, rows, prompts, sampler)
        self.error: Exception | None = None
        self.weights: Tensor | None = None
        """By how much the guidance of each row of the prompts counts: `[rows, 1, h, w]`; None: the host applies it."""
        self.plain: Tensor | None = None
        """What the last call predicted without the prompts, in the terms of the host's denoiser."""
        self.guided: Tensor | None = None
        """The picture that it predicted with guidance, in hosts that tell."""
        self.given_size = rows.size
        """Of the latent that the model was given last."""
        self._padding = Padding()

    def name_layers(self, tags: Mapping[Hashable, Tags]) -> None:
        """Raises SceneError where a noise is for others."""
        layers.check(self.rows.scene.noise, tags.values())
        super().name_layers(tags)

    def check(self) -> None:
        """Raise what went wrong before the call."""
        if self.error is not None:
            raise self.error

    def plan(self, params: Any, padding: str | None = None) -> None:
        """What the rows of the coming call see. params: of the host's `on_cfg_denoiser`; its texts become alike.
        padding: the setting by which the host makes them so itself, and what the rows see with them."""
        self.planned = None
        denoiser = params.denoiser
        bases, negatives = self._bases_at(params, denoiser.step)
        if self.arrives(denoiser):
            concepts, concept_negatives = self.prompts.at(denoiser.step)
            positive = self.rows.positive(bases, concepts)
            negative = self.rows.negative(negatives, concept_negatives)
            if padding is None:
                _make_alike(params)
            elif negatives:
                others = list(itertools.chain(*concepts.values())), concept_negatives.values()
                rows, own = (positive, negative), (bases, negatives)
                positive, negative = self._padded(padding, rows, own, others)
            _set_vectors(params, positive, negative)
            self.planned = [*positive, *negative]
            self.attention.plan(row.conditioning for row in self.planned)
        weights = self._guidance_weights(bases)
        self.weights = None if weights is None else resize(weights, extent(params.x))

    def _padded(
        self,
        setting: str,
        rows: tuple[Sequence[Row], Sequence[Row]],
        own: tuple[Sequence[Parts], Sequence[Encoded]],
        concepts: tuple[Iterable[Encoded], Iterable[Encoded]],
    ) -> tuple[list[Row], list[Row]]:
        """Both sides of each image with as many tokens as the host's setting gives them.

        Each a pair, of the prompts and of the negative prompts: rows as they are, the images' own, the concepts'.
        """
        positive, negative, remaining = [], [], iter(rows[0])
        for parts, below, row in zip(*own, rows[1], strict=True):
            above = list(itertools.islice(remaining, len(parts)))
            lengths = self._longest(above, [*parts, *concepts[0]]), self._longest([row], [below, *concepts[1]])
            above, row = self._padding.apply(setting, above, row, lengths)
            positive += above
            negative.append(row)
        if any(one is not other for one, other in zip([*positive, *negative], [*rows[0], *rows[1]], strict=True)):
            self.p.extra_generation_params[INFOTEXT[setting]] = True
        return positive, negative

    def _longest(self, rows: Sequence[Row], prompts: Iterable[Encoded]) -> int:
        """Tokens of the longest prompt that some rows see. Where concepts move, frames may do without one: how long the
        others become must not depend on that."""
        if self.rows.maps.moving:
            return max(len(one.context) for one in prompts)
        return max(length for row in rows for length in row.conditioning.lengths)

    def arrives(self, denoiser: Any) -> bool:
        """Go on to a call of the denoiser. Whether it is one of those that the scene is for."""
        start, end = self.rows.scene.blend.start, self.rows.scene.blend.end
        position = self.rows.position = denoiser.step / max(denoiser.total_steps, 1)
        if position >= 1:  # DPM adaptive calls it more often than announced: that belongs to the end
            return start < end == 1
        return start <= position < end

    def check_size(self, size: Size) -> None:
        """It must be the whole latent, of whichever size."""
        super().check_size(size)
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

    def _bases_at(self, params: Any, step: int) -> tuple[list[Parts], list[Encoded]]:
        """The images' own prompts and negative prompts at a step, as other extensions have left them."""
        bases, negatives = self.prompts.base(self.conds.own, self.sampler.sampler_extra_args["uncond"], step)
        rows = iter(context_of(params.text_cond))
        given = []
        for parts in bases:
            count = self.conds.part_count or len(parts)
            own = list(itertools.islice(rows, count))[: len(parts)]
            parts = [self.prompts.as_given(one, row) for one, row in zip(parts, own, strict=True)]
            given.append(self.rows.widened(parts, count))
        if params.text_uncond is None:
            return given, []  # Forge at CFG 1
        rows = context_of(params.text_uncond)
        return given, [self.prompts.as_given(one, row) for one, row in zip(negatives, rows, strict=True)]

    def _guidance_weights(self, bases: Sequence[Parts]) -> Tensor | None:
        if self.conds.part_count is None:
            return None
        ones = torch.ones(self.rows.size)
        flat = [one for parts in bases for one in parts]
        if self.planned is None:
            maps = [ones * one.weight for one in flat]
        else:
            maps = [ones if row.weight is None else row.weight for row in self.planned[: len(flat)]]
        return torch.stack(maps)[:, None]


class Conds:
    """The host's conds of a pass, widened for prompts made of parts whose guidance is added up: `a AND b:0.5`."""

    def __init__(self, p: Any, rows: Rows, prompts: ConceptPrompts, sampler: Any):
        self.p, self.prompts, self.sampler = p, prompts, sampler
        self._blends, self._count = bool(rows.scene.concepts), len(rows.pictures)
        self.own: Any = None
        """The host's own, before they were widened."""
        self.part_count: int | None = None
        """Rows of each image's prompt where their weights are ours to apply; None where they are the host's."""

    @contextmanager
    def widened(self) -> Iterator[None]:
        """Have the host denoise as many parts as the prompt with the most parts has, also after the refiner, which
        encodes everything anew."""
        original = self.p.get_conds
        own = {name: value for name, value in vars(self.p).items() if name == "get_conds"}

        def get_conds() -> tuple[Any, Any]:
            cond, uncond = original()
            self.prompts.encode(self.p)
            return self._wide(cond), self._seen(uncond)

        conds = self.sampler.sampler_extra_args
        conds["cond"], conds["uncond"] = self._wide(conds["cond"]), self._seen(conds["uncond"])
        self.p.get_conds = get_conds
        try:
            yield
        finally:
            vars(self.p).pop("get_conds", None)
            vars(self.p).update(own)

    def _seen(self, batch: Any) -> Any:
        """Of a batch that is one video (Wan in Neo) the model sees the first prompt alone."""
        return batch if batch is None or len(batch) == self._count else batch[: self._count]

    def _wide(self, cond: Any) -> Any:
        """The host's conds with a row for every part."""
        if len(cond.batch) != self._count:
            cond = prompt_parser.MulticondLearnedConditioning(cond.shape, self._seen(cond.batch))
        self.own = cond
        parts = max(self.prompts.part_count, *map(len, cond.batch))
        weighted = self.prompts.weighted or any(entry.weight != 1.0 for image in cond.batch for entry in image)
        self.part_count = parts if self._blends and (parts > 1 or weighted) else None
        if self.part_count is None:
            return cond
        batch = []
        for image in cond.batch:
            rows = [*image, *[image[0]] * (parts - len(image))]
            batch.append([prompt_parser.ComposableScheduledPromptConditioning(row.schedules) for row in rows])
        return prompt_parser.MulticondLearnedConditioning(cond.shape, batch)


def context_of(cond: Any) -> Any:
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
            assert row.pooled is not None  # the host's own prompts have one, and so has what is blended with them
            vector[:width] = row.pooled[:width]
