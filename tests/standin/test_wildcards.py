"""Choices in concepts' prompts: each image makes its own by its seed, and its infotext says which."""

import re

import pytest
import torch

from lib_masknoise.scene import Scene
from lib_masknoise.wildcards import expand
from tests.standin.host import Other
from tests.standin.test_blending import error, scene

WORDS = "{green|blue|red|old} {tree|sea|house}"
CHOICES = scene({"prompt": WORDS, "negative": "{dull|ugly}"}, "blue sea")
SHOWN = re.compile(r"MaskNoise concept 1 prompt: ([\w ]+)")


def decided(seed, values=CHOICES):
    return expand(Scene.parse(values), seed).to_dict()


def said(infotext):
    return SHOWN.search(infotext)[1]


@pytest.mark.parametrize("forge", ["", "unet", "transformer", "blocks transformer", "static transformer"])
def test_every_image_is_that_of_its_own_choices(host, forge):
    host.start(torch.float64, forge=forge)
    processed = host.run(CHOICES, batch_size=2, n_iter=2, seed=4)
    latents = torch.cat(processed.latents).double()
    own = [decided(seed)["concepts"][0]["prompt"] for seed in range(4, 8)]
    assert len(set(own)) > 1 and [said(text) for text in processed.infotexts] == own
    for i, seed in enumerate(range(4, 8)):
        alone = host.latents(decided(seed), seed=seed, negative_prompt="")
        assert error(latents[i : i + 1], alone) < 1e-6
    assert not any(callable(value) for value in processed.extra_generation_params.values())


def test_an_image_in_a_batch_is_the_image_alone(host):
    host.start(torch.float64)
    together = host.latents(CHOICES, batch_size=4, seed=4)
    alone = torch.cat([host.latents(CHOICES, seed=seed) for seed in range(4, 8)])
    assert error(together, alone) < 1e-6


def test_frames_make_one_choice(host):
    values = {**CHOICES, "animation": {"frames": 3}}
    processed = host.run(values, batch_size=2, seed=9)
    assert {said(text) for text in processed.infotexts} == {decided(9)["concepts"][0]["prompt"]}


def test_networks_of_a_choice_are_those_that_are_drawn(host):
    values = scene("{<lora:oak:1> tree|<lora:foam:1> sea}")
    for seed in range(6):
        host.extra_networks.activated.clear()
        processed = host.run(values, seed=seed)
        wanted = "oak" if "tree" in processed.infotexts[0] else "foam"
        assert host.extra_networks.activated == [[f"lora:{wanted}:1"]]


def test_files_lie_where_the_extensions_have_theirs(host, tmp_path):
    (tmp_path / "colours.txt").write_text("green\n", "utf-8")
    values = scene("__colours__ tree")
    for setting in (host.prompts.WILDCARDS, "wildcard_dir"):
        setattr(host.shared.opts, setting, str(tmp_path))
        assert said(host.run(values).infotexts[0]) == "green tree"
        setattr(host.shared.opts, setting, "")


def test_a_missing_file_ends_the_job_before_it_samples(host):
    p = host.job(scene("blue sea", "{sea|sea|sea|__nowhere__}"), batch_size=1, n_iter=20)
    with pytest.raises(Exception, match=r"concepts\[1\].prompt") as raised:
        host.process(p)
    assert raised.value.status_code == 422 and not p.sampler


def test_dynamic_prompts_expands_the_prompt_alone(host):
    """An extension that gives every image another prompt and seed, after us."""

    def process(p):
        p.all_prompts = [f"red house {i}" for i in range(len(p.all_prompts))]
        p.all_seeds = [seed + 100 for seed in p.all_seeds]

    processed = host.run(CHOICES, batch_size=2, seed=4, later=[Other(process=process)])
    assert [said(text) for text in processed.infotexts] == [decided(s)["concepts"][0]["prompt"] for s in (104, 105)]
