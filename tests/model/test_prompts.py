"""Prompts written as for the WebUIs give the contexts that A1111 makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lib_masknoise.hosts.diffusers import encode, render
from lib_masknoise.scene import Scene

RECORDED = json.loads((Path(__file__).parent / "a1111_contexts.json").read_text(encoding="utf-8"))
"""From A1111 1.10.1 with its settings as they come, on the built-in model's text encoder in float32: how many tokens a
prompt's context has, and every third token's sum over the dimensions, each times sin 9w, w going from -1 to 1."""


@pytest.mark.parametrize("prompt", RECORDED)
def test_as_a1111_encodes_it(pipe, prompt):
    context = encode(pipe, [prompt])[prompt].context
    assert len(context) == RECORDED[prompt]["tokens"]
    sums = context @ torch.sin(9 * torch.linspace(-1, 1, context.shape[1]))
    assert torch.allclose(sums[::3], torch.tensor(RECORDED[prompt]["every_third"]), atol=3e-4)


def test_comments_are_no_part_of_a_prompt(pipe):
    texts = ["an ocean, waves", "an ocean # which one?\n, waves", "# mine\nan ocean, waves"]
    plain, *others = encode(pipe, texts).values()
    assert all(torch.equal(plain.context, other.context) for other in others)


def test_what_only_the_webuis_can_do_is_refused(pipe):
    for prompt in ("an ocean AND a forest", "[an ocean:a forest:0.5]", "[lava|snow]", "(a:1.2.3)"):
        with pytest.raises(ValueError, match="the prompt '.*expected a"):
            encode(pipe, [prompt])


@pytest.mark.parametrize("prompt", ["a (wheat:1.5) field", "an ocean # or not", "an ocean BREAK in a storm"])
def test_a_scene_that_is_off_reads_prompts_as_one_that_is_on(pipe, prompt):
    def picture(scene, text):
        (frame,) = render(pipe, Scene.parse(scene), text, seed=1, steps=2, size=(32, 32))
        return np.asarray(frame.image).astype(int)

    off, on = picture({"enabled": False}, prompt), picture({}, prompt)
    assert np.abs(off - on).max() <= 1
    assert np.abs(off - picture({"enabled": False}, "an ocean")).max() > 1 or "#" in prompt
