"""The cross-attention layers of a U-Net in its first implementation, as A1111, Forge and their kin have it."""

from __future__ import annotations

import re
from typing import Any

from lib_masknoise.scene.layers import Tags, tags_of

_LAYER = re.compile(r"(input|middle|output)_block(?:s\.([0-9]+))?\..*?(?:transformer_blocks\.([0-9]+)\.)?attn2")

Layer = tuple[str, int, int]
"""Side ("input", "middle" or "output"), block, and which of the block's layers: as Forge names them."""


def layer_of(name: str) -> Layer | None:
    """By the name of its module ("input_blocks.4.1.transformer_blocks.0.attn2"); None of any other module."""
    match = _LAYER.fullmatch(name)
    return None if match is None else (match[1], int(match[2] or 0), int(match[3] or 0))


def layer_tags(unet: Any) -> dict[str, Tags]:
    """The tags (`scene.layers`) of all cross-attention layers of a U-Net, by the names of their modules."""
    tags = tags_of(block_levels(unet))
    return {name: tags[_block(layer)] for name, layer in _layers(unet).items()}


def block_levels(unet: Any) -> dict[str, int]:
    """The blocks with cross-attention, by their names in `scene.layers`, and how many times the latent has been halved
    there."""
    levels = _levels(unet)
    return {_block(layer): levels[layer[:2]] for layer in _layers(unet).values()}


def _layers(unet: Any) -> dict[str, Layer]:
    return {name: layer for name, _ in unet.named_modules() if (layer := layer_of(name)) is not None}


def _block(layer: Layer) -> str:
    side, number, _ = layer
    return "mid" if side == "middle" else f"{'in' if side == 'input' else 'out'}{number}"


def _levels(unet: Any) -> dict[tuple[str, int], int]:
    """How many times the latent has been halved where each block works."""
    level, found = 0, {}
    for number, block in enumerate(getattr(unet, "input_blocks", ())):
        found["input", number] = level
        level += _has(block, "Downsample")
    found["middle", 0] = level
    for number, block in enumerate(getattr(unet, "output_blocks", ())):
        found["output", number] = level
        level -= _has(block, "Upsample")
    return found


def _has(block: Any, kind: str) -> bool:
    """Whether what is behind a block has another size."""
    return any(type(module).__name__ == kind for module in block.modules())
