"""Forge's models without cross-attention: predictions are blended, or all texts are in one joint attention."""

import pytest
import torch

from lib_masknoise import infotext
from lib_masknoise.maps import Maps, coefficients
from lib_masknoise.scene import Scene
from tests.standin.model import POOLED
from tests.standin.test_blending import FULL, LEFT, LOWER, covered, error, scene
from tests.standin.test_forge import patching

PLAIN, FRAMES = "transformer", "frames transformer"
BLOCKS, PLACED, STREAMS = "blocks transformer", "placed transformer", "streams transformer"
JOINT = [BLOCKS, PLACED, STREAMS]
SIZE = (4, 6)
LONG = "a wide field of golden wheat"  # twice as many tokens as a short prompt


def predicted(host, scene, base, negative="", steps=2, cfg=5.0, frame=0, seed=1, start=0.0, guidance=3.5):
    """`Σ_j a_j Σ_k w_jk (pred_jk − negative)` at every location: each text's prediction alone, averaged here.

    Of concepts without keyframes, whose prompts do not change with the step.
    """
    from modules import prompt_parser, sd_samplers

    made = Scene.parse(scene)
    maps = Maps(made, SIZE).weights([frame])[0]
    frames = (1,) if host.model.is_wan else ()

    def shares(concepts):
        chosen = [i for i, one in enumerate(made.concepts) if one in concepts]
        weights = [one.weight for one in concepts]
        a = coefficients(maps[chosen], weights, made.blend.mode, made.blend.scale).double()
        return torch.cat([1 - a[1:].sum(0, keepdim=True), a[1:]]).reshape(-1, *frames, *SIZE)

    def parts(text):
        texts = prompt_parser.SdConditioning([text])
        texts.distilled_cfg_scale = guidance
        return prompt_parser.get_multicond_learned_conditioning(host.model, texts, steps).batch[0]

    def alone(cond, x, sigma):
        if torch.is_tensor(cond):
            return host.model.patcher.model.apply_model(x, sigma, cond[None], {})
        rest = {"y": cond["vector"][None], "guidance": cond["guidance"][None]}
        return host.model.patcher.model.apply_model(x, sigma, cond["crossattn"][None], {}, **rest)

    def denoise(x, sigma):
        blends = step / steps >= start
        texts = [base, *(one.prompt for one in made.concepts)] if blends else [base]
        a = shares(made.concepts) if blends else torch.ones(1, *SIZE)
        with_negatives = [one for one in made.concepts if one.negative] if blends else []
        below = sum(
            share * alone(parts(text)[0].schedules[0].cond, x, sigma)
            for share, text in zip(
                shares(with_negatives), [negative, *(one.negative for one in with_negatives)], strict=True
            )
        )
        if cfg == 1:
            below = torch.zeros_like(x)
        guided = sum(
            share * part.weight * (alone(part.schedules[0].cond, x, sigma) - below)
            for share, text in zip(a, texts, strict=True)
            for part in parts(text)
        )
        return below + cfg * guided

    x = torch.randn(4, *frames, *SIZE, generator=torch.Generator().manual_seed(seed)).double()[None]
    schedule = sd_samplers.sigmas(steps, x)
    x = x * schedule[0]
    for step in range(steps):
        sigma, following = schedule[step : step + 2]
        x = x + (following - sigma) * (x - denoise(x, sigma.expand(1))) / sigma
    return x


CASES = {
    "two concepts": (scene("green tree", "blue sea"), {}),
    "a negative prompt": (scene({"prompt": "green tree", "negative": "dull"}, "blue sea"), {"negative": "ugly"}),
    "two negative prompts": (
        scene({"prompt": "green tree", "negative": "dull"}, {"prompt": "blue sea", "negative": "flat"}),
        {"negative": "ugly"},
    ),
    "without the negative side": (scene("green tree", {"prompt": "blue sea", "negative": "flat"}), {"cfg": 1.0}),
    "extrapolation": (scene({"prompt": "green tree", "weight": 1.5}, {"prompt": "blue sea", "weight": -0.5}), {}),
    "added": (scene("green tree", "blue sea", blend={"mode": "add", "scale": 0.8}), {}),
    "parts": (scene("green tree AND grass:0.5", "blue sea"), {}),
    "parts of the base": (scene("green tree", "blue sea:0.7"), {"base": "red house AND roof:0.25"}),
    "lengths": (scene(LONG, "blue sea"), {}),
    "the second half of the steps": (scene("green tree", blend={"start": 0.5}), {"start": 0.5}),
    "distilled guidance": (scene("green tree", "blue sea"), {"guidance": 7.0, "cfg": 1.0}),
}


@pytest.mark.parametrize("kind", [PLAIN, FRAMES])
@pytest.mark.parametrize("together", [None, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_predictions_are_averaged(host, name, together, kind):
    blended, options = CASES[name]
    host.start(torch.float64, forge=kind, conditions_together=together)
    base, negative = options.get("base", "red house"), options.get("negative", "")
    ours = host.latents(
        blended, prompt=base, negative_prompt=negative, cfg_scale=options.get("cfg", 5.0),
        distilled_cfg_scale=options.get("guidance", 3.5),
    )  # fmt: skip
    assert error(ours, predicted(host, blended, **{"base": base, **options})) < 1e-6


def test_one_evaluation_for_each_text_that_counts(host, conditions):
    host.start(forge=PLAIN)
    host.latents(scene({"prompt": "green tree", "negative": "dull"}, "blue sea AND waves"), steps=1)
    host.latents(covered("green tree"), steps=1)
    host.latents(covered("green tree", "dull"), steps=1, cfg_scale=1.0)
    assert [sorted(chunks) for chunks in conditions] == [[0, 0, 0, 0, 1, 1], [0, 1], [0]]


@pytest.mark.parametrize("kind", [PLAIN, FRAMES, *JOINT])
def test_a_concept_that_covers_everything_is_its_prompt(host, kind):
    host.start(torch.float64, forge=kind)
    texts = (("green tree", "dull"), (LONG, ""), ("a:0.75 AND b:0.5", ""), ("[green:blue:1] tree", "[x:0.5]"))
    for prompt, negative in texts:
        for cfg in (1.0, 4.0):
            options = {"steps": 3, "cfg_scale": cfg, "distilled_cfg_scale": 6.0}
            plain = host.latents(prompt=prompt, negative_prompt=negative, **options)
            ours = host.latents(covered(prompt, negative), prompt="x AND y:2 AND z", **options)
            assert error(ours, plain) < 1e-12


@pytest.mark.parametrize("kind", [PLAIN, FRAMES, STREAMS])
def test_the_hires_pass_has_its_own_guidance(host, kind):
    host.start(torch.float64, forge=kind)
    plain = host.latents(prompt="green tree", enable_hr=True)
    assert error(host.latents(covered("green tree"), enable_hr=True), plain) < 1e-12


@pytest.mark.parametrize("kind", [PLAIN, FRAMES, *JOINT])
def test_every_image_has_its_own_frame_and_prompt(host, kind):
    host.start(torch.float64, forge=kind)
    moving = scene(
        {"prompt": "green tree", "keyframes": [{"frame": 0, "weight": 0.2}, {"frame": 2, "prompt": "blue sea"}]},
        noise={"visual": {"strength": 0.5}},
        motion={"kind": "circle"},
        animation={"frames": 3},
    )
    whole = host.latents(moving, batch_size=3)
    # The weights of texts side by side are float32, and divided by another sum.
    bound = 1e-6 if kind in JOINT else 1e-12
    assert error(host.latents(moving, batch_size=1), whole) < bound
    assert all(error(whole[i], whole[i + 1]) > 1e-4 for i in range(2))


def test_what_wraps_the_model_already_takes_part(host):
    """A wrapper of another extension's, inside ours."""
    host.start(torch.float64, forge=FRAMES)

    def louder(apply, args):
        assert "masknoise_weight" not in args["c"]
        return 1.5 * apply(args["input"], args["timestep"], **args["c"])

    other = patching(lambda unet: unet.model_options.update(model_function_wrapper=louder))
    half = scene("green tree")
    three = {"concepts": [{"prompt": "red house", "mask": mask} for mask in (LEFT, LOWER)]}
    plain = host.latents(others=[other])
    assert error(host.latents(three, others=[other]), plain) < 1e-6
    assert error(host.latents(half, others=[other]), host.latents(half)) > 1e-3


@pytest.mark.parametrize("kind", [PLAIN, BLOCKS, STREAMS])
def test_noise_without_a_place_is_said(host, kind):
    host.start(forge=kind)
    noisy = {"noise": {"concept": {"strength": 0.5}, "feature": {"strength": 0.5, "dimensions": "0-2"}}}
    assert torch.equal(host.latents(noisy), host.latents())
    for blended in (noisy, {**noisy, **scene("green tree")}):
        processed = host.run(blended)
        assert "no concept and feature noise" in processed.comments
        assert "without concept and feature noise" in processed.infotexts[0]
    assert infotext.BLENDING in processed.infotexts[0] and infotext.BLENDING in infotext.NOTES


def test_conditions_of_others_are_refused(host):
    """As Forge Couple adds them."""
    host.start(forge=PLAIN)

    def more(model, x, sigma, uncond, cond, *rest):
        return model, x, sigma, uncond, [*cond, *cond], *rest

    p = host.job(scene("green tree"), others=[patching(lambda unet: unet.add_conditioning_modifier(more))])
    with pytest.raises(host.jobs.Refused, match="divided already"):
        host.processing.process_images(p)
    host.model.forge_objects.unet = p.before


# --- The joint attention


@pytest.mark.parametrize("kind", JOINT)
def test_joint_attention_takes_one_evaluation(host, conditions, kind):
    host.start(forge=kind)
    processed = host.run(scene("green tree", "blue sea"), steps=1)
    assert sorted(map(tuple, conditions)) == [(0,), (1,)]
    assert f"{infotext.BLENDING}: joint attention" in processed.infotexts[0]


@pytest.mark.parametrize("kind", JOINT)
def test_equal_texts_are_one(host, kind):
    """However soft the weights: they add up to 1. Where tokens are counted, those of each text are counted anew."""
    host.start(torch.float64, forge=kind)
    three = {"concepts": [{"prompt": "red house", "mask": mask} for mask in (LEFT, LOWER)]}
    assert error(host.latents(three), host.latents()) < 1e-6


@pytest.mark.parametrize("kind", [BLOCKS, STREAMS])
@pytest.mark.parametrize("weight", [0.5, -0.5, 1.5])
def test_a_constant_map_is_a_plain_pass_of_the_blend(host, monkeypatch, weight, kind):
    """Where the map is the same everywhere and a text stands there (half of a concept, or beyond it), nothing is
    approximated."""
    host.start(torch.float64, forge=kind)
    contexts, original = [], type(host.model.patcher.model).apply_model

    def seen(model, *args, **named):
        contexts.append(named["c_crossattn"])
        return original(model, *args, **named)

    options = {"steps": 1, "cfg_scale": 1.0}
    monkeypatch.setattr(type(host.model.patcher.model), "apply_model", seen)
    for prompt in ("red house", "green tree"):
        host.latents(prompt=prompt, **options)
    base, concept = contexts
    blended = host.latents({"concepts": [{"prompt": "green tree", "weight": weight, "mask": FULL}]}, **options)
    assert blended.isfinite().all()
    torch.testing.assert_close(contexts[2], torch.lerp(base, concept, weight))


@pytest.mark.parametrize("kind", JOINT)
def test_texts_of_several_lengths_stand_where_they_do_alone(host, kind):
    """Both sides have as many tokens in all, divided in another way, and are evaluated together or not."""
    blended = scene({"prompt": LONG, "negative": "dull"})
    options = {"prompt": "red house", "negative_prompt": LONG}
    host.start(torch.float64, forge=kind)
    together = host.latents(blended, **options)
    host.start(torch.float64, forge=kind, conditions_together=1)
    assert error(host.latents(blended, **options), together) < 1e-12


@pytest.mark.parametrize("kind", [BLOCKS, STREAMS])
@pytest.mark.parametrize(
    "blended",
    [
        {"concepts": [{"prompt": text, "weight": -0.8, "mask": FULL} for text in ("green tree", "blue sea")]},
        scene("green tree AND blue sea"),
        covered("a AND b"),
    ],
)
def test_what_cannot_stand_side_by_side_is_left_to_predictions(host, blended, kind):
    host.start(torch.float64, forge=kind)
    processed = host.run(blended, cfg_scale=5.0)
    assert error(torch.cat(processed.latents).double(), predicted(host, blended, "red house")) < 1e-6
    assert f"{infotext.BLENDING}: predictions" in processed.infotexts[0]


def test_a_window_of_steps(host):
    host.start(forge=BLOCKS)
    nothing = {"concepts": [{"prompt": "green tree", "mask": FULL}], "blend": {"start": 0.9}}
    assert torch.equal(host.latents(nothing, steps=4), host.latents(steps=4))


# --- The attention of the blocks (Flux, Flux 2, Chroma; Qwen-Image)


@pytest.fixture(params=JOINT)
def joint(host, request):
    host.start(torch.float64, forge=request.param)
    return host


def taken(host):
    """The module whose forward becomes ours in the first block."""
    unet = host.unet
    return unet.transformer_blocks[0].attn if hasattr(unet, "transformer_blocks") else unet.double_blocks[0]


def test_images_of_a_batch_have_texts_of_their_own_lengths(joint):
    """A longer text everywhere in the one, shared with a shorter one in the other."""
    corner = {"kind": "rect", "left": 0, "top": 0, "right": 0.5, "bottom": 1}
    blended = {
        "concepts": [
            {"prompt": LONG, "mask": FULL},
            {"prompt": "sea", "mask": corner, "keyframes": [{"frame": 0, "weight": 0}, {"frame": 1, "weight": 1}]},
        ],
        "animation": {"frames": 2},
    }
    options = {"steps": 2, "cfg_scale": 1.0}  # with guidance the host reads a shorter negative prompt twice
    both = joint.latents(blended, batch_size=2, **options)
    assert error(both[:1], joint.latents(prompt=LONG, **options)) < 1e-6
    assert error(both[1:], both[:1]) > 1e-3


def test_each_half_follows_its_own_text(joint, monkeypatch):
    """Of texts that differ in their tokens alone: a vector of them has no place."""
    monkeypatch.setattr(joint.model, "pooled", lambda text: torch.ones(POOLED))
    halves = {"concepts": [{"prompt": "green tree", "mask": {"kind": "split", "axis": "x", "from": 0, "to": 0.5}}]}
    options = {"steps": 1, "cfg_scale": 1.0, "prompt": "blue sea"}
    ours = joint.latents(halves, **options)
    tree, sea = (joint.latents(prompt=text, steps=1, cfg_scale=1.0) for text in ("green tree", "blue sea"))
    left, right = slice(None, 2), slice(4, None)
    assert error(ours[..., left], tree[..., left]) < error(ours[..., left], sea[..., left])
    assert error(ours[..., right], sea[..., right]) < error(ours[..., right], tree[..., right])


def test_odd_sizes(joint):
    options = {"width": 56, "height": 40}
    plain = joint.latents(prompt="green tree", **options)
    assert plain.shape[-2:] == (5, 7)
    equal = {"concepts": [{"prompt": "green tree", "mask": mask} for mask in (LEFT, LOWER)]}
    assert error(joint.latents(equal, prompt="green tree", **options), plain) < 1e-6


def test_an_attention_of_another_extension_is_refused(joint):
    layer = taken(joint)
    layer.forward = lambda *args, **named: None
    try:
        with pytest.raises(joint.jobs.Refused, match="layers are taken by another extension"):
            joint.processing.process_images(joint.job(scene("green tree")))
    finally:
        del layer.forward


def test_nothing_remains_of_a_call_that_fails(joint):
    plain = joint.latents()

    def fail(module, args):
        raise KeyboardInterrupt

    hook = list(joint.unet.modules())[-1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            joint.processing.process_images(joint.job(scene("green tree"), steps=3))
    finally:
        hook.remove()
    joint.assert_clean()
    assert torch.equal(joint.latents(), plain)


@pytest.mark.parametrize("by", ["tiles", "rows"])
def test_calls_in_pieces_are_refused(joint, by):
    def pieces(apply, args):
        if by == "tiles":
            parts = [apply(part, args["timestep"], **args["c"]) for part in args["input"].split([2, 4], dim=-1)]
            return torch.cat(parts, dim=-1)
        c = args["c"]
        rows = [{key: one[i : i + 1] if torch.is_tensor(one) else one for key, one in c.items()} for i in range(4)]
        given = zip(args["input"], args["timestep"], rows, strict=False)
        return torch.cat([apply(x[None], t[None], **row) for x, t, row in given])

    other = patching(lambda unet: unet.model_options.update(model_function_wrapper=pieces))
    p = joint.job(scene("green tree"), others=[other], batch_size=2)
    with pytest.raises(joint.jobs.Refused, match="tiles" if by == "tiles" else "divides"):
        joint.processing.process_images(p)
    joint.model.forge_objects.unet = p.before
