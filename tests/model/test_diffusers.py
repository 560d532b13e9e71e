"""The invariants of the design on a real diffusers pipeline."""

import dataclasses
import shutil

import accelerate
import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, HeunDiscreteScheduler

from lib_masknoise import builtin_model
from lib_masknoise.hosts import diffusers as host
from lib_masknoise.hosts.diffusers import encode, load_pipeline, render
from lib_masknoise.maps import level_with
from lib_masknoise.scene import Scene
from tests.materialised import materialised_attention
from tools.small_model import export_single_file

STEPS, SIZE = 4, (64, 128)
LEFT = {"kind": "split", "axis": "x", "from": 0, "to": 0.4, "feather": 0.3}
RIGHT = {"kind": "split", "axis": "x", "from": 0.6, "to": 1, "feather": 0.3}
TWO = [{"prompt": "a wheat field", "mask": LEFT}, {"prompt": "an ocean", "mask": RIGHT}]
NOISE = {"visual": {"strength": 0.6}, "concept": {"strength": 0.8}, "feature": {"strength": 0.5}}
FULL = {"concepts": TWO, "noise": NOISE, "motion": {"kind": "circle"}, "animation": {"frames": 6}}
LONG_PROMPT = "a forest, " * 40


def images(pipe, scene, prompt="a marsh", negative_prompt="", **options):
    options = {"seed": 11, "steps": STEPS, "size": SIZE} | options
    frames = render(pipe, Scene.parse(scene), prompt, negative_prompt, **options)
    return {frame.index: np.asarray(frame.image).astype(int) for frame in frames}


def still(pipe, scene, *args, **options):
    return images(pipe, scene, *args, **options)[0]


def plain(pipe, prompt, negative_prompt="", guidance_scale=4.0, seed=11):
    """The host alone."""
    picture = pipe(
        prompt,
        negative_prompt=negative_prompt,
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    return np.asarray(picture).astype(int)


def state(pipe):
    """Everything a binding touches."""
    return dict(pipe.unet.attn_processors), dict(pipe.unet._forward_pre_hooks)


def close(a, b, levels=1):
    """Equal up to rounding: no channel of a pixel differs by more than `levels` of 255."""
    return np.abs(a - b).max() <= levels


# Invariants 1 and 2: disabled and neutral


def test_disabled_is_bit_identical_to_the_host_alone(pipe):
    before = state(pipe)
    assert np.array_equal(still(pipe, {**FULL, "enabled": False, "animation": {}}), plain(pipe, "a marsh"))
    assert state(pipe) == before


def test_a_neutral_scene_is_the_host_alone_up_to_rounding(pipe):
    assert close(still(pipe, {}), plain(pipe, "a marsh"))


# Invariant 3: one concept with a full mask


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_one_full_concept_is_plain_generation_with_its_prompt(pipe, guidance_scale):
    scene = {"concepts": [{"prompt": "a dark forest"}]}
    ours = still(pipe, scene, guidance_scale=guidance_scale)
    assert close(ours, plain(pipe, "a dark forest", guidance_scale=guidance_scale))


def test_a_concept_that_is_off_is_as_if_it_were_not_there(pipe):
    off = {"prompt": "lava", "negative": "mud", "enabled": False}
    assert (still(pipe, {**FULL, "concepts": [off, *TWO]}) == still(pipe, FULL)).all()


def test_it_holds_when_the_base_prompt_is_longer(pipe):
    scene = {"concepts": [{"prompt": "a dark forest"}]}
    assert close(still(pipe, scene, LONG_PROMPT), plain(pipe, "a dark forest"))


def test_one_full_negative_is_plain_generation_with_it(pipe):
    scene = {"concepts": [{"prompt": "a dark forest", "negative": "bright snow"}]}
    ours = still(pipe, scene)
    assert close(ours, plain(pipe, "a dark forest", "bright snow"))
    assert not close(ours, plain(pipe, "a dark forest"), levels=8)


# Invariant 4: the oracle, on the tensors of a real pass


@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("prompt", ["a marsh", LONG_PROMPT])
def test_attention_inside_the_pipeline_equals_the_materialised_one(pipe, monkeypatch, prompt, preserve_norm):
    errors = []
    attend = host.Binding.attend

    def compared(binding, attn, x):
        ours = attend(binding, attn, x)
        size = level_with(binding.size, x.shape[1])
        q = attn.to_q(x)
        for share in binding._shares:
            weights = attn.to_k.weight, attn.to_v.weight
            oracle = materialised_attention(q[share.span], share.conditioning, size, *weights, attn.heads)
            part = ours[share.span]
            errors.append(float((part - oracle).norm() / oracle.norm()))
        return ours

    monkeypatch.setattr(host.Binding, "attend", compared)
    images(pipe, {**FULL, "blend": {"preserve_norm": preserve_norm}}, prompt, frames=[1, 4], steps=2)
    layers = sum("attn2" in name for name in pipe.unet.attn_processors)
    assert len(errors) == 2 * 2 * layers  # sides × steps × layers
    assert max(errors) < 1e-4


def test_one_unet_call_a_step_where_lengths_differ(pipe):
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        still(pipe, {"concepts": TWO}, LONG_PROMPT, "blurry")
    finally:
        handle.remove()
    assert len(calls) == STEPS


# Invariant 7: a frame is a pure function of scene and index


def test_a_frame_is_the_same_at_any_batch_size_and_order(pipe):
    together = images(pipe, FULL, batch_size=6)
    alone = images(pipe, FULL, batch_size=1)
    shuffled = images(pipe, FULL, batch_size=2, frames=[5, 0, 3])
    assert list(shuffled) == [5, 0, 3]
    for index, image in shuffled.items():
        assert close(image, together[index])
        assert close(image, alone[index])
    assert not close(together[0], together[3], levels=20)


def test_a_fraction_of_a_frame_lies_between_its_neighbours(pipe):
    frames = images(pipe, FULL, frames=[1, 1.0, 1.5, 2, 1 + 1e-6], batch_size=4)
    assert close(frames[1], frames[1 + 1e-6])
    pairs = ((1, 2), (1, 1.5), (1.5, 2))
    whole, first, second = (np.abs(frames[a] - frames[b]).mean() for a, b in pairs)
    assert 0.2 * whole < min(first, second) and max(first, second) < 0.95 * whole


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler, HeunDiscreteScheduler])
def test_without_noise_all_frames_are_one_image_whatever_the_sampler_draws(pipe, scheduler):
    chosen = pipe.scheduler
    pipe.scheduler = scheduler.from_config(chosen.config)
    try:
        frames = images(pipe, {**FULL, "noise": {}, "animation": {"frames": 3}})
    finally:
        pipe.scheduler = chosen
    assert close(frames[0], frames[1]) and close(frames[0], frames[2])


# Invariant 8: whatever happens, the host is as it was


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, STEPS, STEPS + 2])
def test_an_exception_at_any_step_leaves_the_pipeline_as_it_was(pipe, error, at):
    before, reference = state(pipe), plain(pipe, "a marsh")
    steps, made = [], []

    def interrupt(progress):
        steps.append(progress)
        if len(steps) == at:
            raise error

    with pytest.raises(error):
        scene = Scene.parse(FULL)
        for frame in render(pipe, scene, "a marsh", seed=11, steps=STEPS, size=SIZE, batch_size=2, on_step=interrupt):
            made.append(frame)
    assert len(made) == (2 if at > STEPS else 0)
    assert state(pipe) == before
    assert np.array_equal(plain(pipe, "a marsh"), reference)


def test_abandoning_the_frames_leaves_the_pipeline_as_it_was(pipe):
    before = state(pipe)
    frames = render(pipe, Scene.parse(FULL), seed=11, steps=STEPS, size=SIZE, batch_size=2)
    next(frames)
    frames.close()
    assert state(pipe) == before


def test_foreign_attention_is_refused_and_left_alone(pipe):
    class Foreign:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    ours = dict(pipe.unet.attn_processors)
    changed = dict(ours)
    name = next(name for name in changed if "attn2" in name)
    changed[name] = Foreign()
    pipe.unet.set_attn_processor(dict(changed))
    try:
        with pytest.raises(ValueError, match="attn2.processor is a Foreign: expected plain cross-attention"):
            still(pipe, {"concepts": TWO})
        assert dict(pipe.unet.attn_processors) == changed
    finally:
        pipe.unet.set_attn_processor(ours)


# Motion, windows, sizes


def test_pinned_regions_hold_still_and_free_ones_move(pipe):
    masks = [
        {
            "prompt": "a wheat field",
            "mask": {"kind": "split", "axis": "x", "from": 0, "to": 0.3, "feather": 0.1},
        },
        {"prompt": "an ocean", "mask": {"kind": "split", "axis": "x", "from": 0.7, "to": 1, "feather": 0.1}},
    ]
    frames = images(pipe, {**FULL, "concepts": masks}, size=(64, 256), steps=8)
    stack = np.stack([frames[i] for i in sorted(frames)])
    moved = np.abs(np.diff(stack, axis=0)).mean((0, 1, 3))
    assert moved[96:160].mean() > 5 * moved[[*range(40), *range(216, 256)]].mean()


def test_outside_the_window_the_base_is_alone(pipe):
    never = still(pipe, {"concepts": TWO, "blend": {"start": 0.0, "end": 0.0}})
    assert close(never, plain(pipe, "a marsh"))
    late = still(pipe, {"concepts": TWO, "blend": {"start": 0.5}})
    always = still(pipe, {"concepts": TWO})
    assert not close(late, never, levels=20) and not close(late, always, levels=20)


@pytest.mark.parametrize("size", [(72, 136), (8, 64), (104, 56)])
def test_sizes_that_are_no_multiple_of_64(pipe, size):
    assert still(pipe, FULL, size=size, frames=[0]).shape == (*size, 3)


def test_a_size_that_is_no_multiple_of_8_is_refused(pipe):
    with pytest.raises(ValueError, match="width: expected a multiple of 8 pixels, got 100"):
        still(pipe, {}, size=(64, 100))


def test_progress_counts_frames_and_steps(pipe):
    reports = []
    images(pipe, {**FULL, "animation": {"frames": 3}}, batch_size=2, on_step=reports.append)
    assert [report.frames for report in reports] == [0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0]
    assert dataclasses.asdict(reports[-1]) == {"done": 2, "batch": 1, "total": 3, "fraction": 1.0}


def test_the_invariants_hold_in_bfloat16():
    half = load_pipeline(device="cpu", dtype=torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    assert close(still(half, {}), plain(half, "a marsh"), levels=3)
    assert close(still(half, {"concepts": [{"prompt": "snow"}]}), plain(half, "snow"), levels=3)
    first, second = images(half, FULL, frames=[0, 3]).values()
    assert not close(first, second, levels=20)


# Encoding


@pytest.mark.parametrize("prompt", ["", "a wheat field", "a dark ocean, bright stars"])
def test_short_prompts_are_encoded_as_the_pipeline_does(pipe, prompt):
    expected, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
    assert torch.equal(encode(pipe, [prompt])[prompt].context, expected[0])


def test_long_prompts_become_chunks_of_77_tokens(pipe):
    context = encode(pipe, [LONG_PROMPT])[LONG_PROMPT].context
    assert context.shape[0] % 77 == 0 and context.shape[0] > 77
    assert not torch.equal(context[1:77], context[78:154])


def test_every_vector_of_a_textual_inversion_acts(tmp_path):
    pipe = load_pipeline(device="cpu")
    width = pipe.text_encoder.config.hidden_size
    vectors = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    pipe.load_textual_inversion({"<ours>": vectors})
    expected, _ = pipe.encode_prompt("a <ours> field", "cpu", 1, False)
    assert torch.equal(encode(pipe, ["a <ours> field"])["a <ours> field"].context, expected[0])
    assert len(pipe.tokenizer(pipe.maybe_convert_prompt("<ours>", pipe.tokenizer)).input_ids) == 5


def test_fused_projections(pipe):
    fused = load_pipeline(device="cpu")
    fused.unet.fuse_qkv_projections()
    assert close(still(fused, FULL, frames=[0]), still(pipe, FULL, frames=[0]))


def _offloaded(how: str):
    """A pipeline whose weights lie elsewhere than where it computes, as far as a machine without a GPU can."""
    pipe = load_pipeline(device="cpu")
    if how == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif how == "group":
        device = torch.device("cpu")
        pipe.unet.enable_group_offload(onload_device=device, offload_device=device, offload_type="leaf_level")
    else:
        # What `enable_sequential_cpu_offload` does to each part. That itself fails here, in the pipeline alone too.
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
        assert pipe.unet.conv_in.weight.is_meta
    return pipe


@pytest.mark.parametrize("how", ["model", "sequential", "group"])
def test_offloaded_weights(pipe, how):
    offloaded = _offloaded(how)
    assert close(still(offloaded, FULL, frames=[0]), still(pipe, FULL, frames=[0]))
    text = {"num_inference_steps": 1, "height": 64, "width": 64, "output_type": "np"}
    assert offloaded("an ocean", **text).images.std() > 0  # and works as before


# Loading


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at .*nowhere"):
        load_pipeline(tmp_path / "nowhere")


def test_a_single_file_is_the_folder_it_came_from(pipe, tmp_path):
    """The SD1 layout, with the configuration in a folder of the same name beside it."""
    export_single_file.export(builtin_model(), tmp_path, name="textures")
    shutil.copytree(builtin_model(), tmp_path / "textures", ignore=shutil.ignore_patterns("*.safetensors"))
    loaded = load_pipeline(tmp_path / "textures.safetensors", device="cpu")
    assert close(still(loaded, {"concepts": TWO}), still(pipe, {"concepts": TWO}))


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="a pickle .* expected a .safetensors file"):
        load_pipeline(path)
