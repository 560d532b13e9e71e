"""Concept prompts through a WebUI's own prompt parser and text encoders: emphasis, BREAK, AND, `[a:b:0.5]`, textual
inversion, clip skip and extra networks mean in a concept what they mean in the prompt.

Imports `modules`, which A1111, Forge and their kin share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from modules import extra_networks, paths_internal, prompt_parser, script_loading, sd_samplers, shared
from torch import Tensor

from lib_masknoise.conditioning import Encoded, negatives, prompts
from lib_masknoise.hosts.webui import facts
from lib_masknoise.hosts.webui.rows import Parts
from lib_masknoise.scene import Scene
from lib_masknoise.wildcards import Wildcards

CONTROLNET_MARK = 1024.0

Reading = Callable[[Tensor], Tensor]
"""What a model makes of a text before its layers see it: `[T, D]` → `[T, D']`."""

Schedule = Sequence[Any]
"""The host's `ScheduledPromptConditioning`s: (end_at_step, cond), where cond is `[T, D]` or a dictionary (SDXL)."""


def without_networks(texts: Iterable[str], networks: dict[str, list[Any]]) -> dict[str, str]:
    """Prompts and what is left of each without comments, and without `<lora:…>` and the like, which are added to
    `networks`, parsed by the host."""
    plain = {}
    for text in texts:
        plain[text], found = extra_networks.parse_prompt(without_comments(text))
        for kind, entries in found.items():
            networks.setdefault(kind, []).extend(entries)
    return plain


def without_comments(text: str) -> str:
    """Without what stands behind a `#` (in Neo a `//` too), where the host takes that away from its own prompts."""
    if not getattr(shared.opts, "enable_prompt_comments", False):
        return text
    # The host loads its scripts as modules that cannot be imported by name; importing would run this one again.
    for path, module in script_loading.loaded_scripts.items():
        if path.replace("\\", "/").endswith(COMMENTS):
            return module.strip_comments(text)
    return text


COMMENTS = "modules/processing_scripts/comments.py"


def network_tags(networks: Mapping[str, list[Any]], present: Mapping[str, list[Any]]) -> str:
    """`<lora:name:1>…` of the networks that are not among those present: the first to name one decides its strength."""
    tags = []
    named = {(kind, _name(entry)) for kind, entries in present.items() for entry in entries}
    for kind, entries in networks.items():
        for entry in entries:
            if (kind, _name(entry)) not in named:
                named.add((kind, _name(entry)))
                tags.append(f"<{kind}:{':'.join(entry.items)}>")
    return "".join(tags)


def _name(entry: Any) -> str:
    return entry.items[0] if entry.items else ""


WILDCARDS = "masknoise_wildcards"
"""The setting with a folder of wildcards, besides those of the extensions that people have them from."""

EXTENSIONS = {"sd-dynamic-prompts": "wildcard_dir", "stable-diffusion-webui-wildcards": "wildcards_dir"}
"""The extensions with a folder `wildcards`, and the setting or the argument of the host that names another one."""


def wildcards() -> Wildcards:
    """The files that `__name__` in a concept's prompt means: where the prompt's own lie."""
    given = [getattr(shared.opts, WILDCARDS, "")]
    for extension, setting in EXTENSIONS.items():
        other = getattr(shared.opts, setting, None) or getattr(shared.cmd_opts, setting, None)
        given.append(other or Path(getattr(paths_internal, "extensions_dir", "extensions")) / extension / "wildcards")
    return Wildcards([folder for folder in given if folder])


KEPT = 256
"""Encoded prompts from pass to pass. The images of a long job may each have a prompt of their own."""


class ConceptPrompts:
    """The concepts' prompts as the host encodes them for a sampling pass; kept as long as nothing they depend on
    changes (the model, clip skip, the steps, …: what the host itself compares)."""

    def __init__(self, *scenes: Scene):
        """scenes: of a batch's images, which differ in what their concepts say alone."""
        self.networks: dict[str, list[Any]] = {}
        self._prompts = without_networks(chain.from_iterable(map(prompts, scenes)), self.networks)
        self._negatives = without_networks(chain.from_iterable(map(negatives, scenes)), self.networks)
        self._caches: dict[tuple[str, bool, bool], list[Any]] = {}
        self._read: Reading | None = None
        self._encodings = Encodings()
        self._multiconds: dict[str, Any] = {}
        self._schedules: dict[str, Schedule] = {}

    def read_by(self, read: Reading | None) -> None:
        """What the model in use makes of a text before its layers see it: that is blended."""
        if read is not self._read:
            self._read, self._encodings = read, Encodings(read)

    def encode(self, p: Any) -> None:
        """Encode everything for the pass that `p` is about to make. Raises what the host raises."""
        if len(self._encodings) > KEPT:
            self._encodings = Encodings(self._read)
        multi, single = prompt_parser.get_multicond_learned_conditioning, prompt_parser.get_learned_conditioning
        # A negative prompt of networks alone is none.
        own = {text: plain for text, plain in self._negatives.items() if plain}
        with facts.references_kept():
            conds = {text: self._conds(p, multi, plain, False) for text, plain in self._prompts.items()}
            self._schedules = {text: self._conds(p, single, plain, True)[0] for text, plain in own.items()}
        self._multiconds = {text: one.batch[0] for text, one in conds.items()}

    def negative(self, p: Any, text: str) -> Any:
        """The host's conds of one negative prompt, for a pass that goes without any."""
        return self._conds(p, prompt_parser.get_learned_conditioning, text, True)

    def _conds(self, p: Any, function: Any, text: str, negative: bool) -> Any:
        size = (p.hr_upscale_to_x, p.hr_upscale_to_y) if p.is_hr_pass else (p.width, p.height)
        # One at a time: the host pads prompts that it encodes together to the longest one.
        texts = prompt_parser.SdConditioning([text], negative, *size)
        # Forge: models that were distilled with a guidance scale have it in the conds.
        texts.distilled_cfg_scale = getattr(p, "hr_distilled_cfg" if p.is_hr_pass else "distilled_cfg_scale", None)
        networks = p.hr_extra_network_data if p.is_hr_pass else p.extra_network_data
        steps, hires_steps = _steps(p)
        cache = self._caches.setdefault((text, negative, p.is_hr_pass), [None, None])
        facts.refer(p)
        return p.get_conds_with_caching(function, texts, steps, [cache], networks, hires_steps)

    def at(self, step: int) -> tuple[dict[str, Parts], dict[str, Encoded]]:
        """Prompts and negative prompts at a denoiser step, by their texts in the scene."""
        positive = {text: self._encodings.parts(parts, step) for text, parts in self._multiconds.items()}
        negative = {text: self._encodings.one(active(one, step)) for text, one in self._schedules.items()}
        return positive, negative

    def conds_at(self, step: int) -> tuple[dict[str, list[tuple[Any, float]]], dict[str, Any]]:
        """The same as the host has them: conds and weights of the prompts' parts, and conds of the negative prompts."""
        positive = {
            text: [(active(part.schedules, step), part.weight) for part in parts]
            for text, parts in self._multiconds.items()
        }
        return positive, {text: active(one, step) for text, one in self._schedules.items()}

    def base(self, cond: Any, uncond: Any, step: int) -> tuple[list[Parts], list[Encoded]]:
        """The same of the images' own prompts, from the host's conds of the batch."""
        positive = [self._encodings.parts(parts, step) for parts in cond.batch]
        return positive, [self._encodings.one(active(one, step)) for one in uncond or ()]  # Forge: none at CFG 1

    def as_given(self, encoded: Encoded, context: Tensor) -> Encoded:
        """What a row of the host's contexts `[T', D]` holds: the prompt as it was encoded (with T ≤ T' tokens), or what
        another extension has made of it since."""
        known = self._encodings.source(encoded)
        if torch.equal(context[: len(known)], known.to(context)):
            return encoded
        return replace(encoded_context(context, self._read), pooled=encoded.pooled, weight=encoded.weight)

    @property
    def part_count(self) -> int:
        """Parts (`a AND b`) of the concept prompt that has the most."""
        return max((len(parts) for parts in self._multiconds.values()), default=1)

    @property
    def weighted(self) -> bool:
        """Whether a part of a concept prompt counts other than once."""
        return any(entry.weight != 1.0 for parts in self._multiconds.values() for entry in parts)


class Encodings:
    """One Encoded for each cond of the host, as long as that lives. read: as of `encoded_context`."""

    def __init__(self, read: Reading | None = None) -> None:
        self._read = read
        self._known: dict[tuple[int, float], tuple[Any, Encoded]] = {}
        self._sources: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._known)

    def parts(self, parts: Sequence[Any], step: int) -> Parts:
        """Of the host's `ComposableScheduledPromptConditioning`s (schedules, weight) at a step."""
        return [self.one(active(entry.schedules, step), entry.weight) for entry in parts]

    def one(self, cond: Any, weight: float = 1.0) -> Encoded:
        key = id(cond), weight
        if key not in self._known:
            context, vector = (cond["crossattn"], cond.get("vector")) if isinstance(cond, dict) else (cond, None)
            pooled = None if vector is None else vector.float().cpu()
            self._known[key] = cond, replace(encoded_context(context, self._read), pooled=pooled, weight=weight)
            self._sources[id(self._known[key][1])] = context
        return self._known[key][1]

    def source(self, encoded: Encoded) -> Tensor:
        """The host's own context that it was made from, `[T, D]`."""
        return self._sources[id(encoded)]


def encoded_context(context: Tensor, read: Reading | None = None) -> Encoded:
    """A host's context `[T, D]`, or `[1, T, D]` (Anima in Neo), filled up with zeros that the model sees. So is
    one that the model reads in layers of its own before (Wan in Neo): then the context is what these make of it."""
    context = unmarked(context).detach().float().cpu()
    if context.dim() == 2 and read is None:
        return Encoded(context)
    context = context.flatten(0, -2)
    filled = context.any(dim=1).nonzero()
    length = int(filled[-1]) + 1 if len(filled) else 1
    rows = torch.cat([context[:length], context.new_zeros(1, context.shape[1])])
    rows = rows if read is None else read(rows)
    return Encoded(rows[:-1], filler=rows[-1], full=len(context))


def unmarked(context: Tensor) -> Tensor:
    """`[T, D]` without the token that ControlNet puts before every prompt, by which it tells prompts from negative ones
    and which it takes off again before the attention layers: all its numbers are 1024 or −1024."""
    return context[1:] if torch.all(context[0].abs() == CONTROLNET_MARK) else context


def active(schedule: Schedule, step: int) -> Any:
    """The cond that holds at a step, as the host's `reconstruct_cond_batch` picks it."""
    for end_at_step, cond in schedule:
        if step <= end_at_step:
            return cond
    return schedule[0][1]


def _steps(p: Any) -> tuple[int, int | None]:
    """The denoiser steps that prompt editing refers to: of the first pass, and of the second one during hires fix."""

    def total(sampler: str, steps: int) -> int:
        config = sd_samplers.find_sampler_config(sampler)
        return config.total_steps(steps) if config else steps

    if p.is_hr_pass:
        return p.firstpass_steps, total(sampler_name(p), p.hr_second_pass_steps or p.steps)
    return total(sampler_name(p), p.steps), None


def sampler_name(p: Any) -> str:
    """Of the pass that `p` is about to make, as the host lists it."""
    return (p.hr_sampler_name if p.is_hr_pass else None) or p.sampler_name


def token_count(text: str) -> str:
    """A prompt's tokens as the host counts them beside its own prompt: "12/75", "" where it cannot yet."""
    from modules.ui import update_token_counter  # the user interface is loaded after the scripts

    shown = re.search(r"\d+/\d+", update_token_counter(text, 20, []))
    return shown[0] if shown else ""


def size_embedding_width(sd_model: Any) -> int:
    """How many numbers at the end of SDXL's vector say the image's size and not its prompt: they are not blended."""
    embedder: Any = getattr(sd_model, "embedder", None)
    if hasattr(embedder, "dim"):  # Forge and Neo: three pairs, of the refiner two and the aesthetic score
        return embedder.dim * (6 if hasattr(sd_model, "text_processing_engine_l") else 5)
    embedders = getattr(getattr(sd_model, "conditioner", None), "embedders", ())
    numbers = {"aesthetic_score": 1}  # the others (original size, crop, target size) are pairs
    sizes = (e for e in embedders if type(e).__name__ == "ConcatTimestepEmbedderND")
    return sum(numbers.get(e.input_key, 2) * e.outdim for e in sizes)


def padded_alike(cond: Tensor, uncond: Tensor) -> tuple[Tensor, Tensor]:
    """Both `[rows, T, D]` with as many tokens, so that the host needs one U-Net call for them: the shorter is filled up
    with the empty prompt, as the host's "Pad prompt/negative prompt" does. What a row's cross-attention sees are its
    own true contexts; only networks beside the U-Net (ControlNet) see the filling."""
    length = max(cond.shape[1], uncond.shape[1])
    return _padded(cond, length), _padded(uncond, length)


def _padded(context: Tensor, length: int) -> Tensor:
    missing = length - context.shape[1]
    if missing <= 0:
        return context
    empty = getattr(shared.sd_model, "cond_stage_model_empty_prompt", None)
    if empty is None or empty.shape[-1] != context.shape[-1]:
        filling = context[:, -1:].expand(-1, missing, -1)
    else:
        repeats = -(-missing // empty.shape[1])
        filling = empty.to(context).repeat(len(context), repeats, 1)[:, :missing]
    return torch.cat([context, filling], dim=1)
