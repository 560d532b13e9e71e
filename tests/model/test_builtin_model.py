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
    export_single_file.verify(exported, MODEL)


def test_verify_notices_a_changed_tensor(exported, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(exported)
    state["first_stage_model.decoder.conv_out.bias"] += 1
    save_file(state, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError, match="vae"):
        export_single_file.verify(tmp_path / "changed.safetensors", MODEL)


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
