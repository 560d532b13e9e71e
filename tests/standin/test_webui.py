"""A job from its request to its files, through the script's own hooks."""

import base64
import importlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lib_masknoise import animation, infotext
from lib_masknoise.calibrate.profile import Profile, Profiles
from lib_masknoise.calibrate.style import Found
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene
from tests.standin import oracle
from tests.standin.host import Other
from tests.standin.test_blending import FULL, LONG, ROUNDED, covered, error, scene

TREE = scene("green tree", "blue sea")
TREE_PAINTED = json.dumps({"concepts": TREE["concepts"]})


def moving(frames, formats=("gif",), *concepts, **parts):
    options = {"noise": {"visual": {"strength": 1.0}}, "motion": {"kind": "circle"}, **parts}
    return scene(*concepts, animation={"frames": frames, "fps": 5, "formats": list(formats)}, **options)


@pytest.fixture
def refused(host):
    """Does a job that must be refused, before anything is sampled; the problems by path."""

    def problems(values, **options):
        p = host.job(values, **options)
        with pytest.raises(host.jobs.Refused) as raised:
            host.process(p)
        assert not host.extra_networks.activated
        assert raised.value.status_code == 422
        assert {tuple(problem) for problem in raised.value.detail} == {("path", "message")}
        return {problem["path"]: problem["message"] for problem in raised.value.detail}

    return problems


# --- The request


@pytest.mark.parametrize(
    "wrong, path, message",
    [
        ({"concepts": [{"prompt": 5}]}, "concepts[0].prompt", "expected"),
        ({"concept": []}, "concept", "unknown field"),
        ({"noise": {"exponent": 99}}, "noise.exponent", "expected a number from 0 to 16, got 99"),
        ("{", "", "JSON"),
        ([1], "", "expected"),
        ({"concepts": [{"prompt": "x", "mask": {"kind": "image", "data": "!"}}]}, "concepts[0].mask.data", ""),
    ],
)
def test_a_wrong_scene_is_refused_with_its_path(refused, wrong, path, message):
    assert message in refused(wrong)[path]


def test_every_problem_is_named(refused):
    assert set(refused({"noise": {"exponent": 99}, "speed": 1, "blend": {"mode": "mix"}})) == {
        "noise.exponent",
        "speed",
        "blend.mode",
    }


def test_a_refusal_reads_well_where_it_is_shown(host):
    with pytest.raises(host.jobs.Refused, match="^MaskNoise: speed: unknown field"):
        host.process(host.job({"speed": 1}))


def test_a_refused_job_loads_no_checkpoint(host):
    p = host.job({"speed": 1}, override_settings={"sd_model_checkpoint": "large"})
    with pytest.raises(host.jobs.Refused):
        host.process(p)
    assert p.override_settings == {}


def test_after_a_refusal_the_next_job_is_as_ever(host):
    before = host.latents(), host.latents(img2img=True)
    with pytest.raises(host.jobs.Refused):
        host.process(host.job({"speed": 1}))
    assert torch.equal(host.latents(), before[0]) and torch.equal(host.latents(img2img=True), before[1])


def test_json_text_is_a_scene_too(host):
    assert torch.equal(host.latents(json.dumps(TREE)), host.latents(TREE))


def test_the_values_of_the_user_interface(host):
    from lib_masknoise.ui import inputs

    p = host.job()
    p.scripts.pairs[0] = host.script, inputs.show(Scene.parse(TREE))
    assert torch.equal(torch.cat(host.process(p).latents).double(), host.latents(TREE))


def test_a_feature_dimension_that_the_model_does_not_have_is_refused(host):
    wrong = scene("tree", noise={"feature": {"strength": 1.0, "dimensions": "0-63"}})
    with pytest.raises(host.jobs.Refused) as raised:
        host.process(host.job(wrong))
    (problem,) = raised.value.problems
    assert problem.path == "noise.feature.dimensions" and "the last dimension, 7" in problem.message


def test_layers_that_the_model_does_not_have_are_refused(host):
    wrong = scene("tree", noise={"feature": {"strength": 1.0, "dimensions": "0-2", "layers": "coarse,middle"}})
    with pytest.raises(host.jobs.Refused) as raised:
        host.process(host.job(wrong))
    (problem,) = raised.value.problems
    assert problem.path == "noise.feature.layers"
    has = "coarse, fine, in1, in3, mid, out0, out1, out2, out3"
    assert problem.message == f'expected "all" or layers of this model, which are {has}; got "middle"'


def test_directions_of_style_are_refused_where_nobody_has_looked_for_them(host):
    wrong = scene("tree", noise={"feature": {"strength": 1.0, "dimensions": "style"}})
    with pytest.raises(host.jobs.Refused) as raised:
        host.process(host.job(wrong))
    (problem,) = raised.value.problems
    assert problem.path == "noise.feature.dimensions" and "calibrate --style" in problem.message


def test_directions_of_style_are_those_of_the_checkpoints_profile(host, monkeypatch, tmp_path):
    """Another part of each in other layers, in every frame; held places stay."""
    draw = torch.Generator().manual_seed(1)
    mixtures = {"style": torch.randn(2, 2, 3, generator=draw)}
    found = Found(torch.randn(3, 8, generator=draw), ("in3,mid", "out2-3"), mixtures)
    Profiles(tmp_path).save(Profile("ab" * 32, (), {}, style=found.to_dict()))
    checkpoints = importlib.import_module("lib_masknoise.hosts.webui.checkpoints")
    monkeypatch.setattr(checkpoints, "PROFILES", tmp_path)
    monkeypatch.setattr(checkpoints, "checkpoint", lambda: ("ab" * 32, "tiny"))
    host.start(torch.float64)
    noise = {"feature": {"strength": 1.0, "dimensions": "style"}}
    job = scene("tree", noise=noise, motion={"kind": "circle"}, animation={"frames": 2})
    subspaces = Found.parse(found.to_dict()).subspaces
    expected = oracle.latents(
        host.model, job, ["red house"] * 2, pictures=[(0, 1), (1, 1)], subspaces=subspaces
    )  # fmt: skip
    assert error(host.latents(job, batch_size=2), expected) < ROUNDED
    assert error(host.latents({**job, "noise": {}}, batch_size=2), expected) > 1e-3


def test_formats_that_cannot_be_written_are_refused_before_the_frames_are_made(refused, monkeypatch):
    def none(*args):
        raise ImportError("gif needs PyAV: pip install av")

    monkeypatch.setattr(animation, "require_encoders", none)
    assert refused(moving(3)) == {"": "gif needs PyAV: pip install av"}


@pytest.mark.parametrize("values", [None, "", {}, {"concepts": []}, {**TREE, "enabled": False}])
def test_neutral_scenes_do_nothing(host, values):
    """Not even a hook; the picture is the same bit for bit."""
    plain = host.latents(negative_prompt="ugly", sampler_name="Heun")
    assert torch.equal(host.latents(values, negative_prompt="ugly", sampler_name="Heun"), plain)


def test_a_concept_that_is_off_is_as_if_it_were_not_there(host):
    noises = {"visual": {"strength": 0.5}, "concept": {"strength": 0.5}}
    off = {"prompt": "blue sea AND fog", "negative": "mud", "mask": FULL, "enabled": False}
    with_it = {**TREE, "noise": noises, "concepts": [off, *TREE["concepts"]]}
    assert torch.equal(host.latents(with_it), host.latents({**TREE, "noise": noises}))
    assert torch.equal(host.latents({"concepts": [off]}), host.latents())


def test_a_pass_of_another_extension_within_a_job_is_left_alone(host):
    """ADetailer's inner passes run with the job's scripts and arguments."""
    plain = host.latents(img2img=True)
    for wanted in (TREE, {"speed": 1}):
        assert torch.equal(host.latents(wanted, img2img=True, inner=True), plain)
    p = host.job(TREE, img2img=True)
    p._ad_inner = True  # within a job of img2img
    assert torch.equal(torch.cat(host.process(p).latents).double(), plain)


def test_a_copy_of_a_job_as_img2img_has_no_scene(host):
    p = host.job(TREE, img2img=True, inner=True)
    p.masknoise = "of the job that it was copied from"
    host.process(p)
    assert p.masknoise is None


def test_two_jobs_at_a_time_do_not_mix(host):
    """Another job is done in the middle of the first."""
    inner = []

    def other(*args, **kwargs):
        if not inner:
            inner.append(None)
            inner[0] = torch.cat(host.processing.process_images(host.job(covered("a cat"))).latents).double()

    ours = host.latents(TREE, later=[Other(process=other)])
    assert torch.equal(inner[0], host.latents(covered("a cat")))
    assert torch.equal(ours, host.latents(TREE))


@pytest.mark.parametrize(
    "module, function, enable_hr",
    [
        ("infotext", "write", False),  # process
        ("jobs", "network_tags", False),  # before_process_batch
        ("jobs", "Rows", False),  # process_before_every_sampling
        ("jobs", "Rows", True),  # the same in the hires pass
        ("files", "hand_out", False),  # postprocess
    ],
)
def test_a_bug_in_a_hook_stops_the_job(host, monkeypatch, module, function, enable_hr):
    """The host would log it and make another picture than the one asked for."""
    plain = host.latents()
    place = infotext if module == "infotext" else getattr(host, module)
    original, calls = getattr(place, function), []

    def broken(*args):
        calls.append(args)
        if len(calls) > enable_hr:  # the first call is the first pass's
            raise RuntimeError("a bug")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(place, function, broken)
        p = host.job(moving(2, ("gif",), "tree <lora:oak:1>"), enable_hr=enable_hr)
        if function == "hand_out":
            assert "a bug" in host.process(p).comments
        else:
            with pytest.raises(RuntimeError, match="a bug"):
                host.process(p)
    assert torch.equal(host.latents(), plain)


@pytest.mark.parametrize("call", [2, 3])
def test_a_bug_for_the_networks_of_the_hires_pass_stops_the_job(host, monkeypatch, call):
    """Call 3 is that of `process_batch`."""
    original, calls = host.jobs.network_tags, []

    def broken(*args):
        calls.append(args)
        if len(calls) == call:
            raise RuntimeError("a bug")
        return original(*args)

    monkeypatch.setattr(host.jobs, "network_tags", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        host.process(host.job(scene("tree <lora:oak:1>"), enable_hr=True, batch_size=2))


# --- X/Y/Z plots


def test_a_cell_of_a_plot_overrides_the_scene(host):
    p = host.job(TREE)
    p.masknoise_overrides = {"concepts[1].weight": 0.5, "blend.mode": "add"}
    changed = scene("green tree", {"prompt": "blue sea", "weight": 0.5}, blend={"mode": "add"})
    assert torch.equal(torch.cat(host.process(p).latents).double(), host.latents(changed))


def test_a_preset_as_a_cell_of_a_plot(host):
    host.presets.save("sea", Scene.parse(covered("blue sea")))
    p = host.job()
    p.masknoise_overrides = {"preset": "sea"}
    assert torch.equal(torch.cat(host.process(p).latents).double(), host.latents(covered("blue sea")))


@pytest.mark.parametrize("values", [["", False, TREE_PAINTED], [{**TREE, "enabled": False}]])
def test_a_plot_switches_masknoise_on_for_its_cells(host, values):
    p = host.job()
    p.scripts.pairs[0] = host.script, values
    p.masknoise_overrides = {"blend.scale": 0.5, "blend.overlap": "mix"}
    expected = host.latents(scene("green tree", "blue sea", blend={"scale": 0.5}))
    assert torch.equal(torch.cat(host.process(p).latents).double(), expected)


@pytest.mark.parametrize(
    "values, overrides, path",
    [
        (None, {"concepts[0].weight": 0.5}, "concepts[0].weight"),
        (TREE, {"concepts[3].weight": 0.5}, "concepts[3].weight"),
        (TREE, {"preset": "no such preset"}, ""),
    ],
)
def test_a_cell_that_cannot_be_is_refused(host, values, overrides, path):
    p = host.job(values)
    p.masknoise_overrides = overrides
    with pytest.raises(host.jobs.Refused) as raised:
        host.process(p)
    assert [problem.path for problem in raised.value.problems] == [path]


def test_the_cells_of_a_plot_do_not_share_their_infotext(host):
    """The plot's jobs are shallow copies."""
    params = {"Size": "8"}
    first = host.job(scene({"prompt": "tree", "weight": 0.5}), extra_generation_params=params)
    host.process(first)
    second = host.job(scene("tree"), extra_generation_params=first.extra_generation_params)
    host.process(second)
    assert "MaskNoise concept 1 weight" in first.extra_generation_params
    assert "MaskNoise concept 1 weight" not in second.extra_generation_params
    assert params == {"Size": "8"} and second.extra_generation_params["Size"] == "8"


# --- Frames


@pytest.mark.parametrize("frames, batch, runs", [(1, 2, 3), (5, 2, 3), (4, 4, 1), (3, 8, 1), (6, 1, 6)])
def test_frames_become_batches(host, frames, batch, runs):
    p = host.job(moving(frames), batch_size=batch, n_iter=3, outpath_samples=str(host.folder))
    processed = host.process(p)
    if frames == 1:  # a still: as many as asked for, each with a seed of its own
        assert (p.n_iter, p.all_seeds) == (3, [1, 2, 3, 4, 5, 6])
        return
    assert p.n_iter == runs
    assert [len(latents) for latents in processed.latents] == [min(batch, frames - i * batch) for i in range(runs)]
    assert p.all_seeds == [1] * frames and p.all_subseeds == [100] * frames
    assert p.do_not_save_grid


def test_frames_share_the_first_prompt(host):
    """Also where another extension gives every picture one of its own, before or after."""

    def wildcards(p):
        p.all_prompts = [f"house {i}" for i in range(len(p.all_prompts))]
        p.all_negative_prompts = [f"ugly {i}" for i in range(len(p.all_prompts))]
        p.all_hr_prompts = [f"large house {i}" for i in range(len(p.all_prompts))]

    for order in ("others", "later"):
        p = host.job(moving(3), batch_size=2, enable_hr=True, **{order: [Other(process=wildcards)]})
        host.process(p)
        assert p.all_prompts == ["house 0"] * 3 and p.all_negative_prompts == ["ugly 0"] * 3
        assert p.all_hr_prompts == ["large house 0"] * 3


def test_pictures_that_are_no_frames_keep_their_prompts(host):
    def wildcards(p):
        p.all_prompts = [f"house {i}" for i in range(len(p.all_prompts))]

    p = host.job(TREE, batch_size=2, others=[Other(process=wildcards)])
    host.process(p)
    assert p.all_prompts == ["house 0", "house 1"]


def test_sde_samplers_draw_the_same_noise_for_every_frame(host):
    """The setting would give each picture of a batch its own; where the user has overridden it, that counts."""
    seen = []
    look = Other(process=lambda p: seen.append(host.shared.opts.no_dpmpp_sde_batch_determinism))
    host.shared.opts.no_dpmpp_sde_batch_determinism = True
    host.run(moving(2), others=[look])
    host.run(TREE, others=[look])
    host.run(moving(2), others=[look], override_settings={"no_dpmpp_sde_batch_determinism": True})
    assert seen == [False, True, True] and host.shared.opts.no_dpmpp_sde_batch_determinism


def test_what_is_held_stands_still(host):
    """A frame's pinned locations start from the same noise."""
    starts = []
    look = Other(process_before_every_sampling=lambda p, noise, **_: starts.append(noise.clone()))
    half = {"prompt": "tree", "mask": {"kind": "split", "to": 0.5}}
    host.run(moving(3, ("gif",), half), batch_size=2, later=[look])
    noise = torch.cat(starts)
    assert torch.equal(noise[0, ..., :3], noise[1, ..., :3]) and torch.equal(noise[0, ..., :3], noise[2, ..., :3])
    assert not torch.equal(noise[0, ..., 3:], noise[1, ..., 3:])


def test_the_hires_pass_has_visual_noise_too(host):
    starts = []
    look = Other(process_before_every_sampling=lambda p, noise, **_: starts.append(noise.clone()))
    host.run(moving(2), batch_size=2, enable_hr=True, later=[look])
    assert [noise.shape[-2:] for noise in starts] == [(4, 6), (6, 9)]
    for noise in starts:
        assert error(noise[0], noise[1]) > 0.1


def test_progress_names_the_frames(host):
    texts = []
    look = Other(process_before_every_sampling=lambda p, **_: texts.append(host.shared.state.textinfo))
    host.run(moving(5), batch_size=2, later=[look])
    assert texts == [f"MaskNoise: frames {part} of 5" for part in ("1–2", "3–4", "5–5")]
    assert host.shared.state.textinfo == "MaskNoise: writing the animation"


# --- Extra networks


def test_networks_of_concepts_are_activated_once_for_the_whole_image(host):
    both = scene("tree <lora:oak:0.5:1>", "sea <lora:oak:1> <lora:foam:1> <hypernet:fish>")
    p = host.job(both, prompt="house <lora:brick:1>", batch_size=2)
    processed = host.process(p)
    (activated,) = host.extra_networks.activated
    assert sorted(activated) == ["hypernet:fish", "lora:brick:1", "lora:foam:1", "lora:oak:0.5:1"]
    assert "MaskNoise: <lora:…> in a concept's prompt acts on the whole image" in processed.comments
    assert p.all_prompts == ["house <lora:brick:1>"] * 2, "the infotext shows what was asked for"


def test_a_network_of_the_prompt_keeps_its_strength(host):
    host.run(scene("tree <lora:oak:1>"), prompt="house <lora:oak:0.3>")
    assert host.extra_networks.activated == [["lora:oak:0.3"]]


def test_a_tag_is_no_part_of_a_concept(host):
    assert torch.equal(host.latents(scene("green tree <lora:oak:1>", "blue sea")), host.latents(TREE))


def test_networks_in_the_hires_pass(host):
    host.run(scene("tree <lora:oak:1>"), prompt="a", hr_prompt="b <lora:brick:1>", enable_hr=True)
    first, second = host.extra_networks.activated
    assert first == ["lora:oak:1"] and sorted(second) == ["lora:brick:1", "lora:oak:1"]


def test_networks_that_are_switched_off_stay_off(host):
    host.run(scene("tree <lora:oak:1>"), disable_extra_networks=True)
    assert host.extra_networks.activated == []


# --- Results


def test_the_infotext_gives_the_scene_again(host):
    processed = host.run(TREE, batch_size=2)
    params = {key: value for key, value in processed.extra_generation_params.items()}
    assert infotext.read(params) == Scene.parse(TREE)
    assert "MaskNoise frame" not in processed.infotexts[0]


def test_the_infotext_of_a_frame_names_it(host):
    processed = host.run(moving(3), batch_size=2)
    assert [f"MaskNoise frame: {i}" in text for i, text in enumerate(processed.infotexts[:3])] == [True] * 3
    assert infotext.read(processed.extra_generation_params) == Scene.parse(moving(3))
    assert processed.extra_generation_params["MaskNoise frame"] == "0 to 2", (
        "a function would be null in the API's info"
    )


def test_remarks_are_comments_and_in_the_apis_info(host):
    wanted = scene("", "blue sea", animation={"frames": 2})
    processed = host.run(wanted)
    expected = [f"{path}: {message}" for path, message in Maps(Scene.parse(wanted), (4, 6)).remarks()]
    assert len(expected) == 2 and all(f"MaskNoise: {remark}\n" in processed.comments for remark in expected)
    assert processed.extra_generation_params["MaskNoise remarks"] == "; ".join(expected)
    assert not any("remarks" in text for text in processed.infotexts)
    assert infotext.read(processed.extra_generation_params) == Scene.parse(wanted)
    assert "MaskNoise remarks" not in host.run(TREE).extra_generation_params


def test_a_concept_on_top_covers_the_one_before_it(host):
    over = {"prompt": "blue sea", "mask": {"kind": "rect"}}
    top = host.latents(scene("green tree", over, blend={"overlap": "top"}))
    assert error(top, host.latents(scene(over))) < 1e-6
    assert error(top, host.latents(scene("green tree", over))) > 1e-3


def test_the_animation_through_the_api(host):
    processed = host.run(moving(5, ("gif", "mp4")), batch_size=2)
    assert len(processed.images) == len(processed.infotexts) == 7
    gif, mp4 = (base64.b64decode(item) for item in processed.images[5:])
    with Image.open(io.BytesIO(gif)) as image:
        assert image.format == "GIF" and image.n_frames == 5
    assert mp4[4:8] == b"ftyp"
    names = processed.extra_generation_params["MaskNoise files"].split("; ")
    files = {path.name: path.read_bytes() for path in host.folder.rglob("*-animation*")}
    assert files == dict(zip(names, (gif, mp4), strict=True))
    assert processed.infotexts[5] == processed.infotexts[6] == processed.infotexts[0]


def test_the_animation_in_the_gallery(host):
    """The gallery shows the file that an image says it was saved as; it cannot play an MP4."""
    processed = host.run(moving(3, ("gif", "mp4", "webp")), batch_size=2, is_api=False)
    shown = processed.images[3:]
    assert [Path(image.already_saved_as).suffix for image in shown] == [".gif", ".webp"]
    assert all(Path(image.already_saved_as).is_file() for image in shown)
    assert len(processed.infotexts) == 5
    assert processed.comments.startswith("MaskNoise wrote ") and ".mp4" in processed.comments
    assert processed.images[0].already_saved_as.endswith(".png")


def test_the_animation_is_of_the_frames_in_order(host):
    processed = host.run(moving(4, ("apng",)), batch_size=3)
    with Image.open(io.BytesIO(base64.b64decode(processed.images[4]))) as image:
        for index in range(4):
            image.seek(index)
            assert image.convert("RGB").tobytes() == processed.images[index].tobytes()


def test_a_grid_is_no_frame(host):
    """The job of a script that has asked for one all the same."""
    host.shared.opts.return_grid = True
    grid = Other(process=lambda p: setattr(p, "do_not_save_grid", False))
    processed = host.run(moving(3, ("apng",)), later=[grid])
    assert processed.index_of_first_image == 1
    with Image.open(io.BytesIO(base64.b64decode(processed.images[4]))) as image:
        assert image.convert("RGB").tobytes() == processed.images[1].tobytes()


@pytest.mark.parametrize("button, batches", [("interrupt", 2), ("skip", 3)])
def test_an_animation_of_the_complete_frames_only(host, button, batches):
    """The host decodes half sampled pictures as well. An interrupted job ends, a skipped batch is left out."""
    denoised = []

    def press(params):
        denoised.append(1)
        if len(denoised) == 3:  # the first of two steps of the second batch
            getattr(host.shared.state, button)()

    host.callbacks.on_cfg_denoiser(press)
    job = moving(6, ("apng",), "tree", noise={"visual": {"strength": 1.0}})
    processed = host.process(host.job(job, batch_size=2))
    assert len(processed.latents) == batches
    complete = [0, 1] if button == "interrupt" else [0, 1, 4, 5]
    with Image.open(io.BytesIO(base64.b64decode(processed.images[-1]))) as image:
        assert image.n_frames == len(complete)
        for index, frame in enumerate(complete):
            image.seek(index)
            assert image.convert("RGB").tobytes() == processed.images[frame].tobytes()


def test_no_animation_of_less_than_two_frames(host):
    host.callbacks.on_cfg_denoiser(lambda params: host.shared.state.interrupt())
    processed = host.process(host.job(moving(4, ("gif",), "tree")))
    assert [type(item) for item in processed.images] == [Image.Image]
    assert "MaskNoise files" not in processed.extra_generation_params


def test_an_error_while_writing_does_not_lose_the_frames(host, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(animation, "write", full)
    processed = host.run(moving(3), batch_size=2)
    assert len(processed.images) == 3
    assert "no space left" in processed.extra_generation_params["MaskNoise error"]
    assert "no space left" in processed.comments


def test_pasting_asks_for_one_component_after_the_other(host):
    from lib_masknoise.ui import inputs

    components = [object() for _ in inputs.defaults()]
    fields = host.jobs.paste_fields(components)
    assert [component for component, _ in fields] == components[1:]
    params = {"Steps": "2", **infotext.write(Scene.parse(TREE))}
    assert [value(params) for _, value in fields] == inputs.show(Scene.parse(TREE))[1:]
    assert [value({"Steps": "2"}) for _, value in fields] == [False, *[None] * (len(fields) - 1)]
    assert {value({"a text": "without settings"}) for _, value in fields} == {None}
    assert {value({"Steps": "2", "MaskNoise": "1", "MaskNoise speed": "5"}) for _, value in fields} == {None}


def test_the_routes_have_the_api_s_own_guard(host):
    from types import SimpleNamespace

    guard = object()
    routes = [SimpleNamespace(path="/"), SimpleNamespace(path="/sdapi/v1/txt2img", dependencies=[guard])]
    assert host.jobs.authorisation(SimpleNamespace(routes=routes)) == [guard]
    assert host.jobs.authorisation(SimpleNamespace(routes=routes[:1])) is None


def test_a_long_negative_of_one_concept_only(host):
    host.start(torch.float64)
    half = {"concepts": [{"prompt": "tree", "negative": LONG, "mask": FULL}]}
    assert error(host.latents(half, prompt="tree"), host.latents(prompt="tree", negative_prompt=LONG)) < 1e-12


@pytest.mark.parametrize("title", ["Regional Prompter", "Latent Couple extension", "Forge Couple", "demofusion"])
def test_another_extension_that_divides_the_image_is_refused(host, title):
    def job(on: bool, wanted: dict):
        p = host.job(wanted)
        p.scripts.alwayson_scripts = [SimpleNamespace(title=lambda: title, args_from=1, args_to=3)]
        p.script_args = (0, on, "Matrix")
        return host.process(p)

    with pytest.raises(host.jobs.Refused, match=f"{title} is on too") as raised:
        job(True, TREE)
    assert raised.value.status_code == 422
    assert job(False, TREE).images and job(True, {}).images


# --- What is said


def test_half_sampled_pictures_are_marked_and_left_out_of_the_frames(host):
    def stop(p, *args, **named):
        if p.iteration == 1:
            host.shared.state.interrupt()

    host.shared.opts.save_incomplete_images = True
    processed = host.run(moving(6, ("gif",), "tree"), batch_size=2, others=[Other(process_batch=stop)])
    assert ["half sampled" in text for text in processed.infotexts[:4]] == [False, False, True, True]
    names = [path.stem for path in sorted(host.folder.rglob("*.png"))]
    assert [name.endswith("-interrupted") for name in names] == [False, False, True, True]
    assert processed.extra_generation_params["MaskNoise frame"] == "0 to 1"


def test_the_whole_frames_in_words(host):
    span = host.jobs._span
    assert [span(frames) for frames in ([], [0], [0, 1, 2], [0, 1, 4, 5], [3])] == [
        *("none", "0", "0 to 2", "0 to 1 and 4 to 5", "3"),
    ]


def test_an_infotext_that_is_not_taken_says_why(host):
    components = [f"component {i}" for i in range(4)]
    fields = host.jobs.paste_fields(components, "notice")
    assert [component for component, _ in fields] == [*components[1:], "notice"]
    params = {"Steps": "3", "MaskNoise": "1", "MaskNoise blend scale": "99"}
    shown = fields[-1][1](params)
    assert "MaskNoise blend scale</b>: expected a number from 0 to 2, got 99" in shown and "was not taken" in shown
    assert all(read(params) is None for _, read in fields[:-1])
    assert fields[-1][1]({"Steps": "3", "MaskNoise": "1"}) == ""


def test_a_sampler_that_looks_at_the_whole_batch_makes_frames_one_by_one(host, monkeypatch):
    from modules import sd_samplers

    monkeypatch.setitem(sd_samplers.SAMPLERS, "DPM adaptive", sd_samplers.SAMPLERS["Euler"])
    processed = host.run(moving(3), batch_size=2, sampler_name="DPM adaptive")
    assert [len(batch) for batch in processed.latents] == [1, 1, 1] and "one by one" in processed.comments
    assert [len(batch) for batch in host.run(TREE, batch_size=2, sampler_name="DPM adaptive").latents] == [2]
