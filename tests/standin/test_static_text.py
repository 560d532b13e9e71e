"""Neo's Anima and Wan: transformers whose text stays what it is, blended exactly in their cross-attention."""

import copy
import functools

import pytest
import torch

from lib_masknoise.maps import Maps, coefficients, resize
from lib_masknoise.scene import Scene
from tests.standin.forge import FULL as FILLED
from tests.standin.host import Other
from tests.standin.test_blending import covered, error, scene
from tests.standin.test_forge import patching

KINDS = {"static transformer": "Anima", "video transformer": "Wan"}
SIZE = (4, 6)
SINGLE = 1e-7
"""Maps, and the logarithm of how many tokens a text is filled up by, are in float32."""

NOISES = {
    "visual": {"strength": 0.5},
    "concept": {"strength": 0.7, "rank": 2},
    "feature": {"strength": 0.7, "dimensions": "0-2"},
}


@pytest.fixture(params=KINDS, ids=KINDS.get)
def neo(host, request):
    host.start(torch.float64, forge=request.param, like="Forge Neo")
    return host


def materialised(host, blended, base, negative="", steps=2, cfg=5.0, seed=1):
    """Every location's context built: what `blended` of texts without parts, weights or noise should give."""
    from modules import sd_samplers

    made = Scene.parse(blended)
    model = copy.deepcopy(host.model.model.diffusion_model)
    maps = Maps(made, SIZE).weights([0])[0]
    frames, wan = host.model.frames, hasattr(model, "text_embedding")
    read = model.text_embedding if wan else torch.nn.Identity()
    model.text_embedding = torch.nn.Identity()

    def contexts(texts):
        encoded = (host.model.get_learned_conditioning([text])[0] for text in texts)
        return torch.stack([read(one.double()).flatten(0, -2) for one in encoded])

    def shares(concepts):
        chosen = [i for i, one in enumerate(made.concepts) if one in concepts]
        a = coefficients(maps[chosen], [made.concepts[i].weight for i in chosen], made.blend.mode, made.blend.scale)
        return resize(a[None], (2, 3))[0].flatten(1).double()  # [J, L]

    def of_wan(layer, x, context, **others):
        q, k, v = layer.norm_q(layer.q(x)), layer.norm_k(layer.k(context)), layer.v(context)
        q, k, v = (t.unflatten(-1, (layer.num_heads, -1)) for t in (q[0], k, v))
        logits = torch.einsum("lhd,lthd->lht", q, k) * q.shape[-1] ** -0.5
        return layer.o(torch.einsum("lht,lthd->lhd", logits.softmax(-1), v).flatten(1))[None]

    def of_anima(layer, x, context, transformer_options=None):
        """context: `[L, T, D]`, one for every location."""
        q, k, v = (
            t.unflatten(-1, (layer.n_heads, layer.head_dim))
            for t in (layer.q_proj(x)[0], layer.k_proj(context), layer.v_proj(context))
        )
        logits = torch.einsum("lhd,lthd->lht", layer.q_norm(q), layer.k_norm(k)) * layer.head_dim**-0.5
        return layer.output_proj(torch.einsum("lht,lthd->lhd", logits.softmax(-1), v).flatten(1))[None]

    for block in model.blocks:
        block.cross_attn.forward = functools.partial(of_wan if wan else of_anima, block.cross_attn)

    def predict(x, sigma, concepts, texts):
        everywhere = torch.einsum("jl,jtd->ltd", shares(concepts), contexts(texts)).repeat(frames, 1, 1)
        return x - sigma * model(x / (1 + sigma**2).sqrt(), 50 * sigma.flatten(), everywhere, {})

    with_negatives = [one for one in made.concepts if one.negative]
    x = torch.randn(4, frames, *SIZE, generator=torch.Generator().manual_seed(seed)).double()[None]
    schedule = sd_samplers.sigmas(steps, x)
    x = x * schedule[0]
    for sigma, following in zip(schedule[:-1], schedule[1:], strict=True):
        up = predict(x, sigma.expand(1), made.concepts, [base, *(one.prompt for one in made.concepts)])
        down = predict(x, sigma.expand(1), with_negatives, [negative, *(one.negative for one in with_negatives)])
        x = x + (following - sigma) * (x - down - cfg * (up - down)) / sigma
    return x


CASES = {
    "two concepts": scene("green tree", "blue sea"),
    "negative prompts": scene({"prompt": "green tree", "negative": "dull"}, "blue sea"),
    "extrapolation": scene({"prompt": "green tree", "weight": 1.5}, {"prompt": "blue sea", "weight": -0.5}),
    "added": scene("green tree", "blue sea", blend={"mode": "add", "scale": 0.8}),
    "lengths": scene("a wide field of golden wheat", "sea"),
}


@pytest.mark.parametrize("together", [None, 1])
@pytest.mark.parametrize("name", CASES)
def test_every_location_has_its_own_context(neo, name, together):
    neo.shared.opts.conditions_together = together
    ours = neo.latents(CASES[name], negative_prompt="ugly")
    assert error(ours, materialised(neo, CASES[name], "red house", "ugly")) < 10 * SINGLE


def test_it_takes_one_evaluation(neo, conditions):
    neo.latents(scene({"prompt": "green tree", "negative": "dull"}, "blue sea"), steps=1)
    assert [sorted(chunks) for chunks in conditions] == [[0, 1]]


def test_a_concept_that_covers_everything_is_its_prompt(neo):
    texts = (("green tree", "dull"), ("a wide field", ""), ("a:0.75 AND b:0.5", ""), ("[green:blue:1] tree", "[x:0.5]"))
    for prompt, negative in texts:
        for options in ({"cfg_scale": 1.0}, {"cfg_scale": 4.0, "enable_hr": True}):
            plain = neo.latents(prompt=prompt, negative_prompt=negative, steps=3, **options)
            ours = neo.latents(covered(prompt, negative), prompt="x AND y:2 AND z", steps=3, **options)
            assert error(ours, plain) < SINGLE


def test_frames_and_noises(neo):
    moving = scene("green tree", "blue sea", noise=NOISES, motion={"kind": "circle"}, animation={"frames": 3})
    whole = neo.latents(moving, batch_size=3)
    assert error(neo.latents(moving, batch_size=1), whole) < 1e-12
    assert all(error(whole[i], whole[i + 1]) > 1e-4 for i in range(2))
    for kind in ("concept", "feature"):  # each of them acts
        alone = {**scene("green tree"), "noise": {kind: NOISES[kind]}}
        assert error(neo.latents(alone), neo.latents(scene("green tree"))) > 1e-4


def test_where_a_concept_holds_noise_does_nothing(neo):
    noisy = {**covered("green tree"), "noise": {kind: NOISES[kind] for kind in ("concept", "feature")}}
    assert error(neo.latents(noisy), neo.latents(prompt="green tree")) < SINGLE


def test_the_infotext_says_nothing_of_predictions(neo):
    processed = neo.run({**scene("green tree"), "noise": NOISES})
    assert "blending" not in processed.infotexts[0] and "cross-attention" not in processed.comments


def test_filled_up_texts_are_known_by_their_zeros(neo):
    read = getattr(neo.unet, "text_embedding", None)
    own = read and (lambda text: read(text.double()))
    encoded = neo.prompts.encoded_context(neo.model.get_learned_conditioning(["green tree"])[0], own)
    assert encoded.context.shape[0] == 5 and encoded.full == FILLED
    assert encoded.context[-1].any() and bool(encoded.filler.any()) == (read is not None)


def test_a_forward_of_another_extension_is_refused(neo):
    layer = neo.unet.blocks[0].cross_attn
    layer.forward = lambda *args, **named: None
    try:
        with pytest.raises(neo.jobs.Refused, match="taken by another extension"):
            neo.processing.process_images(neo.job(scene("green tree")))
    finally:
        del layer.forward


def test_nothing_remains_after_an_error(neo):
    plain = neo.latents()

    def fail(module, args):
        raise RuntimeError("out of memory")

    hook = neo.unet.blocks[1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            neo.processing.process_images(neo.job(scene("green tree"), steps=3))
    finally:
        hook.remove()
    neo.assert_clean()
    assert torch.equal(neo.latents(), plain)


def test_odd_sizes(neo):
    options = {"width": 56, "height": 40}
    plain = neo.latents(prompt="green tree", **options)
    assert plain.shape[-2:] == (5, 7)
    assert error(neo.latents(covered("green tree"), **options), plain) < SINGLE


def test_conditions_of_others_are_refused(neo):
    def more(model, x, sigma, uncond, cond, *rest):
        return model, x, sigma, uncond, [*cond, *cond], *rest

    p = neo.job(scene("green tree AND b"), others=[patching(lambda unet: unet.add_conditioning_modifier(more))])
    with pytest.raises(neo.jobs.Refused):
        neo.processing.process_images(p)
    neo.model.forge_objects.unet = p.before


def test_tiles_of_a_wrapper_are_refused(neo):
    def tiled(apply, args):
        parts = [apply(part, args["timestep"], **args["c"]) for part in args["input"].split([2, 4], dim=-1)]
        return torch.cat(parts, dim=-1)

    other = patching(lambda unet: unet.model_options.update(model_function_wrapper=tiled))
    p = neo.job(scene("green tree"), others=[other])
    with pytest.raises(neo.jobs.Refused, match="tiles"):
        neo.processing.process_images(p)
    neo.model.forge_objects.unet = p.before


@pytest.fixture
def video(host):
    """Neo's Wan: the batch size counts the frames of one latent. A function that makes a job with such a batch."""
    host.start(torch.float64, forge="video transformer", like="Forge Neo")

    def one_latent(p, **named):
        p.rng = p.rng[:1]

    def as_one(p, noise, **named):
        assert len(noise) == 1

    def job(scene=None, **options):
        others = [Other(process_batch=one_latent, process_before_every_sampling=as_one)]
        return host.job(scene, others=others, batch_size=5, **options)

    return job


def test_a_batch_that_is_a_video_has_no_frames_of_ours(host, video):
    moving = scene("green tree", noise={"visual": {"strength": 0.5}}, animation={"frames": 4})
    with pytest.raises(host.jobs.Refused, match="every batch is a video"):
        host.processing.process_images(video(moving))


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 1.0}, {"refiner_checkpoint": "refiner", "steps": 4}])
def test_all_frames_of_a_video_see_the_scene(host, video, options):
    def frames(scene=None, **more):
        return torch.cat(host.process(video(scene, **more, **options)).latents).double()

    plain = frames(prompt="green tree")
    assert plain.shape[2] == host.model.frames == 2
    assert error(frames(covered("green tree")), plain) < SINGLE
    half = frames(scene("green tree"))
    assert all(error(half[:, :, i], plain[:, :, i]) > 1e-4 for i in range(2))


def test_wans_feature_noise_is_for_what_its_own_layers_make_of_the_text(host):
    """A token has more numbers there than the text encoder gives it."""
    host.start(torch.float64, forge="video transformer", like="Forge Neo")
    width, encoded = host.unet.text_embedding[-1].out_features, host.model.context("sea").shape[1]
    assert width > encoded

    def noisy(dimensions):
        return {**scene("green tree"), "noise": {"feature": {"strength": 1, "dimensions": dimensions}}}

    still = host.latents(scene("green tree"))
    assert error(host.latents(noisy(f"{encoded}-{width - 1}")), still) > 1e-4
    with pytest.raises(host.jobs.Refused, match="dimensions"):
        host.processing.process_images(host.job(noisy(f"{width}")))


def test_after_the_refiner_the_text_is_read_by_its_own_layers(host):
    host.start(torch.float64, forge="video transformer", like="Forge Neo")
    options = {"refiner_checkpoint": "refiner", "refiner_switch_at": 0.5, "steps": 4}
    plain = host.latents(prompt="green tree", **options)
    assert error(plain, host.latents(prompt="green tree", steps=4)) > 1e-4
    assert error(host.latents(covered("green tree"), **options), plain) < SINGLE
