"""The invariants of the design on transformers whose text and image change together, reduced and random."""

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", minversion="0.32")

from lib_masknoise.errors import ModelError  # noqa: E402
from lib_masknoise.hosts.diffusers import changing_text, load_pipeline  # noqa: E402
from lib_masknoise.hosts.diffusers.exploring import PipelineModel  # noqa: E402
from lib_masknoise.hosts.diffusers.families import family  # noqa: E402
from tests.model import random_pipelines  # noqa: E402
from tests.model.test_static_text import FULL, LEFT, RIGHT, SIZE, STEPS, TWO, close, images, state, still  # noqa: E402

TOKENS = 96
ONE_BY_ONE = ("QwenImagePipeline", "Flux2KleinPipeline", "Lumina2Pipeline")
"""Those that evaluate the sides of guidance one after the other."""


@pytest.fixture(scope="module", params=["flux", "sd3", "qwen", "flux2", "klein", "zimage", "lumina2"])
def pipe(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changing_text, "FLUX2_TOKENS", TOKENS)  # in place of 512, to be quick
        yield getattr(random_pipelines, request.param)()


def sampled(pipe, guidance_scale=4.0, **given):
    """A picture by the host alone."""
    if type(pipe).__name__ == "ZImagePipeline" and guidance_scale <= 1:
        guidance_scale = 0  # which is none there
    name = "true_cfg_scale" if type(pipe).__name__ == "QwenImagePipeline" else "guidance_scale"
    picture = pipe(
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        **{name: guidance_scale},
        **given,
    ).images[0]
    return (picture * 255).round().astype(int)


def plain(pipe, prompt, negative_prompt="", guidance_scale=4.0):
    """The host alone with a prompt."""
    texts = {"prompt": [prompt], "negative_prompt": [negative_prompt]}
    if type(pipe).__name__.startswith("Flux2"):
        texts = {"prompt": [prompt], "max_sequence_length": TOKENS}
        if type(pipe).__name__ == "Flux2KleinPipeline":
            texts["negative_prompt_embeds"] = pipe.encode_prompt(negative_prompt, max_sequence_length=TOKENS)[0]
    return sampled(pipe, guidance_scale, **texts)


def test_disabled_is_bit_identical_to_the_host_alone(pipe):
    before = state(pipe)
    assert np.array_equal(still(pipe, {**FULL, "enabled": False}, batch_size=1), plain(pipe, "a marsh"))
    assert state(pipe) == before


def test_a_neutral_scene_is_the_host_alone_up_to_rounding(pipe):
    assert close(still(pipe, {}, "a marsh", "blurry"), plain(pipe, "a marsh", "blurry"))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_one_full_concept_is_plain_generation_with_its_prompt(pipe, guidance_scale):
    scene = {"concepts": [{"prompt": "a dark forest", "negative": "snow"}]}
    ours = still(pipe, scene, "an ocean", "lava", guidance_scale=guidance_scale)
    assert close(ours, plain(pipe, "a dark forest", "snow", guidance_scale))
    assert not close(ours, plain(pipe, "an ocean", "lava", guidance_scale), levels=8)


def test_equal_concepts_under_soft_masks_are_plain_generation_with_their_prompt(pipe):
    same = [{"prompt": "a dark forest", "mask": mask} for mask in (LEFT, RIGHT)]
    assert close(still(pipe, {"concepts": same}, "a dark forest"), plain(pipe, "a dark forest"))


def test_one_side_may_have_more_texts_than_the_other(pipe):
    """Two concepts, and one negative prompt for all: the side with fewer texts is what it is alone."""
    same = [{"prompt": "a dark forest", "mask": mask, "negative": "snow"} for mask in (LEFT, RIGHT)]
    apart = [{**same[0], "prompt": "lava"}, same[1]]
    ours, other = (still(pipe, {"concepts": one}, "a dark forest", "snow") for one in (same, apart))
    assert close(ours, plain(pipe, "a dark forest", "snow"))
    assert not close(other, ours, levels=20)


def test_outside_the_window_the_base_is_alone(pipe):
    never = still(pipe, {"concepts": TWO, "blend": {"start": 0.0, "end": 0.0}})
    assert close(never, plain(pipe, "a marsh"))


def blends(monkeypatch, knots):
    """Another number of blends a pair, in all models."""
    for kind in (changing_text.JointBinding, changing_text._FluxBinding):
        monkeypatch.setattr(kind, "knots", knots)


def test_half_of_two_prompts_everywhere_is_the_blended_context(pipe, monkeypatch):
    """A constant map at a level: one text, whose context is the blend."""
    blends(monkeypatch, 1)
    scene = {"concepts": [{"prompt": "a forest", "weight": 0.5}]}
    assert close(still(pipe, scene, "an ocean", guidance_scale=1.0), of_context(pipe, "an ocean", "a forest", 0.5))


def of_context(pipe, prompt, other, share):
    """The host alone, with a blended context of two prompts of one length."""
    base, concept = family(pipe).encode([prompt, other]).values()
    context = torch.lerp(base.context, concept.context, share)
    given = {"prompt_embeds": [context] if type(pipe).__name__ == "ZImagePipeline" else context[None]}
    if type(pipe).__name__ == "Lumina2Pipeline":
        given["prompt_attention_mask"] = torch.ones(1, len(context), dtype=torch.long)
    if base.pooled is not None:
        given["pooled_prompt_embeds"] = torch.lerp(base.pooled, concept.pooled, share)[None]
    return sampled(pipe, 1.0, **given)


@pytest.mark.parametrize("base", ["an ocean", "a bright river of snow and lava and sky " * 3])
def test_a_prompt_of_another_length_stays_what_it_is(pipe, base):
    scene = {"concepts": [{"prompt": "a dark forest"}]}
    assert close(still(pipe, scene, base, "lava"), plain(pipe, "a dark forest", "lava"))


def test_a_frame_is_the_same_at_any_batch_size_and_order(pipe):
    scene = {**FULL, "noise": {key: FULL["noise"][key] for key in ("visual", "concept")}}
    together = images(pipe, scene, batch_size=3)
    alone = images(pipe, scene, batch_size=1, frames=[2, 0])
    assert all(close(image, together[index]) for index, image in alone.items())
    assert not close(together[0], together[1], levels=20)


@pytest.mark.parametrize("noise", ["visual", "concept"])
def test_each_noise_moves_what_is_free(pipe, noise):
    free = {"prompt": "lava", "mask": {"kind": "split", "from": 0.0, "to": 0.4, "feather": 0.3}}
    strength = {"strength": 1.0, **({"size": 1.0} if noise == "concept" else {})}
    scene = {"noise": {noise: strength}, "motion": {"kind": "circle"}, "animation": {"frames": 2}, "concepts": [free]}
    first, second = images(pipe, scene).values()
    assert not close(first, second, levels=2)


def test_one_evaluation_a_step_and_side(pipe):
    calls = []
    handle = pipe.transformer.register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        still(pipe, {"concepts": TWO})
    finally:
        handle.remove()
    assert len(calls) == STEPS * (1 + (type(pipe).__name__ in ONE_BY_ONE))


def test_an_exception_leaves_the_pipeline_as_it_was(pipe):
    before, reference = state(pipe), plain(pipe, "a marsh")

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images(pipe, {"concepts": TWO}, on_step=interrupt)
    assert state(pipe) == before
    assert np.array_equal(plain(pipe, "a marsh"), reference)


@pytest.mark.parametrize("weight", [-0.5, 1.5])
def test_a_weight_outside_0_and_1_extrapolates(pipe, weight):
    scene = {"concepts": [{"prompt": "a forest", "weight": weight}]}
    expected = of_context(pipe, "an ocean", "a forest", weight)
    assert close(still(pipe, scene, "an ocean", guidance_scale=1.0), expected)


def test_what_is_left_out_is_said(pipe):
    scene = {"noise": {"feature": {"strength": 0.5}}, "blend": {"preserve_norm": True}}
    with pytest.warns(UserWarning) as said:
        still(pipe, scene, "an ocean", "snow")
    messages = [str(one.message) for one in said]
    assert any(message.startswith("noise.feature: left out") for message in messages)
    assert any(message.startswith("blend.preserve_norm: left out") for message in messages)
    assert any("negative prompts" in message for message in messages) == (
        type(pipe).__name__ in ("FluxPipeline", "Flux2Pipeline")
    )


def test_views_say_what_they_take(pipe):
    with pytest.raises(ModelError, match=f"not a {type(pipe).__name__}"):
        PipelineModel(pipe)


def test_a_saved_folder_loads(pipe, tmp_path):
    random_pipelines.save(pipe, tmp_path)
    loaded = load_pipeline(tmp_path, device="cpu")
    assert type(loaded) is type(pipe)
    assert close(still(loaded, {"concepts": TWO}), still(pipe, {"concepts": TWO}))


def test_more_levels_mix_nearer_texts(pipe, monkeypatch):
    """What a place mixes lies nearer to what it is meant to see; the picture changes, the texts are more."""
    pictures = []
    for knots in (0, 1, 3):
        blends(monkeypatch, knots)
        pictures.append(still(pipe, {"concepts": TWO[:1]}, "an ocean"))
    assert not close(pictures[0], pictures[1], levels=2) and not close(pictures[1], pictures[2], levels=0)
