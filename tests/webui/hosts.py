"""What the tests need to know of the host they run against: everything in which hosts differ, and nothing else.

A host is told by what its API offers. What it lists (samplers, settings, upscalers) is asked of it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.webui.client import WebUI


def _env(name: str, default: str = "") -> str:
    return os.environ.get(f"MASKNOISE_WEBUI_{name}", default)


URL = _env("URL")
SIZE = int(_env("SIZE", "128"))
STEPS = int(_env("STEPS", "6"))
CHECKPOINT = _env("CHECKPOINT")
SECOND_CHECKPOINT = _env("SECOND_CHECKPOINT")
TOLERANCE = int(_env("TOLERANCE", "2"))
SAMPLER = "Euler"


@dataclass(frozen=True)
class Host:
    """name: for messages. marks: settings that this host has and those before it in HOSTS have not.

    hires: fields that a hires job needs. crashes: jobs that the host itself gives up, by when. tolerances: by sampler,
    where rounding grows. refuses: the status of a job with a wrong scene. infotext: whether the host's API can read any
    infotext at all. errors: what the host's own page reports on its console, without us too.
    """

    name: str
    marks: tuple[str, ...] = ()
    hires: dict[str, Any] = field(default_factory=dict)
    crashes: dict[str, dict[str, Any]] = field(default_factory=dict)
    tolerances: dict[str, int] = field(default_factory=dict)
    refuses: int = 422
    infotext: bool = True
    errors: tuple[str, ...] = ()


LATENT = {"enable_hr": True, "hr_upscaler": "Latent", "hr_scale": 1.5, "denoising_strength": 0.6}


def _crashes(hires: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "unknown upscaler": {**hires, "hr_upscaler": "no such upscaler"},
        "unknown refiner": {"refiner_checkpoint": "no such checkpoint", "refiner_switch_at": 0.5},
        "unknown hires checkpoint": {**hires, "hr_checkpoint_name": "no such checkpoint"},
        "unknown hires sampler, after the first pass": {**hires, "hr_sampler_name": "no such sampler"},
    }


CRASHES = _crashes(LATENT)

# Neo has neither the latent upscalers nor Lanczos, and the guidance of its hires pass is 1 unless the job says so.
NEO_HIRES = {"hr_additional_modules": ["Use same choices"], "hr_upscaler": "None", "hr_cfg": 4}

HOSTS = (
    Host(
        "Forge Neo",
        marks=("anima_do_reference",),
        hires=NEO_HIRES,
        crashes=_crashes({**LATENT, **NEO_HIRES}),
        infotext=False,  # 500 for every image's, also without extensions: isinstance() with list[str]
        errors=("setupAllResizeHandles is not defined",),  # its page's first event may come before its own script
    ),
    Host("reForge", marks=("sd_sampling",), crashes=CRASHES, tolerances={"ODE (Dopri5)": 4}),
    Host(
        "Forge",
        marks=("forge_try_reproduce",),
        hires={"hr_additional_modules": ["Use same choices"]},
        crashes=CRASHES,
        infotext=False,  # 500 for every image's, also without extensions: isinstance() with list[str]
    ),
    Host("A1111", crashes={**CRASHES, "not a number, after sampling": {"cfg_scale": 1e38}}),
)


@functools.cache
def webui() -> WebUI:
    return WebUI(
        URL,
        _env("AUTH"),
        prompt="red bricks",
        negative_prompt="",
        steps=STEPS,
        width=SIZE,
        height=SIZE,
        cfg_scale=4,
        seed=7,
        sampler_name=SAMPLER,
        scheduler="Automatic",
    )


@functools.cache
def host() -> Host:
    """The host at the URL."""
    settings = webui().get("/sdapi/v1/options")
    return next(one for one in HOSTS if all(mark in settings for mark in one.marks))


def hires(**more: Any) -> dict[str, Any]:
    """The fields of a job with a hires pass."""
    return {**LATENT, **host().hires, **more}


@functools.cache
def samplers() -> tuple[str, ...]:
    return tuple(entry["name"] for entry in webui().get("/sdapi/v1/samplers"))


@functools.cache
def upscalers() -> tuple[str, ...]:
    """One of the latent ones, and one of those that need no model."""
    latent = [entry["name"] for entry in webui().get("/sdapi/v1/latent-upscale-modes")]
    others = [entry["name"] for entry in webui().get("/sdapi/v1/upscalers")]
    return tuple(name for name in ("Latent", "Lanczos") if name in latent + others)


@functools.cache
def optimisations() -> tuple[str, ...]:
    """The choices of the setting "Cross attention optimization", which only the user interface lists."""
    answer = webui().request("GET", "/config")
    components: Iterable[Any] = answer.json["components"] if answer.status == 200 else ()
    for component in components:
        if component.get("props", {}).get("elem_id") == "setting_cross_attention_optimization":
            return tuple(entry if isinstance(entry, str) else entry[0] for entry in component["props"]["choices"])
    return ()


def tolerance(sampler: str = SAMPLER, upscaler: str = "Latent") -> int:
    """How far pictures that must be the same may be apart, of 255. An upscaler of pixels rounds to 8 bits between the
    passes: what flips there is carried on by the second (plain pictures by two attention optimisations: 3 apart)."""
    return max(TOLERANCE if upscaler.startswith("Latent") else 3 * TOLERANCE, host().tolerances.get(sampler, 0))
