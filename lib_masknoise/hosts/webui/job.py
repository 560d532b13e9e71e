"""A job of a WebUI with a scene in it, from the request to the files: what A1111, Forge and their kin have in common.

The script hands each of the WebUI's hooks on to the function of the same name. What belongs to a job lives on the
host's own object for it (`p.masknoise`), so that jobs never see each other's masks and nothing is left behind. The
WebUIs log what a hook raises and go on; a picture other than the one asked for would come out. So an error is raised
again where the host does not catch it, before anything is sampled (`_stop`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import HTTPException, Request
from fastapi.security import HTTPBasic
from modules import rng as host_rng
from modules import shared
from modules.processing import StableDiffusionProcessingImg2Img, StableDiffusionProcessingTxt2Img

from lib_masknoise import animation, infotext
from lib_masknoise.hosts.webui import containers, facts, files, initial, parts, xyz
from lib_masknoise.hosts.webui.checkpoints import subspaces
from lib_masknoise.hosts.webui.denoising import Conflict, Denoising, Method, sampling
from lib_masknoise.hosts.webui.prompts import ConceptPrompts, network_tags, wildcards
from lib_masknoise.hosts.webui.refusal import Refused
from lib_masknoise.hosts.webui.rows import Picture, Rows
from lib_masknoise.maps import Maps, Size, extent
from lib_masknoise.noise import fields
from lib_masknoise.noise.feature import check_dimensions
from lib_masknoise.presets import PresetError, Presets
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.ui import inputs, live
from lib_masknoise.wildcards import Wildcards, expand
from lib_masknoise.window import WHOLE, Window

ADAPTIVE = "DPM adaptive"
"""The sampler whose images depend on the others of their batch."""

BATCH_NOISE = "no_dpmpp_sde_batch_determinism"
"""The setting by which the noise of SDE samplers depends on the batch."""
FRAMES = "masknoise_frames"
"""The attribute of a job that says which of its scene's frames are wanted, fractions too (`hosts.webui.exploring`,
`hosts.webui.live`)."""


@dataclass
class Job:
    """A scene on its way through the host. Lives on the host's own object of the job."""

    scene: Scene
    prompts: ConceptPrompts
    frames: Sequence[float] | None = None
    """Which frames are wanted; all of the scene's when None."""
    complete: list[int] = field(default_factory=list)
    """Which of the images finished so far are whole: sampled to the end, not interrupted or skipped."""
    finished: int = 0
    sampled: bool = False
    """Whether a sampling pass has begun with the scene in it."""
    launch: Callable[..., Any] | None = None
    """What the sampler of the pass is launched with, where the scene is in it."""
    moved: torch.Tensor | None = None
    """The noise that has the visual noise in it already."""
    remarks: tuple[str, ...] = ()
    """What the scene asks for that will not do what one expects of it."""
    tiles: Sequence[Window] = ()
    """Of the images of this job, where they are parts of one picture."""
    wildcards: Wildcards = field(default_factory=Wildcards)
    _said: dict[int, Scene] = field(default_factory=dict)
    order: initial.Order = field(default_factory=initial.Order)
    """What the noise of its images becomes where the scene puts it in order."""

    _maps: dict[tuple[Size, Window], Maps] = field(default_factory=dict)

    def maps(self, size: Size, window: Window = WHOLE) -> Maps:
        """The scene's maps at the latent's size of a pass, the same for all batches. window: the part of the picture
        that the pass makes."""
        if (size, window) not in self._maps:
            self._maps[size, window] = Maps(self.scene, size, window=window)
        return self._maps[size, window]

    def saying(self, seed: int) -> Scene:
        """The scene with the choices in its concepts' prompts made, for an image with that seed; the same object where
        the same is said. Raises SceneError."""
        if seed not in self._said:
            made = expand(self.scene, seed, self.wildcards)
            if made is not self.scene:
                others = (known for known in self._said.values() if known is not self.scene)
                made = next((known for known in others if known == made), made)
            self._said[seed] = made
        return self._said[seed]

    def choosing(self, p: Any, seeds: Sequence[int]) -> Sequence[int]:
        """The seeds by which images with some seeds make their choices: frames, and parts of one picture, all by that
        of the job's first image."""
        return [p.all_seeds[0]] * len(seeds) if self.animated or self.tiles else seeds

    def know(self, maps: Maps) -> None:
        """Maps of the scene that are drawn already."""
        self._maps[maps.size, WHOLE] = maps

    @property
    def total(self) -> int:
        return self.scene.animation.frames if self.frames is None else len(self.frames)

    @property
    def animated(self) -> bool:
        return self.total > 1 or self.frames is not None

    def frame(self, index: int) -> float:
        """Which frame an image of the job shows, by its place in the job."""
        return index if self.frames is None else self.frames[min(index, self.total - 1)]


def _hook(function: Callable[..., None]) -> Callable[..., None]:
    """A hook of jobs that have a scene; what it raises stops the job."""

    @functools.wraps(function)
    def hook(p: Any, *args: Any) -> None:
        job = getattr(p, "masknoise", None)
        if job is None:
            return
        try:
            function(p, job, *args)
        except Exception as error:
            _stop(p, error)

    return hook


def _stop(p: Any, error: Exception) -> None:
    """Raise an error at the host's next step that it does not guard."""
    if isinstance(error, SceneError):
        error = Refused(error.problems)
    elif isinstance(error, ImportError | PresetError):
        error = Refused([Problem("", str(error))])

    def stop(*args: Any, **kwargs: Any) -> None:
        raise error

    p.masknoise = None
    p.setup_prompts = p.sample = stop
    if p.sampler is not None:
        p.sampler.launch_sampling = stop


def setup(p: Any) -> None:
    """The host has put a job together, and may be about to give it to a script that makes many jobs of it."""
    p.masknoise_tiles = parts.tiles_of(p)


def before_process(p: Any, values: Sequence[Any], presets: Presets, is_img2img: bool = False) -> None:
    """Read the request and refuse it where it is wrong. values: the script's arguments (`ui.inputs`). presets: those
    that an X/Y/Z plot may name. is_img2img: whether the script is that of the img2img tab."""
    p.masknoise = None
    tiles = getattr(p, "masknoise_tiles", None)
    kind = StableDiffusionProcessingImg2Img if is_img2img else StableDiffusionProcessingTxt2Img
    if not isinstance(p, kind) or getattr(p, "_ad_inner", False):
        return  # another extension (ADetailer) lets its own passes run with the job's scripts
    try:
        scene = xyz.scene(p, values, presets)
        if scene is None or not scene.enabled:
            return
        if not scene.neutral:
            _check_others(p)
        if scene.animation.frames > 1:
            animation.require_encoders(scene.animation.formats, scene.animation.interpolate)
        fields.require(scene)
        p.masknoise = job = Job(scene, ConceptPrompts(scene), getattr(p, FRAMES, None), wildcards=wildcards())
        if tiles is not None:
            if job.animated:
                wanted = "expected 1, as the script SD upscale makes one picture of many parts"
                raise SceneError((Problem("animation.frames", wanted),))
            job.tiles = tiles.take(len(p.init_images))
        if job.animated:
            if isinstance(p.prompt, list):
                wanted = "expected 1, as every image has a prompt of its own (script Prompt matrix)"
                raise SceneError((Problem("animation.frames", wanted),))
            if ADAPTIVE in (p.sampler_name, getattr(p, "hr_sampler_name", None)):
                p.batch_size = 1
                p.comment(f"MaskNoise: {ADAPTIVE} chooses its steps by the whole batch, so frames are made one by one")
            p.n_iter = -(-job.total // p.batch_size)
            p.do_not_save_grid = True  # the contact sheet is one of the animation's formats
        if scene.animation.frames > 1 or job.animated:
            # Otherwise SDE samplers draw other noise for every frame, and what is held would move.
            if facts.has_setting(BATCH_NOISE):
                p.override_settings.setdefault(BATCH_NOISE, False)
    except Exception as error:
        p.override_settings = {}  # no checkpoint is loaded for a job that is not done
        _stop(p, error)


EXCLUSIVE = ("Regional Prompter", "Latent Couple extension", "Forge Couple", "demofusion")
"""Scripts that divide the image or the prompt by themselves. The first argument of each says whether it is on."""


def _check_others(p: Any) -> None:
    """Refuse what would otherwise be a picture that neither extension means (docs/compatibility.md)."""
    for script in getattr(p.scripts, "alwayson_scripts", ()):
        on = script.title() in EXCLUSIVE and p.script_args[script.args_from : script.args_to][:1]
        if on and on[0] is True:
            message = f"{script.title()} is on too, and divides the image in its own way: switch it off or MaskNoise"
            raise Refused([Problem("", message)])


@_hook
def process(p: Any, job: Job) -> None:
    """The host has made its lists of prompts and seeds: one entry for each frame, and the infotext."""
    # A new mapping: the cells of an X/Y/Z plot share theirs, and this one may lack a key that the last one had.
    others = {key: value for key, value in p.extra_generation_params.items() if not key.startswith(infotext.KEY)}
    p.extra_generation_params = {**others, **containers.described(p, job.scene)}
    if job.animated:
        p.extra_generation_params[infotext.FRAME] = functools.partial(_frame, job)
        _share_between_frames(p, job.total)
    pixels = facts.pixels_of_latent()
    size = p.height // pixels, p.width // pixels
    for seed in job.choosing(p, p.all_seeds):  # before anything is sampled, lest a file is missed in the last batch
        job.saying(seed)
    job.remarks = tuple(map(str, job.maps(size).remarks()))
    for remark in job.remarks:
        p.comment(f"MaskNoise: {remark}")
    for entry in job.prompts.networks:
        p.comment(f"MaskNoise: <{entry}:…> in a concept's prompt acts on the whole image")


def _frame(job: Job, p: Any, index: int, **others: Any) -> str:
    """Which frame an image of the current batch shows, for its infotext."""
    return f"{job.frame(p.iteration * p.batch_size + index):g}"


def _share_between_frames(p: Any, total: int) -> None:
    """All frames have the first one's prompt and seeds; and there are as many as the animation has, so that the last
    batch may be a smaller one."""
    for name in (
        "all_prompts",
        "all_negative_prompts",
        "all_hr_prompts",
        "all_hr_negative_prompts",
        "all_seeds",
        "all_subseeds",
    ):
        values = getattr(p, name, None)
        if values:
            setattr(p, name, [values[0]] * total)


@_hook
def before_process_batch(p: Any, job: Job, prompts: list[str]) -> None:
    """The host is about to read extra networks off the prompts: add the concepts', which act on the whole image."""
    if job.animated and p.iteration == 0:
        # An extension whose `process` came after ours may have given every frame another prompt and seed (Dynamic
        # Prompts), and the host has taken the first batch's from there.
        _share_between_frames(p, job.total)
        seeds = list(p.seeds), list(p.subseeds)
        prompts[:] = p.all_prompts[: len(prompts)]
        for name in ("negative_prompts", "seeds", "subseeds"):
            getattr(p, name)[:] = getattr(p, f"all_{name}")[: len(prompts)]
        if (p.seeds, p.subseeds) != seeds:
            rng = p.rng
            options = rng.subseed_strength, rng.seed_resize_from_h, rng.seed_resize_from_w
            p.rng = type(rng)(rng.shape, p.seeds, p.subseeds, *options)
    _choose(p, job)
    if job.prompts.networks and not p.disable_extra_networks:
        prompts[:] = [text + network_tags(job.prompts.networks, _networks_of([text])) for text in prompts]


def _choose(p: Any, job: Job) -> None:
    """What the concepts of the batch's images say: their prompts, and its infotext where there was a choice."""
    scenes = _scenes(p, job)
    if all(scene is job.scene for scene in scenes):
        return
    different = {id(scene): scene for scene in scenes}.values()
    job.prompts = ConceptPrompts(*different)
    of_each = {id(scene): containers.described(p, scene) for scene in different}
    for key in {key for params in of_each.values() for key in params}:

        def value(p: Any, index: int = 0, key: str = key, **others: Any) -> str | None:
            return of_each[id(scenes[min(index, len(scenes) - 1)])].get(key)

        p.extra_generation_params[key] = value


def _scenes(p: Any, job: Job) -> list[Scene]:
    """What each image of the batch shows."""
    return [job.saying(seed) for seed in job.choosing(p, p.seeds)]


def _networks_of(prompts: list[str]) -> dict[str, list[Any]]:
    from modules import extra_networks

    return extra_networks.parse_prompts(prompts)[1] or {}


@_hook
def process_batch(p: Any, job: Job) -> None:
    """The same for the hires pass, whose prompts the host has read already; it is about to encode the first one's."""
    facts.remember_reference(p)
    networks = getattr(p, "hr_extra_network_data", None)
    if getattr(p, "enable_hr", False) and networks is not None and job.prompts.networks:
        for kind, entries in _networks_of([network_tags(job.prompts.networks, networks)]).items():
            networks.setdefault(kind, []).extend(entries)


@_hook
def process_before_every_sampling(p: Any, job: Job, noise: torch.Tensor) -> None:
    """A pass begins: visual noise into its noise `[B, C, h, w]`, in place, and the conditioning onto its sampler."""
    if job.scene.neutral:
        return
    if getattr(p, "is_hr_pass", False) and not job.scene.blend.hires:
        job.launch = None
        return
    pictures = _pictures(p, job, extent(noise))
    if len(pictures) > len(noise):  # Neo with Wan: the batch is a video's frames, and has one seed and prompt
        if job.animated:
            message = "expected 1: of this model every batch is a video, whose frames the model itself moves"
            raise SceneError((Problem("animation.frames", message),))
        pictures = pictures[: len(noise)]
    draw = functools.partial(host_rng.randn_local, shape=tuple(noise.shape[1:]))
    rows = Rows(job.maps(extent(noise), parts.only_masked(p)), pictures, subspaces(job.scene), draw)
    in_order = initial.wanted(p, rows)
    if noise is not job.moved and not in_order:  # Forge calls the hook twice for the hires pass
        noise.copy_(_moved(p, noise, rows.visual))
        job.moved = noise
    _fit_input(p, len(noise))
    if job.animated and job.frames is None:
        first = p.iteration * p.batch_size
        shared.state.textinfo = f"MaskNoise: frames {first + 1}–{first + len(p.seeds)} of {job.total}"
    _bind_sampler(p, job, rows, noise if in_order else None)


def _moved(p: Any, noise: torch.Tensor, move: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A pass's noise after what is done to noise of unit variance; img2img's has been multiplied by a setting of the
    host's."""
    factor = getattr(p, "initial_noise_multiplier", None)
    factor = 1.0 if factor is None else factor

    if factor == 1.0:
        return move(noise)
    return move(noise / factor) * factor if factor else noise


def _fit_input(p: Any, count: int) -> None:
    """An animation's last batch may be smaller than the ones for which img2img has encoded its picture."""
    for name in ("init_latent", "image_conditioning"):
        encoded = getattr(p, name, None)
        if isinstance(encoded, torch.Tensor) and len(encoded) > count:
            setattr(p, name, encoded[:count])


def _pictures(p: Any, job: Job, size: Size) -> list[Picture]:
    first = p.iteration * p.batch_size
    seed_of_scene = job.scene.noise.seed
    pictures = [
        Picture(job.frame(first + i) if job.animated else 0, seed if seed_of_scene < 0 else seed_of_scene)
        for i, seed in enumerate(p.seeds)
    ]
    scenes = _scenes(p, job)
    if not job.tiles:
        own = {id(scene): job.maps(size).saying(scene) for scene in scenes if scene is not job.scene}
        return [one._replace(maps=own.get(id(scene))) for one, scene in zip(pictures, scenes, strict=True)]
    tiles = p.masknoise_tiles
    tiles.seed = pictures[0].seed if tiles.seed is None else tiles.seed
    # Of a last tile alone the host makes a whole batch.
    windows = [*job.tiles, *[job.tiles[-1]] * (len(pictures) - len(job.tiles))]
    of_each = ((one, job.maps(size, window)) for one, window in zip(pictures, windows, strict=False))
    return [one._replace(maps=maps.saying(scenes[0]), fields=tiles.seed) for one, maps in of_each]


def _bind_sampler(p: Any, job: Job, rows: Rows, noise: torch.Tensor | None) -> None:
    """Have the sampler sample with the conditioning. What is installed lasts as long as its `launch_sampling` runs.
    noise: the pass's, where it is to be put in order first."""
    sampler = p.sampler
    launch = sampler.launch_sampling  # perhaps another extension's

    def launch_sampling(steps: int, sample: Callable[[], Any]) -> Any:
        if job.launch is not launch_sampling:  # Forge calls the hook twice for the hires pass
            return launch(steps, sample)
        job.sampled = True
        _check_dimensions(job.scene, rows, sampler.sampler_extra_args["cond"])
        job.prompts.encode(p)
        try:
            with ExitStack() as stack:
                if noise is not None:
                    stack.enter_context(_in_order(p, job, rows, noise, steps, sample))
                stack.enter_context(sampling(p, rows, job.prompts, sampler, _method_of_host()))
                return launch(steps, sample)
        except Conflict as error:
            raise Refused([Problem("", str(error))]) from error
        except SceneError as error:
            raise Refused(error.problems) from error

    sampler.launch_sampling = job.launch = launch_sampling


def _in_order(
    p: Any, job: Job, rows: Rows, noise: torch.Tensor, steps: int, sample: Callable[[], Any]
) -> AbstractContextManager[None]:
    """The pass begins with its noise in the order that the scene wants, and then with the visual noise in it."""

    def make(beginning: initial.Beginning) -> torch.Tensor:
        count, method = len(rows.pictures), _method_of_host()
        images = [initial.Asking(p, p.sampler, beginning, rows, i, job.prompts, method) for i in range(count)]
        return _moved(p, noise, lambda unit: rows.visual(job.order.noise(unit, images, job.animated)))

    return initial.exchanged(p, p.sampler, noise, steps, sample, make)


def _check_dimensions(scene: Scene, rows: Rows, cond: Any) -> None:
    """Whether the model has the dimensions that the feature noise is for. cond: the host's, of the batch."""
    if not scene.noise.feature.strength:
        return
    context = cond.batch[0][0].schedules[0].cond
    width = (context["crossattn"] if isinstance(context, dict) else context).shape[-1]
    if hasattr(shared.sd_model, "forge_objects"):
        from lib_masknoise.hosts.webui.static_text import width_of_text

        width = width_of_text(shared.sd_model.forge_objects.unet.model.diffusion_model, width)
    try:
        check_dimensions(scene.noise.feature.dimensions, width, rows.subspaces)
    except SceneError as error:
        raise Refused(error.problems) from None


def _method_of_host() -> Callable[[Denoising], Method]:
    """How this host can blend, by what its model offers."""
    if not hasattr(shared.sd_model, "forge_objects"):
        from lib_masknoise.hosts.webui.a1111 import Layers

        return Layers
    from lib_masknoise.hosts.webui import flux, forge, predictions, single_stream, static_text, streams

    model = shared.sd_model.forge_objects.unet.model.diffusion_model
    if forge.has_cross_attention(model):
        blender: Callable[[Denoising], forge.Blender] = forge.CrossAttention
    elif static_text.cross_attentions(model):
        blender = static_text.StaticText
    elif flux.blocks(model):
        blender = functools.partial(predictions.Predictions, combine=flux.BlockAttention)
    elif streams.attentions(model):
        blender = functools.partial(predictions.Predictions, combine=streams.StreamAttention)
    elif single_stream.attentions(model):
        blender = functools.partial(predictions.Predictions, combine=single_stream.SingleStream)
    else:
        blender = predictions.Predictions
    return functools.partial(forge.Patches, blender=blender)


@_hook
def postprocess_image(p: Any, job: Job) -> None:
    """An image is finished. The host also finishes those of an interrupted batch, which are half sampled."""
    if not (job.sampled or job.scene.neutral):
        # Too late to stop the job; at least nobody has to wonder about the picture.
        error = "the scene had no effect: another extension samples in a way of its own (DemoFusion for one)"
        p.extra_generation_params["MaskNoise error"] = error
        p.comment(f"MaskNoise: {error}; switch it off or MaskNoise")
    p.extra_generation_params.pop(infotext.INTERRUPTED, None)
    if shared.state.interrupted or shared.state.skipped:
        p.extra_generation_params[infotext.INTERRUPTED] = "half sampled"
    else:
        job.complete.append(job.finished)
    job.finished += 1


@_hook
def postprocess(p: Any, job: Job, processed: Any) -> None:
    """The job is done: write the animation of the frames there are, and hand it out."""
    containers.shorten(p, processed.images)
    for key in [key for key, value in p.extra_generation_params.items() if callable(value)]:
        if key in (first := containers.described(p, job.saying(p.all_seeds[0]))):
            p.extra_generation_params[key] = first[key]
    if job.animated:  # a function of each image, which the answer would give as null
        p.extra_generation_params[infotext.FRAME] = _span(job.complete)
    if job.remarks:  # for the API, whose answer has no comments; each image's own infotext does without
        p.extra_generation_params[infotext.REMARKS] = "; ".join(job.remarks)
    if not job.animated or job.frames is not None:
        return
    frames = [processed.images[processed.index_of_first_image + place] for place in job.complete]
    try:
        files.hand_out(p, processed, job.scene, frames)
    except Exception as error:  # the frames must not be lost over it
        p.extra_generation_params[infotext.ERROR] = f"the animation was not written: {error}"
        p.comment(f"MaskNoise: the animation was not written: {error}")
        processed.comments += f"MaskNoise: the animation was not written: {error}\n"


def _span(frames: Sequence[int]) -> str:
    """The whole frames of a job in words: "0 to 11", "0 to 3 and 8 to 11", "none"."""
    starts = [i for i, frame in enumerate(frames) if not i or frame != frames[i - 1] + 1]
    runs = [frames[start:end] for start, end in zip(starts, [*starts, len(frames)][1:], strict=True)]
    return " and ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def paste_fields(components: Sequence[Any], notice: Any = None) -> list[tuple[Any, Callable[[dict[str, str]], Any]]]:
    """What the host's infotext pasting asks for each of the script's components: its value in an infotext, None where
    that says nothing about it. notice: the component that says why an infotext is not taken."""
    pasted = _Pasted()
    pasting: list[tuple[Any, Callable[[dict[str, str]], Any]]] = [
        (component, functools.partial(pasted.value, index)) for index, component in enumerate(components)
    ]
    last = [] if notice is None else [(notice, pasted.problems)]
    return [*pasting[1:], *last]  # a whole scene is for the API; an infotext describes the components


def paste_names() -> list[str]:
    """The infotext keys that "send to txt2img" takes along."""
    return [infotext.KEY, infotext.MASKS, *infotext.PATHS]


class _Pasted:
    """An infotext as the components' values. The host asks for one component after the other, so the last infotext is
    kept."""

    def __init__(self) -> None:
        self._last: tuple[Any, list[Any] | None, str] = (None, None, "")

    def _read(self, params: dict[str, str]) -> tuple[Any, list[Any] | None, str]:
        """Ours of the parameters, the components' values, and why there are none."""
        ours = {key: value for key, value in params.items() if key.startswith(infotext.KEY)}
        if self._last[0] != ours:
            self._last = (ours, *_values(ours))
        return self._last

    def problems(self, params: dict[str, str]) -> str:
        """As HTML for the page; empty where there is none."""
        return self._read(params)[2]

    def value(self, index: int, params: dict[str, str]) -> Any:
        ours, values, _ = self._read(params)
        if values is not None:
            return values[index]
        # An image made without the extension: switched off it comes out again. Text without settings changes nothing.
        return False if index == 1 and not ours and "Steps" in params else None


def _values(params: dict[str, str]) -> tuple[list[Any] | None, str]:
    try:
        scene = infotext.read(params, containers.find)
    except SceneError as error:
        print(f"MaskNoise: the infotext was not pasted.\n{error}")
        said = Problem("", "The pasted infotext was not taken; everything here is as it was.")
        return None, live.problem_list([said, *error.problems])
    return None if scene is None else inputs.show(scene), ""


def authorisation(app: Any) -> list[Any] | None:
    """What the host's own API asks of a request (`--api-auth`), for further routes; None where it has no API."""
    for route in app.routes:
        if getattr(route, "path", None) == "/sdapi/v1/txt2img":
            return list(route.dependencies)
    return None


def permission(app: Any) -> Callable[..., Any]:
    """A dependency for routes that the page uses: who is logged in to the page (`--gradio-auth`) or has the API's
    password (`--api-auth`) may, and everybody where the host asks for neither."""
    own = [one.dependency for one in authorisation(app) or ()]

    async def permitted(request: Request) -> None:
        login = getattr(app, "auth", None) is not None or getattr(app, "auth_dependency", None) is not None
        tokens = getattr(app, "tokens", {})
        cookies = [value for name, value in request.cookies.items() if name.startswith("access-token")]
        if not (own or login) or (login and any(value in tokens for value in cookies)):
            return
        if not own:
            raise HTTPException(401, "Not authenticated")
        credentials = await HTTPBasic()(request)
        for check in own:
            check(credentials)

    return permitted
