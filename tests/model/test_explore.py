"""The views on the built-in model: what they show is what the model does."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from lib_masknoise.__main__ import main
from lib_masknoise.explore import map as maps
from lib_masknoise.explore import views
from lib_masknoise.explore.folder import Folder
from lib_masknoise.explore.grid import Grid
from lib_masknoise.explore.model import average
from lib_masknoise.hosts.diffusers import render
from lib_masknoise.hosts.diffusers.exploring import PipelineModel
from lib_masknoise.hosts.diffusers.recording import decode, recording
from lib_masknoise.render import Settings
from lib_masknoise.scene import Scene

SIZE = (64, 64)
SETTINGS = Settings(prompt="a wheat field", seed=5, steps=6, size=SIZE, batch_size=8)
SCENE = {"concepts": [{"prompt": "an ocean", "mask": {"kind": "split", "from": 0.5, "feather": 0.2}}]}
SAMPLERS = [
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
]


@pytest.fixture
def model(pipe) -> PipelineModel:
    return PipelineModel(pipe)


def plain(pipe, scene=views.DISABLED, settings=SETTINGS, **others) -> Image.Image:
    options = {"seed": settings.seed, "steps": settings.steps, "size": SIZE, "guidance_scale": settings.guidance_scale}
    (frame,) = render(pipe, scene, settings.prompt, frames=[0], **{**options, **others})
    return frame.image


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


# --- The journey


@pytest.mark.parametrize("scene", [None, SCENE], ids=["prompt", "scene"])
def test_a_journey_ends_with_the_plain_picture(model, pipe, tmp_path, scene):
    scene = None if scene is None else Scene.parse(scene)
    made = views.journey(model, SETTINGS, scene, Folder(tmp_path), views.silent)
    last = made["steps"][-1]
    assert len(made["steps"]) == SETTINGS.steps + 1 and last["sigma"] == 0
    for name in ("x0", "x_t"):
        assert same(Image.open(tmp_path / last[name]), plain(pipe, scene or views.DISABLED))
    sigmas = [step["sigma"] for step in made["steps"]]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[0] > 10
    assert Image.open(tmp_path / "journey.webp").n_frames == len(made["steps"])
    assert vars(pipe.scheduler).get("step") is None  # nothing is left on the sampler


def test_the_last_latent_decodes_to_the_plain_picture(model, pipe):
    made = model.recorded(views.DISABLED, SETTINGS, lambda more: None)
    assert same(decode(pipe, made.moments[-1].x0[None])[0], plain(pipe))
    assert same(made.image, plain(pipe))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.__name__)
def test_x_t_is_x0_and_noise_with_every_sampler(pipe, sampler):
    """x_t of unit variance at the start, and the last x0 is all but where the pass ends."""
    before = pipe.scheduler
    pipe.scheduler = sampler.from_config(before.config)
    try:
        made = PipelineModel(pipe).recorded(views.DISABLED, SETTINGS, lambda more: None)
        image = plain(pipe)
    finally:
        pipe.scheduler = before
    assert same(made.image, image)
    first, last, end = made.moments[0], made.moments[-2], made.moments[-1]
    assert first.x_t.std() == pytest.approx(1, abs=0.15)
    assert first.sigma == pytest.approx(max(moment.sigma for moment in made.moments))
    near = (last.x0 - end.x0).square().mean().sqrt() / end.x0.std()
    far = (first.x0 - end.x0).square().mean().sqrt() / end.x0.std()
    assert near < 0.35 and near < far / 2


def test_x0_is_what_the_sampler_itself_calls_it(pipe):
    """DDIM says what it predicts; so does Euler."""
    before = pipe.scheduler
    for sampler in (DDIMScheduler.from_config(before.config, clip_sample=False), before):
        said = []
        pipe.scheduler = sampler
        step = sampler.step

        def heard(output, t, sample, *args, step=step, said=said, **kwargs):
            out = step(output, t, sample, *args, **{**kwargs, "return_dict": True})
            said.append(out.pred_original_sample[0])
            return (out.prev_sample,)

        import functools

        sampler.step = functools.wraps(step)(heard)
        try:
            with recording(pipe) as recorder:
                plain(pipe)
            assert sampler.step.__wrapped__ == step  # what was there is there again
        finally:
            pipe.scheduler = before
            del sampler.step
        assert len(said) == len(recorder.moments) == SETTINGS.steps
        for known, moment in zip(said, recorder.moments, strict=True):
            assert torch.allclose(known.float(), moment.x0, atol=2e-4 * (1 + moment.sigma))


# --- Between


def test_the_ends_of_the_line_are_the_two_prompts(model, pipe, tmp_path):
    made = views.between(
        model, SETTINGS, "an ocean", Folder(tmp_path), views.silent, stops=5, reach=0.5, bridges=2,
        names=[maps.Entry(text, "") for text in ("a marsh", "a desert", "ice", "a gzornblat")],
    )  # fmt: skip
    pictures = {stop["t"]: Image.open(tmp_path / stop["file"]) for stop in made["stops"]}
    assert set(pictures) >= {-0.5, -0.25, 0.0, 1.0, 1.25, 1.5} and len(pictures) == 9
    assert difference(pictures[0.0], plain(pipe)) <= 2
    ocean = Settings(**{**vars(SETTINGS), "prompt": "an ocean"})
    assert difference(pictures[1.0], plain(pipe, settings=ocean)) <= 2
    assert len({bridge["prompt"] for bridge in made["bridges"]}) == 2
    assert all(bridge["prompt"] != "a gzornblat" and bridge["distance"] > 0 for bridge in made["bridges"])


# --- The map


def test_a_place_of_the_map_is_drawn_from_the_context_that_projects_there(model, tmp_path):
    entries = [maps.Entry(text, "") for text in ("an ocean", "a forest", "lava", "snow", "a brick wall", "a desert")]
    made = views.prompt_map(model, SETTINGS, entries, Folder(tmp_path), views.silent, columns=2)
    assert len(made["points"]) == 6 and 0.4 < sum(made["explained"]) <= 1
    encoded = model.encode([entry.prompt for entry in entries])
    chart = maps.lay_out(entries, encoded, model.encode([""])[""])
    assert made["places"]
    for place in made["places"]:
        blend = chart.plane.weights(place["x"], place["y"])
        landed = chart.plane.project(average(chart.blended(blend)).numpy())
        assert np.abs(landed - (place["x"], place["y"])).max() < 1e-5
    corner = made["points"][0]
    alone = chart.plane.weights(corner["x"], corner["y"])
    (image,) = model.blended([chart.blended(alone)], [SETTINGS.seed], SETTINGS, lambda more: None)
    (known,) = model.plain(["an ocean"], [SETTINGS.seed], SETTINGS, lambda more: None)
    assert difference(image, known) <= 2


def test_a_prompt_of_two_chunks_has_no_place_on_a_map(model):
    with pytest.raises(ValueError, match="at most 75 tokens each, got"):
        maps.encode(model, [maps.Entry("word " * 80, "")], lambda more: None)


# --- The grid


def test_cells_are_plain_renders(model, pipe, tmp_path):
    wanted = Grid("a night sky", (1, 2), (3, 5), (1.0, 4.0), by_word=True)
    made = views.grid(model, SETTINGS, wanted, None, Folder(tmp_path), views.silent)
    assert len(made["cells"]) == 2 * 2 * 2 * 3
    for cell in made["cells"][::5]:
        settings = Settings(prompt=cell["prompt"], seed=cell["seed"], steps=cell["steps"], size=SIZE,
                            guidance_scale=cell["guidance"])  # fmt: skip
        assert difference(Image.open(tmp_path / cell["file"]), plain(pipe, settings=settings)) <= 2


def test_a_cell_alone_in_its_batch_is_the_plain_render_bit_for_bit(model, pipe, tmp_path):
    settings = Settings(**{**vars(SETTINGS), "batch_size": 1})
    for scene in (None, Scene.parse(SCENE)):
        made = views.grid(model, settings, Grid("lava", (7,), (4,), (4.0,)), scene, Folder(tmp_path), views.silent)
        known = Settings(prompt="lava", seed=7, steps=4, size=SIZE)
        assert same(Image.open(tmp_path / made["cells"][0]["file"]), plain(pipe, scene or views.DISABLED, known))


# --- The command line

QUICK = ["--steps", "2", "--size", "32x32"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["journey", "--prompt", "lava"],
        ["between", "--from", "lava", "--to", "ice", "--stops", "3", "--bridges", "1", "--beyond", "0"],
        ["map", "--columns", "2"],
        ["grid", "--prompt", "lava", "--seeds", "1,2", "--step-counts", "1,2", "--guidance", "1,4", "--words"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_view_from_the_command_line(tmp_path, capsys, arguments):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# A\nlava\nice\na forest\nan ocean\n", "utf-8")
    more = {"map": [str(prompts)], "between": ["--prompts", str(prompts)]}.get(arguments[0], [])
    assert main(["explore", *arguments, *more, *QUICK, "--out", str(tmp_path / "made")]) == 0
    made = json.loads((tmp_path / "made" / "explore.json").read_text("utf-8"))
    assert made["view"] == arguments[0] and made["settings"]["size"] == [32, 32] and not made["interrupted"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(tmp_path / "made" / name) for name in [*made["files"], "explore.json", "index.html"]]
    assert all((tmp_path / "made" / name).stat().st_size for name in made["files"])


def test_what_is_wrong_is_said_before_the_model_is_loaded(tmp_path, capsys):
    out = ["--out", str(tmp_path / "made")]
    for arguments, message in [
        (["journey"], "--prompt: expected one, or a --scene"),
        (["between", "--from", "a"], "--to: expected a prompt, or a --scene with two concepts"),
        (["map", str(tmp_path / "nowhere.txt")], "cannot read"),
        (["grid", "--prompt", " ", "--words"], "--prompt: expected at least one word"),
        (["journey", "--prompt", "a", "--model", "nowhere"], "no model at nowhere"),
    ]:
        assert main(["explore", *arguments, *out]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_an_interrupt_keeps_the_cells_made_so_far(tmp_path):
    folder = tmp_path / "made"
    command = [sys.executable, "-m", "lib_masknoise", "explore", "grid", "--prompt", "lava", *QUICK, "--batch", "1"]
    process = subprocess.Popen(
        [*command, "--seeds", ",".join(map(str, range(500))), "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(2):
        assert process.stdout.readline().strip().endswith(".png")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    made = json.loads((folder / "explore.json").read_text("utf-8"))
    whole = [cell for cell in made["cells"] if cell["file"]]
    assert made["interrupted"] and 2 <= len(whole) < 500
    assert (folder / "index.html").exists() and made["sheet"]
