"""A txt2img job of ours that the host does as any other, with a say in its sampler and in whether it is decoded."""

from __future__ import annotations

from typing import Any

import torch
from modules import processing


class OwnJob(processing.StableDiffusionProcessingTxt2Img):  # type: ignore[misc]
    """The host makes a sampler for each pass and puts it into `sampler`, whence this job hears of it."""

    _sampler: Any = None

    @property
    def sampler(self) -> Any:
        return self._sampler

    @sampler.setter
    def sampler(self, made: Any) -> None:
        self._sampler = made
        if made is not None:
            self.prepare(made)

    def prepare(self, sampler: Any) -> None:
        """The host is about to sample with it."""

    def finished(self, latents: Any) -> bool:
        """What was sampled. Whether anybody wants to see what the autoencoder makes of it."""
        return True

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        latents = super().sample(*args, **kwargs)
        return latents if self.finished(latents) else processing.DecodedSamples([torch.zeros(3, 8, 8)])
