"""The invariants of the design on transformers whose text does not change: Wan 2 and PRX, reduced and random."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ftfy")
diffusers = pytest.importorskip("diffusers", minversion="0.36")

from lib_masknoise.__main__ import main  # noqa: E402
from lib_masknoise.attention import AttentionPass  # noqa: E402
from lib_masknoise.errors import ModelError  # noqa: E402
from lib_masknoise.hosts.diffusers import inspection, load_pipeline, render  # noqa: E402
from lib_masknoise.hosts.diffusers.exploring import PipelineModel  # noqa: E402
from lib_masknoise.hosts.diffusers.live import LiveHost  # noqa: E402
from lib_masknoise.hosts.diffusers.static_text import key_norm  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402
from tests.materialised import materialised_attention  # noqa: E402
from tests.model import random_pipelines  # noqa: E402

STEPS, SIZE = 3, (64, 96)
LEFT = {"kind": "split", "axis": "x", "from": 0, "to": 0.4, "feather": 0.3}
RIGHT = {"kind": "split", "axis": "x", "from": 0.6, "to": 1, "feather": 0.3}
TWO = [{"prompt": "a wheat field", "mask": LEFT}, {"prompt": "an ocean of lava", "mask": RIGHT, "weight": 1.3}]
NOISE = {"visual": {"strength": 0.6}, "concept": {"strength": 0.8}, "feature": {"strength": 0.5, "dimensions": "0-15"}}
FULL = {"concepts": TWO, "noise": NOISE, "motion": {"kind": "circle"}, "animation": {"frames": 3}}


@pytest.fixture(scope="module", params=["wan", "prx"])
def pipe(request):
    return getattr(random_pipelines, request.param)()


def plain(pipe, prompt, negative_prompt="", guidance_scale=4.0, size=SIZE):
    """The host alone."""
    video = type(pipe).__name__ == "WanPipeline"
    extra = {"num_frames": 1} if video else {"use_resolution_binning": False}
    made = pipe(
        [prompt],
        negative_prompt=[negative_prompt],
        height=size[0],
        width=size[1],
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        **extra,
    )
    picture = made.frames[0, 0] if video else made.images[0]
    return (picture * 255).round().astype(int)


def images(pipe, scene, prompt="a marsh", negative_prompt="", **options):
    options = {"seed": 3, "steps": STEPS, "size": SIZE} | options
    frames = render(pipe, Scene.parse(scene), prompt, negative_prompt, **options)
    return {frame.index: np.asarray(frame.image).astype(int) for frame in frames}


def still(pipe, scene, *args, **options):
    return images(pipe, scene, *args, **options)[0]


def close(a, b, levels=1):
    return np.abs(a - b).max() <= levels


def state(pipe):
    """Whatever a binding may have left behind."""
    model = pipe.transformer
    processors = {name: part.processor for name, part in model.named_modules() if hasattr(part, "processor")}
    return processors, dict(model._forward_pre_hooks), set(vars(model)) - {"_diffusers_hook"}


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_disabled_is_bit_identical_to_the_host_alone(pipe, guidance_scale):
    before = state(pipe)
    expected = plain(pipe, "a marsh", guidance_scale=guidance_scale)
    off = {**FULL, "enabled": False}
    assert np.array_equal(still(pipe, off, guidance_scale=guidance_scale, batch_size=1), expected)
    together = images(pipe, off, guidance_scale=guidance_scale)  # which the host itself rounds otherwise
    assert all(close(image, expected) for image in together.values())
    assert state(pipe) == before


def test_a_neutral_scene_is_the_host_alone_up_to_rounding(pipe):
    assert close(still(pipe, {}, "a marsh", "blurry"), plain(pipe, "a marsh", "blurry"))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("base", ["an ocean", "a bright river of snow and lava and sky " * 5])
def test_one_full_concept_is_plain_generation_with_its_prompt(pipe, guidance_scale, base):
    scene = {"concepts": [{"prompt": "a dark forest", "negative": "snow"}]}
    ours = still(pipe, scene, base, "lava", guidance_scale=guidance_scale)
    assert close(ours, plain(pipe, "a dark forest", "snow", guidance_scale))
    assert not close(ours, plain(pipe, base, "lava", guidance_scale), levels=8)


def test_equal_concepts_under_soft_masks_are_plain_generation_with_their_prompt(pipe):
    same = [{"prompt": "a dark forest", "mask": mask} for mask in (LEFT, RIGHT)]
    assert close(still(pipe, {"concepts": same}, "a dark forest"), plain(pipe, "a dark forest"))


def test_outside_the_window_the_base_is_alone(pipe):
    never = still(pipe, {"concepts": TWO, "blend": {"start": 0.0, "end": 0.0}})
    assert close(never, plain(pipe, "a marsh"))
    assert not close(still(pipe, {"concepts": TWO, "blend": {"start": 0.3}}), never, levels=4)


@pytest.mark.parametrize("blend", [{}, {"preserve_norm": True}, {"mode": "add"}])
def test_attention_inside_the_pipeline_equals_the_materialised_one(pipe, monkeypatch, blend):
    """Every layer of a pass, from its own weights and queries, the keys of each location built one by one."""
    errors, own_attend = [], AttentionPass.attend

    def compared(attention, attn, q, shares, size, scale=None, own=None):
        ours = own_attend(attention, attn, q, shares, size, scale, own)
        with torch.no_grad():
            for share in shares:
                zero = torch.zeros(1, share.conditioning.contexts.shape[-1])
                eye = torch.eye(zero.shape[1])
                (k0, v0), (k1, v1) = (_projected(pipe, attn, rows) for rows in (zero, eye))
                norm = key_norm(attn.norm_k if own is None else attn.norm_added_k)
                beside = None if own is None else tuple(t[share.span].double() for t in own)
                weights = [t.double() for t in ((k1 - k0).T, (v1 - v0).T)]
                oracle = materialised_attention(
                    q[share.span].double(), _doubled(share.conditioning), size, *weights, attn.heads,
                    k0[0].double(), v0[0].double(), norm, beside,
                )  # fmt: skip
                errors.append(float((ours[share.span] - oracle).norm() / oracle.norm()))
        return ours

    monkeypatch.setattr(AttentionPass, "attend", compared)
    images(pipe, {**FULL, "blend": blend}, frames=[1, 2], steps=1)
    assert len(errors) == 2 * len(pipe.transformer.blocks)
    assert max(errors) < 2e-5


def _projected(pipe, attn, rows):
    if hasattr(attn, "txt_kv_proj"):
        return attn.txt_kv_proj(pipe.transformer.txt_in(rows)).chunk(2, dim=-1)
    return attn.to_k(rows), attn.to_v(rows)


def _doubled(c):
    return replace(c, contexts=c.contexts.double())


def test_a_frame_is_the_same_at_any_batch_size_and_order(pipe):
    together = images(pipe, FULL, batch_size=3)
    alone = images(pipe, FULL, batch_size=1, frames=[2, 0])
    assert all(close(image, together[index]) for index, image in alone.items())
    assert not close(together[0], together[1], levels=20)


@pytest.mark.parametrize("noise", ["visual", "concept", "feature"])
def test_each_noise_moves_what_is_free(pipe, noise):
    options = {"dimensions": "all"} if noise == "feature" else {}
    scene = {"noise": {noise: {"strength": 1.0, **options}}, "motion": {"kind": "circle"}, "animation": {"frames": 2}}
    first, second = images(pipe, scene).values()
    assert not close(first, second, levels=2)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_pipeline_as_it_was(pipe, error):
    before, reference = state(pipe), plain(pipe, "a marsh")

    def interrupt(progress):
        raise error

    with pytest.raises(error):
        images(pipe, FULL, on_step=interrupt)
    assert state(pipe) == before
    assert np.array_equal(plain(pipe, "a marsh"), reference)


def test_a_size_that_does_not_fit_is_refused(pipe):
    with pytest.raises(ValueError, match="width: expected a multiple of 16 pixels, got 72"):
        still(pipe, {}, size=(64, 72))


def test_foreign_attention_is_refused(pipe):
    class Foreign:
        pass

    ours = dict(pipe.transformer.attn_processors)
    name = list(ours)[-1]
    pipe.transformer.set_attn_processor({**ours, name: Foreign()})
    try:
        with pytest.raises(ValueError, match=f"{name} is a Foreign: expected plain"):
            still(pipe, {"concepts": TWO})
    finally:
        pipe.transformer.set_attn_processor(ours)


def test_views_and_live_painting_say_what_they_take(pipe):
    for of in (PipelineModel, LiveHost):
        with pytest.raises(ModelError, match=f"takes Stable Diffusion 1.x, 2.x or XL, not a {type(pipe).__name__}"):
            of(pipe)


def test_a_saved_folder_renders_from_the_command_line(pipe, tmp_path):
    model, out, scene = tmp_path / "model", tmp_path / "out", tmp_path / "scene.json"
    random_pipelines.save(pipe, model)
    assert inspection.denoiser(model) == "transformer"
    assert type(load_pipeline(model, device="cpu")) is type(pipe)
    scene.write_text(json.dumps({"concepts": [{"prompt": "a dark forest"}]}))
    command = ["render", str(scene), "--model", str(model), "--prompt", "an ocean", "--steps", str(STEPS)]
    assert main([*command, "--seed", "3", "--size", "96x64", "--guidance", "4", "--out", str(out)]) == 0
    (picture,) = [path for path in out.rglob("*.png") if path.stem.isdigit()]
    assert close(np.asarray(Image.open(picture)).astype(int), plain(pipe, "a dark forest"))


def test_a_wan_of_two_transformers_is_refused(tmp_path):
    pipe = random_pipelines.wan(blocks=1)
    two = type(pipe)(**{**pipe.components, "transformer_2": pipe.transformer}, boundary_ratio=0.5)
    with pytest.raises(ModelError, match="a Wan with two transformers"):
        next(iter(render(two, Scene())))


def test_without_ftfy_the_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    monkeypatch.setattr(inspection.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the package ftfy .*pip install ftfy"):
        load_pipeline(tmp_path)


def test_an_older_diffusers_is_named(monkeypatch, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "PRXPipeline"}')
    monkeypatch.delattr(diffusers, "PRXPipeline", raising=False)
    monkeypatch.setattr(inspection, "diffusers", type("Old", (), {"__version__": "0.30.0"}))
    with pytest.raises(ModelError, match="a PRXPipeline, which diffusers 0.30.0 lacks"):
        load_pipeline(tmp_path)
