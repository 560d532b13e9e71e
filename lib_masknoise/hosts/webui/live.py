"""Live painting on the model that a WebUI has loaded.

Every picture is a txt2img job of the host's own, made under its queue lock: `process_images` loads, encodes, activates
networks and samples as it does for any other. The picture itself goes through all the host's scripts, so that it is the
one of the Generate button. A sketch goes through ours alone, samples the last of a few steps from the last sketch, and
ends before the autoencoder.
"""

from __future__ import annotations

import functools
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from modules import call_queue, images, processing, scripts, sd_samplers, sd_samplers_common, sd_schedulers, shared
from PIL import Image
from torch import Tensor

from lib_masknoise import infotext
from lib_masknoise.conditioning import negatives, prompts
from lib_masknoise.hosts.webui import facts
from lib_masknoise.hosts.webui import job as jobs
from lib_masknoise.hosts.webui.own_job import OwnJob
from lib_masknoise.hosts.webui.prompts import ConceptPrompts, wildcards
from lib_masknoise.live import FAINT, STEPS, Engine, Picture, Step, Wish, described
from lib_masknoise.live.decoding import TinyDecoder, tiny_decoder, to_picture
from lib_masknoise.maps import Maps
from lib_masknoise.noise import fields
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.ui import inputs
from lib_masknoise.wildcards import Wildcards

TITLE = "MaskNoise"
REMEMBERED_PROMPTS = 8
"""Sets of concepts whose encoded prompts are kept from sketch to sketch."""
LET_BY = 0.2  # seconds in which a job that waited takes its turn
MOST_KEPT = 48  # pictures of a page
USUAL_SAMPLER = "Euler"  # that of the host's API
CHEAP, TAESD = 2, 3
"""The host's numbers of its approximations of an autoencoder."""


class Stopped(Exception):
    """The user has pressed Interrupt or Skip while a live picture was made."""


class _Job(OwnJob):
    """A txt2img job that calls a function after each step, and ends between two steps when that raises."""

    step: Step | None = None
    last: Tensor | None = None
    """The latent that sampling goes on from, with the job's noise on it; None to begin with noise alone."""
    sketchy: bool = False
    """Whether only the latent is wanted."""
    ended: Exception | None = None
    latent: Tensor | None = None

    def prepare(self, sampler: Any) -> None:
        sampler.callback_state = self._stepped
        if hasattr(sampler, "func"):
            sampler.func = _quiet(sampler.func, FAINT if self.sketchy else 0.0)
        if self.last is not None:
            sampler.sample = functools.partial(self._go_on, sampler)

    def _stepped(self, told: dict[str, Any]) -> None:
        """In place of the sampler's own callback, which also moves a progress bar in the console."""
        shared.state.sampling_step = told["i"]
        try:
            if self.step is not None:
                self.step()
        except Exception as error:
            self.ended = error
            shared.state.interrupted = True  # so that no other script works on what has become of the picture
            raise sd_samplers_common.InterruptedException from error

    def _go_on(self, sampler: Any, p: Any, x: Tensor, c: Any, uc: Any, image_conditioning: Any = None) -> Any:
        """Sample the steps after the first, in the host's way for img2img. x: the noise."""
        assert self.last is not None
        steps = self.steps - 1
        self.denoising_strength = steps / self.steps
        return sampler.sample_img2img(p, self.last.to(x), x, c, uc, steps=steps, image_conditioning=image_conditioning)

    def finished(self, latents: Any) -> bool:
        if shared.state.interrupted or shared.state.skipped:
            return False
        self.latent = latents
        return not self.sketchy


def _quiet(sample: Callable[..., Any], faint: float) -> Callable[..., Any]:
    """A function of k-diffusion's that draws no progress bar, and goes to the end at once where the last of several
    steps would begin with less than `faint` of noise."""

    @functools.wraps(sample)
    def quiet(*args: Any, disable: Any = None, **kwargs: Any) -> Any:
        sigmas = kwargs.get("sigmas")
        if sigmas is not None and len(sigmas) > 2 and sigmas[-1] == 0 and sigmas[-2] < faint:
            kwargs["sigmas"] = torch.cat([sigmas[:-2], sigmas[-1:]])
        return sample(*args, disable=True, **kwargs)

    return quiet


class _OursAlone:
    """In place of the host's scripts: this extension's hooks and nobody else's."""

    scripts: Sequence[Any] = ()
    alwayson_scripts: Sequence[Any] = ()

    def __init__(self, job: jobs.Job | None) -> None:
        self._job = job

    def before_process(self, p: Any) -> None:
        p.masknoise = self._job

    def before_process_batch(self, p: Any, prompts: list[str], **kwargs: Any) -> None:
        jobs.before_process_batch(p, prompts)

    def process_before_every_sampling(self, p: Any, x: Any = None, noise: Any = None, **kwargs: Any) -> None:
        jobs.process_before_every_sampling(p, noise)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def _let_by(lock: Any) -> None:
    """Whoever waits for the lock has been woken, and is to have it before this thread asks again."""
    end = time.monotonic() + LET_BY
    while not lock._lock.locked() and time.monotonic() < end:
        time.sleep(0.001)


class LiveHost:
    """The WebUI as the host of an `Engine`. app: the application that its API is in, once it has one."""

    def __init__(self) -> None:
        self.app: Any = None
        self._mine = False
        self._prompts: OrderedDict[Hashable, ConceptPrompts] = OrderedDict()
        self._conds: tuple[list[Any], list[Any]] = [None, None], [None, None]
        self._tiny: tuple[Hashable, TinyDecoder | None] = None, None

    @property
    def factor(self) -> int:
        return facts.pixels_of_latent()

    # --- Whose turn it is

    @contextmanager
    def turn(self) -> Iterator[None]:
        lock, waiting = call_queue.queue_lock, False
        try:
            with lock:
                self._mine = True
                try:
                    yield
                finally:
                    waiting, self._mine = self.busy(), False
        finally:
            if waiting:
                _let_by(lock)

    def busy(self) -> bool:
        lock = call_queue.queue_lock
        return bool(lock._pending_threads) if self._mine else lock._lock.locked()

    def setting(self) -> Hashable:
        """The host's own settings, the checkpoint among them."""
        return json.dumps(shared.opts.data, sort_keys=True, default=str)

    def wildcards(self) -> Wildcards:
        return wildcards()

    def check(self, wish: Wish) -> None:
        """Raise SceneError for a sampler or a scheduler that the host does not have."""
        named = {"sampler": (wish.settings.sampler, [one.name for one in sd_samplers.all_samplers])}
        schedulers = [name for one in sd_schedulers.schedulers for name in (one.label, one.name)]
        named["scheduler"] = wish.settings.scheduler, schedulers
        wrong = [
            Problem(path, f"expected one of {', '.join(known)}, got {name}")
            for path, (name, known) in named.items()
            if name and name not in known
        ]
        if wrong:
            raise SceneError(tuple(wrong))
        fields.require(wish.scene)

    # --- Pictures

    def sketch(
        self, wish: Wish, maps: Maps, frame: float, last: Tensor | None, step: Step, steps: int = STEPS
    ) -> Tensor:
        """Few steps with the host's sampler of that name."""
        steps = min(steps, wish.settings.steps)
        p = self._processing(wish, steps, step)
        latent_size = wish.settings.size[0] // self.factor, wish.settings.size[1] // self.factor
        if last is not None and steps > 1 and tuple(last.shape[-2:]) == latent_size:
            p.last = last
        p.sketchy = True
        p.cached_c, p.cached_uc = self._conds
        p.scripts = _OursAlone(self._job(wish.scene, maps, frame))
        self._run(p)
        return _plain(p.latent)

    def full(self, wish: Wish, maps: Maps, frame: float, step: Step) -> tuple[Image.Image, Tensor]:
        """The picture that the host's API makes of the same settings and scene."""
        p = self._processing(wish, wish.settings.steps, step)
        if wish.scene.animation.frames > 1:
            setattr(p, jobs.FRAMES, (frame,))
        p.scripts, p.script_args = scripts.scripts_txt2img, self._script_args(wish.scene)
        processed = self._run(p)
        image = processed.images[processed.index_of_first_image]
        image.info["parameters"] = processed.infotexts[processed.index_of_first_image]
        return image, _plain(p.latent)

    def _processing(self, wish: Wish, steps: int, step: Step) -> _Job:
        p = _Job(**_options(wish, steps))
        p.is_api = True
        p.outpath_samples = p.outpath_grids = shared.opts.outdir_samples or shared.opts.outdir_txt2img_samples
        p.step = step
        return p

    def _run(self, p: _Job) -> Any:
        """Have the host do a job. Raises what the step has raised, what the host raises, and Stopped."""
        shared.state.begin(job="MaskNoise live")
        try:
            with closing(p), prompt_history_as_it_is():
                processed = processing.process_images(p)
            stopped = shared.state.interrupted or shared.state.skipped
        finally:
            shared.state.interrupted = shared.state.skipped = False
            shared.state.end()
        if p.ended is not None:
            raise p.ended
        if stopped or p.latent is None:
            raise Stopped("Interrupted.")
        return processed

    def _job(self, scene: Scene, maps: Maps, frame: float) -> jobs.Job | None:
        """A scene on its way through a sketch: its maps are drawn and its prompts encoded already, if ever."""
        if not scene.enabled:
            return None
        key = tuple(prompts(scene)), tuple(negatives(scene))
        known = self._prompts.setdefault(key, ConceptPrompts(scene))
        self._prompts.move_to_end(key)
        while len(self._prompts) > REMEMBERED_PROMPTS:
            self._prompts.popitem(last=False)
        job = jobs.Job(scene, known, (frame,))
        job.know(maps)
        return job

    def _script_args(self, scene: Scene) -> tuple[Any, ...]:
        """Those of all the host's scripts as its API has them, with the scene for ours."""
        runner = scripts.scripts_txt2img
        given = list(_api_defaults(self.app) or [getattr(one, "value", None) for one in runner.inputs])
        given[0] = 0  # no script of the list is chosen
        (ours,) = (one for one in runner.alwayson_scripts if one.title() == TITLE)
        given[ours.args_from : ours.args_to] = [scene.to_dict(), *inputs.defaults()[1:]]
        return tuple(given)

    # --- Quick decoding

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Image.Image:
        tiny = self._distilled()
        if tiny is not None:
            return to_picture(tiny.to(latent.device)(latent.float()))
        for approximation in (TAESD, CHEAP) if _has_taesd() else (CHEAP,):
            try:
                return to_picture(sd_samplers_common.samples_to_images_tensor(latent, approximation) / 2 + 0.5)
            except Exception:  # noqa: S112 - of a kind of model that the host has no such approximation for
                continue
        return to_picture(sd_samplers_common.samples_to_images_tensor(latent, 0) / 2 + 0.5)

    def _distilled(self) -> TinyDecoder | None:
        """That of the autoencoder in use, where there is one."""
        setting = self.setting()
        if self._tiny[0] != setting:
            self._tiny = setting, tiny_decoder(_autoencoder().decoder.state_dict())
        return self._tiny[1]


# --- Keeping one

SHOWN = ("txt2img_gallery", "html_info_txt2img", "html_log_txt2img", "generation_info_txt2img")
"""The host's components in which a kept picture is shown, by their element ids."""


class Keeper:
    """Puts an engine's pictures among the host's own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def keep(self, session: str, before: list[Any]) -> list[Any]:
        """What SHOWN become, and a page's kept pictures, the newest first."""
        picture = self.engine.picture(session)
        if picture is None:
            return [*_shown(before), before]
        kept = [_saved(picture), *before][:MOST_KEPT]
        return [*_shown(kept), kept]


def _saved(picture: Picture) -> tuple[Image.Image, str, Picture]:
    """A picture, in the host's folder where the host saves pictures, and its infotext."""
    made, opts = picture.wish.settings, shared.opts
    text = picture.image.info.get("parameters") if picture.kind == "full" else None
    text = text or infotext.text(made.prompt, made.negative_prompt, {**described(picture), **_model()})
    image = picture.image.copy()
    image.info["parameters"] = text
    if opts.samples_save:
        folder = opts.outdir_samples or opts.outdir_txt2img_samples
        p = processing.StableDiffusionProcessingTxt2Img(**_options(picture.wish, made.steps))  # names the file
        images.save_image(image, folder, "", made.seed, made.prompt, opts.samples_format, info=text, p=p)
    return image, text, picture


def _model() -> dict[str, str]:
    info = shared.sd_model.sd_checkpoint_info
    return {"Model": info.name_for_extra}


def _shown(kept: Sequence[tuple[Image.Image, str, Picture]]) -> list[Any]:
    """What the gallery, the infotext and the log show, and what the host's buttons below the gallery read."""
    if not kept:
        return [[], "", "<p>There is no live picture yet.</p>", ""]
    pictures = [image for image, _, _ in kept]
    texts = [text for _, text, _ in kept]
    from modules.ui_common import plaintext_to_html  # the user interface is loaded after the scripts

    return [pictures, plaintext_to_html(texts[0]), "", json.dumps(_generation_info(kept, texts))]


def _generation_info(kept: Sequence[tuple[Image.Image, str, Picture]], texts: list[str]) -> dict[str, Any]:
    """As `Processed.js` writes it."""
    settings = [picture.wish.settings for _, _, picture in kept]
    newest = settings[0]
    return {
        "prompt": newest.prompt,
        "all_prompts": [one.prompt for one in settings],
        "negative_prompt": newest.negative_prompt,
        "all_negative_prompts": [one.negative_prompt for one in settings],
        "seed": newest.seed,
        "all_seeds": [one.seed for one in settings],
        "subseed": 0,
        "all_subseeds": [0] * len(settings),
        "subseed_strength": 0,
        "width": newest.size[1],
        "height": newest.size[0],
        "sampler_name": newest.sampler or USUAL_SAMPLER,
        "cfg_scale": newest.guidance_scale,
        "steps": newest.steps,
        "batch_size": 1,
        "sd_model_name": _model()["Model"],
        "sd_model_hash": getattr(shared.sd_model, "sd_model_hash", None),
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "extra_generation_params": {},
        "job_timestamp": shared.state.job_timestamp,
    }


# --- The host's model


def _options(wish: Wish, steps: int) -> dict[str, Any]:
    """Of the host's job for a wish."""
    made = wish.settings
    height, width = made.size
    sampler, scheduler = sd_samplers.get_sampler_and_scheduler(made.sampler or USUAL_SAMPLER, made.scheduler)
    return {
        "sd_model": shared.sd_model,
        "prompt": made.prompt,
        "negative_prompt": made.negative_prompt,
        "seed": made.seed,
        "steps": steps,
        "cfg_scale": made.guidance_scale,
        "width": width,
        "height": height,
        "sampler_name": sampler,
        "scheduler": scheduler,
        "do_not_save_samples": True,
        "do_not_save_grid": True,
    }


def _autoencoder() -> Any:
    model = shared.sd_model
    objects = getattr(model, "forge_objects", None)
    return model.first_stage_model if objects is None else objects.vae.first_stage_model


def _has_taesd() -> bool:
    """Whether the host has the tiny autoencoder of its model, or would fetch it first."""
    from modules import paths_internal

    model = shared.sd_model
    family = next((name for name in ("sd3", "sdxl") if getattr(model, f"is_{name}", False)), "sd")
    name = {"sd": "taesd", "sdxl": "taesdxl", "sd3": "taesd3"}[family]
    return (Path(paths_internal.models_path) / "VAE-taesd" / f"{name}_decoder.pth").is_file()


def _plain(latent: Tensor | None) -> Tensor:
    """A latent that ordinary code may use, whatever mode the host has made it in."""
    assert latent is not None
    return latent.detach().clone().float().cpu()


def _api_defaults(app: Any) -> list[Any] | None:
    """The scripts' arguments that the host's API fills in; None where it has no API."""
    for route in getattr(app, "routes", ()):
        if getattr(route, "path", None) == "/sdapi/v1/txt2img":
            return getattr(getattr(route.endpoint, "__self__", None), "default_script_arg_txt2img", None)
    return None


@contextmanager
def prompt_history_as_it_is() -> Iterator[None]:
    """What the host keeps of the last job is that of the user's last job, not of a sketch. Held with the queue lock."""
    options = shared.cmd_opts
    before = options.no_prompt_history
    options.no_prompt_history = True
    try:
        yield
    finally:
        options.no_prompt_history = before
