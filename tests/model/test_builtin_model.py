"""The built-in model: loads offline, draws what the prompt says, stays small, exports to the SD1 layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402

from tools.small_model import export_single_file  # noqa: E402
from tools.small_model.networks import MODEL  # noqa: E402
from tools.small_model.patch_classifier import WEIGHTS, PatchClassifier  # noqa: E402

MEGABYTE = 1_000_000

# Names and shapes that A1111, Forge and other readers of SD1 files look for.
ANCHORS = {
    "model.diffusion_model.input_blocks.0.0.weight": [64, 4, 3, 3],
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [64, 64],
    "model.diffusion_model.input_blocks.2.0.op.weight": [64, 64, 3, 3],
    "model.diffusion_model.input_blocks.3.0.skip_connection.weight": [128, 64, 1, 1],
    "model.diffusion_model.middle_block.1.proj_in.weight": [128, 128, 1, 1],
    "model.diffusion_model.output_blocks.1.2.conv.weight": [128, 128, 3, 3],
    "model.diffusion_model.output_blocks.3.0.in_layers.2.weight": [64, 128, 3, 3],
    "model.diffusion_model.time_embed.0.weight": [256, 64],
    "model.diffusion_model.out.2.weight": [4, 64, 3, 3],
    "first_stage_model.encoder.mid.attn_1.q.weight": [64, 64, 1, 1],
    "first_stage_model.decoder.up.3.upsample.conv.weight": [64, 64, 3, 3],
    "first_stage_model.quant_conv.weight": [8, 8, 1, 1],
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": [49408, 64],
    "cond_stage_model.transformer.text_model.embeddings.position_ids": [1, 77],
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": [64],
    "alphas_cumprod": [1000],
}


@pytest.fixture(scope="module")
def pipeline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("concept", ["wheat field", "ocean", "night sky", "storm clouds"])
def test_draws_what_the_prompt_says(pipeline, concept):
    article = "an" if concept[0] in "aeiou" else "a"
    images = pipeline(
        [f"{article} {concept}"] * 2,
        height=128,
        width=128,
        num_inference_steps=20,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(1),
    ).images
    classifier = PatchClassifier()
    assert np.mean([classifier.fraction(np.asarray(image), concept) for image in images]) >= 0.9


def test_empty_prompt_and_unknown_words_give_finite_contexts(pipeline):
    prompts = ["", "a zebra playing the violin", "a wheat field " * 40]
    ids = pipeline.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        context = pipeline.text_encoder(ids.input_ids)[0]
    assert context.shape == (3, 77, 64)
    assert torch.isfinite(context).all()
    assert context.mean().abs() > 0.05  # the WebUI's "original" emphasis divides by the mean


def test_scheduler_is_that_of_the_training(pipeline):
    config = pipeline.scheduler.config
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert config.prediction_type == "epsilon"
    assert diffusers.DDIMScheduler.from_config(config).config.clip_sample is False


def test_is_small_enough_for_the_repository():
    files = [path for path in MODEL.rglob("*") if path.is_file()] + [WEIGHTS]
    assert sum(path.stat().st_size for path in files) <= 20 * MEGABYTE


def test_weights_are_half_precision_and_finite():
    for path in MODEL.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_tensor(name)
                assert tensor.dtype == torch.float16, name
                assert torch.isfinite(tensor).all(), name


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sd1")
    export_single_file.export(MODEL, folder)
    return folder / "textures.safetensors"


def test_export_has_the_names_and_shapes_of_sd1(exported):
    with safe_open(exported, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert {name: shapes.get(name) for name in ANCHORS} == ANCHORS
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model.")
    rest = {name for name in shapes if not name.startswith(prefixes)}
    assert rest == set(export_single_file.schedule_tensors())


def test_export_reads_back_as_the_same_tensors(exported):
    export_single_file.verify(exported, export_single_file.Parts.read(MODEL))


def test_verify_notices_a_changed_tensor(exported, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(exported)
    state["first_stage_model.decoder.conv_out.bias"] += 1
    save_file(state, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError, match="vae"):
        export_single_file.verify(tmp_path / "changed.safetensors", export_single_file.Parts.read(MODEL))


def test_export_writes_the_configuration_the_webui_reads(exported):
    yaml = exported.with_suffix(".yaml").read_text(encoding="utf-8")
    scale = export_single_file.read_config(MODEL, "vae")["scaling_factor"]
    for line in (
        f"scale_factor: {scale:.6f}",
        "model_channels: 64",
        "channel_mult: [1, 2]",
        "context_dim: 64",
    ):
        assert line in yaml
    names = {path.name for path in (exported.parent / "clip-tiny").iterdir()}
    assert {"config.json", "vocab.json", "merges.txt", "tokenizer_config.json"} <= names


# --- the wide export: the widths of SD 1.5, the same function


def _networks(parts):
    """(U-Net, VAE, text encoder) with the tensors of an export."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel.from_config(parts.unet_config)
    vae = AutoencoderKL.from_config(parts.vae_config)
    text = CLIPTextModel(CLIPTextConfig(**parts.text_config))
    long = any(name.startswith("text_model.") for name in text.state_dict())
    names = {name if long else name.removeprefix("text_model."): value for name, value in parts.text.items()}
    for network, state in ((unet, parts.unet), (vae, parts.vae), (text, names)):
        missing = network.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
        assert all(name.endswith("position_ids") for name in missing.missing_keys)
    return unet.eval(), vae.eval(), text.eval()


@pytest.fixture(scope="module")
def wide():
    return export_single_file.Parts.read(MODEL, wide=True)


@pytest.fixture(scope="module")
def both(wide):
    return _networks(export_single_file.Parts.read(MODEL)), _networks(wide)


# What Forge and Forge Neo recognise SD 1.5 by, and what they build without asking the file.
SD15 = {
    "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
    "model.diffusion_model.time_embed.0.weight": [1280, 320],
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": [256, 128, 1, 1],
    "first_stage_model.encoder.mid.attn_1.q.weight": [512, 512, 1, 1],
    "first_stage_model.decoder.up.3.block.2.conv2.weight": [512, 512, 3, 3],
    "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": [128, 256, 1, 1],
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": [49408, 768],
    "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": [3072, 768],
}


def test_wide_export_has_the_sizes_of_sd15(wide):
    state = wide.sd1
    assert {name: list(state[name].shape) for name in SD15} == SD15
    assert not any(".layers.12." in name for name in state)
    for line in ("model_channels: 320", "num_heads: 8", "context_dim: 768", "scale_factor: 0.18215", "ch: 128"):
        assert line in wide.yaml()


def test_wide_export_rounds_nothing(wide):
    """What is no copy of a number in half precision is float32."""
    scaled = {name for part in (wide.unet, wide.vae, wide.text) for name, v in part.items() if v.dtype == torch.float32}
    assert scaled and all("to_q." in name or "q_proj." in name or "quant_conv." in name for name in scaled)
    narrow = export_single_file.Parts.read(MODEL)
    weight = narrow.unet["conv_in.weight"]
    assert torch.equal(wide.unet["conv_in.weight"][::5], weight) and torch.equal(
        wide.unet["conv_in.weight"][4::5], weight
    )


@torch.no_grad()
def test_wide_text_encoder_says_the_same(both):
    """12 copies of each number, at the end and, for "Clip skip" 2, a layer before it."""
    ids = torch.tensor([[49406, 320, 4518, 1823, 320, 2573, 49407] + 70 * [49407]])
    narrow, broad = (networks[2](ids, output_hidden_states=True).hidden_states for networks in both)
    for layer in (-1, -2):
        torch.testing.assert_close(broad[layer], narrow[layer].repeat_interleave(12, -1), rtol=0, atol=2e-5)
    assert narrow[-1].std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("timestep", [999, 500, 1])
def test_wide_unet_predicts_the_same(both, timestep):
    generator = torch.Generator().manual_seed(3)
    latents, context = (torch.randn(shape, generator=generator) for shape in ((2, 4, 16, 24), (2, 77, 64)))
    narrow = both[0][0](latents, timestep, context).sample
    broad = both[1][0](latents, timestep, context.repeat_interleave(12, -1)).sample
    torch.testing.assert_close(broad, narrow, rtol=0, atol=2e-5)


@torch.no_grad()
def test_wide_autoencoder_draws_and_reads_the_same(both):
    """With the latents' scale of SD 1.5, which is another than the model's own."""
    generator = torch.Generator().manual_seed(4)
    latents, image = torch.randn(1, 4, 8, 8, generator=generator), torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    (vae, scale), (broad, broad_scale) = ((networks[1], networks[1].config.scaling_factor) for networks in both)
    assert broad_scale == 0.18215 != scale
    torch.testing.assert_close(
        broad.decode(latents / broad_scale).sample, vae.decode(latents / scale).sample, rtol=0, atol=2e-5
    )
    narrow, wider = vae.encode(image).latent_dist, broad.encode(image).latent_dist
    torch.testing.assert_close(wider.mean * broad_scale, narrow.mean * scale, rtol=0, atol=2e-5)
    torch.testing.assert_close(wider.std * broad_scale, narrow.std * scale, rtol=1e-3, atol=1e-7)


def test_wide_file_reads_back_as_the_same_tensors(wide, tmp_path):
    weights, config, clip = export_single_file.export(MODEL, tmp_path, "wide", wide=True)
    export_single_file.verify(weights, wide)
    assert clip.name == "clip-wide" and f"version: {clip.name}" in config.read_text(encoding="utf-8")
    assert '"num_hidden_layers": 12' in (clip / "config.json").read_text(encoding="utf-8")


def test_widths_that_do_not_divide_are_refused():
    configs = [export_single_file.read_config(MODEL, part) for part in ("unet", "vae", "text_encoder")]
    configs[2]["hidden_size"] = 80
    with pytest.raises(ValueError, match="80 to 768"):
        export_single_file.widen.configs(*configs)
