"""Neo's Z-Image and Lumina 2: level-set texts in the one stream of text and image."""

import pytest
import torch

from lib_masknoise import infotext
from tests.standin.test_blending import FULL, LEFT, LOWER, covered, error, scene
from tests.standin.test_forge import patching

KINDS = {"one stream transformer": "Lumina 2", "one stream transformer, filled": "Z-Image"}
LONG = "a wide field of golden wheat"  # twice as many tokens as a short prompt
SINGLE = 1e-6
"""The weights of texts side by side are in float32."""


@pytest.fixture(params=KINDS, ids=KINDS.get)
def neo(host, request):
    host.start(torch.float64, forge=request.param, like="Forge Neo")
    return host


def test_it_takes_one_evaluation_a_side(neo, conditions):
    processed = neo.run(scene({"prompt": "green tree", "negative": "dull"}, "blue sea"), steps=1)
    assert sorted(map(tuple, conditions)) == [(0,), (1,)]
    assert f"{infotext.BLENDING}: joint attention" in processed.infotexts[0]


def test_a_neutral_scene_is_the_plain_picture(neo):
    assert torch.equal(neo.latents({}), neo.latents())


def test_a_concept_that_covers_everything_is_its_prompt(neo):
    texts = (("green tree", "dull"), (LONG, ""), ("a:0.75 AND b:0.5", ""), ("[green:blue:1] tree", "[x:0.5]"))
    for prompt, negative in texts:
        for options in ({"cfg_scale": 1.0}, {"cfg_scale": 4.0, "enable_hr": True}):
            plain = neo.latents(prompt=prompt, negative_prompt=negative, steps=3, **options)
            ours = neo.latents(covered(prompt, negative), prompt="x AND y:2 AND z", steps=3, **options)
            assert error(ours, plain) < 1e-12


@pytest.mark.parametrize("base", ["red house", LONG])
def test_equal_texts_are_one(neo, base):
    """However soft the weights, each stands as far from the image as it does alone."""
    neo.shared.opts.conditions_together = 1  # together, the host alone repeats the shorter side's text
    three = {"concepts": [{"prompt": base, "mask": mask} for mask in (LEFT, LOWER)]}
    assert error(neo.latents(three, prompt=base), neo.latents(prompt=base)) < SINGLE


@pytest.mark.parametrize("texts", [("red house", "green tree"), ("red house", LONG), (LONG, "green tree")])
def test_beside_a_text_that_counts_nowhere_the_other_is_itself(neo, monkeypatch, texts):
    """Of any lengths: with weights that are not left out, but as good as 0."""
    predictions = neo.predictions
    monkeypatch.setattr(predictions, "_needed", lambda entries: entries)
    base, concept = texts
    neo.shared.opts.conditions_together = 1
    plain = neo.latents(prompt=concept)
    ours = neo.latents({"concepts": [{"prompt": concept, "mask": FULL}]}, prompt=base)
    assert error(plain, neo.latents(prompt=base)) > 1e-2
    assert error(ours, plain) < SINGLE


@pytest.mark.parametrize("weight", [0.5, -0.5, 1.5])
def test_a_constant_map_is_a_plain_pass_of_the_blend(neo, monkeypatch, weight):
    contexts, original = [], type(neo.model.patcher.model).apply_model

    def seen(model, *args, **named):
        contexts.append(named["c_crossattn"])
        return original(model, *args, **named)

    options = {"steps": 1, "cfg_scale": 1.0}
    monkeypatch.setattr(type(neo.model.patcher.model), "apply_model", seen)
    for prompt in ("red house", "green tree"):
        neo.latents(prompt=prompt, **options)
    base, concept = contexts
    blended = neo.latents({"concepts": [{"prompt": "green tree", "weight": weight, "mask": FULL}]}, **options)
    assert blended.isfinite().all()
    torch.testing.assert_close(contexts[2], torch.lerp(base, concept, weight))
    # And the model makes of it what it makes of that text alone.
    monkeypatch.setattr(neo.model, "get_learned_conditioning", lambda texts: [contexts[2][0]] * len(texts))
    assert error(blended, neo.latents(prompt="red house", **options)) < SINGLE


@pytest.mark.parametrize("together", [None, 1])
def test_every_image_has_its_own_frame_and_prompt(neo, together):
    neo.shared.opts.conditions_together = together
    moving = scene(
        {"prompt": "green tree", "keyframes": [{"frame": 0, "weight": 0.2}, {"frame": 2, "prompt": LONG}]},
        noise={"visual": {"strength": 0.5}},
        motion={"kind": "circle"},
        animation={"frames": 3},
    )
    whole = neo.latents(moving, batch_size=3)
    assert error(neo.latents(moving, batch_size=1), whole) < SINGLE
    assert all(error(whole[i], whole[i + 1]) > 1e-4 for i in range(2))


def test_odd_sizes(neo):
    options = {"width": 56, "height": 40}
    plain = neo.latents(**options)
    assert plain.shape[-2:] == (5, 7)
    halves = {"concepts": [{"prompt": "red house", "mask": LEFT}]}
    assert error(neo.latents(halves, **options), plain) < SINGLE


@pytest.mark.parametrize(
    "blended",
    [
        {"concepts": [{"prompt": text, "weight": -0.8, "mask": FULL} for text in ("green tree", "blue sea")]},
        scene("green tree AND blue sea"),
        covered("a AND b"),
    ],
)
def test_what_the_texts_cannot_say_is_left_to_predictions(neo, monkeypatch, blended):
    processed = neo.run(blended)
    assert f"{infotext.BLENDING}: predictions" in processed.infotexts[0]
    monkeypatch.setattr(neo.single_stream, "attentions", lambda model: ())
    assert error(torch.cat(processed.latents), neo.latents(blended)) < 1e-12


@pytest.mark.parametrize("taken", ["the attention", "the sequence"])
def test_what_another_extension_has_taken_is_refused(neo, taken):
    place, name = (neo.unet.layers[1].attention, "forward") if "att" in taken else (neo.unet, "patchify_and_embed")
    setattr(place, name, lambda *args, **named: None)
    p = neo.job(scene("green tree"))
    before = neo.model.forge_objects.unet
    try:
        with pytest.raises(neo.jobs.Refused, match="taken by another extension"):
            neo.processing.process_images(p)
    finally:
        delattr(place, name)
    neo.model.forge_objects.unet = before
    neo.assert_clean()


@pytest.mark.parametrize("error_kind", [RuntimeError, KeyboardInterrupt])
def test_nothing_remains_after_an_error_or_an_interrupt(neo, error_kind):
    plain = neo.latents()

    def fail(module, args):
        assert "forward" in vars(module.attention) and "patchify_and_embed" in vars(neo.unet)
        raise error_kind("stop")

    hook = neo.unet.layers[1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(error_kind, match="stop"):
            neo.processing.process_images(neo.job(scene("green tree"), steps=3))
    finally:
        hook.remove()
    assert "patchify_and_embed" not in vars(neo.unet)
    assert all("forward" not in vars(layer.attention) for layer in neo.unet.layers)
    neo.assert_clean()
    assert torch.equal(neo.latents(), plain)


def test_tiles_of_a_wrapper_are_refused(neo):
    def tiled(apply, args):
        parts = [apply(part, args["timestep"], **args["c"]) for part in args["input"].split([2, 4], dim=-1)]
        return torch.cat(parts, dim=-1)

    other = patching(lambda unet: unet.model_options.update(model_function_wrapper=tiled))
    p = neo.job(scene("green tree"), others=[other])
    with pytest.raises(neo.jobs.Refused, match="tiles"):
        neo.processing.process_images(p)
    neo.model.forge_objects.unet = p.before


def test_another_kind_of_attention_is_left_to_predictions(neo, monkeypatch):
    """As the quantised one is, which norms and turns in a kernel of its own."""
    kind = type(neo.unet.layers[0].attention)
    monkeypatch.setattr(kind, "forward", lambda layer, x, *args, **named: layer.out(x))
    assert not neo.single_stream.attentions(neo.unet)
    assert f"{infotext.BLENDING}: predictions" in neo.run(scene("green tree")).infotexts[0]
