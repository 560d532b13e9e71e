"""Forge and its kin with Flux, Flux 2 and Chroma: `joint` in their blocks.

These attend within their own forward, by a function `attention` of their module. For as long as a call of the model
lasts, each block's forward is its own with another function under that name; the module, and other models of it, keep
theirs. What a host does with its options makes no difference, so that Forge, which drops them, takes part.

Each text is turned as the first is, which stands where one alone does: in Flux 2 its tokens are counted on an axis of
their own, elsewhere they have no place.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from lib_masknoise.hosts.webui.joint import Beside, JointAttention, attending, placed, turned
from lib_masknoise.joint import joint_attention

NAME = "attention"
"""Of the function by which a block attends: `(q, k, v, pe=…)`, each `[rows, heads, K·T + L, d]`, to `[rows, K·T + L,
heads·d]`."""


class BlockAttention(JointAttention):
    """The texts of all concepts side by side in one condition, weighed in the attention of every block."""

    def layers(self, model: Any) -> tuple[Any, ...]:
        return blocks(model)

    def acting(self, model: Any, weights: Tensor, present: Tensor) -> AbstractContextManager[None]:
        return attending(self.layers(model), functools.partial(in_block, self.beside(model, weights, present)))


def blocks(model: torch.nn.Module) -> tuple[Any, ...]:
    """The blocks of two streams and of one, where all attend by a function of that name; else empty."""
    names = ("double_blocks", "single_blocks")
    if not all(hasattr(model, name) for name in names):
        return ()
    found = tuple(block for name in names for block in getattr(model, name))
    return found if all(_attends(type(block).forward) for block in found) else ()


def _attends(forward: Any) -> bool:
    return isinstance(forward, FunctionType) and NAME in forward.__code__.co_names and NAME in forward.__globals__


def in_block(beside: Beside, block: Any, *args: Any, **given: Any) -> Any:
    """A block's own forward, with several texts in its attention."""
    own = type(block).forward
    others = {**own.__globals__, NAME: functools.partial(attended, beside)}
    forward = FunctionType(own.__code__, others, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return forward(block, *args, **given)


def attended(beside: Beside, q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None, *args: Any, **given: Any) -> Tensor:
    """The hosts' function of that name, of texts and, behind them, the image. pe: the turns `[rows, 1, K·T + L, d/2, 2,
    2]`."""
    if pe is not None:
        turns = placed(pe, beside, 2)
        q, k = turned(q, turns), turned(k, turns)
    sights = beside.sights(q.shape[2] - beside.texts * beside.tokens, q.device)
    out = joint_attention((q, k, v), beside.texts, beside.tokens, sights, q.shape[3] ** -0.5)
    return out.transpose(1, 2).flatten(2)
