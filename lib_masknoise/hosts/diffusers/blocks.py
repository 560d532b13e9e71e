"""The cross-attention layers of a U-Net of diffusers, by the names that its first implementation gave its blocks."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

from lib_masknoise.scene.layers import Tags, tags_of

_LAYER = re.compile(r"(down|mid|up)_blocks?\.(?:([0-9]+)\.)?attentions\.([0-9]+)\..*attn2.*")


def layer_tags(unet: Any) -> dict[str, Tags]:
    """The tags (`scene.layers`) of the cross-attention layers of a U-Net, by the names of their processors. Empty for
    what is none."""
    blocks, levels = blocks_of(unet)
    tags = tags_of(levels)
    return {name: tags[block] for name, block in blocks.items()}


def blocks_of(unet: Any) -> tuple[dict[str, str], dict[str, int]]:
    """The blocks of the layers, by the names of their processors, and how many times the latent has been halved in each
    block."""
    if not hasattr(unet, "down_blocks"):
        return {}, {}
    downs, ups = ([len(block.resnets) for block in blocks] for blocks in (unet.down_blocks, unet.up_blocks))
    # In the first implementation the input's convolution is block 0, and what halves the size a block of its own.
    inputs = list(accumulate((1 + count for count in downs), initial=1))
    outputs = list(accumulate(ups, initial=0))
    blocks: dict[str, str] = {}
    levels: dict[str, int] = {}
    for name in unet.attn_processors:
        match = _LAYER.fullmatch(name)
        if match is None:
            continue
        side, of_level, number = match[1], int(match[2] or 0), int(match[3])
        if side == "mid":
            block, level = "mid", len(downs) - 1
        elif side == "down":
            block, level = f"in{inputs[of_level] + number}", of_level
        else:
            block, level = f"out{outputs[of_level] + number}", len(ups) - 1 - of_level
        blocks[name], levels[block] = block, level
    return blocks, levels
