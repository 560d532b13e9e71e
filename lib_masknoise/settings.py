"""What a render is told besides its scene."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Everything of a render that is not in the scene. size: (height, width), None for the model's own. batch_size:
    None to measure which is quickest. even: place the frames at equal perceptual distances along the motion. threads:
    of the processor, in each process; None for as many as PyTorch uses here.

    On one kind of machine they decide every byte: a sum is rounded otherwise in a batch of another size, and on the
    processor with another number of threads.
    """

    prompt: str = ""
    negative_prompt: str = ""
    model: str | None = None
    seed: int = 0
    steps: int = 20
    size: tuple[int, int] | None = None
    guidance_scale: float = 4.0
    batch_size: int | None = 4
    even: bool = False
    threads: int | None = None
