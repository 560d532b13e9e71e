"""The useful range on a WebUI's model: one call of the denoiser of a job of the host's own, which then ends."""

import hashlib
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lib_masknoise.calibrate import measuring
from lib_masknoise.calibrate.calibrator import Calibrator
from lib_masknoise.calibrate.effects import EFFECTS, Case
from lib_masknoise.calibrate.profile import Profiles
from lib_masknoise.calibrate.requests import CalibrateRequest
from lib_masknoise.explore.model import Stop
from lib_masknoise.explore.workshop import Workshop
from lib_masknoise.scene import Scene
from tests.standin.test_exploring import runner

KINDS = ["", "unet"]  # A1111, Forge
ASKED = {
    "scene": {"noise": {"feature": {"dimensions": "0-7"}}},
    "prompts": ["red house"],
    "width": 64,
    "height": 64,
    "seed": 5,
    "guidance_scale": 5,
}
CASE = Case("red house", "blue sea")
LIKE = Scene.parse({"noise": {"feature": {"dimensions": "0-7"}}})  # the stand-in's text has eight


@pytest.fixture(params=KINDS)
def webui(host, request, tmp_path, monkeypatch):
    """The host as a workshop has it, its model one that can be measured."""
    from modules import scripts

    from lib_masknoise.ui import inputs

    host.start(forge=request.param)
    arguments = SimpleNamespace(args=[SimpleNamespace(value=value) for value in inputs.defaults()])
    monkeypatch.setattr(host.script, "api_info", arguments, raising=False)
    monkeypatch.setattr(scripts, "scripts_txt2img", runner(host.script), raising=False)
    made = host.exploring.WebUI(host.calibrating.WebUIProbe())
    made.host = host
    made.workshop = Workshop(made, tmp_path / "work")
    yield made
    assert not host.errors.logged
    host.assert_clean()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer seeds, strengths and steps: what is tested here does not depend on their numbers."""
    for name, value in {"SEEDS": 2, "SCALES": 3, "SHORT": 3}.items():
        monkeypatch.setattr(measuring, name, value)


def settings(webui, **changes):
    asked = CalibrateRequest.parse(ASKED)
    return replace(webui.settings(asked), **{"prompt": "red house", "steps": measuring.SHORT, **changes})


def silent(more):
    pass


def test_without_a_strength_it_is_heading_where_the_plain_pass_was(webui):
    moments = webui.model.recorded(Scene(enabled=False), settings(webui), silent).moments
    for step in (0, 1):
        for effect in EFFECTS[2:]:
            scene = effect.scene(CASE, [1e-7, 1e-7], LIKE)
            x_t = moments[step].x_t.expand(2, -1, -1, -1)
            x0 = webui.model.heading(scene, settings(webui), [0, 1], x_t, step, moments[step].sigma)
            assert torch.allclose(x0, moments[step].x0.expand(2, -1, -1, -1), atol=1e-4)


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.path)
def test_rows_are_what_each_strength_alone_gives(webui, effect):
    bench = measuring.Bench(webui.model, settings(webui), LIKE, silent)
    look = bench.look(effect, CASE)
    assert look.x0.shape[:2] == (3, 2) and look.changes == sorted(look.changes)
    alone = effect.scene(CASE, [look.scales[-1]], LIKE)
    plain = look.plain
    own = settings(webui, prompt=effect.base(CASE), seed=6, steps=measuring.SHORT)
    x_t = measuring._moved(plain.x_t[1], plain.noise[1], plain.sigma, alone, [0], 6)
    x0 = webui.model.heading(alone, own, [0], x_t, plain.step, plain.sigma)
    assert torch.allclose(x0[0], look.x0[-1, 1], atol=1e-3)


def test_a_calibration_leaves_the_host_as_it_was_and_is_kept(webui, tmp_path):
    webui.host.shared.prompt_history.append("the user's")
    before = dict(vars(webui.host.shared.opts))
    calibrator = Calibrator(webui.workshop, Profiles(tmp_path / "profiles"), lambda: ("ab" * 32, "textures"))
    profile = calibrator.make(CalibrateRequest.parse(ASKED))
    assert set(profile.effects) == {effect.path for effect in EFFECTS}
    assert all(band.rows == 6 for band in profile.effects.values())
    assert webui.host.shared.prompt_history[-1] == "the user's"
    assert dict(vars(webui.host.shared.opts)) == before
    assert not webui.host.shared.state.job


def test_the_hosts_interrupt_ends_it(webui, tmp_path):
    calls = []
    own = webui.model.heading

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            webui.host.shared.state.interrupt()
        return own(*args)

    webui.model.heading = interrupted
    with pytest.raises(Stop):
        webui.workshop.make(CalibrateRequest.parse(ASKED))
    assert len(calls) == 3


def test_stop_ends_it(webui):
    asked = CalibrateRequest.parse({**ASKED, "session": "page"})
    failed = []

    def work():
        try:
            webui.workshop.make(asked, lambda *told: webui.workshop.stop("page"))
        except Stop as stop:
            failed.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert failed


def test_a_checkpoint_is_known_by_its_file(host, tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    info = SimpleNamespace(filename=str(file), sha256=None, name_for_extra="model")
    monkeypatch.setattr(host.shared, "sd_model", SimpleNamespace(sd_checkpoint_info=info))
    known, name = host.calibrating.checkpoint()
    assert (known, name) == (hashlib.sha256(b"weights").hexdigest(), "model")
    info.sha256 = "cd" * 32
    assert host.calibrating.checkpoint()[0] == "cd" * 32
    monkeypatch.setattr(host.shared, "sd_model", None)
    assert host.calibrating.checkpoint() == ("", "")
