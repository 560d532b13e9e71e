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
from collections.abc import Callable, Sequence
from typing import Any

import torch
from modules import devices, script_callbacks, shared
from modules.hypernetworks import hypernetwork
from torch import Tensor

from lib_masknoise.attention import Basis, blended_attention, project
from lib_masknoise.hosts.denoising import Conflict, Denoising
from lib_masknoise.hosts.rows import Share, shares


class Pass(Denoising):
    """What is installed in A1111 during one sampling pass."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._unet: torch.nn.Module | None = None
        self._layers: list[torch.nn.Module] = []
        self._hook: Any = None
        self._cursor = 0
        self._shares: tuple[Share, ...] | None = None

    # --- The U-Net and its layers

    def _bind(self) -> None:
        unet = shared.sd_model.model.diffusion_model
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

    def _callbacks(self) -> Sequence[Callable[[Any], None]]:
        return [self._before_denoiser, self._after_denoiser]

    def _listen(self) -> None:
        super()._listen()
        script_callbacks.on_cfg_denoised(self._after_denoiser)

    def _plan(self, params: Any) -> None:
        self._cursor, self._shares = 0, None
        super()._plan(params)

    # --- Each call of the U-Net

    def _before_unet(self, unet: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if self._error is not None:
            raise self._error
        if self._planned is None:
            return
        x = args[0] if args else kwargs["x"]
        self._check_size(tuple(x.shape[-2:]))
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
        size = self._size(x.shape[1])
        parts = [
            (share.span, self._basis(layer, share, q, wide.dtype), self._level(share, size, wide))
            for share in self._shares
        ]
        with devices.without_autocast():
            out = torch.empty_like(wide)
            for rows, basis, level in parts:
                out[rows] = blended_attention(wide[rows], basis, level, layer.scale)
        return layer.to_out(out.to(q.dtype))

    def _basis(self, layer: torch.nn.Module, share: Share, q: Tensor, dtype: torch.dtype) -> Basis:
        key = id(share.conditioning), id(layer)
        if key not in self._bases:
            placed = self._place(share.conditioning, q)
            self._bases[key] = project(placed, layer.to_k, layer.to_v, layer.heads, _hypernetworks()).to(dtype)
        return self._bases[key]

    def _after_denoiser(self, params: Any) -> None:
        """`uncond + w_k (cond_k − uncond)` for `cond_k`, so that the host's sum over k weighs by location."""
        if self._weights is None or self._error is not None:
            return
        count = len(self._weights)
        negative = params.x[count:]
        of_image = negative.repeat_interleave(count // len(negative), dim=0)
        params.x[:count] = of_image + (params.x[:count] - of_image) * self._weights.to(params.x)


def _hypernetworks() -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """What loaded hypernetworks make of a context, for the keys and for the values."""
    loaded = shared.loaded_hypernetworks
    return functools.partial(hypernetwork.apply_hypernetworks, loaded) if loaded else None


def _taken(forward: Any) -> str:
    forward = getattr(forward, "func", forward)
    file = inspect.getsourcefile(inspect.unwrap(forward)) or "unknown"
    return (
        f"the cross-attention layers are taken by another extension ({file}), Regional Prompter for one: switch it off "
        "or MaskNoise. If it is switched off already, its last job may have left them so; restart the WebUI then"
    )
