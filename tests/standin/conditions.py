"""Conditions: what a model gets of a prompt, for a row of each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Condition:
    def __init__(self, cond: Tensor):
        self.cond = cond

    def process_cond(self, batch_size: int, device: Any) -> Condition:
        rows = self.cond.repeat(-(-batch_size // len(self.cond)), *[1] * (self.cond.dim() - 1))[:batch_size]
        return type(self)(rows.to(device))

    def can_concat(self, other: Condition) -> bool:
        return self.cond.shape == other.cond.shape

    def concat(self, others: Sequence[Condition]) -> Tensor:
        return torch.cat([self.cond, *(other.cond for other in others)])


class TextCondition(Condition):
    """Texts of different lengths are evaluated together as often as each fits into their least common multiple."""

    def can_concat(self, other: Condition) -> bool:
        lengths = self.cond.shape[1], other.cond.shape[1]
        return math.lcm(*lengths) // min(lengths) <= 4

    def concat(self, others: Sequence[Condition]) -> Tensor:
        texts = [self.cond, *(other.cond for other in others)]
        length = math.lcm(*(text.shape[1] for text in texts))
        times = [length // text.shape[1] for text in texts]
        return torch.cat([t if n == 1 else t.repeat(1, n, 1) for t, n in zip(texts, times, strict=True)])


def compile_conditions(cond: Any) -> list[dict[str, Any]] | None:
    if cond is None:
        return None
    if not isinstance(cond, dict):
        return [{"cross_attn": cond, "model_conds": {"c_crossattn": TextCondition(cond)}}]
    conds = {"c_crossattn": TextCondition(cond["crossattn"]), "y": Condition(cond["vector"])}
    if "guidance" in cond:
        conds["guidance"] = Condition(cond["guidance"])
    return [{"cross_attn": cond["crossattn"], "pooled_output": cond["vector"], "model_conds": conds}]
