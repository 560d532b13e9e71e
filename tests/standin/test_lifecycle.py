"""What is installed during a pass, and that nothing of it remains, however the pass ends."""

import pytest
import torch

from lib_masknoise.attention import KEPT
from lib_masknoise.hosts.webui.rows import Picture, Rows
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene
from tests.standin.host import Other
from tests.standin.test_blending import covered, error, scene

TREE = scene("green tree", "blue sea")


class Broken(RuntimeError):
    pass


class Ended(BaseException):
    """As a keyboard interrupt, which nothing in the host catches."""


def failing(error, at=1):
    """A function that raises at its call number `at`, from 1."""
    calls = []

    def function(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            raise error

    return function


@pytest.fixture
def plain(host):
    return host.latents()


def fails(host, error, scene=TREE, **options):
    """The job ends with that error; the host is as before, and so is its next picture."""
    p = host.job(scene, **options)
    with pytest.raises(error) as raised:
        host.process(p)
    host.errors.logged.clear()
    return raised.value


def test_a_job_without_a_scene_installs_nothing(host, plain):
    for values in (None, "", {"enabled": False, "concepts": TREE["concepts"]}, {}):
        seen = []

        def look(p, seen=seen, **named):
            host.assert_clean()
            seen.append({"launch_sampling", "get_conds"} & (vars(p.sampler).keys() | vars(p).keys()))

        assert torch.equal(host.latents(values, later=[Other(process_before_every_sampling=look)]), plain)
        assert seen == [set()]


def test_while_it_samples_the_layers_are_bound_and_then_no_more(host):
    seen = []

    def look(params):
        seen.append([("forward" in vars(layer)) for layer in host.layers()])

    host.callbacks.on_cfg_denoiser(look)
    host.run(TREE)
    assert seen == [[True] * len(host.layers())] * 2


@pytest.mark.parametrize("error", [Broken, Ended])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_the_unet_fails(host, plain, monkeypatch, call, error):
    hook = host.unet.middle_block.register_forward_hook(failing(error("out of memory"), call))
    try:
        with pytest.raises(error, match="out of memory"):
            host.processing.process_images(host.job(TREE, steps=3))
    finally:
        hook.remove()
    host.assert_clean()
    assert torch.equal(host.latents(), plain)
    assert torch.equal(host.latents(img2img=True), host.latents(img2img=True))


@pytest.mark.parametrize("error", [Broken, Ended])
@pytest.mark.parametrize(
    "module, function",
    [
        *(("attention", name) for name in ("blended_attention", "projected", "wanted")),
        *(("a1111", name) for name in ("shares", "_project", "_hypernetworks")),
        *(("denoising", name) for name in ("padded_alike", "_set_vectors", "context_of", "level_with")),
    ],
)
def test_our_own_code_fails(host, plain, monkeypatch, module, function, error):
    """In the callback, where the host would swallow it, as well as in the attention."""
    with monkeypatch.context() as patch:
        patch.setattr(getattr(host, module), function, failing(error("a bug")))
        fails(host, error)
    assert torch.equal(host.latents(), plain)


@pytest.mark.parametrize("error", [Broken, Ended])
@pytest.mark.parametrize("name", ["on_cfg_denoiser", "on_cfg_denoised"])
def test_entering_fails(host, plain, monkeypatch, name, error):
    with monkeypatch.context() as patch:
        patch.setattr(host.callbacks, name, failing(error("no more callbacks")))
        fails(host, error)
    assert torch.equal(host.latents(), plain)


@pytest.mark.parametrize("error", [Broken, Ended])
@pytest.mark.parametrize("enable_hr", [False, True])
def test_the_sampler_fails(host, plain, monkeypatch, enable_hr, error):
    """Between the denoiser calls; in the hires pass, too."""
    own = host.processing.sd_samplers._slope
    fail = failing(error("NaN"), 4 if enable_hr else 2)

    def slope(*args):
        fail()
        return own(*args)

    with monkeypatch.context() as patch:
        patch.setattr(host.processing.sd_samplers, "_slope", slope)
        fails(host, error, enable_hr=enable_hr, steps=3)
    assert torch.equal(host.latents(), plain)


@pytest.mark.parametrize("call", [1, 2])
def test_concept_prompts_cannot_be_encoded(host, plain, monkeypatch, call):
    """The text encoder runs out of memory, before sampling or for the refiner."""
    with monkeypatch.context() as patch:
        fail = failing(Broken("no memory"), call)
        own = host.prompts.ConceptPrompts.encode
        patch.setattr(host.prompts.ConceptPrompts, "encode", lambda self, p: (fail(), own(self, p))[1])
        fails(host, Broken, refiner_checkpoint="refiner")
    host.shared.sd_model = host.model
    assert torch.equal(host.latents(), plain)


@pytest.mark.parametrize("button", ["interrupt", "skip"])
@pytest.mark.parametrize("step", [1, 2])
def test_interrupted(host, plain, button, step):
    """The host ends sampling by an exception of its own, at a denoiser call, and keeps the picture as it is."""
    press = [lambda: None] * (step - 1) + [getattr(host.shared.state, button)]

    def pressed(params):
        if press:
            press.pop(0)()

    host.callbacks.on_cfg_denoiser(pressed)
    processed = host.process(host.job(TREE, steps=4))
    assert len(processed.images) == 1
    host.start()
    assert torch.equal(host.latents(), plain)


def test_a_callback_of_another_extension_fails(host):
    """The host swallows it, so do we."""
    host.callbacks.on_cfg_denoiser(failing(Broken("other"), 1))
    processed = host.process(host.job(TREE))
    assert [str(e) for e in host.errors.logged] == ["other"]
    host.start()
    expected = host.latents(TREE)
    assert torch.equal(torch.cat(processed.latents).double(), expected)


def test_an_error_in_the_callback_surfaces_before_any_layer_runs(host, monkeypatch):
    """The host logs what a callback raises and goes on; the U-Net's call is the first that it does not guard."""
    ran = []
    monkeypatch.setattr(host.denoising, "_make_alike", failing(Broken("in the callback")))
    hook = host.unet.time_embed.register_forward_hook(lambda *args: ran.append(1))
    try:
        with pytest.raises(Broken, match="in the callback"):
            host.processing.process_images(host.job(TREE))
    finally:
        hook.remove()
    assert not ran and not host.errors.logged


# --- Others in the same place


def test_layers_that_another_extension_has_taken(host):
    layer = host.layers()[1]
    layer.forward = own = lambda *args, **kwargs: type(layer).forward(layer, *args, **kwargs)
    try:
        p = host.job(TREE)
        with pytest.raises(host.jobs.Refused) as raised:
            host.processing.process_images(p)
        assert __file__ in str(raised.value) and "switch it off" in str(raised.value)
        assert vars(layer)["forward"] is own
        assert not any("forward" in vars(other) for other in host.layers() if other is not layer)
        assert not host.callbacks.callback_map["cfg_denoiser"] and "get_conds" not in vars(p)
        host.processing.process_images(host.job())  # without a scene, theirs is none of our business
    finally:
        del layer.forward


def test_get_conds_of_another_extension_is_put_back(host):
    """Also where ours is never installed."""
    for taken in (False, True):
        p = host.job(TREE)
        p.get_conds = own = lambda: type(p).get_conds(p)  # noqa: B023
        layer = host.layers()[0]
        if taken:
            layer.forward = lambda *args, **kwargs: None
        try:
            host.processing.process_images(p)
        except host.jobs.Refused:
            assert taken
        finally:
            vars(layer).pop("forward", None)
        assert vars(p)["get_conds"] is own


def test_tiles_are_refused(host):
    """Tiled Diffusion calls the U-Net for pieces of the latent."""

    def x0(model, x, *args, original=host.processing.sd_samplers.x0):
        return torch.cat([original(model, x[..., i : i + 3], *args) for i in (0, 3)], -1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.processing.sd_samplers, "x0", x0)
        error = fails(host, host.jobs.Refused)
    assert "a piece of 4×3 of a latent of 4×6" in str(error) and "Tiled Diffusion" in str(error)


def test_more_calls_than_rows_are_refused(host):
    def x0(model, *args, original=host.processing.sd_samplers.x0):
        original(model, *args)
        return original(model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.processing.sd_samplers, "x0", x0)
        error = fails(host, host.jobs.Refused)
    assert "row 4 of 2" in str(error)


def test_a_unet_without_cross_attention_is_refused(host):
    class Flux(torch.nn.Module):
        pass

    original = host.model.model.diffusion_model
    host.model.model.diffusion_model = Flux()
    try:
        with pytest.raises(host.jobs.Refused, match="Flux has no cross-attention layers"):
            host.processing.process_images(host.job(TREE))
    finally:
        host.model.model.diffusion_model = original


def test_contexts_that_another_extension_changes_are_respected(host):
    """CADS adds noise to the contexts at every step. A concept with a full mask has no base to change, one beside the
    base has."""
    host.start(torch.float64)

    def noisy(params):
        generator = torch.Generator().manual_seed(params.denoiser.step)
        for cond in (params.text_cond, params.text_uncond):
            cond[:, 1:5] += torch.randn(4, 8, generator=generator).to(cond)

    plain = host.latents(prompt="red house", negative_prompt="ugly")
    untouched = host.latents(TREE, negative_prompt="ugly")
    host.callbacks.on_cfg_denoiser(noisy)
    theirs = host.latents(prompt="red house", negative_prompt="ugly")
    nowhere = {"concepts": [{"prompt": "green tree", "mask": {"kind": "strokes", "strokes": []}}]}
    assert error(host.latents(nowhere, negative_prompt="ugly"), theirs) < 1e-6  # the contexts pass through float32
    assert error(theirs, plain) > 1e-2
    assert error(host.latents(TREE, negative_prompt="ugly"), untouched) > 1e-2


def test_contexts_of_other_lengths_are_respected(host):
    host.start(torch.float64)

    def cut(params):
        params.text_cond = params.text_cond[:, :3]

    host.callbacks.on_cfg_denoiser(cut)
    nowhere = {"concepts": [{"prompt": "green tree", "mask": {"kind": "strokes", "strokes": []}}]}
    assert error(host.latents(nowhere), host.latents()) < 1e-6


def test_nothing_grows_with_the_steps(host, monkeypatch):
    """Every step has other contexts; every step's are forgotten."""
    sizes = []
    own = host.denoising.Denoising.plan

    def plan(self, params, *more):
        own(self, params, *more)
        attention = self.attention
        bases = sum(map(len, attention._bases.values()))
        sizes.append((bases, len(attention._levels), len(attention._placed), len(self.rows._known)))
        known = self.prompts._encodings
        sizes[-1] += (len(known._known), len(known._sources), len(self.rows._silent))

    def noisy(params):
        for cond in (params.text_cond, params.text_uncond):
            cond += 0.01 * (1 + params.denoiser.step)

    monkeypatch.setattr(host.denoising.Denoising, "plan", plan)
    host.callbacks.on_cfg_denoiser(noisy)
    host.run(scene("green tree AND grass", "blue sea"), steps=80, width=16, height=16)
    layers, most = len(host.layers()), 64
    for bases, levels, placed, known, encodings, sources, silent in sizes[2:]:
        seen = 3 + KEPT  # each part of the prompt and the negative one; some of the steps before
        assert bases <= seen * layers and placed <= seen and levels <= 9
        assert known <= most and silent <= most
        assert encodings == sources <= 6


# --- Other models in the middle of a job


@pytest.mark.parametrize("enable_hr", [False, True])
def test_the_refiner_takes_over(host, enable_hr):
    """In the middle of the pass; with a hires pass, in both."""
    host.start(torch.float64)
    options = dict(refiner_checkpoint="refiner", steps=4, enable_hr=enable_hr, negative_prompt="dull")
    prompt = "[green:blue:0.25] tree AND a small cat:0.5"
    plain = host.latents(prompt=prompt, **options)
    first = host.unet
    seen = []
    refined = host.shared.checkpoints["refiner"].model.diffusion_model

    def look(params):
        seen.append([any("forward" in vars(layer) for layer in host.layers(unet)) for unet in (first, refined)])

    host.callbacks.on_cfg_denoised(look)
    ours = host.latents(covered(prompt, "dull"), prompt="red house", **options)
    assert error(ours, plain) < 1e-12
    assert seen[:4] == [[True, False]] * 2 + [[False, True]] * 2
    assert host.unet is first


def test_a_refiner_that_is_taken_stops_the_job(host):
    refined = host.shared.checkpoints["refiner"].model.diffusion_model
    layer = host.layers(refined)[0]
    layer.forward = lambda *args, **kwargs: None
    try:
        with pytest.raises(host.jobs.Refused):
            host.processing.process_images(host.job(TREE, refiner_checkpoint="refiner"))
        assert not any("forward" in vars(one) for one in host.layers(host.unet))
    finally:
        del layer.forward


def test_closing_without_having_entered_does_no_harm(host):
    p = host.job()
    rows = Rows(Maps(Scene.parse(TREE), (4, 6)), [Picture(0, 1)])
    made = host.a1111.Layers(host.denoising.Denoising(p, rows, None, None))
    before = dict(vars(p))
    made.close()
    made.close()
    assert vars(p) == before


@pytest.mark.parametrize("start", [{}, {"forge": "unet"}])
@pytest.mark.parametrize("hires", [True, False])
def test_the_hires_pass_may_be_left_plain(host, monkeypatch, start, hires):
    host.start(**start)
    passes = []

    def bind(p, *given, original=host.jobs._bind_sampler):
        passes.append(bool(p.is_hr_pass))
        return original(p, *given)

    monkeypatch.setattr(host.jobs, "_bind_sampler", bind)
    host.run({**TREE, "blend": {"hires": hires}}, enable_hr=True)
    assert set(passes) == ({False, True} if hires else {False})


@pytest.mark.parametrize("kind", ["", "unet"])
@pytest.mark.parametrize("side", ["others", "later"])
def test_what_another_extension_launches_the_sampler_with_stays(host, kind, side):
    """Before ours or after it, in both passes, of which Forge announces the second twice."""
    host.start(forge=kind)
    launched = []

    def hook(p, **named):
        launch = p.sampler.launch_sampling

        def counted(steps, sample):
            launched.append(p.is_hr_pass)
            return launch(steps, sample)

        p.sampler.launch_sampling = counted

    other = Other(process_before_every_sampling=hook)
    plain = host.latents(TREE, enable_hr=True)
    assert torch.equal(host.latents(TREE, enable_hr=True, **{side: [other]}), plain)
    assert set(launched) == {False, True}
