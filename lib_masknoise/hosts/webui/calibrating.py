"""The loaded model of a WebUI as what `lib_masknoise.calibrate` measures: jobs of the host's own, heard and ended."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from torch import Tensor

from lib_masknoise.hosts.webui import job as jobs
from lib_masknoise.hosts.webui.checkpoints import checkpoint
from lib_masknoise.hosts.webui.exploring import WebUIModel, done, flows, job_of
from lib_masknoise.hosts.webui.own_job import OwnJob
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.settings import Settings


class WebUIProbe(WebUIModel):
    """See `lib_masknoise.calibrate.measuring.Probe`."""

    def identity(self) -> tuple[str, str]:
        return checkpoint()

    def heading(
        self, scene: Scene, settings: Settings, frames: Sequence[float], x_t: Tensor, step: int, sigma: float
    ) -> Tensor:
        if flows():
            raise SceneError([Problem("", "calibrate takes Stable Diffusion 1.x, 2.x or XL, not a model of flows")])
        call = _OneCall(x_t, sigma)
        p = job_of(settings, settings.prompt, settings.seed, len(frames), scene, _Job)
        setattr(p, jobs.FRAMES, tuple(frames))
        p.call = call
        with closing(p):
            for _ in done(p, 0, lambda more: None):
                pass
        if call.x0 is None:
            raise RuntimeError("another extension samples in a way of its own; switch it off to calibrate")
        return call.x0


class _OneCall:
    """In place of a function of k-diffusion's: asks the denoiser once, at a latent and a noise level of ours."""

    def __init__(self, x_t: Tensor, sigma: float) -> None:
        self.x_t, self.sigma = x_t, sigma
        self.x0: Tensor | None = None

    def __call__(self, model: Any, x: Tensor, *args: Any, extra_args: Any = None, **kwargs: Any) -> Tensor:
        given = (self.x_t * (1 + self.sigma**2) ** 0.5).to(x)
        out = model(given, x.new_full((len(x),), self.sigma), **(extra_args or {}))
        self.x0 = out.detach().float().cpu()
        return x


class _Job(OwnJob):
    """A txt2img job of one call, whose picture nobody wants."""

    call: _OneCall | None = None

    def prepare(self, sampler: Any) -> None:
        if self.call is not None:
            sampler.func = self.call

    def finished(self, latents: Any) -> bool:
        return False
