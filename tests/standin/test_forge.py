"""Forge's U-Nets: blended pictures through its patches, however it evaluates its conditions."""

from types import SimpleNamespace

import pytest
import torch

from lib_masknoise.scene import Scene
from tests.standin import oracle
from tests.standin.forge import predictions
from tests.standin.host import Other
from tests.standin.test_blending import LONG, ROUNDED, covered, error, scene

UNET = {"forge": "unet"}


# Conditions that there is memory for at once, CFG scale, base, concepts, and the chunks of each call.
PATTERNS = {
    "one call": (None, 5.0, "red house", ("green tree", "blue sea"), [[1, 0]]),
    "a call for each side": (1, 5.0, "red house", ("green tree", "blue sea"), [[1], [0]]),
    "parts": (None, 5.0, "a AND b:0.5", ("c AND d", "e"), [[1, 0, 0]]),
    "parts in several calls": (2, 5.0, "a AND b:0.5", ("c AND d", "e"), [[1, 0], [0]]),
    "parts of a concept": (None, 5.0, "red house:0.8", ("c AND d:0.5 AND e:-0.25", "f"), [[1, 0, 0, 0]]),
    "without the negative side": (None, 1.0, "red house", ("green tree", "blue sea"), [[0]]),
    "base longer than the negative": (None, 5.0, LONG, ("green tree", "blue sea"), [[1, 0]]),
    "concept longer": (None, 5.0, "red house", (LONG, "blue sea"), [[1, 0]]),
}


@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_way_of_calling_the_unet(host, conditions, name, xl):
    together, cfg, base, concepts, expected_calls = PATTERNS[name]
    host.start(torch.float64, xl, conditions_together=together, **UNET)
    blended = scene(*concepts)
    ours = host.latents(blended, prompt=base, negative_prompt="ugly", batch_size=2, cfg_scale=cfg)
    assert conditions == expected_calls * 2
    expected = oracle.latents(
        host.model, blended, [base] * 2, negative="ugly", pictures=[(0, 1), (0, 2)], cfg=cfg,
        skips=lambda step, sigma: cfg == 1,
    )  # fmt: skip
    assert error(ours, expected) < ROUNDED


def test_the_sizes_in_a_vector_are_not_blended(host):
    """Where weights do not add up to 1, a size would be another one."""
    host.start(torch.float64, xl=True, **UNET)
    added = scene("green tree", "blue sea", blend={"mode": "add", "scale": 0.8})
    assert error(host.latents(added), oracle.latents(host.model, added, ["red house"])) < ROUNDED


@pytest.mark.parametrize("merges", [False, True])
def test_all_noises_and_frames(host, merges):
    host.start(torch.float64, merges_options=merges, **UNET)
    moving = scene(
        {"prompt": "green tree", "negative": "dull"},
        "blue sea",
        blend={"preserve_norm": True},
        noise={
            "visual": {"strength": 0.5},
            "concept": {"strength": 0.7, "rank": 2},
            "feature": {"strength": 0.7, "dimensions": "0-2"},
        },
        motion={"kind": "circle"},
        animation={"frames": 3},
    )
    gated = (
        Scene.parse(moving).replace({"noise.concept.layers": "fine", "noise.feature.layers": "mid,out1-2"}).to_dict()
    )
    for one in (moving, gated):
        ours = host.latents(one, batch_size=2)
        expected = oracle.latents(host.model, one, ["red house"] * 3, pictures=[(f, 1) for f in range(3)])
        assert error(ours, expected) < ROUNDED


def test_a_concept_that_covers_everything_is_its_prompt(host):
    host.start(torch.float64, **UNET)
    for prompt, negative in (("green tree", "dull"), (LONG, ""), ("a AND b:0.5", ""), ("[green:blue:1] tree", "")):
        plain = host.latents(prompt=prompt, negative_prompt=negative, steps=3)
        ours = host.latents(covered(prompt, negative), prompt="x AND y:2 AND z", steps=3)
        assert error(ours, plain) < 1e-12


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_the_hires_pass_whose_hook_is_called_twice(host, kind):
    """The noise is moved once, the sampler is bound once."""
    host.start(torch.float64, forge=kind)
    options = {"enable_hr": True, "hr_second_pass_steps": 3, "steps": 2}
    plain = host.latents(prompt="green tree", **options)
    assert error(host.latents(covered("green tree"), **options), plain) < 1e-12
    noise, moved = torch.randn(1, 4, 4, 6), []

    def look(p, x, noise, **named):
        moved.append(noise.clone())

    moving = scene("green tree", noise={"visual": {"strength": 0.5}})
    host.latents(moving, later=[Other(process_before_every_sampling=look)], **options)
    assert len(moved) == 3 and torch.equal(moved[1], moved[2]) and moved[1].shape != noise.shape


def test_outside_the_window_the_host_does_as_ever(host, conditions):
    host.start(**UNET)
    late = scene("green tree", blend={"start": 0.9, "end": 1.0})
    assert torch.equal(host.latents(late, steps=4), host.latents(steps=4))


def patching(function):
    """Another extension that patches the U-Net as ours does, before it."""

    def hook(p, **named):
        from modules import shared

        objects = shared.sd_model.forge_objects
        p.before, objects.unet = objects.unet, objects.unet.clone()
        function(objects.unet)

    def restore(p, *args, **named):
        from modules import shared

        shared.sd_model.forge_objects.unet = p.before

    return Other(process_before_every_sampling=hook, postprocess=restore)


def test_patches_of_others_take_part(host):
    """They change the layer's input, which all texts have in common."""
    host.start(torch.float64, **UNET)

    def louder(n, context, value, extra):
        return 1.5 * n, context, value

    other = patching(lambda unet: unet.patch("attn2_patch", louder))
    plain = host.latents(prompt="green tree", others=[other])
    assert error(plain, host.latents(prompt="green tree")) > 1e-3
    assert error(host.latents(covered("green tree"), others=[other]), plain) < 1e-12


def test_a_replaced_cross_attention_is_refused(host):
    host.start(**UNET)
    before = host.latents()
    other = patching(lambda unet: unet.replace_attn2(lambda q, k, v, extra: q, "middle", 0))
    p = host.job(scene("green tree"), others=[other])
    with pytest.raises(host.jobs.Refused, match="taken by another extension"):
        host.processing.process_images(p)
    host.model.forge_objects.unet = p.before
    assert torch.equal(host.latents(), before)


def test_the_refiner_takes_over(host):
    host.start(torch.float64, **UNET)
    options = {"steps": 4, "refiner_checkpoint": "refiner", "prompt": "green tree"}
    plain = host.latents(**options)
    ours = host.latents(covered("green tree"), **{**options, "prompt": "red house"})
    assert error(ours, plain) < 1e-12
    assert error(plain, host.latents(prompt="green tree", steps=4)) > 1e-3


@pytest.mark.parametrize("kind", ["unet", "transformer", "blocks transformer"])
@pytest.mark.parametrize("call", [1, 2])
def test_nothing_remains_after_an_error(host, kind, call):
    host.start(forge=kind)
    plain = host.latents()
    counted = []

    def fail(module, args):
        counted.append(args)
        if len(counted) == call:
            raise RuntimeError("out of memory")

    hook = host.unet.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            host.processing.process_images(host.job(scene("green tree"), steps=3))
    finally:
        hook.remove()
    host.assert_clean()
    assert torch.equal(host.latents(), plain)


def test_what_another_extension_asks_of_the_unet_sees_the_scene(host):
    """As ControlNet's reference does: another picture, in the same step, before the host's own call."""
    host.start(torch.float64, **UNET)

    def asked(job):
        found = []

        def ask(model, x, sigma, uncond, cond, scale, options, seed):
            opts = SimpleNamespace(conditions_together=None, merges_options=False)
            found.append(predictions(model, cond, uncond, torch.ones_like(x), sigma, options, opts))
            return model, x, sigma, uncond, cond, scale, options, seed

        latents = host.latents(**job, others=[patching(lambda unet: unet.add_conditioning_modifier(ask))])
        return latents, torch.stack([side for sides in found for side in sides])

    plain, own = asked({"prompt": "green tree", "negative_prompt": "ugly"})
    ours, seen = asked({"scene": covered("green tree"), "prompt": "red house", "negative_prompt": "ugly"})
    _, unlike = asked({"prompt": "red house", "negative_prompt": "ugly"})
    assert error(ours, plain) < ROUNDED and error(seen, own) < ROUNDED
    assert error(unlike, own) > 1e-3


@pytest.mark.parametrize("kind", ["unet", "transformer", "blocks transformer"])
def test_tiles_are_refused(host, kind):
    host.start(forge=kind)

    def tile(model, x, sigma, *rest):
        return model, x[..., :3, :3], sigma, *rest

    other = patching(lambda unet: unet.add_conditioning_modifier(tile))
    p = host.job(scene("green tree"), others=[other])
    with pytest.raises(host.jobs.Refused, match="tiles"):
        host.processing.process_images(p)
    host.model.forge_objects.unet = p.before
