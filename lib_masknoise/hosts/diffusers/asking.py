"""What a pipeline's model makes of noise, before anything is sampled: see `lib_masknoise.noise.initial.Ask`.

The pipeline itself puts together what its model wants beside noise, time and text, whatever kind it is. So it is
called as for a picture; noise and time are exchanged before the model's first call, and the pass ends after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lib_masknoise.conditioning import LocationConditioning, condition, condition_negative, negatives, prompts
from lib_masknoise.errors import ModelError
from lib_masknoise.maps import Maps
from lib_masknoise.noise.initial import BEGINNING, EPSILON, FIRST, FLOW, VELOCITY, Guess, alone

if TYPE_CHECKING:
    from lib_masknoise.hosts.diffusers.rendering import Job


class _Heard(Exception):
    """The model has been called; a pass has no other end before its last step."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


class Asking:
    """An `Ask` of a job. Both sides of a guidance are rows of one call, where the pipeline makes one of them."""

    def __init__(self, job: Job) -> None:
        self.job, self.family = job, job.family
        self._schedule = _Schedule(job.pipe.scheduler)

    def __call__(self, z: Tensor, time: int, concept: int | None = None, guided: bool = False) -> list[Guess]:
        count = len(z)
        prompted = self._prompted(concept, count)
        if not guided:
            return self._guesses(z, time, self._model(prompted, None, z, time))
        plain = self._plain(count)
        if self.family.together:
            without, found = self._model(prompted, plain, torch.cat([z, z]), time).split(count)
        else:
            found, without = (self._model(side, None, z, time) for side in (prompted, plain))
        return self._guesses(z, time, found, without)

    def _guesses(self, z: Tensor, time: int, prompted: Tensor, plain: Tensor | None = None) -> list[Guess]:
        kind, levels, z = self._schedule.kind, self._schedule.levels(time), z.float().cpu()
        with_prompts = self._schedule.picture(z, prompted, time)
        without = [None] * len(z) if plain is None else self._schedule.picture(z, plain, time)
        return [Guess(*one, kind, *levels) for one in zip(z, with_prompts, without, strict=True)]

    def _prompted(self, concept: int | None, count: int) -> LocationConditioning:
        job = self.job
        maps = job.maps if concept is None else Maps(alone(job.maps.scene, concept), job.maps.size)
        encoded = {text: job.encoded[text] for text in prompts(maps.scene)}
        return condition(maps, job.base, encoded, [FIRST] * count, [job.noise_seed] * count, job.subspaces)

    def _plain(self, count: int) -> LocationConditioning:
        """The negative prompts, as the other side of a guidance has them."""
        job = self.job
        encoded = {text: job.encoded_negative[text] for text in negatives(job.maps.scene)}
        return condition_negative(job.maps, job.base_negative, encoded, [FIRST] * count)

    def _model(
        self, positive: LocationConditioning, negative: LocationConditioning | None, z: Tensor, time: int
    ) -> Tensor:
        """The model's output for some noises `[n, C, h, w]`, float32 on the CPU."""
        job, family = self.job, self.family
        height, width = job.size
        scale = 1.0 if job.guided else job.guidance_scale
        given = family.latents(z.to(family.device, family.model.dtype))
        sides = positive, negative
        with family.bind(sides, sides, (0.0, 1.0), None), self._exchanged(given, time):
            try:
                job.pipe(
                    latents=given,
                    **job.stand_in_embeds(len(z)),
                    height=height,
                    width=width,
                    num_inference_steps=job.steps,
                    output_type="latent",
                    **family.options(scale),
                )
            except _Heard as heard:
                return family.maps_of(heard.output, job.size).float().cpu()
        raise ModelError(f"a {type(job.pipe).__name__} made a pass without calling its model")

    @contextmanager
    def _exchanged(self, given: Tensor, time: int) -> Iterator[None]:
        """The model sees that noise at that time, whatever it is called with, and what it says ends the pass."""

        def before(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            names = ("sample" if "sample" in kwargs else "hidden_states", "timestep")
            called = args[1] if len(args) > 1 else kwargs[names[1]]
            first, own = float(self.job.pipe.scheduler.timesteps[0]), torch.as_tensor(called)
            when = self.family.when(float(own.flatten()[0]), first, self._schedule.timestep(time))
            values = self.family.given(given), torch.full_like(own, when)
            exchanged = tuple(values[i] for i in range(min(2, len(args))))
            named = {name: values[i] for i, name in enumerate(names) if i >= len(args)}
            return (*exchanged, *args[2:]), {**kwargs, **named}

        def after(model: Any, args: tuple[Any, ...], output: Any) -> None:
            raise _Heard(self.family.heard(output))

        model = self.family.model
        hooks = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Schedule:
    """What a scheduler says of the model's times and of what it predicts."""

    def __init__(self, scheduler: Any) -> None:
        predicts = scheduler.config.get("prediction_type", EPSILON)
        flows = "FlowMatch" in type(scheduler).__name__ or "flow" in predicts
        self.predicts = FLOW if flows else predicts
        if not flows and (predicts not in (EPSILON, VELOCITY, "sample") or not hasattr(scheduler, "alphas_cumprod")):
            raise ModelError(
                f"noise.initial: a {type(scheduler).__name__} does not say how much noise there is at a time"
            )
        self._signals = None if flows else scheduler.alphas_cumprod

    @property
    def kind(self) -> str:
        return EPSILON if self.predicts == "sample" else self.predicts

    def timestep(self, time: int) -> float:
        """What the scheduler calls a time from 1 to 1000."""
        return time if self._signals is None else round(time * len(self._signals) / BEGINNING) - 1

    def levels(self, time: int) -> tuple[float, float]:
        """How much picture and how much noise there is at a time."""
        if self._signals is None:
            return 1 - time / BEGINNING, time / BEGINNING
        signal = float(self._signals[int(max(0, self.timestep(time)))])
        return signal**0.5, (1 - signal) ** 0.5

    def picture(self, z: Tensor, output: Tensor, time: int) -> Tensor:
        """The picture that the model sees in z."""
        z, (signal, noise) = z.float().cpu(), self.levels(time)
        if self.predicts == EPSILON:
            return (z - noise * output) / signal
        if self.predicts == VELOCITY:
            return signal * z - noise * output
        return output if self.predicts == "sample" else z - noise * output
