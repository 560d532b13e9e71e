"""The order of the initial noise in the hosts: what the denoiser is asked, and with what the sampler begins."""

import pytest
import torch

from tests.standin import oracle
from tests.standin.host import Other
from tests.standin.test_blending import LONG, ROUNDED, error, scene
from tests.standin.test_webui import moving

FORMS = {
    "erase": {"erase": 5},
    "erase, held": {"erase": 5, "where": "pinned"},
    "text": {"inject": {"strength": 4.0}},
    "text, free, several times": {
        "inject": {"strength": 4.0, "times": [1000, 600], "weights": [0.2, 1]},
        "where": "free",
    },
    "prediction": {"inject": {"form": "prediction", "strength": 0.8, "times": "1000,700"}},
    "published": {"inject": {"form": "prediction", "strength": 0.4, "restandardise": False}},
    "choose": {"choose": 4},
    "all": {"choose": 3, "erase": 2, "inject": {"strength": 2.0}},
}
HOSTS = {"A1111": {}, "Forge": {"forge": "unet"}}
NEARLY = 1e-5
"""Float32: the order of the noise is computed in it."""


def painted(initial, *concepts, **parts):
    return scene(*(concepts or ("green tree", "blue sea")), noise={"initial": initial, **parts})


@pytest.fixture(params=HOSTS)
def kind(request):
    return HOSTS[request.param]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_what_the_models_own_predictions_say(host, kind, form):
    host.start(torch.float64, **kind)
    asked = painted(FORMS[form])
    ours = host.latents(asked, negative_prompt="ugly", batch_size=2)
    pictures = [(0, 1), (0, 2)]
    expected = oracle.latents(host.model, asked, ["red house"] * 2, negative="ugly", pictures=pictures)
    assert error(ours, expected) < NEARLY
    assert error(host.latents(painted({}), negative_prompt="ugly", batch_size=2), expected) > 0.01


@pytest.mark.parametrize("prompts", [("a AND b:0.5", "c AND d:0.7"), (LONG, "[cat:dog:1]")])
def test_parts_and_lengths_and_edited_prompts(host, kind, prompts):
    host.start(torch.float64, **kind)
    asked = painted(FORMS["text"], prompts[1])
    ours = host.latents(asked, prompt=prompts[0], negative_prompt="ugly")
    expected = oracle.latents(host.model, asked, [prompts[0]], negative="ugly")
    assert error(ours, expected) < NEARLY


def test_with_the_prompt_alone(host, kind):
    host.start(torch.float64, **kind)
    asked = {"noise": {"initial": FORMS["text"]}}
    assert error(host.latents(asked), oracle.latents(host.model, asked, ["red house"])) < NEARLY


def test_it_leans_to_concepts_that_set_in_later(host, kind):
    host.start(torch.float64, **kind)
    asked = {**painted(FORMS["text"]), "blend": {"start": 0.5}}
    assert error(host.latents(asked), oracle.latents(host.model, asked, ["red house"])) < NEARLY


@pytest.mark.parametrize("form", ["text", "prediction", "choose"])
def test_an_image_is_the_same_in_every_batch(host, kind, form):
    host.start(torch.float64, **kind)
    together = host.latents(painted(FORMS[form]), batch_size=3)
    apart = host.latents(painted(FORMS[form]), n_iter=3)
    assert error(together, apart) < ROUNDED


@pytest.mark.parametrize("form", ["text", "choose"])
def test_frames_have_their_noise_in_common(host, kind, form):
    host.start(torch.float64, **kind)
    noise = {"initial": FORMS[form], "visual": {"strength": 1.0}}
    asked = moving(3, ("gif",), "green tree", noise=noise)
    frames = host.latents(asked, batch_size=2)
    expected = oracle.latents(host.model, asked, ["red house"] * 3, pictures=[(f, 1) for f in range(3)])
    assert error(frames, expected) < NEARLY
    assert error(host.latents(asked, batch_size=1), frames) < ROUNDED


def test_a_job_asks_once_for_all_its_frames(host, kind, monkeypatch):
    host.start(torch.float64, **kind)
    count = []
    listener = Other(process=lambda p: None)
    host.callbacks.on_cfg_denoiser(lambda params: count.append(len(params.x)))
    host.latents(moving(4, ("gif",), "green tree", noise={"initial": FORMS["text"]}), batch_size=2, others=[listener])
    assert len(count) == 1 + 2 * 2


@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_without_guidance(host, kind, cfg):
    """Forge does without the negative prompt at CFG 1; the text's part needs it all the same."""
    host.start(torch.float64, **kind)
    asked = painted(FORMS["text"])
    ours = host.latents(asked, cfg_scale=cfg, negative_prompt="ugly")
    expected = oracle.latents(host.model, asked, ["red house"], negative="ugly", cfg=cfg)
    assert error(ours, expected) < NEARLY


def test_where_early_steps_do_without_the_negative_prompt(host, kind):
    host.start(torch.float64, skip_early_cond=0.6, **kind)
    asked = painted(FORMS["text"])
    skips = {"skips": lambda step, sigma: step / 2 <= 0.6}
    assert error(host.latents(asked), oracle.latents(host.model, asked, ["red house"], **skips)) < NEARLY
    assert host.shared.opts.skip_early_cond == 0.6


def test_the_hires_pass_keeps_its_noise(host, kind, monkeypatch):
    host.start(torch.float64, **kind)
    began = []
    own = host.processing.sd_samplers.euler

    def euler(model, x, sigmas, **extra):
        began.append(x.clone())
        return own(model, x, sigmas, **extra)

    monkeypatch.setitem(host.processing.sd_samplers.SAMPLERS, "Euler", host.processing.sd_samplers.SamplerConfig(euler))
    hires = {"enable_hr": True, "hr_second_pass_steps": 2}
    pictures = []
    for initial in ({}, {"erase": 5}):
        began.clear()
        pictures.append(host.latents(painted(initial), **hires))
        first, second = began[0], began[-1]
        assert first.shape != second.shape
        pictures[-1] = first, second
    (plain, _), (erased, _) = pictures
    assert error(erased, plain) > 0.1


@pytest.mark.parametrize("multiplier", [1.0, 0.5, 0.0])
def test_img2img_begins_with_the_picture_and_other_noise(host, kind, multiplier):
    host.start(torch.float64, **kind)
    options = {"img2img": True, "steps": 4, "denoising_strength": 0.75, "initial_noise_multiplier": multiplier}
    plain, asked = host.latents(painted({}), **options), host.latents(painted(FORMS["text"]), **options)
    assert (error(asked, plain) > 0.001) == (multiplier > 0)
    erased = host.latents(painted({"erase": 5}), batch_size=2, **options)
    assert error(erased, host.latents(painted({"erase": 5}), n_iter=2, **options)) < ROUNDED


def test_interrupted_while_it_asks_the_host_ends_as_it_would(host, kind):
    host.start(torch.float64, **kind)
    job = host.job(painted(FORMS["text"]))

    def stop(params):
        host.shared.state.interrupted = True

    host.callbacks.on_cfg_denoiser(stop)
    processed = host.process(job)
    assert len(processed.images) == 1 and job.masknoise.complete == []


def test_noise_that_somebody_else_exchanges_later_is_refused(host, kind):
    host.start(torch.float64, **kind)
    p = host.job(painted(FORMS["erase"]))
    own = host.processing.sd_samplers.Sampler.sample

    def sample(self, p, x, *args):
        return own(self, p, torch.flip(x, (3,)), *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(host.jobs.Refused, match="exchanged the noise"):
        patch.setattr(host.processing.sd_samplers.Sampler, "sample", sample)
        host.process(p)


def test_off_asks_nothing(host, kind):
    host.start(torch.float64, **kind)
    count = []
    host.callbacks.on_cfg_denoiser(lambda params: count.append(len(params.x)))
    off = {"choose": 1, "erase": 1, "inject": {"strength": 0.0, "form": "prediction"}, "where": "pinned"}
    alike = host.latents(painted(off)), host.latents(painted({}))
    assert torch.equal(*alike)
    assert len(count) == 2 * 2
