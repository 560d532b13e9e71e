"""Samplers, and the denoiser that they call: guidance from a U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from modules import prompt_parser, script_callbacks, shared
from modules.sd_samplers_common import InterruptedException
from torch import Tensor


def as_model_arguments(context: Any) -> dict[str, Tensor]:
    return {"context": context["crossattn"], "y": context["vector"]} if isinstance(context, dict) else {
        "context": context
    }  # fmt: skip


def x0(model: Any, x: Tensor, sigma: Tensor, context: Any) -> Tensor:
    """What the U-Net takes the picture for: `[rows, C, h, w]`, sigma `[rows]`."""
    sigma = sigma[:, None, None, None]
    noise = model.model.diffusion_model(x / (1 + sigma**2).sqrt(), 50 * sigma.flatten(), **as_model_arguments(context))
    return x - sigma * noise


class CFGDenoiser:
    def __init__(self, sampler: Sampler):
        self.sampler, self.p = sampler, None
        self.step, self.steps, self.total_steps = 0, 0, 0
        self.init_latent: Tensor | None = None

    def __call__(
        self, x: Tensor, sigma: Tensor, cond: Any, uncond: Any, cond_scale: float, s_min_uncond: float
    ) -> Tensor:
        if shared.state.interrupted or shared.state.skipped:
            raise InterruptedException
        if self._refine():
            cond, uncond = (self.sampler.sampler_extra_args[name] for name in ("cond", "uncond"))
        weights, text_cond = prompt_parser.reconstruct_multicond_batch(cond, self.step)
        text_uncond = None if uncond is None else prompt_parser.reconstruct_cond_batch(uncond, self.step)
        if hasattr(shared.sd_model, "forge_objects"):
            return self._as_forge_does(x, sigma, text_cond, text_uncond, weights, cond_scale, s_min_uncond)
        images = [*(image for image, parts in enumerate(weights) for _ in parts), *range(len(x))]
        params = script_callbacks.CFGDenoiserParams(x[images], sigma[images], text_cond, text_uncond, self)
        script_callbacks.call("cfg_denoiser", params)

        skip = self._skips_uncond(sigma, s_min_uncond)
        out = torch.zeros_like(params.x[: -len(x)] if skip else params.x)
        for rows, context in self._calls(params.text_cond, params.text_uncond, len(x), skip):
            out[rows] = x0(shared.sd_model, params.x[rows], params.sigma[rows], context)
        if skip:
            out = torch.cat([out, *(out[images.index(image)][None] for image in range(len(x)))])
        denoised_params = script_callbacks.CFGDenoisedParams(out, self)
        script_callbacks.call("cfg_denoised", denoised_params)

        negative = out[-len(x) :]
        denoised = negative.clone()
        for row, weight in enumerate(weight for parts in weights for weight in parts):
            image = images[row]
            denoised[image] += (1.0 if skip else cond_scale) * weight * (out[row] - negative[image])
        return self._finished(denoised)

    def _as_forge_does(self, x: Tensor, sigma: Tensor, cond: Any, uncond: Any, weights: Any, scale: float, low: float):
        """A row for each image; no callback afterwards."""
        from tests.standin import forge

        params = script_callbacks.CFGDenoiserParams(x, sigma, cond, uncond, self)
        script_callbacks.call("cfg_denoiser", params)
        scale = 1.0 if self._skips_uncond(sigma, low) else scale
        unet = shared.sd_model.forge_objects.unet
        return self._finished(forge.denoised(unet, params, weights, scale, self.p.seeds[0], shared.opts))

    def _finished(self, denoised: Tensor) -> Tensor:
        self.sampler.last_latent = denoised
        params = script_callbacks.AfterCFGCallbackParams(denoised)
        script_callbacks.call("cfg_after_cfg", params)
        self.step += 1
        return params.x

    def _skips_uncond(self, sigma: Tensor, s_min_uncond: float) -> bool:
        opts = shared.opts
        if opts.skip_early_cond and self.step / self.total_steps <= opts.skip_early_cond:
            return True
        return bool((self.step % 2 or opts.s_min_uncond_all) and 0 < float(sigma[0]) < s_min_uncond)

    def _calls(self, cond: Any, uncond: Any, images: int, skip: bool) -> Iterator[tuple[slice, Any]]:
        """The calls of the U-Net: which rows, with which contexts."""
        cond, uncond = self._as_the_options_pad(cond, uncond)
        n, opts = cond.shape[0], shared.opts
        if skip or cond.shape[1] == uncond.shape[1]:
            rows = cond if skip else _joined(cond, uncond)
            size = rows.shape[0] if opts.batch_cond_uncond else images
            yield from ((slice(i, i + size), _part(rows, i, i + size)) for i in range(0, rows.shape[0], size))
            return
        size = 2 * images if opts.batch_cond_uncond else images
        yield from ((slice(i, min(i + size, n)), _part(cond, i, min(i + size, n))) for i in range(0, n, size))
        yield slice(n, n + images), uncond

    def _as_the_options_pad(self, cond: Any, uncond: Any) -> tuple[Any, Any]:
        contexts = [c["crossattn"] if isinstance(c, dict) else c for c in (cond, uncond)]
        lengths = [context.shape[1] for context in contexts]
        if shared.opts.pad_cond_uncond_v0:
            contexts[1] = prompt_parser.padded(contexts[1], lengths[0], contexts[1][0, -1:])[:, : lengths[0]]
        elif shared.opts.pad_cond_uncond:
            empty = shared.sd_model.cond_stage_model_empty_prompt[0]
            contexts = [prompt_parser.padded(context, max(lengths), empty) for context in contexts]
        if not isinstance(cond, dict):
            return contexts[0], contexts[1]
        padded = zip((cond, uncond), contexts, strict=True)
        return tuple(prompt_parser.DictWithShape({**c, "crossattn": context}) for c, context in padded)

    def _refine(self) -> bool:
        """Another model takes over at some step; everything is encoded anew for it."""
        refiner = shared.checkpoints.get(self.p.refiner_checkpoint)
        if refiner in (None, shared.sd_model) or self.step / self.total_steps < self.p.refiner_switch_at:
            return False
        shared.sd_model = refiner
        self.p.setup_conds()
        conds = self.p.get_conds()
        self.sampler.sampler_extra_args.update(zip(("cond", "uncond"), conds, strict=True))
        return True


def _joined(a: Any, b: Any) -> Any:
    if isinstance(a, dict):
        return prompt_parser.DictWithShape({key: torch.cat([a[key], b[key]]) for key in a})
    return torch.cat([a, b])


def _part(cond: Any, start: int, end: int) -> Any:
    return {key: rows[start:end] for key, rows in cond.items()} if isinstance(cond, dict) else cond[start:end]


def _nobody(told: dict[str, Any]) -> None:
    """Hears of a step."""


def euler(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, **extra: Any) -> Tensor:
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        x = x + (following - sigma) * _slope(model, x, sigma, extra)
        extra.get("callback", _nobody)({"i": i})
    return x


def heun(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, **extra: Any) -> Tensor:
    """Two denoiser calls a step, but for the last."""
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        slope = _slope(model, x, sigma, extra)
        there = x + (following - sigma) * slope
        x = x + (following - sigma) * (slope + _slope(model, there, following, extra)) / 2 if following > 0 else there
        extra.get("callback", _nobody)({"i": i})
    return x


def _slope(model: Callable[..., Tensor], x: Tensor, sigma: Tensor, extra: Any) -> Tensor:
    # As k-diffusion does: the arguments are read from the sampler's dictionary at each call.
    return (x - model(x, sigma.expand(len(x)), **extra["extra_args"])) / sigma


@dataclass(frozen=True)
class SamplerConfig:
    function: Callable[..., Tensor]
    calls: int = 1

    name: str = ""

    def total_steps(self, steps: int) -> int:
        return steps * self.calls


SAMPLERS = {"Euler": SamplerConfig(euler, name="Euler"), "Heun": SamplerConfig(heun, 2, "Heun")}
all_samplers = list(SAMPLERS.values())


all_samplers = [SimpleNamespace(name=name) for name in SAMPLERS]


def get_sampler_and_scheduler(sampler: str, scheduler: str) -> tuple[str, str]:
    return (sampler if sampler in SAMPLERS else "Euler"), scheduler or "Automatic"


def find_sampler_config(name: str) -> SamplerConfig | None:
    return SAMPLERS.get(name)


def create_sampler(name: str, model: Any) -> Sampler:
    return Sampler(SAMPLERS[name])


def sigmas(steps: int, like: Tensor) -> Tensor:
    return torch.linspace(4.0, 0.0, steps + 1, dtype=torch.float64).to(like)


class Sampler:
    def __init__(self, config: SamplerConfig):
        self.config, self.func = config, config.function
        self.model_wrap = SimpleNamespace(sigmas=torch.linspace(0.004, 4.0, 1000))
        self.model_wrap_cfg = CFGDenoiser(self)
        self.sampler_extra_args: dict[str, Any] = {}
        self.last_latent: Tensor | None = None

    def callback_state(self, told: dict[str, Any]) -> None:
        """After each step."""
        shared.state.sampling_step = told["i"]

    def launch_sampling(self, steps: int, sample: Callable[[], Tensor]) -> Tensor:
        denoiser = self.model_wrap_cfg
        denoiser.steps, denoiser.total_steps = steps, self.config.total_steps(steps)
        try:
            return sample()
        except InterruptedException:
            return self.last_latent

    def sample(self, p: Any, x: Tensor, conditioning: Any, unconditional_conditioning: Any) -> Tensor:
        schedule = sigmas(p.steps, x)
        return self._run(p, x * schedule[0], schedule, conditioning, unconditional_conditioning)

    def sample_img2img(
        self,
        p: Any,
        x: Tensor,
        noise: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int,
        image_conditioning: Any = None,
    ) -> Tensor:
        schedule = sigmas(steps, x)[steps - max(1, int(p.denoising_strength * steps)) :]
        return self._run(p, x + noise * schedule[0], schedule, conditioning, unconditional_conditioning, x)

    def _run(
        self, p: Any, x: Tensor, schedule: Tensor, cond: Any, uncond: Any, picture: Tensor | None = None
    ) -> Tensor:
        self.model_wrap_cfg.p, self.model_wrap_cfg.step = p, 0
        self.model_wrap_cfg.init_latent = picture
        self.last_latent = x
        self.sampler_extra_args = {
            "cond": cond,
            "uncond": None if p.cfg_scale == 1 and hasattr(shared.sd_model, "forge_objects") else uncond,
            "cond_scale": p.cfg_scale,
            "s_min_uncond": p.s_min_uncond,
        }
        return self.launch_sampling(
            len(schedule) - 1,
            lambda: self.func(
                self.model_wrap_cfg,
                x,
                extra_args=self.sampler_extra_args,
                disable=False,
                callback=self.callback_state,
                sigmas=schedule,
            ),
        )
