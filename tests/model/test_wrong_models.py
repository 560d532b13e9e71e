"""What a person may take for a model: one line that says which file, what it seems to be, and what was expected."""

import json
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from lib_masknoise import builtin_model
from lib_masknoise.__main__ import main
from lib_masknoise.errors import BrokenOutput, ModelError
from lib_masknoise.hosts.diffusers import load_pipeline, render
from lib_masknoise.scene import Scene
from tests.model.test_diffusers import close, plain, still
from tools.small_model import export_single_file

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def safetensors(**shapes) -> bytes:
    """A file with tensors of these shapes, a byte each; names with dots as they are."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def checkpoint(channels: int) -> bytes:
    return safetensors(**{FIRST: [2, channels, 3, 3], "cond_stage_model.transformer.text_model.x": [1]})


WHOLE = checkpoint(4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.ckpt", b"x", r"a pickle \(\.ckpt\), which can run any code"),
        ("model.pt", b"x", "a pickle"),
        ("model.gguf", b"x", "expected a .safetensors file or a diffusers folder"),
        ("m.safetensors", b"", "an empty file"),
        ("m.safetensors", b"{}", "cut off at byte 2"),
        ("m.safetensors", bytes(range(200)), "not a safetensors file"),
        ("m.safetensors", bytes(range(7)) + b"\xff" * 60, "not a safetensors file"),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        ("m.safetensors", b"\n<!DOCTYPE html><html><body>Sign in", "an HTML page"),
        ("m.safetensors", pickle.dumps({"a": 1}), "a pickle by another name"),
        ("m.safetensors", b"PK\x03\x04" + bytes(60), "a pickle by another name"),
        ("m.safetensors", WHOLE[:40], r"cut off at byte 40, within its header"),
        ("m.safetensors", WHOLE[:-3], f"cut off at byte {len(WHOLE) - 3} of {len(WHOLE)}"),
        ("m.safetensors", struct.pack("<Q", 9) + b"{not json", "its header cannot be read"),
        ("m.safetensors", checkpoint(9), r"an inpainting model \(its U-Net takes 9 channels\)"),
        ("m.safetensors", safetensors(**{FIRST: [2, 9, 3, 3]}), "an inpainting model"),
        ("m.safetensors", checkpoint(8), "an instruct model"),
        ("m.safetensors", checkpoint(5), "takes 5 channels"),
        ("m.safetensors", safetensors(**{"lora_unet_down_blocks_0.lora_up.weight": [1]}), "seems to be a LoRA"),
        ("m.safetensors", safetensors(**{"first_stage_model.decoder.conv_in.weight": [1]}), "seems to be a VAE"),
        ("m.safetensors", safetensors(**{"decoder.up_blocks.0.resnets.0.conv1.weight": [1]}), "seems to be a VAE"),
        ("m.safetensors", safetensors(**{"text_model.encoder.layers.0.x": [1]}), "seems to be a text encoder"),
        ("m.safetensors", safetensors(**{"down_blocks.0.attentions.0.transformer_blocks.0.attn1.x": [1]}), "a U-Net"),
        ("m.safetensors", safetensors(**{"double_blocks.0.img_attn.x": [1]}), "another architecture, Flux"),
        ("m.safetensors", safetensors(**{"model.diffusion_model.joint_blocks.0.x": [1]}), "Stable Diffusion 3"),
        ("m.safetensors", safetensors(**{"control_model.input_blocks.0.x": [1]}), "seems to be a ControlNet"),
        ("m.safetensors", safetensors(**{"emb_params": [2, 4]}), "seems to be a textual inversion"),
        ("m.safetensors", safetensors(weights=[1]), r"no model that is known here \(it holds weights\)"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_model(tmp_path, capsys, name, content, message):
    path, scene = tmp_path / name, tmp_path / "scene.json"
    path.write_bytes(content)
    scene.write_text("{}")
    with pytest.raises(ModelError, match=message):
        load_pipeline(path)
    assert main(["render", str(scene), "--model", str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: ")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(builtin_model(), tmp_path / "model")


def edited(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / "unet"), "without the folder unet/"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "without the folder text_encoder/"),
        (lambda f: (f / "model_index.json").unlink(), "a folder without model_index.json"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json: not valid JSON"),
        (lambda f: edited(f / "model_index.json", _class_name="KolorsPipeline"), "holds a KolorsPipeline"),
        (lambda f: edited(f / "model_index.json", _class_name=["mine", "MyPipeline"]), "class of its own, MyPipeline"),
        (lambda f: edited(f / "unet" / "config.json", in_channels=9), "an inpainting model"),
        (lambda f: edited(f / "unet" / "config.json", in_channels=8), "an instruct model"),
        (lambda f: [p.unlink() for p in (f / "unet").glob("*.safetensors")], "no weights in unet/"),
        (
            lambda f: os.truncate(f / "unet" / "diffusion_pytorch_model.safetensors", 5000),
            "diffusion_pytorch_model.safetensors: cut off at byte 5,000",
        ),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(WHOLE),
            "of the weights of unet are missing",
        ),
    ],
)
def test_a_folder_that_is_no_model(folder, tmp_path, capsys, spoil, message):
    scene = tmp_path / "scene.json"
    scene.write_text("{}")
    spoil(folder)
    assert main(["render", str(scene), "--model", str(folder), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line and "--resume" not in line


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="a folder without model_index.json"):
        load_pipeline(tmp_path)


def test_a_folder_in_half_precision_only_loads(folder):
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert close(still(load_pipeline(folder, device="cpu"), {}), still(load_pipeline(device="cpu"), {}))


def test_an_ending_in_capitals_loads(tmp_path):
    export_single_file.export(builtin_model(), tmp_path, name="textures")
    shutil.copytree(builtin_model(), tmp_path / "textures", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "textures.safetensors").rename(tmp_path / "textures.SAFETENSORS")
    loaded = load_pipeline(tmp_path / "textures.SAFETENSORS", device="cpu")
    assert close(still(loaded, {}), still(load_pipeline(device="cpu"), {}))


@pytest.mark.parametrize("config", [{"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}])
def test_other_kinds_of_prediction_and_schedule(config):
    pipe = load_pipeline(device="cpu")
    options = {"timestep_spacing": "trailing", "prediction_type": "v_prediction", **config}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **options)
    assert close(still(pipe, {}), plain(pipe, "a marsh"))
    assert close(still(pipe, {"concepts": [{"prompt": "snow"}]}), plain(pipe, "snow"))


@pytest.mark.parametrize(
    ("part", "message"), [("unet", "not finite after step 1 of 3"), ("vae", "VAE gives numbers that are not finite")]
)
@pytest.mark.parametrize("data", [{}, {"enabled": False}])
def test_numbers_that_are_not_finite_are_no_picture(part, message, data):
    pipe = load_pipeline(device="cpu")
    with torch.no_grad():
        next(getattr(pipe, part).parameters()).fill_(float("nan"))
    if part == "vae":
        with torch.no_grad():
            pipe.vae.decoder.conv_in.weight.fill_(float("nan"))
    with pytest.raises(BrokenOutput, match=message):
        list(render(pipe, Scene.parse(data), steps=3, size=(64, 64)))


def test_a_broken_model_ends_a_render_with_its_step_and_keeps_nothing_black(folder, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: t * float("nan") for name, t in load_file(path).items()}, path, {"format": "pt"})
    scene, out = tmp_path / "scene.json", tmp_path / "out"
    scene.write_text("{}")
    command = ["render", str(scene), "--model", str(folder), "--steps", "2", "--size", "64x64", "--out", str(out)]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line == f"{folder}: the model's numbers are not finite after step 1 of 2"
    assert not list(out.rglob("*.png"))


def test_a_file_in_the_place_of_the_output_folder(tmp_path, capsys):
    scene = tmp_path / "scene.json"
    scene.write_text("{}")
    assert main(["render", str(scene), "--out", str(scene)]) == 2
    assert "expected a folder to write to" in capsys.readouterr().err


def test_a_scene_from_standard_input(monkeypatch, capsys):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"concepts": [{"prompt": "x"}]}')))
    assert main(["check", "-"]) == 0 and capsys.readouterr().out == "standard input: a valid scene\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{")))
    assert main(["check", "-"]) == 2
