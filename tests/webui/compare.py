"""What is true of blended pictures in every configuration of a host."""

from __future__ import annotations

from typing import Any

import pytest

from tests.webui import hosts
from tests.webui.client import Images, WebUI, difference
from tests.webui.scenes import concept, everywhere, painted

NEAR = []
"""Every difference that was measured, for the summary of a run."""


def assert_near(one: Images, other: Images, what: str, sampler: str, upscaler: str = "Latent") -> None:
    measured = difference(one, other)
    NEAR.append((measured, what, sampler))
    assert measured <= hosts.tolerance(sampler, upscaler), f"{what}: {measured}/255 apart"


def check(
    webui: WebUI,
    prompt: str = "an ocean",
    negative: str = "lava",
    base: str = "red bricks",
    base_negative: str = "",
    settings: dict[str, Any] | None = None,
    **job: Any,
) -> None:
    """In this configuration

    - a concept with a full mask is the plain picture of its prompts, whatever the base is (invariant 3): which row of a
      U-Net call belongs to which image and sign, part weights, schedules, lengths;
    - a concept under a mask over a base is the base as a concept, under the inverted mask, over the concept's prompt:
      the blending between;
    - and the two prompts have been told apart.
    """
    settings = settings or {}
    upscaler = job.get("hr_upscaler", "Latent") if job.get("enable_hr") else "Latent"
    means = job.get("sampler_name", hosts.SAMPLER), upscaler
    with webui.settings(**settings):
        plain = webui.ask(prompt=prompt, negative_prompt=negative or base_negative, **job)
    if plain.status != 200:
        pytest.skip(f"the host gives this job up without MaskNoise, too: {plain}")
    alone = Images(plain.json)
    if not alone.pixels[0].std():
        pytest.skip(f"{means[0]} gives a flat picture with this model, without MaskNoise, too")
    with webui.settings(**settings):
        full = webui.txt2img(everywhere(prompt, negative), prompt=base, negative_prompt=base_negative, **job)
        assert_near(alone, full, "a full mask and the plain prompt", *means)
        over = {"concepts": [concept(prompt, mask=painted())]}
        under = {"concepts": [concept(base, mask=painted(invert=True))]}
        one = webui.txt2img(over, prompt=base, negative_prompt=base_negative, **job)
        other = webui.txt2img(under, prompt=prompt, negative_prompt=base_negative, **job)
        assert_near(one, other, "a mask and its inverse", *means)
        assert difference(one, full) > 2 * hosts.TOLERANCE, "the mask made no difference"
