"""The order of the initial noise in a WebUI: what the host's own denoiser makes of it, before the sampler's first step.

A sampler's function is called with what its pass begins with, `base + scale·noise` (base: the picture, in img2img). The
noise is exchanged there. Until then the host has put everything together that its denoiser needs, so that this is asked
as the sampler would ask it, one image at a time: its noise is the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from modules import shared
from modules.sd_samplers_common import InterruptedException
from torch import Tensor

from lib_masknoise.hosts.webui.denoising import Denoising, Method, sampling
from lib_masknoise.hosts.webui.prompts import ConceptPrompts
from lib_masknoise.hosts.webui.refusal import Refused
from lib_masknoise.hosts.webui.rows import Picture, Rows
from lib_masknoise.maps import Maps
from lib_masknoise.noise.initial import (
    BEGINNING,
    EPSILON,
    FIRST,
    FLOW,
    VELOCITY,
    Guess,
    alone,
    at_every_step,
    ordered,
)
from lib_masknoise.scene import Problem

GUIDANCE = 2.0
"""At which both sides are asked for: hosts leave one out at 1."""
WORDS = "MaskNoise: initial noise"

Make = Callable[[Denoising], Method]


def wanted(p: Any, rows: Rows) -> bool:
    """Whether a pass begins with noise that is put in order. In a hires pass the picture is there already; in img2img a
    setting of the host's may leave no noise."""
    some = getattr(p, "initial_noise_multiplier", None) != 0
    return rows.scene.noise.initial.acts and some and not getattr(p, "is_hr_pass", False)


class Order:
    """What the noise of a job's images becomes, each made once; all frames have one in common."""

    def __init__(self) -> None:
        self._of_frames: Tensor | None = None

    def noise(self, z: Tensor, images: Sequence[Asking], animated: bool) -> Tensor:
        """`[B, C, …, h, w]` of unit variance → the same of each image."""
        if not animated:
            return torch.stack([_ordered(one, ask) for one, ask in zip(z, images, strict=True)])
        if self._of_frames is None or self._of_frames.shape != z.shape[1:]:
            self._of_frames = _ordered(z[0], images[0])
        return self._of_frames.expand_as(z)


def _ordered(z: Tensor, ask: Asking) -> Tensor:
    flat = z.reshape(ask.shape)
    (weights,) = ask.maps.weights([FIRST])
    return ordered(flat, ask.maps.scene.noise.initial, weights, ask.picture.seed, ask).reshape(z.shape)


@contextmanager
def exchanged(
    p: Any,
    sampler: Any,
    noise: Tensor,
    steps: int,
    sample: Callable[[], Any],
    make: Callable[[Beginning], Tensor],
) -> Iterator[None]:
    """The sampler begins with other noise until the block ends. noise: that of the pass as the host has made it. steps,
    sample: what the host launches. make: the noise to begin with. Where the user stops it meanwhile, the pass begins as
    it would have, and ends at once."""
    x, named = _begins(p, sampler, sample)
    beginning = Beginning.of(sampler, x, noise, named)
    denoiser, said = sampler.model_wrap_cfg, shared.state.textinfo
    denoiser.steps, denoiser.total_steps = steps, sampler.config.total_steps(steps)
    shared.state.textinfo = WORDS
    shift = torch.zeros_like(x)
    try:
        with _as_it_is(sampler), _without_skipping():
            shift = beginning.scale * (make(beginning) - noise).to(x)
    except InterruptedException:
        pass  # as soon as the sampler asks the denoiser it is told the same
    finally:
        shared.state.textinfo = said
    function = sampler.func
    with _function(sampler, lambda model, x, *args, **named: function(model, x + shift, *args, **named)):
        yield


def _begins(p: Any, sampler: Any, sample: Callable[[], Any]) -> tuple[Tensor, dict[str, Any]]:
    """What the sampler's function is given to begin with, and its other arguments."""
    heard: list[tuple[Tensor, dict[str, Any]]] = []

    def hear(model: Any, x: Tensor, *args: Any, **named: Any) -> Tensor:
        heard.append((x, named))
        return x

    with _function(sampler, hear):
        sample()
    if not heard:
        raise _refused(f"the sampler {p.sampler_name} does not say what it begins with")
    return heard[0]


@contextmanager
def _function(sampler: Any, function: Callable[..., Any]) -> Iterator[None]:
    own = sampler.func
    sampler.func = function
    try:
        yield
    finally:
        sampler.func = own


class Beginning:
    """What a pass begins with: `x = base + scale·noise [B, C, …, h, w]`, at `level`: a σ or, with `steps`, a time step
    of the host's."""

    def __init__(self, base: Tensor, scale: float, level: float, steps: bool) -> None:
        self.base, self.scale, self.level, self.steps = base, scale, level, steps

    @classmethod
    def of(cls, sampler: Any, x: Tensor, noise: Tensor, named: dict[str, Any]) -> Beginning:
        """x: what the sampler's function is given. noise: the host's, of the pass. named: its other arguments."""
        picture = getattr(sampler.model_wrap_cfg, "init_latent", None)
        known = [noise] if picture is None or picture.shape[1:] != x.shape[1:] else [noise, picture]
        columns = torch.stack([one.to(x).expand_as(x).flatten().double().cpu() for one in known], dim=1)
        # Exact but for rounding: two numbers for as many equations as the latent has.
        shares = torch.linalg.lstsq(columns, x.flatten().double().cpu()[:, None]).solution[:, 0]
        base = x - float(shares[0]) * noise.to(x)
        left = base if len(known) == 1 else base - float(shares[1]) * known[1].to(x)
        if float(left.abs().max()) > 0.01 * float(x.abs().max()):
            raise _refused("another extension has exchanged the noise; switch it off or noise.initial")
        found = next(
            (named[name] for name in ("timesteps", "sigmas", "sigma_sched", "sigma_max") if name in named), None
        )
        if found is None:
            raise _refused("the sampler does not say how much noise it begins with")
        return cls(base, float(shares[0]), float(torch.as_tensor(found).max()), "timesteps" in named)


class Asking:
    """An `Ask` of one image of a batch. images: the pass's. index: which. method: how this host blends."""

    def __init__(
        self,
        p: Any,
        sampler: Any,
        beginning: Beginning,
        images: Rows,
        index: int,
        prompts: ConceptPrompts,
        method: Make,
    ) -> None:
        self.p, self.sampler, self.beginning, self.index = p, sampler, beginning, index
        self.prompts, self.method = prompts, method
        self.subspaces = images.subspaces
        self.picture: Picture = images.pictures[index]._replace(frame=FIRST)
        given = self.picture.maps or images.maps
        scene = at_every_step(given.scene)
        windows = given.windowed or (scene.blend.start, scene.blend.end) != (
            given.scene.blend.start,
            given.scene.blend.end,
        )
        self.maps = Maps(scene, given.size, window=given.window) if windows else given
        shape = beginning.base.shape[1:]
        if len(shape) > 3 and shape[1] != 1:
            raise _refused("this model's noise is that of a video")
        self.shape = (shape[0], *shape[-2:])

    def __call__(self, z: Tensor, time: int, concept: int | None = None, guided: bool = False) -> list[Guess]:
        maps = self.maps
        if concept is not None:
            maps = Maps(alone(maps.scene, concept), maps.size, window=maps.window)
        rows = Rows(maps, [self.picture._replace(maps=None)], self.subspaces)
        with self._one_image(guided), sampling(self.p, rows, self.prompts, self.sampler, self.method) as method:
            return [self._guess(one, time, guided, method) for one in z]

    def _guess(self, z: Tensor, time: int, guided: bool, method: Method) -> Guess:
        kind, level, (signal, noise) = self._levels(time)
        start = self.beginning
        base = start.base[self.index : self.index + 1]
        x = base + start.scale * z.to(base).reshape(base.shape)
        # As the model is given it, whatever the pass begins with: of unit variance, but for a flow.
        seen = x if start.steps or kind == FLOW else x / (1 + start.level**2) ** 0.5
        x = seen if start.steps or kind == FLOW else seen * (1 + level**2) ** 0.5
        denoiser = self.sampler.model_wrap_cfg
        denoiser.step = 0
        out = denoiser(x, x.new_full((1,), level), **self.sampler.sampler_extra_args)
        denoising = method.denoising
        denoising.check()
        plain, whole = denoising.plain, denoising.guided
        pictures = []
        for one in (plain if guided else None, out if whole is None else whole):
            if (
                one is not None and start.steps and whole is None
            ):  # of these samplers the host's denoiser says the noise
                one = (seen - noise * one) / signal
            pictures.append(None if one is None else one.detach().float().cpu().reshape(self.shape))
        prompted = pictures[1]
        assert prompted is not None
        if pictures[0] is not None:
            prompted = pictures[0] + (prompted - pictures[0]) / GUIDANCE
        return Guess(seen.float().cpu().reshape(self.shape), prompted, pictures[0], kind, signal, noise)

    def _levels(self, time: int) -> tuple[str, float, tuple[float, float]]:
        """What the model predicts; the host's level of a time, none before the pass begins; how much picture and noise
        there is then."""
        start, model = self.beginning, self.sampler.model_wrap
        kind = _kind()
        if kind == FLOW:
            level = min(time / BEGINNING, start.level)
            return kind, level, (1 - level, level)
        if start.steps:
            alphas = getattr(self.sampler.model_wrap_cfg, "alphas", None)  # in Forge the model has them
            alphas = model.inner_model.alphas_cumprod if alphas is None else alphas
            level = float(min(_index(time, len(alphas)), int(start.level)))
            signal = float(alphas[int(level)])
            return kind, level, (signal**0.5, (1 - signal) ** 0.5)
        level = min(float(model.sigmas[_index(time, len(model.sigmas))]), start.level)
        whole = (1 + level**2) ** 0.5
        return kind, level, (1 / whole, level / whole)

    @contextmanager
    def _one_image(self, guided: bool) -> Iterator[None]:
        """The sampler's arguments for the denoiser, of this image alone. guided: both sides are needed."""
        sampler, own, i = self.sampler, self.sampler.sampler_extra_args, self.index
        denoiser = sampler.model_wrap_cfg
        picture = getattr(denoiser, "init_latent", None)
        cond, uncond = own["cond"], own["uncond"]
        if uncond is None and guided:  # Forge at CFG 1
            uncond = self.prompts.negative(self.p, self.p.negative_prompts[i])
        elif uncond is not None:
            uncond = uncond[i : i + 1]
        given = own.get("image_cond")
        one = {"image_cond": given[i : i + 1]} if isinstance(given, Tensor) and len(given) > 1 else {}
        scale = GUIDANCE if guided else 1.0
        cond = type(cond)(cond.shape, cond.batch[i : i + 1])
        sampler.sampler_extra_args = {
            **own,
            **one,
            "cond": cond,
            "uncond": uncond,
            "cond_scale": scale,
            "s_min_uncond": 0.0,
        }
        if picture is not None:
            denoiser.init_latent = picture[i : i + 1]
        try:
            yield
        finally:
            sampler.sampler_extra_args = own
            if picture is not None:
                denoiser.init_latent = picture


def _index(time: int, count: int) -> int:
    """Of a time from 1 to 1000 in a table of all time steps."""
    return max(0, round(time * count / BEGINNING) - 1)


def _kind() -> str:
    """What the model in use predicts."""
    model = shared.sd_model
    objects = getattr(model, "forge_objects", None)
    if objects is not None:
        predictor = getattr(objects.unet.model, "predictor", None)
        said = getattr(predictor, "prediction_type", "epsilon")
        return {"const": FLOW, "v_prediction": VELOCITY, "edm": VELOCITY}.get(said, EPSILON)
    return VELOCITY if getattr(model, "parameterization", "eps") == "v" else EPSILON


@contextmanager
def _as_it_is(sampler: Any) -> Iterator[None]:
    """The sampler and its denoiser are as before afterwards; meanwhile no inpainting mask is over what it predicts."""
    denoiser = sampler.model_wrap_cfg
    known = {name: getattr(denoiser, name) for name in ("step", "mask", "nmask") if hasattr(denoiser, name)}
    last = sampler.last_latent
    if "mask" in known:
        denoiser.mask = denoiser.nmask = None
    try:
        yield
    finally:
        vars(denoiser).update(known)
        sampler.last_latent = last


@contextmanager
def _without_skipping() -> Iterator[None]:
    """A setting of the hosts leaves negative prompts out of early steps; these are no steps."""
    options = vars(shared.opts)
    options = options.get("data", options)
    known = {name: options[name] for name in ("skip_early_cond",) if name in options}
    options.update(dict.fromkeys(known, 0.0))
    try:
        yield
    finally:
        options.update(known)


def _refused(message: str) -> Refused:
    return Refused([Problem("noise.initial", message)])
