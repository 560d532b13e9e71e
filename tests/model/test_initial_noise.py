"""The order of the initial noise on pipelines of diffusers: what the models are asked, and that frames share it."""

import json

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", minversion="0.32")

from lib_masknoise.__main__ import main  # noqa: E402
from lib_masknoise.hosts.diffusers import load_pipeline, render  # noqa: E402
from lib_masknoise.hosts.diffusers.asking import Asking  # noqa: E402
from lib_masknoise.hosts.diffusers.rendering import Job  # noqa: E402
from lib_masknoise.noise.initial import EPSILON, FLOW, VELOCITY, local  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402
from tests.model import random_pipelines  # noqa: E402

SIZE = (64, 64)
HALVES = [
    {"prompt": "a wheat field", "mask": {"kind": "split", "to": 0.5, "feather": 0.3}},
    {"prompt": "an ocean", "mask": {"kind": "split", "from": 0.5, "feather": 0.3}},
]
TEXT = {"inject": {"strength": 4.0}}
FORMS = {
    "choose": {"choose": 3},
    "erase": {"erase": 8},
    "text": TEXT,
    "text, held": {**TEXT, "where": "pinned"},
    "prediction": {"inject": {"form": "prediction", "strength": 0.8, "times": [1000, 700]}},
    "all": {"choose": 2, "erase": 2, **TEXT},
}


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(device="cpu")


@pytest.fixture(scope="module", params=["unet", "flux", "sd3", "wan", "prx", "qwen", "zimage", "lumina2"])
def any_pipe(request, pipe):
    return pipe if request.param == "unet" else getattr(random_pipelines, request.param)()


def painted(initial, **parts):
    return Scene.parse({"concepts": HALVES, "noise": {"initial": initial, **parts.pop("noise", {})}, **parts})


def pictures(pipe, scene, **options):
    options = {"seed": 3, "steps": 2, "size": SIZE, **options}
    return np.stack([np.asarray(frame.image, dtype=int) for frame in render(pipe, scene, "a marsh", **options)])


def job(pipe, scene, guidance=4.0, size=SIZE):
    return Job(pipe, scene, ("a marsh", "snow"), 3, 2, size, guidance)


def asked(pipe, scene, guidance=4.0):
    made = job(pipe, scene, guidance)
    return Asking(made), made.noise(torch.Generator().manual_seed(3))[0]


# --- What the models say


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_side_is_what_the_model_predicts_with_that_text_alone(any_pipe, guidance):
    """The blend of one full concept is its prompt, and without the prompt it is the negative prompt."""
    if type(any_pipe).__name__ == "Lumina2Pipeline":
        pytest.skip("its pipeline writes an instruction before a prompt and none before a negative one")
    own = {"concepts": [{"prompt": "snow"}]}
    ask, z = asked(any_pipe, Scene.parse(own), guidance)
    for time in (1000, 600):
        (guess,) = ask(z[None], time, guided=True)
        assert guess.plain.shape == guess.prompted.shape == guess.given.shape == z.shape
        spread = float(guess.plain.std())
        assert float((guess.prompted - guess.plain).abs().max()) < 1e-3 * max(spread, 1)
        other, _ = asked(any_pipe, Scene.parse({"concepts": [{"prompt": "an ocean"}]}), guidance)
        (changed,) = other(z[None], time, guided=True)
        assert float((changed.prompted - guess.prompted).abs().max()) > 1e-3 * spread


def test_noises_are_answered_each_alone(any_pipe):
    ask, z = asked(any_pipe, painted({}))
    several = torch.stack([z, -z, z.flip(1)])
    together = ask(several, 900)
    for one, found in zip(several, together, strict=True):
        (alone,) = ask(one[None], 900)
        assert torch.allclose(found.prompted, alone.prompted, atol=1e-3)


def test_a_concept_alone_has_no_mask(any_pipe):
    ask, z = asked(any_pipe, painted({}))
    full, _ = asked(any_pipe, Scene.parse({"concepts": [{"prompt": "an ocean"}]}))
    (own,), (expected,), (blended,) = ask(z[None], 900, 1), full(z[None], 900), ask(z[None], 900)
    assert torch.allclose(own.prompted, expected.prompted, atol=1e-4)
    assert not torch.allclose(own.prompted, blended.prompted, atol=1e-2)


def test_what_kind_of_model_it_is(pipe):
    ask, z = asked(pipe, painted({}))
    assert ask(z[None], 1000)[0].kind == EPSILON
    flux, z = asked(random_pipelines.flux(), painted({}))
    guess = flux(z[None], 250)[0]
    assert (guess.kind, guess.signal, guess.noise) == (FLOW, 0.75, 0.25)


def test_noise_and_velocity_are_the_same_prediction(pipe):
    """A model whose output is read as velocity: the guess is of the picture, whatever it is read from."""
    own = pipe.scheduler
    ask, z = asked(pipe, painted({}))
    (guess,) = ask(z[None], 800)
    epsilon = guess.prediction
    try:
        pipe.scheduler = type(own).from_config(own.config, prediction_type="v_prediction")
        read, _ = asked(pipe, painted({}))
        (other,) = read(z[None], 800)
    finally:
        pipe.scheduler = own
    assert other.kind == VELOCITY
    assert torch.allclose(other.prompted, other.signal * z - other.noise * epsilon, atol=1e-4)


# --- Pictures


@pytest.mark.parametrize("form", FORMS)
def test_every_form_makes_another_noise_of_the_same_kind(any_pipe, form):
    made = job(any_pipe, painted(FORMS[form]))
    z = made.noise(torch.Generator().manual_seed(3))[0]
    (found,) = made.initial(z, [0])
    assert found.shape == z.shape and found.isfinite().all()
    if form != "choose":
        assert not torch.equal(found, z)
    if "inject" in FORMS[form] and "erase" not in FORMS[form]:
        ratio = local(found.float() ** 2) / local(z.float() ** 2)
        assert 0.98 < float(ratio.min()) and float(ratio.max()) < 1.02


def test_frames_have_it_in_common_and_held_places_hold(pipe):
    moving = {"motion": {"kind": "circle"}, "animation": {"frames": 4}}
    made = job(pipe, painted(TEXT, noise={"visual": {"strength": 1.0}}, **moving))
    z = made.noise(torch.Generator().manual_seed(3))[0]
    frames = made.initial(z, [0, 1, 2, 3])
    held = made.maps.pins()[0] == 1
    assert held.any() and not held.all()
    assert all(torch.equal(frame[:, held], frames[0][:, held]) for frame in frames)
    assert not torch.equal(frames[0], frames[2])
    assert not torch.equal(frames[0][:, held], z[:, held])
    assert torch.equal(job(pipe, made.scene).initial(z, [2])[0], frames[2])


def test_a_frame_is_the_same_at_any_batch_size_and_order(pipe):
    scene = painted(
        FORMS["all"], noise={"visual": {"strength": 1.0}}, motion={"kind": "circle"}, animation={"frames": 3}
    )
    together = pictures(pipe, scene, batch_size=3)
    assert abs(pictures(pipe, scene, batch_size=1) - together).max() <= 1
    assert abs(pictures(pipe, scene, frames=[2]) - together[2:]).max() <= 1


def test_off_is_the_picture_without_it_and_calls_nothing(pipe):
    off = {"choose": 1, "erase": 1, "inject": {"strength": 0.0, "form": "prediction"}, "where": "free"}
    calls = []
    hook = pipe.unet.register_forward_hook(lambda *args: calls.append(1))
    try:
        assert np.array_equal(pictures(pipe, painted(off)), pictures(pipe, painted({})))
        assert len(calls) == 2 * 2
        pictures(pipe, painted(TEXT))
        assert len(calls) == 2 * 2 + 2 + 1  # both sides in one call
    finally:
        hook.remove()


def test_the_pipeline_is_left_as_it_was(any_pipe):
    model = getattr(any_pipe, "unet", None) or any_pipe.transformer

    def state():
        processors = {name: part.processor for name, part in model.named_modules() if hasattr(part, "processor")}
        return processors, len(model._forward_pre_hooks), len(model._forward_hooks)

    before = state()
    pictures(any_pipe, painted(TEXT), batch_size=1)
    assert state() == before


def test_the_command_line_takes_it_and_resumes(pipe, tmp_path, capsys):
    scene = tmp_path / "scene.json"
    scene.write_text(painted(TEXT, animation={"frames": 2, "formats": ["sheet"]}, motion={"kind": "circle"}).to_json())
    out = tmp_path / "out"
    command = ["render", str(scene), "--steps", "1", "--size", "64x64", "--threads", "1", "--out", str(out)]
    assert main(command) == 0
    frames = json.loads((out / "summary.json").read_text())["sha256"]
    (out / "frames" / "0001.png").unlink(missing_ok=True)
    assert main([*command, "--resume"]) == 0
    assert json.loads((out / "summary.json").read_text())["sha256"] == frames
    scene.write_text(painted({"erase": 3}, animation={"frames": 2, "formats": ["sheet"]}).to_json())
    assert main([*command, "--resume"]) == 2
    assert "noise.initial.erase: was 1, is 3" in capsys.readouterr().err
