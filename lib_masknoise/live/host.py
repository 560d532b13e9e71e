"""What live painting asks of a host, and whose turn it is to use the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene
from lib_masknoise.wildcards import Wildcards

Step = Callable[[], None]
"""Called after every step of the denoiser; what it raises ends the pass."""

STEPS = 4
"""Of a sketch. All are made where there is nothing to go on from; the first is left out where there is a last sketch,
which then stands for what the first step would have found. Leaving out more, a new concept hardly shows: its colours
are decided where the noise is strong (docs/live.md)."""
GLANCE = 3
"""Of a sketch while the hand moves, which calls the denoiser once less; a sketch of `STEPS` follows where it pauses."""
FAINT = 0.1
"""Strength of the noise, relative to the picture's, below which a sketch's last step asks the denoiser no more."""


@dataclass(frozen=True)
class Settings:
    """The picture's own settings. size: (height, width) in pixels. sampler, scheduler: by the host's names, "" for its
    usual ones; for hosts that have a choice."""

    size: tuple[int, int]
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance_scale: float = 4.0
    sampler: str = ""
    scheduler: str = ""


@dataclass(frozen=True)
class Wish:
    """What a page wants to see. breathe: the noise's motion, a frame a pass, until something else is wanted."""

    scene: Scene
    settings: Settings
    breathe: bool = False


class Host(Protocol):
    """A model that live painting samples with. All calls come from one thread.

    factor: pixels of the picture for each element of the latent, along an axis.
    """

    @property
    def factor(self) -> int: ...

    def turn(self) -> AbstractContextManager[None]:
        """The model, for one pass; waits until no job of the user has it."""

    def busy(self) -> bool:
        """Whether a job of the user has the model or waits for it."""

    def setting(self) -> Hashable:
        """What pictures depend on beside the wish: which model is loaded, and the host's own settings."""

    def wildcards(self) -> Wildcards:
        """The files that prompts of concepts may name."""

    def check(self, wish: Wish) -> None:
        """Raise SceneError for what the host cannot do."""

    def sketch(
        self, wish: Wish, maps: Maps, frame: float, last: Tensor | None, step: Step, steps: int = STEPS
    ) -> Tensor:
        """A latent ``[1, C, h, w]`` without noise, in a few steps: from a middle sigma of the last one with the same
        noise as ever, or from noise alone where there is none of that size."""

    def full(self, wish: Wish, maps: Maps, frame: float, step: Step) -> tuple[Image.Image, Tensor]:
        """The picture that a job of the same scene and settings makes, and its latent."""

    def decode(self, latent: Tensor) -> Image.Image:
        """A latent as a picture, quickly rather than exactly."""


class Turns:
    """One at a time uses a model: jobs before live pictures."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._taken = False
        self._jobs = 0

    @property
    def busy(self) -> bool:
        """Whether a job has its turn or waits for it."""
        return self._jobs > 0

    @contextmanager
    def job(self) -> Iterator[None]:
        with self._free:
            self._jobs += 1
            self._free.wait_for(lambda: not self._taken)
            self._taken = True
        try:
            yield
        finally:
            with self._free:
                self._jobs -= 1
                self._taken = False
                self._free.notify_all()

    @contextmanager
    def live(self) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._taken and not self._jobs)
            self._taken = True
        try:
            yield
        finally:
            with self._free:
                self._taken = False
                self._free.notify_all()
