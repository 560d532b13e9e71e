"""Prompts as schedules of contexts: `[before:after:when]` changes a prompt at a step, `a AND b:0.5` has two parts."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor


class SdConditioning(list):
    """Prompts, with the size of the image that they are for."""

    def __init__(
        self, prompts: list[str], is_negative_prompt: bool = False, width: int | None = None, height: int | None = None
    ):
        super().__init__(prompts)
        self.is_negative_prompt, self.width, self.height = is_negative_prompt, width, height
        self.distilled_cfg_scale: float | None = None

    def of_same_kind(self, texts: list[str]) -> SdConditioning:
        """Other prompts for the same image."""
        others = SdConditioning(texts, self.is_negative_prompt, self.width, self.height)
        others.distilled_cfg_scale = self.distilled_cfg_scale
        return others


class ScheduledPromptConditioning(NamedTuple):
    end_at_step: int
    cond: Any


class ComposableScheduledPromptConditioning:
    def __init__(self, schedules: list[ScheduledPromptConditioning], weight: float = 1.0):
        self.schedules, self.weight = schedules, weight


class MulticondLearnedConditioning:
    def __init__(self, shape: tuple, batch: list[list[ComposableScheduledPromptConditioning]]):
        self.shape, self.batch = shape, batch


class DictWithShape(dict):
    @property
    def shape(self) -> torch.Size:
        return self["crossattn"].shape


_EDIT = re.compile(r"\[(?:([^\[\]:]*):)?([^\[\]:]*):([\d.]+)\]")
_PART = re.compile(r"^(.*?)(?:\s*:\s*([-+]?[\d.]+))?\s*$", re.S)


def text_schedule(text: str, steps: int, hires_steps: int | None = None) -> list[tuple[int, str]]:
    """(last step, text) pairs. In the hires pass the steps of the first pass have passed already: fractions from 1 on
    and whole numbers from `steps` on are its own."""
    count = hires_steps or steps

    def switch(number: str) -> int:
        if "." in number:
            return min(count, int((float(number) - (hires_steps is not None)) * count))
        return min(count, int(number) - (0 if hires_steps is None else steps))

    ends = {count, *(when for *_, number in _EDIT.findall(text) if (when := switch(number)) >= 1)}
    return [
        (end, _EDIT.sub(lambda found: (found[1] or "") if end <= switch(found[3]) else found[2], text))  # noqa: B023
        for end in sorted(ends)
    ]


def get_learned_conditioning(
    model: Any, prompts: SdConditioning, steps: int, hires_steps: int | None = None, use_old_scheduling: bool = False
) -> list[list[ScheduledPromptConditioning]]:
    made: dict[str, list[ScheduledPromptConditioning]] = {}
    for prompt in prompts:
        if prompt not in made:
            schedule = text_schedule(prompt, steps, hires_steps)
            conds = model.get_learned_conditioning(prompts.of_same_kind([text for _, text in schedule]))
            made[prompt] = [ScheduledPromptConditioning(end, _item(conds, i)) for i, (end, _) in enumerate(schedule)]
    return [made[prompt] for prompt in prompts]


def get_multicond_learned_conditioning(
    model: Any, prompts: SdConditioning, steps: int, hires_steps: int | None = None, use_old_scheduling: bool = False
) -> MulticondLearnedConditioning:
    split = [[_PART.match(part).groups() for part in re.split(r"\bAND\b", prompt)] for prompt in prompts]
    texts = prompts.of_same_kind(list(dict.fromkeys(text for parts in split for text, _ in parts)))
    schedules = get_learned_conditioning(model, texts, steps, hires_steps, use_old_scheduling)
    of_text = dict(zip(texts, schedules, strict=True))
    batch = [
        [ComposableScheduledPromptConditioning(of_text[text], float(weight or 1.0)) for text, weight in parts]
        for parts in split
    ]
    return MulticondLearnedConditioning((len(prompts),), batch)


def _item(conds: Any, index: int) -> Any:
    return {key: rows[index] for key, rows in conds.items()} if isinstance(conds, dict) else conds[index]


def _at(schedule: list[ScheduledPromptConditioning], step: int) -> Any:
    return next((cond for end, cond in schedule if step <= end), schedule[0].cond)


def _stacked(conds: list[Any]) -> Any:
    """Copies, so that callbacks may change them. Shorter contexts are filled up with their last token."""
    if isinstance(conds[0], dict):
        return DictWithShape({key: _stacked([cond[key] for cond in conds]) for key in conds[0]})
    if conds[0].dim() != 2:
        return torch.stack(conds)
    length = max(map(len, conds))
    return torch.stack([torch.cat([cond, cond[-1:].expand(length - len(cond), -1)]) for cond in conds])


def reconstruct_cond_batch(schedules: list[list[ScheduledPromptConditioning]], step: int) -> Any:
    return _stacked([_at(schedule, step) for schedule in schedules])


def reconstruct_multicond_batch(cond: MulticondLearnedConditioning, step: int) -> tuple[list[list[float]], Any]:
    """The weights of each image's parts, and the contexts of all parts, image by image."""
    weights = [[part.weight for part in parts] for parts in cond.batch]
    return weights, _stacked([_at(part.schedules, step) for parts in cond.batch for part in parts])


def padded(context: Tensor, length: int, filling: Tensor) -> Tensor:
    """`[rows, T, D]` with `length` tokens, the missing ones from `filling` `[T', D]` over and over."""
    missing = length - context.shape[1]
    tokens = filling.repeat(-(-missing // len(filling)), 1)[:missing] if missing > 0 else filling[:0]
    return torch.cat([context, tokens.expand(len(context), -1, -1)], dim=1)
