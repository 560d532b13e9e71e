"""Noise of a seed, as the host draws it."""

from __future__ import annotations

import torch
from torch import Tensor


def randn_local(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
