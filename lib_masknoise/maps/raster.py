"""Any mask, drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib_masknoise.maps import shapes, strokes
from lib_masknoise.maps.edges import Array
from lib_masknoise.maps.resample import Size, feather, resize
from lib_masknoise.scene import Mask, StrokesMask
from lib_masknoise.window import WHOLE, Window, whole_size

WORKING_FACTOR = 8
"""Masks are drawn at this many times the latent's size: the image's own pixels."""
WORKING_SIDE = 1024
"""… but not beyond this side, unless the latent itself is longer: no level of a U-Net shows such detail."""

DRAW: dict[type[Mask], Callable[[Any, Size], Array]] = {**shapes.SHAPES, StrokesMask: strokes.draw}


def rasterize(mask: Mask, size: Size) -> Tensor:
    """One mask drawn at ``size``: float32 [H, W] in [0, 1]. For shapes and pictures see `shapes.draw`, for strokes
    `strokes._paint`."""
    return torch.from_numpy(DRAW[type(mask)](mask, size).astype("float32")).clamp_(0, 1)


def weight_map(mask: Mask, size: Size, softness: float, factor: int | None = None, window: Window = WHOLE) -> Tensor:
    """One mask at ``size``, [h, w]: drawn at ``factor`` times that (None: up to 8 times), softened by ``softness`` (see
    ``feather``) and averaged down. window: the part of the picture that has this size; the whole is drawn."""
    whole = whole_size(size, window)
    if factor is None:
        factor = max(1, min(WORKING_FACTOR, WORKING_SIDE // max(whole)))
    return resize(feather(rasterize(mask, (whole[0] * factor, whole[1] * factor)), softness), size, window)
