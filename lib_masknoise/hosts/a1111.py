"""The A1111 host: a location conditioning inside AUTOMATIC1111's Stable Diffusion WebUI, for one sampling pass.

The WebUI's CFG denoiser calls the U-Net with a row for each part of each image's prompt, in order, and then one for
each image's negative prompt, in one call or in several. The denoiser callback, which runs before each of its calls,
plans what every row sees; a hook on the U-Net moves a cursor over these rows as they are consumed; and the
cross-attention layers (`attn2`) attend to what the rows at the cursor see.

Everything is installed by entering a `Pass` and gone when it is left, however it is left.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from modules import devices, prompt_parser, script_callbacks, shared
from modules.hypernetworks import hypernetwork
from torch import Tensor

from lib_masknoise.attention import Basis, blended_attention, project
from lib_masknoise.conditioning import Encoded, Level, LocationConditioning
from lib_masknoise.hosts.prompts import ConceptPrompts, padded_alike, size_embedding_width
from lib_masknoise.hosts.rows import Parts, Row, Rows, Share, shares
from lib_masknoise.masks import level_with


class Conflict(RuntimeError):
    """Another extension has taken what this one needs. The message says which and what to do."""


class Pass:
    """What is installed in the host during one sampling pass. A context manager, to be entered once.

    p: the host's job. rows: the pass's conditionings. prompts: the concepts' prompts, encoded for this pass. sampler:
    the host's, about to sample.
    """

    def __init__(self, p: Any, rows: Rows, prompts: ConceptPrompts, sampler: Any):
        self.p, self.rows, self.prompts, self.sampler = p, rows, prompts, sampler
        blend = rows.scene.blend
        self.window = blend.start, blend.end
        self._unet: torch.nn.Module | None = None
        self._layers: list[torch.nn.Module] = []
        self._hook: Any = None
        self._error: Exception | None = None
        self._planned: list[Row] | None = None
        self._cursor = 0
        self._shares: tuple[Share, ...] | None = None
        # Of the conditionings in `_planned`, which they name by id.
        self._placed: dict[tuple, LocationConditioning] = {}
        self._levels: dict[tuple, Level] = {}
        self._bases: dict[tuple, Basis] = {}
        self._cond: Any = None  # the host's own, before `_widened`
        self._get_conds: dict[str, Any] | None = None  # what `p` itself had of that name, before ours
        self._part_count: int | None = None
        self._weights: Tensor | None = None

    def __enter__(self) -> Pass:
        try:
            self._bind(_unet())
            self._replace_conds()
            script_callbacks.on_cfg_denoiser(self._before_denoiser)
            script_callbacks.on_cfg_denoised(self._after_denoiser)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Put everything back. Safe at any time, also twice."""
        for callback in (self._before_denoiser, self._after_denoiser):
            script_callbacks.remove_callbacks_for_function(callback)
        if self._get_conds is not None:
            vars(self.p).pop("get_conds", None)
            vars(self.p).update(self._get_conds)
            self._get_conds = None
        self._unbind()
        for known in (self._placed, self._levels, self._bases):
            known.clear()

    # --- The U-Net and its layers

    def _bind(self, unet: torch.nn.Module) -> None:
        """Move to a U-Net, which the refiner may exchange for another in the middle of a pass."""
        if unet is self._unet:
            return
        self._unbind()
        # First of all, so that what is wrong with a refiner surfaces at its call and not as a plain picture.
        self._unet = unet
        self._hook = unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)
        layers = [module for name, module in unet.named_modules() if name.endswith("attn2") and hasattr(module, "to_q")]
        if not layers:
            raise Conflict(f"{type(unet).__name__} has no cross-attention layers: expected Stable Diffusion 1, 2 or XL")
        for layer in layers:
            if "forward" in vars(layer):
                raise Conflict(_taken(layer.forward))
        self._layers = layers
        for layer in layers:
            layer.forward = functools.partial(self._attend, layer)

    def _unbind(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        for layer in self._layers:
            vars(layer).pop("forward", None)
        self._unet, self._layers, self._hook = None, [], None

    # --- Before each call of the denoiser

    def _before_denoiser(self, params: Any) -> None:
        """The host swallows what a callback raises; a picture other than the one asked for would come out. So the error
        waits for the U-Net."""
        try:
            self._plan(params)
        except Exception as error:
            self._error = error

    def _plan(self, params: Any) -> None:
        self._bind(_unet())
        self._cursor, self._shares, self._planned = 0, None, None
        denoiser = params.denoiser
        start, end = self.window
        bases, negatives = self._bases_at(params, denoiser.step)
        if start <= denoiser.step / max(denoiser.total_steps, 1) < end:
            concepts, concept_negatives = self.prompts.at(denoiser.step)
            positive = self.rows.positive(bases, concepts)
            negative = self.rows.negative(negatives, concept_negatives)
            _make_alike(params)
            _set_vectors(params, positive, negative)
            self._planned = [*positive, *negative]
            self._forget_others(self._planned)
        self._weights = self._guidance_weights(bases)

    def _bases_at(self, params: Any, step: int) -> tuple[list[Parts], list[Encoded]]:
        """The images' own prompts and negative prompts at a step, as other extensions have left them."""
        bases, negatives = self.prompts.base(self._cond, self.sampler.sampler_extra_args["uncond"], step)
        rows = iter(_context(params.text_cond))
        given = []
        for parts in bases:
            count = self._part_count or len(parts)
            own = list(itertools.islice(rows, count))[: len(parts)]
            parts = [self.prompts.as_given(one, row) for one, row in zip(parts, own, strict=True)]
            given.append(self.rows.widened(parts, count))
        rows = _context(params.text_uncond)
        return given, [self.prompts.as_given(one, row) for one, row in zip(negatives, rows, strict=True)]

    def _forget_others(self, rows: Sequence[Row]) -> None:
        """Prompts that change at every step must not fill the memory."""
        alive = {id(row.conditioning) for row in rows}
        for known in (self._placed, self._levels, self._bases):
            for key in [key for key in known if key[0] not in alive]:
                del known[key]

    # --- Each call of the U-Net

    def _before_unet(self, unet: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if self._error is not None:
            raise self._error
        if self._planned is None:
            return
        x = args[0] if args else kwargs["x"]
        size = tuple(x.shape[-2:])
        if size != self.rows.size:
            (h, w), (height, width) = size, self.rows.size
            raise Conflict(
                f"the U-Net was given a piece of {h}×{w} of a latent of {height}×{width}: another extension samples in "
                "tiles (Tiled Diffusion?), and masks know the whole image only; switch it off or MaskNoise"
            )
        rows = self._planned[self._cursor : self._cursor + len(x)]
        self._cursor += len(x)
        if len(rows) != len(x):
            raise Conflict(
                f"the U-Net was given row {self._cursor} of {len(self._planned)}: another extension calls it more "
                "often than the denoiser does; switch it off or MaskNoise"
            )
        self._shares = shares(rows)

    def _attend(
        self, layer: torch.nn.Module, x: Tensor, context: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """A cross-attention layer's forward: `[rows, h·w, C]` → the same."""
        if self._shares is None:
            return type(layer).forward(layer, x, context, *args, **kwargs)
        q = layer.to_q(x)
        wide = q.float() if shared.opts.upcast_attn else q
        size = level_with(self.rows.size, x.shape[1])
        parts = [
            (_span(share.rows), self._basis(layer, share, q, wide.dtype), self._level(share, size, wide))
            for share in self._shares
        ]
        with devices.without_autocast():
            out = torch.empty_like(wide)
            for rows, basis, level in parts:
                out[rows] = blended_attention(wide[rows], basis, level, layer.scale)
        return layer.to_out(out.to(q.dtype))

    def _place(self, conditioning: LocationConditioning, like: Tensor) -> LocationConditioning:
        key = id(conditioning), like.device, like.dtype
        if key not in self._placed:
            self._placed[key] = conditioning.to(like.device, like.dtype)
        return self._placed[key]

    def _basis(self, layer: torch.nn.Module, share: Share, q: Tensor, dtype: torch.dtype) -> Basis:
        key = id(share.conditioning), id(layer)
        if key not in self._bases:
            placed = self._place(share.conditioning, q)
            self._bases[key] = project(placed, layer.to_k, layer.to_v, layer.heads, _hypernetworks()).to(dtype)
        return self._bases[key]

    def _level(self, share: Share, size: tuple[int, int], like: Tensor) -> Level:
        key = id(share.conditioning), share.picks, size
        if key not in self._levels:
            self._levels[key] = self._place(share.conditioning, like).level(size).pick(share.picks)
        return self._levels[key]

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

    def _after_denoiser(self, params: Any) -> None:
        """`uncond + w_k (cond_k − uncond)` for `cond_k`, so that the host's sum over k weighs by location."""
        if self._weights is None or self._error is not None:
            return
        count = len(self._weights)
        negative = params.x[count:]
        of_image = negative.repeat_interleave(count // len(negative), dim=0)
        params.x[:count] = of_image + (params.x[:count] - of_image) * self._weights.to(params.x)


def _unet() -> torch.nn.Module:
    return shared.sd_model.model.diffusion_model


def _context(cond: Any) -> Tensor:
    """`[rows, T, D]` of the host's conds of a step, which are a dictionary for SDXL."""
    return cond["crossattn"] if isinstance(cond, dict) else cond


def _make_alike(params: Any) -> None:
    """Prompt and negative prompt with equally many tokens: the host then makes one U-Net call for both."""
    cond, uncond = padded_alike(_context(params.text_cond), _context(params.text_uncond))
    if isinstance(params.text_cond, dict):
        params.text_cond["crossattn"], params.text_uncond["crossattn"] = cond, uncond
    else:
        params.text_cond, params.text_uncond = cond, uncond


def _set_vectors(params: Any, positive: Sequence[Row], negative: Sequence[Row]) -> None:
    """The pooled embeddings of SDXL, blended. The rest of its vector, the image's size, stays the host's."""
    if not isinstance(params.text_cond, dict) or "vector" not in params.text_cond:
        return
    for cond, rows in ((params.text_cond, positive), (params.text_uncond, negative)):
        width = cond["vector"].shape[1] - size_embedding_width(shared.sd_model)
        for vector, row in zip(cond["vector"], rows, strict=True):
            vector[:width] = row.pooled[:width]


def _hypernetworks() -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """What loaded hypernetworks make of a context, for the keys and for the values."""
    loaded = shared.loaded_hypernetworks
    return functools.partial(hypernetwork.apply_hypernetworks, loaded) if loaded else None


def _span(rows: Sequence[int]) -> slice | list[int]:
    """Rows as an index: a slice, which copies nothing, where they follow each other."""
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first + 1 == len(rows) else list(rows)


def _taken(forward: Any) -> str:
    forward = getattr(forward, "func", forward)
    file = inspect.getsourcefile(inspect.unwrap(forward)) or "unknown"
    return (
        f"the cross-attention layers are taken by another extension ({file}), Regional Prompter for one: switch it off "
        "or MaskNoise. If it is switched off already, its last job may have left them so; restart the WebUI then"
    )
