"""The A1111 host: a location conditioning inside AUTOMATIC1111's Stable Diffusion WebUI, for one sampling pass.

The WebUI's CFG denoiser calls the U-Net with a row for each part of each image's prompt, in order, and then one for
each image's negative prompt, in one call or in several. The denoiser callback, which runs before each of its calls,
plans what every row sees; a hook on the U-Net moves a cursor over these rows as they are consumed; and the
cross-attention layers (`attn2`) attend to what the rows at the cursor see.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from modules import devices, shared
from torch import Tensor

from lib_masknoise.attention import Share, Wanted, shares
from lib_masknoise.hosts.webui import facts, padding
from lib_masknoise.hosts.webui.blocks import layer_tags
from lib_masknoise.hosts.webui.denoising import Conflict, Denoising, Planned
from lib_masknoise.maps import extent


class Attending:
    """Forwards of the cross-attention layers that attend to what the rows of each call are planned to see."""

    def __init__(self, denoising: Planned):
        self.denoising = denoising
        self._unet: torch.nn.Module | None = None
        self._layers: list[Any] = []  # modules of the host's class
        self._hook: Any = None
        self._cursor = 0
        self._shares: tuple[Share, ...] | None = None

    # --- The U-Net and its layers

    def bind(self) -> None:
        unet = shared.sd_model.model.diffusion_model
        if unet is self._unet:
            return
        self.close()
        # First of all, so that what is wrong with a refiner surfaces at its call and not as a plain picture.
        self._unet = unet
        self._hook = unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)
        layers = [module for name, module in unet.named_modules() if name.endswith("attn2") and hasattr(module, "to_q")]
        if not layers:
            raise Conflict(f"{type(unet).__name__} has no cross-attention layers: expected Stable Diffusion 1, 2 or XL")
        for layer in layers:
            if "forward" in vars(layer):
                raise Conflict(_taken(layer.forward))
        self.denoising.name_layers({unet.get_submodule(name): tags for name, tags in layer_tags(unet).items()})
        self._layers = layers
        for layer in layers:
            layer.forward = functools.partial(self._attend, layer)

    def close(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        for layer in self._layers:
            vars(layer).pop("forward", None)
        self._unet, self._layers, self._hook = None, [], None
        self.denoising.attention.clear()

    # --- Each call of the U-Net

    def begin(self) -> None:
        """The rows to come are the first of those that are planned."""
        self._cursor, self._shares = 0, None

    def _before_unet(self, unet: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.denoising.check()
        planned = self.denoising.planned
        if planned is None:
            return
        x = args[0] if args else kwargs["x"]
        self.denoising.check_size(extent(x))
        rows = planned[self._cursor : self._cursor + len(x)]
        self._cursor += len(x)
        if len(rows) != len(x):
            raise Conflict(
                f"the U-Net was given row {self._cursor} of {len(planned)}: another extension calls it more "
                "often than the denoiser does; switch it off or MaskNoise"
            )
        self._shares = shares(rows)

    def _attend(self, layer: Any, x: Tensor, context: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """A cross-attention layer's forward: `[rows, h·w, C]` → the same."""
        if self._shares is None:
            return type(layer).forward(layer, x, context, *args, **kwargs)
        q = layer.to_q(x)
        upcasts = facts.setting("upcast_attn", False)
        wide = q.float() if upcasts else q
        attention = self.denoising.attention
        wanted = attention.wanted(layer, self._shares, q)
        if wanted is not None:
            upcast = torch.float32 if upcasts else None
            attention.take(layer, *_project(layer, wanted), layer.heads, upcast)
        with devices.without_autocast():
            size = self.denoising.size_of(x.shape[1])
            out = attention.attend(layer, wide, self._shares, size, layer.scale)
        return layer.to_out(out.to(q.dtype))


class Layers(Attending):
    """A1111's method, for one sampling pass."""

    denoising: Denoising

    def plan(self, params: Any) -> None:
        self.begin()
        self.denoising.plan(params, padding.wanted())

    def after_denoiser(self, params: Any) -> None:
        """`uncond + w_k (cond_k − uncond)` for `cond_k`, so that the host's sum over k weighs by location."""
        self.denoising.plain = params.x[-len(self.denoising.rows.pictures) :]
        weights = self.denoising.weights
        if weights is None or self.denoising.error is not None:
            return
        count = len(weights)
        negative = params.x[count:]
        of_image = negative.repeat_interleave(count // len(negative), dim=0)
        params.x[:count] = of_image + (params.x[:count] - of_image) * weights.to(params.x)


def _project(layer: Any, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """Keys and values by the layer's own modules, so that adapters on them take part. What hypernetworks make of a
    context before need not be linear: what is blended are its results."""
    adapt = _hypernetworks()
    if adapt is None:
        return layer.to_k(wanted.stacked), layer.to_v(wanted.stacked)
    for_keys, for_values = (Wanted(contexts, wanted.directions).stacked for contexts in adapt(wanted.contexts))
    return layer.to_k(for_keys), layer.to_v(for_values)


def _hypernetworks() -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """What loaded hypernetworks make of a context, for the keys and for the values."""
    loaded = getattr(shared, "loaded_hypernetworks", None)
    if not loaded:
        return None
    return functools.partial(facts.module("modules.hypernetworks.hypernetwork").apply_hypernetworks, loaded)


def _taken(forward: Any) -> str:
    forward = getattr(forward, "func", forward)
    file = inspect.getsourcefile(inspect.unwrap(forward)) or "unknown"
    return (
        f"the cross-attention layers are taken by another extension ({file}), Regional Prompter for one: switch it off "
        "or MaskNoise. If it is switched off already, its last job may have left them so; restart the WebUI then"
    )
