"""The views on a WebUI's model: what its jobs make, heard and not changed."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib_masknoise.explore.model import Stop, average, blend
from lib_masknoise.explore.requests import BetweenRequest, GridRequest, JourneyRequest, MapRequest, PlaceRequest
from lib_masknoise.explore.workshop import Workshop
from lib_masknoise.scene import Scene, SceneError

KINDS = ["", "unet"]  # A1111, Forge
SIZE = {"width": 64, "height": 64}
QUICK = {"prompt": "red house", "steps": 3, "seed": 5, "guidance_scale": 5, **SIZE}
OCEAN = {"concepts": [{"prompt": "blue sea", "weight": 0.6, "mask": {"kind": "rect"}}]}


def runner(*ones):
    """The host's runner of always-on scripts that read their arguments off the job."""
    from modules.scripts import ScriptRunner

    made, count = ScriptRunner([(one, None) for one in ones]), 1
    made.alwayson_scripts = list(ones)
    for one in ones:
        one.args_from, one.args_to = count, count + len(one.api_info.args)
        count = one.args_to
    return made


class Another:
    """An extension whose argument is 7 unless somebody says otherwise."""

    api_info = SimpleNamespace(args=[SimpleNamespace(value=7), SimpleNamespace()])

    def __init__(self):
        self.seen = []

    def title(self):
        return "Another"

    def before_process(self, p, *values):
        self.seen.append(values)


@pytest.fixture(params=KINDS)
def webui(host, request, tmp_path, monkeypatch):
    """The host as a workshop has it."""
    from modules import scripts

    from lib_masknoise.ui import inputs

    host.start(forge=request.param)
    ours = host.script
    arguments = SimpleNamespace(args=[SimpleNamespace(value=value) for value in inputs.defaults()])
    monkeypatch.setattr(ours, "api_info", arguments, raising=False)
    host.another = Another()
    monkeypatch.setattr(scripts, "scripts_txt2img", runner(host.another, ours), raising=False)
    made = host.exploring.WebUI()
    made.host = host
    made.workshop = Workshop(made, tmp_path)
    yield made
    assert not host.errors.logged
    host.assert_clean()


def settings(webui, **changes):
    return replace(webui.settings(JourneyRequest.parse({**QUICK, "batch_size": 2})), **changes)


def pixels(image):
    return np.asarray(image).astype(int)


def job_of(host, scene=None, **changes):
    options = {"prompt": "red house", "steps": 3, "seed": 5, "cfg_scale": 5, **SIZE, **changes}
    return host.run(scene, **options)


def silent(more):
    pass


@pytest.mark.parametrize("scene", [None, OCEAN], ids=["prompt", "scene"])
@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_the_last_of_a_journey_is_the_plain_picture_and_its_path_that_of_the_pass(webui, scene, sampler):
    plain = job_of(webui.host, scene, sampler_name=sampler)
    wanted = Scene.parse(scene) if scene else Scene(enabled=False)
    recording = webui.model.recorded(wanted, settings(webui, sampler=sampler), silent)
    assert not recording.interrupted
    assert np.array_equal(pixels(recording.image), pixels(plain.images[0]))
    moments = recording.moments
    assert torch.equal(moments[-1].x0, plain.latents[0][0].float()) and moments[-1].sigma == 0
    assert [moment.sigma for moment in moments] == sorted((m.sigma for m in moments), reverse=True)
    # Euler's last step goes to what the model takes the picture for.
    assert torch.allclose(moments[-2].x0, moments[-1].x0, atol=1e-5)
    assert len(moments) == {"Euler": 3, "Heun": 5}[sampler] + 1
    assert torch.allclose(moments[0].x_t, _first_noise(webui) * 4 / 17**0.5, atol=1e-5)


def _first_noise(webui):
    from modules.processing import seeded_noise

    return seeded_noise((4, 8, 8), [5], torch.float32)[0]


def test_a_batch_of_prompts_and_seeds_is_the_hosts_own(webui):
    images = webui.model.plain(["red house", "green tree"], [5, 9], settings(webui), silent)
    alone = [job_of(webui.host, prompt=prompt, seed=seed) for prompt, seed in (("red house", 5), ("green tree", 9))]
    for image, one in zip(images, alone, strict=True):
        assert abs(pixels(image) - pixels(one.images[0])).max() <= 1
    assert webui.host.another.seen == [(7, None)]


def test_blended_contexts_are_what_the_same_scene_makes(webui):
    model = webui.model
    known = model.encode(["red house", "blue sea"])
    half = blend([known["red house"], known["blue sea"]], [0.4, 0.6])
    blended, sea = model.blended([half, known["blue sea"]], [5, 5], settings(webui), silent)
    assert abs(pixels(blended) - pixels(job_of(webui.host, OCEAN).images[0])).max() <= 1
    assert abs(pixels(sea) - pixels(job_of(webui.host, prompt="blue sea").images[0])).max() <= 1


def test_vectors_of_xl_keep_their_sizes(host):
    host.start(xl=True)
    from modules import prompt_parser, shared

    cond = prompt_parser.DictWithShape({"crossattn": torch.zeros(5, 8), "vector": torch.arange(18.0)})
    encoded = host.exploring.Encodings().one({"crossattn": torch.ones(5, 8), "vector": torch.full((18,), -1.0)})
    made = host.exploring._replaced(cond, encoded)
    assert host.exploring.size_embedding_width(shared.sd_model) == 12
    assert made["vector"].tolist() == [-1.0] * 6 + list(range(6, 18)) and torch.equal(
        made["crossattn"], torch.ones(5, 8)
    )


def test_frames_between_frames_are_rendered_in_batches(webui):
    keys = [{"frame": 0, "weight": 0}, {"frame": 4, "weight": 1}]
    scene = Scene.parse(
        {
            "concepts": [{"prompt": "blue sea", "mask": {"kind": "rect"}, "keyframes": keys}],
            "motion": {"loop": False},
            "animation": {"frames": 5},
        }
    )
    times = [0.5, 2.4, 3.25]
    webui.host.shared.opts.outdir_txt2img_samples = str(webui.host.folder)
    images = list(webui.model.rendered(scene, settings(webui), times, silent))
    assert len(images) == 3
    assert not list(webui.host.folder.iterdir()), "something was saved"
    for image, time in zip(images, times, strict=True):
        still = {"concepts": [{"prompt": "blue sea", "weight": time / 4, "mask": {"kind": "rect"}}]}
        assert abs(pixels(image) - pixels(job_of(webui.host, still).images[0])).max() <= 1


def test_encoding_is_the_hosts_and_networks_stay_out(webui):
    from modules import shared

    found = webui.model.encode(["red house", "<lora:x:1>red house"])
    wanted = shared.sd_model.context("red house").float()
    assert torch.equal(found["red house"].context, wanted)
    assert torch.equal(found["<lora:x:1>red house"].context, wanted)
    assert average(found["red house"]).shape == (8,)
    assert webui.model.tokens("red house") == 2


def test_reports_add_up_to_the_pictures(webui):
    for batch, count in ((1, 1), (2, 3)):
        heard = []
        scene = Scene.parse({**OCEAN, "animation": {"frames": count}, "motion": {"kind": "sine"}})
        list(webui.model.rendered(scene, settings(webui, batch_size=batch), range(count), heard.append))
        assert sum(heard) == pytest.approx(count) and min(heard) >= 0 and len(heard) > count


def stopping(at):
    heard = []

    def report(more):
        heard.append(more)
        if len(heard) == at:
            raise Stop

    return report


def test_a_stopped_journey_keeps_its_steps_and_a_stopped_render_its_whole_pictures(webui):
    from modules import shared

    recording = webui.model.recorded(Scene(enabled=False), settings(webui), stopping(3))
    assert recording.interrupted and recording.image is None and 1 <= len(recording.moments) <= 3
    shared.state.begin("another")
    scene = Scene.parse({**OCEAN, "animation": {"frames": 4}, "motion": {"kind": "sine"}})
    images = webui.model.rendered(scene, settings(webui), range(4), stopping(5))
    kept = []
    with pytest.raises(Stop):
        kept.extend(iter(lambda: next(images), None))
    assert len(kept) == 2  # the first batch
    shared.state.begin("another")
    with pytest.raises(Stop):
        webui.model.plain(["red house"], [1], settings(webui), stopping(2))
    shared.state.begin("another")


def test_the_hosts_interrupt_ends_a_view_and_its_progress_is_shown(webui):
    from modules import shared

    told = []

    def tell(words, done, total):
        told.append((shared.state.textinfo, shared.state.job, shared.state.job_no, shared.state.job_count))
        if len(told) == 6:
            shared.state.interrupt()

    asked = GridRequest.parse({**QUICK, "seeds": list(range(8)), "batch_size": 2})
    made = webui.workshop.make(asked, tell)
    assert made.view["interrupted"] and 0 < sum(cell["file"] is not None for cell in made.view["cells"]) < 8
    assert told[3][0].startswith("MaskNoise: Sampling: ") and told[3][1:] == ("masknoise-explore", 2, 8)
    assert webui.workshop.known(asked) is None
    assert shared.state.job == ""
    assert not webui.workshop.make(asked).view["interrupted"]


def test_stop_from_the_page(webui):
    asked = GridRequest.parse({**QUICK, "seeds": list(range(40)), "batch_size": 1, "session": "page"})
    made = webui.workshop.make(asked, lambda words, done, total: done > 2 and webui.workshop.stop("page"))
    assert made.view["interrupted"] and made.view["cells"][0]["file"]


def test_every_view_is_made_once_and_for_the_settings_that_the_host_has(webui):
    from modules import shared

    asked = [
        JourneyRequest.parse(QUICK),
        BetweenRequest.parse(
            {
                **QUICK,
                "from": "red house",
                "to": "blue sea",
                "stops": 3,
                "bridges": 1,
                "prompts": ["green tree", "sand"],
            }
        ),
        MapRequest.parse({**QUICK, "prompts": ["green tree", "sand", "blue sea", "red house"], "columns": 2}),
        GridRequest.parse({**QUICK, "seeds": [1], "words": True}),
        PlaceRequest.parse({**QUICK, "prompts": ["sand", "blue sea"], "weights": [0.5, 0.5]}),
    ]
    for one in asked:
        assert webui.workshop.known(one) is None
        made = webui.workshop.make(one)
        assert webui.workshop.known(one) is made and webui.workshop.holds(made)
        assert (made.folder / "explore.json").is_file()
        assert made.view["settings"]["sampler"] == "Euler"
    shared.opts.samples_format = "webp"
    assert not webui.workshop.holds(made) and webui.workshop.known(one) is None


def test_two_ask_at_once_and_one_waits(webui):
    asked = [GridRequest.parse({**QUICK, "seeds": [n]}) for n in (1, 2)]
    found = []
    threads = [threading.Thread(target=lambda one=one: found.append(webui.workshop.make(one))) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and not any(made.view["interrupted"] for made in found)


def test_what_the_host_does_not_have_is_refused_by_its_name(webui):
    with pytest.raises(SceneError) as raised:
        webui.settings(JourneyRequest.parse({**QUICK, "sampler": "nonesuch"}))
    assert [problem.path for problem in raised.value.problems] == ["sampler"]
    too_wide = {"noise": {"feature": {"strength": 1, "dimensions": "0-900"}}}
    with pytest.raises(SceneError) as raised:
        webui.workshop.make(JourneyRequest.parse({**QUICK, "scene": too_wide}))
    assert [problem.path for problem in raised.value.problems] == ["noise.feature.dimensions"]


def test_time_steps_and_flows_are_brought_to_one_scale(host):
    moment = host.exploring._moment
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    alphas = torch.linspace(0.99, 0.01, 10)

    def get_pred_x0(x, noise, t):
        a = alphas[t.long()][:, None, None, None]
        return (x - (1 - a).sqrt() * noise) / a.sqrt()

    denoiser = SimpleNamespace(alphas=alphas, get_pred_x0=get_pred_x0)
    made = moment(denoiser, x, torch.tensor([4.0]), 0.5 * x)
    a = float(alphas[4])
    assert made.sigma == pytest.approx(((1 - a) / a) ** 0.5) and torch.equal(made.x_t, x[0])
    assert torch.allclose(made.x0, (1 - 0.5 * (1 - a) ** 0.5) * x[0] / a**0.5)
    of_reforge = SimpleNamespace(alphas=alphas, get_pred_x0=get_pred_x0, classic_ddim_eps_estimation=True)
    for denoiser in (SimpleNamespace(), of_reforge):
        made = moment(denoiser, x, torch.tensor([3.0]), 0.5 * x)
        assert made.sigma == 3 and torch.allclose(made.x_t, x[0] / 10**0.5) and torch.equal(made.x0, 0.5 * x[0])
