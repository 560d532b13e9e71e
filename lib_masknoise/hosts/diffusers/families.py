"""Pipelines of diffusers → their `Family`, by the names of their classes."""

from __future__ import annotations

from diffusers import DiffusionPipeline

from lib_masknoise.errors import ModelError
from lib_masknoise.hosts.diffusers.changing_text import Flux, Flux2, Flux2Klein, QwenImage, StableDiffusion3
from lib_masknoise.hosts.diffusers.family import Family
from lib_masknoise.hosts.diffusers.single_stream import Lumina2, ZImage
from lib_masknoise.hosts.diffusers.static_text import Prx, Wan

KINDS: dict[str, type[Family]] = {
    "StableDiffusionPipeline": Family,
    "StableDiffusionXLPipeline": Family,
    "WanPipeline": Wan,
    "PRXPipeline": Prx,
    "FluxPipeline": Flux,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "QwenImagePipeline": QwenImage,
    "Flux2Pipeline": Flux2,
    "Flux2KleinPipeline": Flux2Klein,
    "ZImagePipeline": ZImage,
    "Lumina2Pipeline": Lumina2,
}


def family(pipe: DiffusionPipeline) -> Family:
    """Of a pipeline. Raises ModelError when it is of no kind that is known here."""
    found = next((KINDS[one.__name__] for one in type(pipe).__mro__ if one.__name__ in KINDS), None)
    if found is None:
        raise ModelError(
            f"a {type(pipe).__name__} is no pipeline that is known here; expected one of {', '.join(KINDS)}"
        )
    return found(pipe)


def require_unet(pipe: DiffusionPipeline, what: str) -> None:
    """Raises ModelError where a pipeline has no U-Net, with what is not there for it."""
    if getattr(pipe, "unet", None) is None:
        raise ModelError(f"{what} takes Stable Diffusion 1.x, 2.x or XL, not a {type(pipe).__name__}; render takes it")
