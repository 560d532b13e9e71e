"""The loaded model of a WebUI as what `lib_masknoise.calibrate` measures: jobs of the host's own, heard and ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, TypeVar

from torch import Tensor

from lib_masknoise.calibrate.style import Found, Subject
from lib_masknoise.hosts.webui import job as jobs
from lib_masknoise.hosts.webui.checkpoints import checkpoint
from lib_masknoise.hosts.webui.exploring import WebUIModel, done, flows, job_of
from lib_masknoise.hosts.webui.own_job import OwnJob
from lib_masknoise.hosts.webui.styling import subject
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.settings import Settings

T = TypeVar("T")


class WebUIProbe(WebUIModel):
    """See `lib_masknoise.calibrate.measuring.Probe`."""

    def identity(self) -> tuple[str, str]:
        return checkpoint()

    def heading(
        self, scene: Scene, settings: Settings, frames: Sequence[float], x_t: Tensor, step: int, sigma: float
    ) -> Tensor:
        _check_kind()
        call = _OneCall(x_t, sigma)
        p = job_of(settings, settings.prompt, settings.seed, len(frames), scene, _Job)
        setattr(p, jobs.FRAMES, tuple(frames))
        return _heard(p, call, call.heard)

    def styled(self, settings: Settings, measure: Callable[[Subject], Found]) -> Found:
        _check_kind()
        found: list[Found] = []

        def call(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            found.append(measure(subject(self, settings)))
            return x

        return _heard(job_of(settings, "", settings.seed, 1, None, _Job), call, found)


def _check_kind() -> None:
    if flows():
        raise SceneError([Problem("", "calibrate takes Stable Diffusion 1.x, 2.x or XL, not a model of flows")])


def _heard(p: Any, call: Callable[..., Tensor], heard: list[T]) -> T:
    """What was heard in a job that calls this in place of sampling: by then the host has its model where it computes,
    and nothing of the last job's networks on it."""
    p.call = call
    with closing(p):
        for _ in done(p, 0, lambda more: None):
            pass
    if not heard:
        raise RuntimeError("another extension samples in a way of its own; switch it off to calibrate")
    return heard[0]


class _OneCall:
    """In place of a function of k-diffusion's: asks the denoiser once, at a latent and a noise level of ours."""

    def __init__(self, x_t: Tensor, sigma: float) -> None:
        self.x_t, self.sigma = x_t, sigma
        self.heard: list[Tensor] = []

    def __call__(self, model: Any, x: Tensor, *args: Any, extra_args: Any = None, **kwargs: Any) -> Tensor:
        given = (self.x_t * (1 + self.sigma**2) ** 0.5).to(x)
        out = model(given, x.new_full((len(x),), self.sigma), **(extra_args or {}))
        self.heard.append(out.detach().float().cpu())
        return x


class _Job(OwnJob):
    """A txt2img job of one call, whose picture nobody wants."""

    call: Callable[..., Tensor] | None = None

    def prepare(self, sampler: Any) -> None:
        if self.call is not None:
            sampler.func = self.call

    def finished(self, latents: Any) -> bool:
        return False
