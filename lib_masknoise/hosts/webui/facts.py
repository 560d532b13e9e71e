"""Which WebUI has what, of all that this package asks of one.

`SETTINGS` and `MODULES` are the table: what is in all of them is not in it. The running host is never told by its name:
what may be missing is looked up where it is needed, by the functions below. The tests take from the stand-in what the
table says that a host lacks, and make jobs there.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules import shared

A1111, FORGE, REFORGE, NEO = "A1111", "Forge", "reForge", "Forge Neo"
HOSTS = (A1111, FORGE, REFORGE, NEO)

SETTINGS = {
    "no_dpmpp_sde_batch_determinism": (A1111, FORGE, REFORGE),  # Neo's noise never depends on the batch
    "upcast_attn": (A1111, FORGE, REFORGE),
}
"""Settings, by which hosts have them."""

MODULES = {
    "modules.hypernetworks.hypernetwork": (A1111, FORGE, REFORGE),
    "backend.args": (FORGE, NEO),
    "backend.memory_management": (FORGE, NEO),
    "backend.sampling.condition": (FORGE, NEO),
    "ldm_patched.modules.conds": (REFORGE,),
    "ldm_patched.modules.model_management": (REFORGE,),
    "modules_forge.forge_sampler": (REFORGE,),
}
"""Modules, by which hosts have them."""

PIXELS = 8
"""Pixels of an image to one of its latent, along each side, where the host does not say."""


def has_setting(name: str) -> bool:
    """Whether the running host has a setting of that name. Neo raises KeyError for a job that sets another."""
    return name in shared.opts.data_labels


def setting(name: str, default: Any) -> Any:
    """A setting of the host's; the default where it has none of that name."""
    return getattr(shared.opts, name) if has_setting(name) else default


def module(*names: str) -> Any:
    """The first of these modules that the running host has. Raises ImportError naming them where it has none."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(f"this WebUI has none of {', '.join(names)}")


def pixels_of_latent() -> int:
    """Pixels of an image to one of its latent: 16 for some models of Neo's."""
    from modules import processing

    return getattr(processing, "opt_f", PIXELS)


BEGINS_WITH = "ini_latent"
"""The attribute of Neo's models that holds the picture which img2img begins with, until a prompt is encoded."""

REFERENCE = "masknoise_reference"
"""The attribute of a job that holds the same for the concepts' prompts."""


def remember_reference(p: Any) -> None:
    """Before the host encodes a job's own prompts, which takes the picture that img2img begins with from the model."""
    found = getattr(shared.sd_model, BEGINS_WITH, None)
    if found is not None:
        setattr(p, REFERENCE, found)


def refer(p: Any) -> None:
    """Let the model read the next prompt beside the picture that img2img begins with (Qwen-Image-Edit)."""
    if hasattr(p, REFERENCE):
        setattr(shared.sd_model, BEGINS_WITH, getattr(p, REFERENCE))


@contextmanager
def references_kept() -> Iterator[None]:
    """Behind the block the job refers to the pictures that it did before: encoding a prompt tells Neo's models which
    these are, and takes away the one that img2img begins with."""
    arguments, model = _arguments(), shared.sd_model
    places = [(arguments, "ref_latents"), (model, BEGINS_WITH)]
    kept = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]
    kept = [(place, name, list(one) if isinstance(one, list) else one) for place, name, one in kept]
    try:
        yield
    finally:
        for place, name, one in kept:
            setattr(place, name, one)


def _arguments() -> Any:
    """Forge's and Neo's arguments of the running job; None elsewhere."""
    try:
        return module("backend.args").dynamic_args
    except ImportError:
        return None
