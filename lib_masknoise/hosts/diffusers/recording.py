"""What the model has and what it thinks it is going to, at every step of a pass."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from lib_masknoise.explore.model import Moment


class Recorder:
    """What `recording` has heard so far: one entry a call of the sampler's step, and what the last one returned.

    Only references and two copies of a latent are kept while the pass runs; the rest is arithmetic for afterwards.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._heard: list[tuple[float, bool, Tensor, Tensor]] = []
        self._end: Tensor | None = None
        self.complete = False

    def hear(self, model_output: Tensor, timestep: Any, sample: Tensor) -> None:
        sigma, exploding = noise_level(self._scheduler, timestep)
        self._heard.append((sigma, exploding, sample.detach().clone(), model_output.detach().clone()))

    def hear_end(self, sample: Tensor) -> None:
        self._end = sample.detach()

    @property
    def moments(self) -> list[Moment]:
        """Each denoiser call's, in float32 on the CPU, and once the pass is complete what it ended with: the latent
        that the picture is decoded from, unchanged, at sigma 0."""
        kind = self._scheduler.config.get("prediction_type", "epsilon")
        found = [_moment(kind, *heard) for heard in self._heard]
        if self.complete and self._end is not None:
            found.append(Moment(0.0, self._end[0].cpu(), self._end[0].cpu()))
        return found


@contextmanager
def recording(pipe: DiffusionPipeline) -> Iterator[Recorder]:
    """Record the first row of the passes of a pipeline until the block ends; the pipeline computes what it always does.

    Works with every sampler of diffusers whose step takes `(model_output, timestep, sample)`.
    """
    scheduler = pipe.scheduler
    recorder = Recorder(scheduler)
    before = vars(scheduler).get("step")  # somebody else's, or nothing
    step = scheduler.step

    @functools.wraps(step)  # the pipeline looks at the signature
    def recorded(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        recorder.hear(model_output[:1], timestep, sample[:1])
        out = step(model_output, timestep, sample, *args, **kwargs)
        recorder.hear_end(out[0][:1])
        return out

    scheduler.step = recorded
    try:
        yield recorder
    finally:
        del scheduler.step
        if before is not None:
            scheduler.step = before


def noise_level(scheduler: Any, timestep: Any) -> tuple[float, bool]:
    """Noise for each part of signal at a step about to be made, and whether the sampler keeps the signal's size and
    lets the noise explode (Euler and its like) or keeps the variance (DDIM, DPM++ and their like)."""
    exploding = hasattr(scheduler, "sigmas") and float(scheduler.init_noise_sigma) != 1.0
    if hasattr(scheduler, "sigmas") and hasattr(scheduler, "step_index"):
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)  # as the step is going to
        return float(scheduler.sigmas[scheduler.step_index]), exploding
    signal = float(scheduler.alphas_cumprod[int(timestep)])
    return ((1 - signal) / signal) ** 0.5, exploding


def _moment(kind: str, sigma: float, exploding: bool, sample: Tensor, output: Tensor) -> Moment:
    x_t, x0 = meant(kind, sigma, exploding, sample[:1], output[:1])
    return Moment(sigma, x_t[0], x0[0])


def meant(kind: str, sigma: float, exploding: bool, sample: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """`x_t` of unit variance where signal and noise both have it, and the `x0` that the model's output means; of each
    row, on the CPU in float32."""
    signal = (1 + sigma**2) ** -0.5
    x_t, output = sample.float().cpu(), output.float().cpu()
    if exploding:
        x_t = x_t * signal
    if kind == "epsilon":
        return x_t, x_t / signal - sigma * output
    if kind == "v_prediction":
        return x_t, signal * x_t - signal * sigma * output
    if kind == "sample":
        return x_t, output
    raise ValueError(f"the model predicts {kind!r}: expected epsilon, v_prediction or sample")


@torch.no_grad()
def decode(pipe: DiffusionPipeline, latents: Tensor) -> list[Any]:
    """Latents `[B, C, h, w]` → PIL images, as the pipeline decodes its last ones."""
    vae = pipe.vae
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast", False) and hasattr(pipe, "upcast_vae")
    if upcast:
        pipe.upcast_vae()
        latents = latents.to(next(iter(vae.post_quant_conv.parameters())).dtype)
    mean, spread = vae.config.get("latents_mean"), vae.config.get("latents_std")
    latents = latents.to(vae.device, latents.dtype if upcast else vae.dtype)
    if mean is not None and spread is not None:
        mean, spread = (torch.tensor(t).view(1, -1, 1, 1).to(latents) for t in (mean, spread))
        latents = latents * spread / vae.config.scaling_factor + mean
    else:
        latents = latents / vae.config.scaling_factor
    pixels = vae.decode(latents, return_dict=False)[0]
    if upcast:
        vae.to(dtype=torch.float16)
    return pipe.image_processor.postprocess(pixels, output_type="pil")
