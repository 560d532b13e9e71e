"""Stable Diffusion 2 and XL: pipelines of their layout with random weights. They tell that the arithmetic is right."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lib_masknoise import builtin_model
from lib_masknoise.hosts.diffusers import encode, load_pipeline, render
from lib_masknoise.scene import Scene

SIZE, STEPS = (64, 96), 3


def text_config(width: int, projection: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=projection,
        bos_token_id=0,
        eos_token_id=2,
    )


def unet(width: int, **options) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        norm_num_groups=8,
        **options,
    )


def common() -> dict:
    # A random decoder is almost flat: stretched, so that a difference in the latent is one in the picture.
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 20
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    tokenizer = CLIPTokenizer.from_pretrained(builtin_model() / "tokenizer")
    return {"vae": vae, "scheduler": scheduler, "tokenizer": tokenizer}


def stable_diffusion_2() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        **common(),
        unet=unet(40, attention_head_dim=(4, 8), use_linear_projection=True),
        text_encoder=CLIPTextModel(text_config(40)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    parts = common()
    pipe = StableDiffusionXLPipeline(
        **parts,
        tokenizer_2=parts["tokenizer"],
        text_encoder=CLIPTextModel(text_config(24)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(32, projection=32)),
        unet=unet(
            56,
            attention_head_dim=(4, 8),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=[stable_diffusion_2, stable_diffusion_xl], ids=["sd2", "sdxl"])
def random_pipe(request):
    return request.param()


def plain(pipe, prompt, negative_prompt="", guidance_scale=5.0):
    return pipe(
        prompt,
        negative_prompt=negative_prompt,
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]


def ours(pipe, scene, prompt, negative_prompt="", guidance_scale=5.0, **options):
    frames = render(
        pipe, Scene.parse(scene), prompt, negative_prompt,
        seed=3, steps=STEPS, size=SIZE, guidance_scale=guidance_scale, **options,
    )  # fmt: skip
    return [np.asarray(frame.image) / 255 for frame in frames]


def close(a, b):
    return np.abs(a - b).max() < 1.5 / 255


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_one_full_concept_is_plain_generation_with_its_prompt(random_pipe, guidance_scale):
    scene = {"concepts": [{"prompt": "a wheat field", "negative": "snow"}]}
    image = ours(random_pipe, scene, "an ocean", "lava", guidance_scale)[0]
    assert close(image, plain(random_pipe, "a wheat field", "snow", guidance_scale))
    assert not close(image, plain(random_pipe, "an ocean", "lava", guidance_scale))


def test_a_neutral_scene_is_the_host_alone_up_to_rounding(random_pipe):
    assert close(ours(random_pipe, {}, "an ocean", "lava")[0], plain(random_pipe, "an ocean", "lava"))


def test_noise_and_two_concepts_of_any_length_render(random_pipe):
    scene = {
        "concepts": [
            {"prompt": "a wheat field " * 40, "mask": {"kind": "split", "axis": "x", "from": 0, "to": 0.5}},
            {
                "prompt": "an ocean",
                "weight": 1.3,
                "mask": {"kind": "ellipse", "x": 0.7, "rx": 0.2, "feather": 0.2},
            },
        ],
        "noise": {
            "visual": {"strength": 0.5},
            "concept": {"strength": 0.5},
            "feature": {"strength": 0.5, "dimensions": "0-15"},
        },
        "motion": {"kind": "walk"},
        "animation": {"frames": 2},
    }
    first, second = ours(random_pipe, scene, "a marsh")
    assert np.isfinite(first).all() and not close(first, second)


def test_prompts_are_encoded_as_the_pipeline_does(random_pipe):
    expected = random_pipe.encode_prompt(
        "an ocean", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    encoded = encode(random_pipe, ["an ocean"])["an ocean"]
    assert torch.equal(encoded.context, expected[0][0])
    if encoded.pooled is not None:
        assert torch.equal(encoded.pooled, expected[2][0])


def test_a_saved_folder_loads(random_pipe, tmp_path):
    random_pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, device="cpu")
    assert type(loaded) is type(random_pipe)
    assert close(plain(loaded, "an ocean"), plain(random_pipe, "an ocean"))
