"""Every host, without what the table says that it lacks."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.standin.test_blending import covered, error, scene
from tests.standin.test_forge import patching

TRANSFORMERS = ("transformer", "blocks transformer")
KINDS = {
    "A1111": ("",),
    "Forge": ("unet", *TRANSFORMERS),
    "reForge": ("unet", *TRANSFORMERS),
    "Forge Neo": ("unet", *TRANSFORMERS, "frames transformer"),
}
CASES = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]

MOVING = scene(
    {"prompt": "green tree", "negative": "dull"},
    "blue sea AND waves:0.5",
    noise={"visual": {"strength": 0.5}},
    motion={"kind": "circle"},
    animation={"frames": 3},
)


def test_the_table(host):
    facts = host.facts
    assert tuple(KINDS) == facts.HOSTS
    for name, hosts in {**facts.SETTINGS, **facts.MODULES}.items():
        assert hosts and set(hosts) < set(facts.HOSTS), f"{name} is in all hosts, or in none"


@pytest.mark.parametrize("name, kind", CASES)
def test_an_animation_asks_for_nothing_that_is_not_there(host, name, kind):
    host.start(torch.float64, forge=kind, like=name)
    frames = host.latents(MOVING, batch_size=2)
    assert len(frames) == 3 and error(frames[0], frames[1]) > 1e-4
    host.start(torch.float64, forge=kind)
    assert error(host.latents(MOVING, batch_size=2), frames) == 0


@pytest.mark.parametrize("name, kind", CASES)
def test_a_concept_that_covers_everything_is_its_prompt(host, name, kind):
    host.start(torch.float64, forge=kind, like=name)
    plain = host.latents(prompt="green tree", negative_prompt="dull", enable_hr=True)
    assert error(host.latents(covered("green tree", "dull"), enable_hr=True), plain) < 1e-12


@pytest.mark.parametrize("name", KINDS)
def test_a_setting_that_is_not_there_is_not_set(host, name):
    host.start(forge="" if name == "A1111" else "unet", like=name)
    p = host.job(MOVING)
    host.process(p)
    settings = {one for one, hosts in host.facts.SETTINGS.items() if name in hosts}
    assert set(p.override_settings) == settings & {"no_dpmpp_sde_batch_determinism"}


def test_the_size_of_a_latent_is_the_hosts(host, monkeypatch):
    """Of some of Neo's models a latent has 16 pixels to a side."""
    assert host.facts.pixels_of_latent() == 8
    monkeypatch.setattr(host.processing, "opt_f", 16, raising=False)
    assert host.facts.pixels_of_latent() == 16


def test_a_module_that_no_host_has(host):
    with pytest.raises(ImportError, match="this WebUI has none of backend.nothing, ldm_patched.nothing"):
        host.facts.module("backend.nothing", "ldm_patched.nothing")


def test_a_prompt_of_ours_leaves_the_reference_pictures(host, monkeypatch):
    """As Neo's Kontext takes them when it encodes a prompt: the one that img2img begins with, then those of the job."""
    host.start(forge="transformer")
    arguments = SimpleNamespace(ref_latents=[])
    monkeypatch.setitem(sys.modules, "backend.args", SimpleNamespace(dynamic_args=arguments))
    model, encode = host.model, host.model.get_learned_conditioning
    model.ref_latents, model.ini_latent, seen = [torch.ones(1, 4, 4, 4)], torch.zeros(1, 4, 4, 6), []

    def encoding(texts):
        if not texts.is_negative_prompt:
            first = [] if model.ini_latent is None else [model.ini_latent]
            arguments.ref_latents, model.ini_latent = [*first, *model.ref_latents], None
        return encode(texts)

    monkeypatch.setattr(model, "get_learned_conditioning", encoding)

    def note(*args):
        seen.append(list(arguments.ref_latents))
        return args

    others = [patching(lambda unet: unet.add_conditioning_modifier(note))]
    host.latents(scene("green tree", "blue sea"), others=others)
    assert seen and [len(one) for one in seen] == [2] * len(seen)


def test_a_concept_is_read_beside_the_picture_that_img2img_begins_with(host, monkeypatch):
    """As Neo's Qwen-Image-Edit reads a prompt; the first one that is encoded takes the picture from the model."""
    host.start(torch.float64, forge="transformer")
    model, encode = host.model, host.model.get_learned_conditioning

    def encoding(texts):
        if not texts.is_negative_prompt and model.ini_latent is not None:
            model.ini_latent = None
            return encode(texts.of_same_kind([f"picture {text}" for text in texts]))
        return encode(texts)

    monkeypatch.setattr(model, "get_learned_conditioning", encoding)

    def edited(*args, **options):
        model.ini_latent = torch.zeros(1, 4, 4, 6)
        latents = host.latents(*args, **options)
        assert model.ini_latent is None
        return latents

    for options in ({}, {"n_iter": 2}):
        beside = edited(prompt="green tree", **options)
        assert error(edited(covered("green tree"), prompt="red house", **options), beside) < 1e-7
        model.ini_latent = None
        assert error(host.latents(prompt="green tree", **options), beside) > 1e-3
