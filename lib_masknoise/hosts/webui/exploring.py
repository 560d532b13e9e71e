"""The loaded model of a WebUI as what the views of `lib_masknoise.explore` ask.

Every picture is of a job of the host's own, with all its scripts at their defaults, as its API makes them: what a view
shows is what the same settings give there. Nothing is saved. A pass is recorded by the callbacks that the host has for
extensions, which hear the denoiser and change nothing.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from modules import (
    call_queue,
    devices,
    processing,
    prompt_parser,
    script_callbacks,
    scripts,
    sd_models,
    sd_samplers,
    shared,
)
from PIL import Image
from torch import Tensor

from lib_masknoise.conditioning import Encoded
from lib_masknoise.explore.map import preset_prompts
from lib_masknoise.explore.model import Moment, Recording, Report, Stop
from lib_masknoise.explore.requests import Asked
from lib_masknoise.explore.workshop import Workshop
from lib_masknoise.hosts.webui import job as jobs
from lib_masknoise.hosts.webui.live import prompt_history_as_it_is
from lib_masknoise.hosts.webui.prompts import Encodings, size_embedding_width, token_count, without_networks
from lib_masknoise.hosts.webui.refusal import Refused
from lib_masknoise.hosts.webui.xyz import TITLE
from lib_masknoise.presets import Presets
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.settings import Settings

USUAL_SAMPLER, USUAL_SCHEDULER = "Euler", "Automatic"
CHUNK_TOKENS = 75
USUAL_SIZE = (512, 512)
JOB = "masknoise-explore"


@dataclass(frozen=True)
class HostSettings(Settings):
    """sampler, scheduler: by the host's names."""

    sampler: str = USUAL_SAMPLER
    scheduler: str = USUAL_SCHEDULER


def workshop(presets: Presets, model: WebUIModel | None = None) -> Workshop:
    """Where the WebUI's views are made; their pictures go with the program."""
    folder = Path(tempfile.mkdtemp(prefix="masknoise-explore-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Workshop(WebUI(model), folder, functools.partial(preset_prompts, presets))


class WebUI:
    """See `lib_masknoise.explore.workshop.Host`."""

    def __init__(self, model: WebUIModel | None = None) -> None:
        self.model = model or WebUIModel()

    def settings(self, asked: Asked) -> HostSettings:
        known = {"sampler": _names(sd_samplers.all_samplers), "scheduler": _schedulers()}
        wrong = [
            Problem(name, f"expected one of {', '.join(names)}, got {given!r}")
            for name, names in known.items()
            if names and (given := getattr(asked, name)) and given not in names
        ]
        if wrong:
            raise SceneError(wrong)
        made = asdict(asked.settings())
        made["model"] = str(getattr(shared.opts, "sd_model_checkpoint", None) or "") or None
        made["sampler"], made["scheduler"] = asked.sampler or USUAL_SAMPLER, asked.scheduler or USUAL_SCHEDULER
        return HostSettings(**made)

    def state(self) -> Any:
        """All of the host's settings: which of them change a picture, it alone knows."""
        return {name: str(value) for name, value in _options().items()}

    @contextmanager
    def turn(self) -> Iterator[None]:
        with call_queue.queue_lock, prompt_history_as_it_is():
            shared.state.begin(job=JOB)
            try:
                if hasattr(sd_models, "forge_model_reload"):
                    sd_models.forge_model_reload()  # a job does it; prompts are encoded before the first
                yield
            except Refused as error:
                raise SceneError(error.problems) from None
            finally:
                shared.state.interrupted = shared.state.skipped = False
                shared.state.end()
                shared.total_tqdm.clear()

    def progress(self, words: str, done: float, total: float) -> None:
        state = shared.state
        if _stopped():
            raise Stop
        state.textinfo = f"MaskNoise: {words}"
        state.job_count, state.job_no = max(1, int(total)), int(min(done, total))


class WebUIModel:
    """See `lib_masknoise.explore.model.Model`."""

    longest = CHUNK_TOKENS
    size = USUAL_SIZE

    def encode(self, prompts: Sequence[str], settings: Settings | None = None) -> dict[str, Encoded]:
        """By the host's own parser and encoder. `<lora:…>` and the like are left out; of a prompt that changes over the
        steps it is the first. settings: whose size SDXL's vectors say."""
        p = job_of(settings or HostSettings(), "", 0, 1)
        encodings = Encodings()
        found = {}
        with closing(p), torch.no_grad():
            for text, plain in without_networks(prompts, {}).items():
                # One at a time: the host pads prompts that it encodes together to the longest one.
                given = prompt_parser.SdConditioning([plain], False, p.width, p.height)
                given.distilled_cfg_scale = getattr(p, "distilled_cfg_scale", None)
                function = prompt_parser.get_learned_conditioning
                schedule = p.get_conds_with_caching(function, given, p.steps, [[None, None]], None)[0]
                found[text] = encodings.one(schedule[0].cond)
        return found

    def tokens(self, prompt: str) -> int:
        count = token_count(prompt).partition("/")[0]
        return int(count) if count else 0

    def rendered(
        self, scene: Scene, settings: Settings, frames: Sequence[float], report: Report
    ) -> Iterator[Image.Image]:
        batch = min(settings.batch_size or len(frames), len(frames))
        p = job_of(settings, settings.prompt, settings.seed, batch, scene)
        if scene.enabled:
            setattr(p, jobs.FRAMES, tuple(frames))
        with closing(p):
            yield from done(p, len(frames), report)

    def plain(
        self, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, report: Report
    ) -> list[Image.Image]:
        with closing(job_of(settings, list(prompts), list(seeds), len(seeds))) as p:
            return list(done(p, len(seeds), report))

    def blended(
        self, contexts: Sequence[Encoded], seeds: Sequence[int], settings: Settings, report: Report
    ) -> list[Image.Image]:
        with closing(job_of(settings, [""] * len(seeds), list(seeds), len(seeds))) as p:
            own = p.setup_conds

            def setup_conds() -> None:
                own()
                p.c = _with_contexts(p.c, contexts)

            p.setup_conds = setup_conds
            return list(done(p, len(seeds), report))

    def recorded(self, scene: Scene, settings: Settings, report: Report) -> Recording:
        recorder = Recorder()
        with closing(job_of(settings, settings.prompt, settings.seed, 1, scene)) as p:
            own = p.sample

            def sample(*args: Any, **kwargs: Any) -> Tensor:
                samples = own(*args, **kwargs)
                recorder.end = samples[:1].detach().clone()
                return samples

            p.sample = sample
            try:
                (image,) = done(p, 1, report, recorder.before, recorder.after)
            except Stop:
                return Recording(recorder.moments, None, interrupted=True)
        recorder.complete = True
        return Recording(recorder.moments, image)

    def decoded(self, latents: Tensor) -> list[Image.Image]:
        with torch.no_grad(), devices.autocast():
            given = latents.to(shared.device)
            batch = processing.decode_latent_batch(shared.sd_model, given, target_device=devices.cpu)
        return [_picture(one) for one in batch]


class Recorder:
    """What the first row of a pass had and was heading for, at every call of the denoiser, and what it ended with."""

    def __init__(self) -> None:
        self._heard: list[tuple[Any, Tensor, Tensor, Tensor | None]] = []
        self.end: Tensor | None = None
        self.complete = False

    def before(self, params: Any) -> None:
        self._heard.append((params.denoiser, params.x[:1].detach().clone(), params.sigma[:1].detach().clone(), None))

    def after(self, params: Any) -> None:
        denoiser, x, sigma, _ = self._heard.pop()
        self._heard.append((denoiser, x, sigma, params.x[:1].detach().clone()))

    @property
    def moments(self) -> list[Moment]:
        found = [_moment(denoiser, x, sigma, out) for denoiser, x, sigma, out in self._heard if out is not None]
        if self.complete and self.end is not None:
            last = self.end[0].float().cpu()
            found.append(Moment(0.0, last, last))
        return found


def _moment(denoiser: Any, x: Tensor, sigma: Tensor, out: Tensor) -> Moment:
    """x, out: `[1, C, h, w]`. The samplers that count in time steps are given a step for sigma and an `x` of unit
    variance, and get noise for what it is heading for, unless the denoiser has made sigmas of them before it tells
    (reForge); models of flows mix picture and noise by `1 − σ` and `σ`."""
    level = float(sigma[0])
    if hasattr(denoiser, "alphas") and not getattr(denoiser, "classic_ddim_eps_estimation", False):
        signal = float(denoiser.alphas[int(level)])
        x0 = denoiser.get_pred_x0(x, out, sigma)
        return Moment(((1 - signal) / signal) ** 0.5, _plain(x), _plain(x0))
    if flows():
        return Moment(level / max(1 - level, 1e-4), _plain(x) / (level**2 + (1 - level) ** 2) ** 0.5, _plain(out))
    return Moment(level, _plain(x) / (1 + level**2) ** 0.5, _plain(out))


def _plain(latent: Tensor) -> Tensor:
    return latent[0].float().cpu()


def flows() -> bool:
    objects = getattr(shared.sd_model, "forge_objects", None)
    predictor = getattr(getattr(getattr(objects, "unet", None), "model", None), "predictor", None)
    return getattr(predictor, "prediction_type", "") == "const"


# --- Jobs


def job_of(
    settings: Settings,
    prompt: Any,
    seed: Any,
    batch: int,
    scene: Scene | None = None,
    kind: Any = processing.StableDiffusionProcessingTxt2Img,
) -> Any:
    """A job of the host's, as its API makes one. prompt, seed: one, or one for each picture of the batch."""
    height, width = settings.size or USUAL_SIZE
    p = kind(
        sd_model=shared.sd_model,
        prompt=prompt,
        negative_prompt=settings.negative_prompt,
        seed=seed,
        steps=settings.steps,
        cfg_scale=settings.guidance_scale,
        width=width,
        height=height,
        batch_size=batch,
        sampler_name=getattr(settings, "sampler", USUAL_SAMPLER),
        scheduler=getattr(settings, "scheduler", USUAL_SCHEDULER),
        outpath_samples=getattr(shared.opts, "outdir_txt2img_samples", ""),
        do_not_save_samples=True,
        do_not_save_grid=True,
    )
    p.is_api = True
    runner = scripts.scripts_txt2img
    p.scripts = runner
    p.script_args = tuple(_arguments(runner, scene if scene is not None and scene.enabled else None))
    return p


def _arguments(runner: Any, scene: Scene | None) -> list[Any]:
    """Every script's defaults, and a scene for ours."""
    found: list[Any] = [0] + [None] * max((script.args_to for script in runner.scripts), default=0)
    for script in runner.scripts:
        known = getattr(script, "api_info", None)
        if known is not None:
            found[script.args_from : script.args_to] = [getattr(argument, "value", None) for argument in known.args]
    if scene is not None:
        ours = next(script for script in runner.alwayson_scripts if script.title() == TITLE)
        found[ours.args_from] = scene.to_dict()
    return found


Heard = Callable[[Any], None]


def done(
    p: Any, total: int, report: Report, before: Heard | None = None, after: Heard | None = None
) -> Iterator[Image.Image]:
    """Do a job; its pictures, those that are whole. Raises Stop where it was interrupted, after these, and what the
    host raises. total: how many pictures there are. before, after: further listeners of the denoiser."""
    progress = _Progress(p, total, report)
    with _listening(progress.before, "on_cfg_denoiser"), _listening(before, "on_cfg_denoiser"):
        with _listening(after, "on_cfg_after_cfg"):
            processed = processing.process_images(p)
    job = getattr(p, "masknoise", None)
    stopped = _stopped()
    whole = range(total) if not stopped else job.complete if job is not None else ()
    first = processed.index_of_first_image
    for place in whole:
        yield _without_info(processed.images[first + place])
    if stopped:
        raise Stop
    progress.end()


class _Progress:
    """Tells how much of a job is done, before each call of the denoiser; ends the job where nobody wants more of it."""

    def __init__(self, p: Any, total: int, report: Report) -> None:
        self.p, self.total, self.report = p, total, report
        self.done = 0.0

    def before(self, params: Any) -> None:
        denoiser = params.denoiser
        first = self.p.iteration * self.p.batch_size
        rows = min(self.p.batch_size, self.total - first)
        self._tell(first + rows * min(1.0, denoiser.step / max(1, denoiser.total_steps)))

    def end(self) -> None:
        self.report(self.total - self.done)

    def _tell(self, now: float) -> None:
        more, self.done = now - self.done, now
        try:
            self.report(more)
        except Stop:  # the host swallows what a callback raises
            shared.state.interrupt()


def _listening(function: Heard | None, event: str) -> AbstractContextManager[None]:
    return nullcontext() if function is None else _registered(function, event)


@contextmanager
def _registered(function: Heard, event: str) -> Iterator[None]:
    try:
        getattr(script_callbacks, event)(function)
        yield
    finally:
        script_callbacks.remove_callbacks_for_function(function)


def _stopped() -> bool:
    state = shared.state
    return bool(state.interrupted or state.skipped or getattr(state, "stopping_generation", False))


def _without_info(image: Image.Image) -> Image.Image:
    """The host writes a job's parameters into its pictures; those of a view are in the view."""
    image.info.pop("parameters", None)
    return image


def _with_contexts(own: Any, contexts: Sequence[Encoded]) -> Any:
    """The host's conds of a batch with other contexts in them. What says an image's size stays the host's."""
    batch = []
    for (part, *_), context in zip(own.batch, contexts, strict=True):
        schedule = part.schedules[-1]
        cond = type(schedule)(schedule.end_at_step, _replaced(schedule.cond, context))
        batch.append([type(part)([cond])])
    return type(own)(own.shape, batch)


def _replaced(cond: Any, given: Encoded) -> Any:
    if not isinstance(cond, Mapping):
        return given.context.to(cond)
    made = {**cond, "crossattn": given.context.to(cond["crossattn"])}
    vector = cond.get("vector")
    if vector is not None and given.pooled is not None:
        width = vector.shape[-1] - size_embedding_width(shared.sd_model)
        made["vector"] = torch.cat([given.pooled[:width].to(vector), vector[width:]])
    return made


def _picture(decoded: Tensor) -> Image.Image:
    """`[3, H, W]` from −1 to 1, as the host makes a picture of it."""
    values = torch.clamp((decoded.float() + 1.0) / 2.0, min=0.0, max=1.0)
    return Image.fromarray((255.0 * np.moveaxis(values.cpu().numpy(), 0, 2)).astype(np.uint8))


# --- What the host has


def _options() -> dict[str, Any]:
    """Every setting, those that have never been changed as well: a job that changes one and puts it back makes it one
    that has. Not the checkpoint's hash, which is there once the checkpoint is loaded."""
    opts = shared.opts
    names = getattr(opts, "data_labels", None) or vars(opts)
    return {name: getattr(opts, name, None) for name in sorted(names) if name != "sd_checkpoint_hash"}


def _names(listed: Any) -> list[str]:
    return [one.name for one in listed]


def _schedulers() -> list[str]:
    try:
        from modules import sd_schedulers
    except ImportError:  # A1111 before 1.9
        return []
    return [one.label for one in sd_schedulers.schedulers]
