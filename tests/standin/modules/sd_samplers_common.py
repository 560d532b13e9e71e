"""What all samplers have in common: how one is ended, and approximations of the autoencoder."""

from __future__ import annotations

from torch import Tensor


class InterruptedException(BaseException):
    """The user wants no more steps."""


def samples_to_images_tensor(sample: Tensor, approximation: int) -> Tensor:
    """`[B, 4, h, w]` → `[B, 3, h, w]`, from -1 to 1."""
    return sample[:, :3].clamp(-1, 1)
