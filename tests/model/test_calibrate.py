"""The useful range on the built-in model."""

import json

import numpy as np
import pytest
import torch

from lib_masknoise.__main__ import main
from lib_masknoise.calibrate import measuring
from lib_masknoise.calibrate.effects import EFFECTS, Case
from lib_masknoise.calibrate.profile import Profile
from lib_masknoise.explore.model import Stop
from lib_masknoise.hosts.diffusers import load_pipeline
from lib_masknoise.hosts.diffusers.calibrating import PipelineProbe, model_hash
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

SETTINGS = Settings(size=(64, 64), guidance_scale=4.0)
CASE = Case("a wheat field", "an ocean")


@pytest.fixture(scope="module")
def probe():
    return PipelineProbe(load_pipeline(), None)


@pytest.fixture
def bench(probe):
    return measuring.Bench(probe, SETTINGS, Scene(), lambda more: None)


def state(pipe):
    return dict(vars(pipe.scheduler)).keys(), {k: type(v) for k, v in pipe.unet.attn_processors.items()}


@pytest.mark.parametrize("sampler", [None, "Euler", "DPM++ 2M Karras"])
def test_without_a_strength_it_is_heading_where_the_plain_pass_was(sampler):
    probe = PipelineProbe(load_pipeline(sampler=sampler), None)
    before = state(probe.pipe)
    plain = measuring.Bench(probe, SETTINGS, Scene(), lambda more: None).plain("an ocean")
    scene = EFFECTS[2].scene(CASE, [1e-6], Scene())
    settings = Settings(prompt="an ocean", steps=measuring.SHORT, size=(64, 64), guidance_scale=4.0)
    x0 = probe.heading(scene, settings, [0], plain.x_t[:1], plain.step, plain.sigma)
    assert torch.allclose(x0[0], plain.x0[0], atol=2e-3)
    assert state(probe.pipe) == before


def test_the_range_of_feature_noise(bench):
    effect = EFFECTS[4]
    look = bench.look(effect, CASE)
    band = measuring.band(look, bench.runner(effect, CASE, None))
    assert look.changes == sorted(look.changes) and band.rows <= 40
    assert 0.05 < band.visible < band.broken < 4
    seen = bench.runner(effect, CASE, None)(band.visible)
    assert seen.change == pytest.approx(measuring.VISIBLE, rel=0.2)


def test_visual_noise_breaks_nothing(bench):
    effect = EFFECTS[2]
    band = measuring.band(bench.look(effect, CASE), bench.runner(effect, CASE, None))
    assert band.broken is None and 0.1 < band.visible < 0.5


def test_the_short_runs_are_those_of_render(bench):
    """A short run's picture is what the scene renders to."""
    from lib_masknoise.hosts.diffusers import render

    effect = EFFECTS[1]
    image = bench.run(effect, CASE, 1.5)[0]
    scene = Scene.parse({"concepts": [{"prompt": CASE.prompt, "weight": 1.5}]})
    options = {"seed": 0, "steps": measuring.SHORT, "size": (64, 64), "guidance_scale": 4.0}
    (frame,) = render(bench.probe.pipe, scene, CASE.base, **options)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(frame.image).astype(int)).max() <= 1


def test_a_stop_leaves_the_pipeline_as_it_was(probe):
    before = state(probe.pipe)

    def report(more):
        raise Stop

    with pytest.raises(Stop):
        measuring.Bench(probe, SETTINGS, Scene(), report).plain("an ocean")
    assert state(probe.pipe) == before


def test_the_command_keeps_its_profile_and_check_reads_it(tmp_path, monkeypatch, capsys):
    from lib_masknoise import calibrate_command

    monkeypatch.setattr(calibrate_command, "PROFILES", tmp_path / "profiles")
    monkeypatch.setattr(measuring, "SEEDS", 2)
    monkeypatch.setattr(measuring, "SCALES", 4)
    out = tmp_path / "profile.json"
    command = ["calibrate", "--prompt", "lava", "--size", "64x64", "--out", str(out)]
    assert main(command) == 0
    profile = Profile.read(out)
    assert profile.model == model_hash(None) and profile.prompts == ("lava",)
    assert (tmp_path / "profiles" / f"{profile.model[:16]}.json").read_text() == out.read_text()
    out.unlink()
    monkeypatch.setattr(measuring, "calibrate", None)  # the second time nothing is measured
    assert main(command) == 0 and Profile.read(out) == profile
    scene = tmp_path / "scene.json"
    scene.write_text(json.dumps({"noise": {"visual": {"strength": 0.01}}}))
    capsys.readouterr()
    assert main(["check", str(scene), "--profile", str(out)]) == 0
    assert "remark: noise.visual.strength: 0.01: barely visible" in capsys.readouterr().out
