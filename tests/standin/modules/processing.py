"""A job from its request to its images: the order in which the host does things."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from modules import extra_networks, images, prompt_parser, sd_samplers, shared
from PIL import Image
from torch import Tensor

SCALE = 8
"""Pixels of an image for each location of its latent, along each side."""


def latent_shape(height: int, width: int) -> tuple[int, ...]:
    """Some models' latents have an axis of frames."""
    frames = (shared.sd_model.frames,) if getattr(shared.sd_model, "is_wan", False) else ()
    return 4, *frames, height // SCALE, width // SCALE


def seeded_noise(shape: tuple[int, ...], seeds: list[int], like: torch.dtype) -> Tensor:
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(like)


@dataclass(repr=False, eq=False)
class StableDiffusionProcessing:
    sd_model: Any = None
    scripts: Any = None
    prompt: Any = ""
    negative_prompt: str = ""
    seed: Any = 1
    subseed: int = 100
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 2
    cfg_scale: float = 5.0
    distilled_cfg_scale: float = 3.5
    sampler_name: str = "Euler"
    scheduler: str | None = None
    width: int = 48
    height: int = 32
    s_min_uncond: float = 0.0
    refiner_checkpoint: str | None = None
    refiner_switch_at: float = 0.5
    outpath_samples: str = ""
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    disable_extra_networks: bool = False
    is_api: bool = False
    override_settings: dict[str, Any] = field(default_factory=dict)
    extra_generation_params: dict[str, Any] = field(default_factory=dict)

    enable_hr = False
    is_hr_pass = False
    iteration = 0
    sampler = rng = c = uc = extra_network_data = None
    all_prompts = all_negative_prompts = all_seeds = all_subseeds = None

    def __post_init__(self) -> None:
        self.comments: dict[str, int] = {}
        self.cached_c, self.cached_uc, self.cached_hr_c, self.cached_hr_uc = ([None, None] for _ in range(4))

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def close(self) -> None:
        self.sampler = self.c = self.uc = None

    def setup_prompts(self) -> None:
        """prompt: one for all images, or a list with one for each."""
        count = self.batch_size * self.n_iter
        self.all_prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt] * count
        self.all_negative_prompts = [self.negative_prompt] * len(self.all_prompts)

    def parse_extra_network_prompts(self) -> None:
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)

    def get_conds_with_caching(
        self, function: Any, prompts: Any, steps: int, caches: list, networks: Any, hires_steps: int | None = None
    ) -> Any:
        key = (list(prompts), steps, hires_steps, shared.sd_model.sd_checkpoint_info, networks, self.width, self.height)
        key = (*key, prompts.distilled_cfg_scale)
        for cache in caches:
            if cache[0] == key:
                return cache[1]
        caches[0][:] = key, function(shared.sd_model, prompts, steps, hires_steps)
        return caches[0][1]

    def _total_steps(self) -> int:
        return sd_samplers.find_sampler_config(self.sampler_name).total_steps(self.steps)

    def setup_conds(self) -> None:
        size = self.width, self.height
        self.firstpass_steps = total = self._total_steps()
        negative = prompt_parser.SdConditioning(self.negative_prompts, True, *size)
        positive = prompt_parser.SdConditioning(self.prompts, False, *size)
        positive.distilled_cfg_scale = negative.distilled_cfg_scale = self.distilled_cfg_scale
        single, multi = prompt_parser.get_learned_conditioning, prompt_parser.get_multicond_learned_conditioning
        networks = self.extra_network_data
        self.uc = self.get_conds_with_caching(single, negative, total, [self.cached_uc], networks)
        self.c = self.get_conds_with_caching(multi, positive, total, [self.cached_c], networks)

    def get_conds(self) -> tuple[Any, Any]:
        return self.c, self.uc

    def save_samples(self) -> bool:
        stopped = shared.state.interrupted or shared.state.skipped
        opts = shared.opts
        return opts.samples_save and not self.do_not_save_samples and (opts.save_incomplete_images or not stopped)


@dataclass(repr=False, eq=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    enable_hr: bool = False
    denoising_strength: float = 0.7
    hr_scale: float = 1.5
    hr_second_pass_steps: int = 0
    hr_sampler_name: str | None = None
    hr_prompt: str = ""
    hr_negative_prompt: str = ""

    hr_c = hr_uc = hr_extra_network_data = None
    all_hr_prompts = all_hr_negative_prompts = None
    hr_upscale_to_x = hr_upscale_to_y = 0

    def setup_prompts(self) -> None:
        super().setup_prompts()
        if self.enable_hr:
            count = len(self.all_prompts)
            self.all_hr_prompts = [self.hr_prompt or self.prompt] * count
            self.all_hr_negative_prompts = [self.hr_negative_prompt or self.negative_prompt] * count

    def parse_extra_network_prompts(self) -> None:
        super().parse_extra_network_prompts()
        if self.enable_hr:
            own = slice(self.iteration * self.batch_size, (self.iteration + 1) * self.batch_size)
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.all_hr_prompts[own])
            self.hr_negative_prompts = self.all_hr_negative_prompts[own]

    def setup_conds(self) -> None:
        if self.is_hr_pass:  # the refiner, in the second pass
            self.hr_c = None
            self._setup_hr_conds()
            return
        super().setup_conds()
        self.hr_c = self.hr_uc = None

    def _setup_hr_conds(self) -> None:
        if self.hr_c is not None:
            return
        size = self.hr_upscale_to_x, self.hr_upscale_to_y
        negative = prompt_parser.SdConditioning(self.hr_negative_prompts, True, *size)
        positive = prompt_parser.SdConditioning(self.hr_prompts, False, *size)
        single, multi = prompt_parser.get_learned_conditioning, prompt_parser.get_multicond_learned_conditioning
        config = sd_samplers.find_sampler_config(self.hr_sampler_name or self.sampler_name)
        total = config.total_steps(self.hr_second_pass_steps or self.steps)
        first, networks = self.firstpass_steps, self.hr_extra_network_data
        self.hr_uc = self.get_conds_with_caching(single, negative, first, [self.cached_hr_uc], networks, total)
        self.hr_c = self.get_conds_with_caching(multi, positive, first, [self.cached_hr_c], networks, total)

    def get_conds(self) -> tuple[Any, Any]:
        return (self.hr_c, self.hr_uc) if self.is_hr_pass else super().get_conds()

    def sample(self, c: Any, uc: Any) -> Tensor:
        self.sampler = sd_samplers.create_sampler(self.sampler_name, shared.sd_model)
        x = self.rng
        self.scripts.process_before_every_sampling(self, x=x, noise=x, c=c, uc=uc)
        samples = self.sampler.sample(self, x, c, uc)
        if not self.enable_hr or shared.state.interrupted:
            return samples
        self.is_hr_pass = True
        size = self.hr_upscale_to_y // SCALE, self.hr_upscale_to_x // SCALE
        layers = samples.flatten(1, -3)  # channels, and frames where there are some
        larger = torch.nn.functional.interpolate(layers, size, mode="nearest")
        samples = larger.unflatten(1, samples.shape[1:-2])
        self.sampler = sd_samplers.create_sampler(self.hr_sampler_name or self.sampler_name, shared.sd_model)
        noise = seeded_noise(tuple(samples.shape[1:]), self.seeds, samples.dtype)
        if not self.disable_extra_networks:
            extra_networks.activate(self, self.hr_extra_network_data)
        self._setup_hr_conds()
        for _ in range(2 if hasattr(shared.sd_model, "forge_objects") else 1):
            self.scripts.process_before_every_sampling(self, x=samples, noise=noise, c=self.hr_c, uc=self.hr_uc)
        steps = self.hr_second_pass_steps or self.steps
        samples = self.sampler.sample_img2img(self, samples, noise, self.hr_c, self.hr_uc, steps)
        self.sampler = None
        self.is_hr_pass = False
        return samples

    def init(self) -> None:
        self.hr_upscale_to_x, self.hr_upscale_to_y = (int(n * self.hr_scale) for n in (self.width, self.height))


@dataclass(repr=False, eq=False)
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    denoising_strength: float = 0.5
    initial_noise_multiplier: float = 1.0
    image_mask: Any = None
    inpaint_full_res: bool = True

    init_latent = image_conditioning = nmask = None

    def init(self) -> None:
        """The picture, encoded once for each image of a whole batch."""
        shape = latent_shape(self.height, self.width)
        picture = 0.1 * seeded_noise(shape, [77], shared.sd_model.dtype)
        self.init_latent = picture.repeat(self.batch_size, *[1] * len(shape))
        self.image_conditioning = picture.new_zeros(self.batch_size, 5, 1, 1)
        if self.image_mask is not None:
            self.nmask = torch.from_numpy(self.image_mask).to(picture)

    def sample(self, c: Any, uc: Any) -> Tensor:
        self.sampler = sd_samplers.create_sampler(self.sampler_name, shared.sd_model)
        x = self.rng * self.initial_noise_multiplier
        self.scripts.process_before_every_sampling(self, x=self.init_latent, noise=x, c=c, uc=uc)
        assert len(self.init_latent) == len(self.image_conditioning) == len(x)
        samples = self.sampler.sample_img2img(self, self.init_latent, x, c, uc, self.steps)
        return samples if self.nmask is None else samples * self.nmask + self.init_latent * (1 - self.nmask)


class Processed:
    def __init__(self, p: StableDiffusionProcessing, pictures: list, infotexts: list[str], first: int, latents: list):
        self.images, self.infotexts, self.index_of_first_image = pictures, infotexts, first
        self.extra_generation_params = p.extra_generation_params
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.latents = latents
        """What was sampled, batch by batch: for the tests, no host has it."""


def process_images(p: StableDiffusionProcessing) -> Processed:
    p.scripts.before_process(p)
    before = {name: getattr(shared.opts, name) for name in p.override_settings}
    model = shared.sd_model
    try:
        vars(shared.opts).update(p.override_settings)
        return _process(p, model)
    finally:
        vars(shared.opts).update(before)
        shared.sd_model = model


def _process(p: StableDiffusionProcessing, model: Any) -> Processed:
    p.setup_prompts()
    p.all_seeds = p.seed if isinstance(p.seed, list) else [p.seed + i for i in range(len(p.all_prompts))]
    p.all_subseeds = [p.subseed + i for i in range(len(p.all_prompts))]
    p.scripts.process(p)
    p.init()
    pictures, infotexts, latents = [], [], []
    for iteration in range(p.n_iter):
        p.iteration = iteration
        shared.state.skipped = False
        if shared.state.interrupted:
            break
        shared.sd_model = model  # the refiner may have taken over
        own = slice(p.iteration * p.batch_size, (p.iteration + 1) * p.batch_size)
        p.prompts, p.negative_prompts = p.all_prompts[own], p.all_negative_prompts[own]
        p.seeds, p.subseeds = p.all_seeds[own], p.all_subseeds[own]
        p.rng = seeded_noise(latent_shape(p.height, p.width), p.seeds, model.dtype)
        batch = {"batch_number": p.iteration, "prompts": p.prompts, "seeds": p.seeds, "subseeds": p.subseeds}
        p.scripts.before_process_batch(p, **batch)
        p.parse_extra_network_prompts()
        if not p.disable_extra_networks:
            extra_networks.activate(p, p.extra_network_data)
        p.scripts.process_batch(p, **{**batch, "prompts": p.prompts})
        p.setup_conds()
        samples = p.sample(p.c, p.uc)
        latents.append(samples)
        p.prompts = p.all_prompts[own]
        decode = _picture if getattr(samples, "already_decoded", False) else _decoded
        for index, picture in enumerate(map(decode, samples)):
            p.scripts.postprocess_image(p, picture)
            infotexts.append(_infotext(p, index))
            if p.save_samples():
                images.save_image(picture, p, p.seeds[index], p.prompts[index], infotexts[-1])
            picture.info["parameters"] = infotexts[-1]
            pictures.append(picture)
    first = 0
    if not shared.cmd_opts.no_prompt_history:
        shared.prompt_history.append(p.prompt)
    if shared.opts.return_grid and not p.do_not_save_grid and len(pictures) > 1:
        pictures.insert(0, Image.new("RGB", (8, 8)))
        infotexts.insert(0, infotexts[0])
        first = 1
    processed = Processed(p, pictures, infotexts or [""], first, latents)
    p.scripts.postprocess(p, processed)
    return processed


class DecodedSamples(list):
    """Pictures `[3, H, W]` from -1 to 1, where a job's own way of sampling has decoded them."""

    already_decoded = True


def decode_latent_batch(model: Any, batch: Tensor, target_device: Any = None) -> list[Tensor]:
    """`[3, 16, 16]` from −1 to 1, of each."""
    return list(torch.nn.functional.interpolate(batch[:, :3].float().clamp(-1, 1), (16, 16)))


def _decoded(latent: Tensor) -> Image.Image:
    return _picture(latent[:3].reshape(3, -1, *latent.shape[-2:])[:, 0]).resize((16, 16))


def _picture(pixels: Tensor) -> Image.Image:
    values = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(values.round().to(torch.uint8).permute(1, 2, 0).numpy())


def _infotext(p: StableDiffusionProcessing, index: int) -> str:
    """Of the image with that index in its batch. A value may be a function of the job and the index."""
    params = {"Steps": p.steps, "Seed": p.seeds[index], **p.extra_generation_params}
    known = {key: value(p=p, index=index) if callable(value) else value for key, value in params.items()}
    return f"{p.prompts[index]}\n" + ", ".join(
        f"{key}: {json.dumps(str(value)) if set(str(value)) & set(',:') else value}"
        for key, value in known.items()
        if value is not None
    )
