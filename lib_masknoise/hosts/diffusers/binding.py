"""A location conditioning on a U-Net of diffusers, for one sampling pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from lib_masknoise.attention import AttentionPass, Share
from lib_masknoise.conditioning import LocationConditioning
from lib_masknoise.hosts.diffusers.blocks import layer_tags
from lib_masknoise.maps import Size, extent, level_with
from lib_masknoise.scene.layers import Tags

# Processors that compute plain cross-attention: replacing one changes nothing but the contexts.
PLAIN_PROCESSORS = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",  # of `fuse_qkv_projections`; the layers keep their own projections, which are the same
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
)

Later = Sequence[tuple[float, LocationConditioning, LocationConditioning | None]]
"""What takes the place of both sides, each from a fraction of the steps on."""


@contextmanager
def bind(
    unet: UNet2DConditionModel,
    positive: LocationConditioning,
    negative: LocationConditioning | None,
    outside: tuple[LocationConditioning, LocationConditioning | None] | None = None,
    window: tuple[float, float] = (0.0, 1.0),
    attention: AttentionPass | None = None,
    later: Later = (),
) -> Iterator[Binding]:
    """Make a U-Net attend to a location conditioning until the block ends, however it ends.

    positive: for the conditional rows, one map for all or one per row. negative: for the rows without the prompt; None
    when guidance is off and there are none. outside: both sides for the steps outside `window`, which is given in
    fractions of the steps. Report the steps with `callback_on_step_end=binding.on_step_end`. attention: one that is
    kept from pass to pass, so that contexts known to it are not projected again; forgotten with the block when None.
    later: what takes the place of both sides from a fraction of the steps on, in the order of these.
    Raises ValueError when a cross-attention layer is not a plain one (an IP-Adapter, say).
    """
    with installed(Binding(unet, positive, negative, outside, window, attention, later)) as binding:
        yield binding


@contextmanager
def installed(binding: Binding) -> Iterator[Binding]:
    """A binding on its model until the block ends, however it ends."""
    try:
        binding.install()
        yield binding
    finally:
        binding.close()


class Binding:
    """What is installed on a U-Net during one sampling pass; `bind` makes it and takes it away.

    layers: what the names of the attention layers that see the text have in them. plain: the classes of processors
    whose attention is the one computed here.
    """

    layers = "attn2"
    plain: tuple[str, ...] = PLAIN_PROCESSORS

    def __init__(
        self,
        model: Any,
        positive: LocationConditioning,
        negative: LocationConditioning | None,
        outside: tuple[LocationConditioning, LocationConditioning | None] | None,
        window: tuple[float, float],
        attention: AttentionPass | None = None,
        later: Later = (),
    ):
        self.model = model
        self.window = window
        self.inside = _in_row_order(positive, negative)
        self.outside = _in_row_order(*outside) if outside else self.inside
        self.later = [(start, _in_row_order(plus, minus)) for start, plus, minus in later]
        self.fraction = 0.0
        self.size = (0, 0)
        self._keeps = attention is not None
        self._attention = AttentionPass() if attention is None else attention
        self._attention.plan(self.all_sides)
        self._shares: tuple[Share, ...] = ()
        self._processors: dict[Any, Any] = {}
        self._hook: Any = None

    @property
    def all_sides(self) -> set[LocationConditioning]:
        """Whatever some step sees."""
        return {*self.inside, *self.outside, *(side for _, sides in self.later for side in sides)}

    def processors_of_model(self) -> dict[str, Any]:
        """All there are, by their names."""
        return dict(self.model.attn_processors)

    def sees_text(self, name: str) -> bool:
        """Whether a layer is one of those that see the text, by the name of its processor."""
        return self.layers in name

    def install(self) -> None:
        processors = self.processors_of_model()
        for name, processor in processors.items():
            if self.sees_text(name) and type(processor).__name__ not in self.plain:
                raise ValueError(
                    f"{name} is a {type(processor).__name__}: expected plain cross-attention; unload what replaced it"
                )
        # By their layers: the model's own way of setting them walks through all its modules three times.
        self._processors = {
            self.model.get_submodule(name.removesuffix(".processor")): processor
            for name, processor in processors.items()
            if self.sees_text(name)
        }
        self._attention.tags = self._tags()
        ours = self.processor()
        self._hook = self.model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        for layer in self._processors:
            layer.set_processor(ours)

    def _tags(self) -> dict[Any, Tags]:
        """Of the attention modules, where some of them are to see another conditioning."""
        if all(len(side.variants) == 1 for side in self.all_sides):
            return {}
        tags = layer_tags(self.model)
        return {self.model.get_submodule(name.removesuffix(".processor")): own for name, own in tags.items()}

    def processor(self) -> Any:
        """What stands in for the processors of the layers that see the text."""
        return BlendedAttnProcessor(self)

    def close(self) -> None:
        """Put everything back. Safe at any time, also twice."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for layer, processor in self._processors.items():
            layer.set_processor(processor)
        self._processors = {}
        if not self._keeps:
            self._attention.clear()

    def on_step_end(self, pipe: DiffusionPipeline, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """`callback_on_step_end` of the pipeline: counts denoiser calls, so samplers with two a step are right too."""
        self.fraction = (step + 1) / pipe.num_timesteps
        return kwargs

    def attend(self, attn: Attention, x: Tensor) -> Tensor:
        """Attention of one layer to the text: `[rows, h·w, C]` → `[rows, h·w, heads·d]` before its output layer."""
        q = attn.to_q(x)
        wide = q.float() if attn.upcast_attention else q
        wanted = self._attention.wanted(attn, self._shares, q)
        if wanted is not None:
            stacked = wanted.stacked
            upcast = torch.float32 if attn.upcast_attention else None
            self._attention.take(attn, attn.to_k(stacked), attn.to_v(stacked), attn.heads, upcast)
        size = level_with(self.size, x.shape[1])
        return self._attention.attend(attn, wide, self._shares, size, attn.scale).to(q.dtype)

    def attended(self, attn: Attention, x: Tensor, given: Mapping[str, Any]) -> Tensor:
        """`attend` with what else a layer is given."""
        return self.attend(attn, x)

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        sample = args[0] if args else kwargs["sample"]
        sides, rows = self._share(sample, extent(sample))
        added = kwargs.get("added_cond_kwargs") or {}
        if "text_embeds" in added:
            of_sides = (side.pooled for side in sides if side.pooled is not None)
            pooled = torch.cat([one.to(sample).expand(rows, -1) for one in of_sides])
            kwargs = {**kwargs, "added_cond_kwargs": {**added, "text_embeds": pooled}}
        return args, kwargs

    def _sides(self) -> tuple[LocationConditioning, ...]:
        """What the steps now see, in the order of the rows."""
        start, end = self.window
        if not start <= self.fraction < end:
            return self.outside
        begun = [sides for first, sides in self.later if first <= self.fraction]
        return begun[-1] if begun else self.inside

    def _share(self, sample: Tensor, size: Size) -> tuple[tuple[LocationConditioning, ...], int]:
        """Which rows of a call see what, at a latent of some size (h, w); the sides, and the rows of each."""
        self.size, sides = size, self._sides()
        if len(sample) % len(sides):
            raise ValueError(f"the model got {len(sample)} rows; expected as many negative as positive ones")
        rows = range(len(sample) // len(sides))
        self._shares = tuple(
            Share(tuple(row + i * len(rows) for row in rows), side, tuple(rows)) for i, side in enumerate(sides)
        )
        return sides, len(rows)


def _in_row_order(
    positive: LocationConditioning, negative: LocationConditioning | None
) -> tuple[LocationConditioning, ...]:
    """In the order of the pipeline's rows: the negative ones first."""
    return (positive,) if negative is None else (negative, positive)


class BlendedAttnProcessor:
    """A diffusers attention processor: the layer's own projections around the binding's attention."""

    def __init__(self, binding: Binding):
        self.binding = binding

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = self.binding.attended(attn, hidden_states, kwargs)
        for layer in attn.to_out:  # the output projection and its dropout
            out = layer(out)
        return out
