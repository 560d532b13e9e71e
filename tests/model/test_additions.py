"""What people add to a model: LoRA, textual inversion, sampler, clip skip, VAE; small files made for the built-in
model."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lib_masknoise import builtin_model, networks
from lib_masknoise.__main__ import main
from lib_masknoise.errors import ModelError
from lib_masknoise.hosts.diffusers import additions, encode, load_pipeline, render
from lib_masknoise.scene import Scene

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OF_TEXT = "encoder.layers.0.self_attn.q_proj"
FULL = Scene.parse({"concepts": [{"prompt": "an ocean"}]})


def pairs(pipe, rank=4, alpha=2.0):
    """Random down, up and α of two layers, by their names."""
    random = torch.Generator().manual_seed(0)
    layers = {"unet": pipe.unet.get_submodule(LAYER), "te": _text_layer(pipe)}
    return {
        name: (
            torch.randn(rank, layer.in_features, generator=random),
            torch.randn(layer.out_features, rank, generator=random),
            torch.tensor(alpha),
        )
        for name, layer in layers.items()
    }


def _text_layer(pipe):
    encoder = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    return encoder.get_submodule(OF_TEXT)


def kohya(made, folder, name="style"):
    tensors = {}
    names = {"unet": f"lora_unet_{LAYER}", "te": f"lora_te_text_model.{OF_TEXT}"}
    for part, (down, up, alpha) in made.items():
        flat = names[part].replace(".", "_")
        tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": alpha}
    save_file(tensors, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def diffusers_names(made, folder, down="lora_A", up="lora_B"):
    names = {"unet": f"unet.{LAYER}", "te": f"text_encoder.text_model.{OF_TEXT}"}
    tensors = {}
    for part, (one, other, _) in made.items():
        tensors |= {f"{names[part]}.{down}.weight": one, f"{names[part]}.{up}.weight": other}
    save_file(tensors, folder / "peft.safetensors")
    return str(folder / "peft.safetensors")


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(autouse=True)
def as_before(pipe):
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    yield
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.unet.state_dict().items())
    additions.tell(pipe, additions.source(pipe), (), 1)


def picture(pipe, prompt="a forest", scene=FULL, **options):
    (frame,) = render(pipe, scene, prompt, steps=2, size=(64, 64), **options)
    return torch.tensor(list(frame.image.tobytes()))


# --- LoRA


def test_a_lora_is_added_to_the_weights(pipe, tmp_path):
    made = pairs(pipe)
    merged = load_pipeline(loras=[(kohya(made, tmp_path), 0.8)])
    for part, layer in {"unet": merged.unet.get_submodule(LAYER), "te": _text_layer(merged)}.items():
        before = {"unet": pipe.unet.get_submodule(LAYER), "te": _text_layer(pipe)}[part].weight
        down, up, alpha = made[part]
        expected = before.double() + 0.8 * (alpha / len(down)).double() * up.double() @ down.double()
        assert (layer.weight - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "names", [("lora_A", "lora_B"), ("lora.down", "lora.up"), ("lora_linear_layer.down", "lora_linear_layer.up")]
)
def test_diffusers_names_are_the_same_layers(pipe, tmp_path, names):
    made = pairs(pipe, alpha=4.0)  # as much as the rank: no scale
    one = load_pipeline(loras=[(kohya(made, tmp_path), 1.0)])
    other = load_pipeline(loras=[(diffusers_names(made, tmp_path, *names), 1.0)])
    assert torch.equal(one.unet.get_submodule(LAYER).weight, other.unet.get_submodule(LAYER).weight)
    assert torch.equal(_text_layer(one).weight, _text_layer(other).weight)


def test_a_prompt_s_lora_lasts_as_long_as_its_render(pipe, tmp_path):
    """Wherever it is named; afterwards the weights are as before, to the bit (`as_before`)."""
    merged = load_pipeline(loras=[(kohya(pairs(pipe), tmp_path), 0.5)])
    additions.tell(pipe, additions.source(pipe), [str(tmp_path)], 1)
    plain, expected = picture(pipe), picture(merged)
    assert not torch.equal(plain, expected)
    assert torch.equal(picture(pipe, "a forest<lora:style:0.5>"), expected)
    named = Scene.parse({"concepts": [{"prompt": "an ocean<lora:style:0.5>"}]})
    assert torch.equal(picture(pipe, scene=named), expected)
    assert torch.equal(picture(pipe), plain)
    off = Scene.parse({"enabled": False})
    assert torch.equal(picture(pipe, "a forest<lora:style:0.5>", off), picture(merged, scene=off))


def test_an_exception_takes_a_prompt_s_lora_out_again(pipe, tmp_path):
    kohya(pairs(pipe), tmp_path)
    additions.tell(pipe, additions.source(pipe), [str(tmp_path)], 1)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        picture(pipe, "a forest<lora:style:2>", on_step=stop)


# --- Textual inversion


def test_an_embedding_is_the_words_it_is_made_of(pipe, tmp_path):
    ids = pipe.tokenizer("an ocean", add_special_tokens=False).input_ids
    vectors = pipe.text_encoder.get_input_embeddings().weight[ids].detach().clone()
    save_file({"emb_params": vectors}, tmp_path / "mywater.safetensors")
    learned = load_pipeline(embeddings=[str(tmp_path / "mywater.safetensors")])
    expected = encode(pipe, ["an ocean"])["an ocean"].context
    assert torch.allclose(encode(learned, ["mywater"])["mywater"].context, expected, atol=1e-5)


# --- Sampler, clip skip, VAE


def test_every_sampler_s_name_makes_a_picture(pipe):
    before = pipe.scheduler
    pictures = {}
    try:
        for name in additions.sampler_names():
            pipe.scheduler = additions.scheduler(name.upper(), before)
            assert pipe.scheduler.config.beta_end == before.config.beta_end
            pictures[name] = picture(pipe)
    finally:
        pipe.scheduler = before
    assert torch.equal(pictures["Euler"], picture(pipe)), "the built-in model's own"
    assert not torch.equal(pictures["Euler a"], pictures["Euler"])
    assert not torch.equal(pictures["DPM++ 2M Karras"], pictures["DPM++ 2M"])


def test_clip_skip_reads_an_earlier_layer(pipe):
    plain = encode(pipe, ["an ocean"])["an ocean"].context
    additions.tell(pipe, additions.source(pipe), (), 2)
    earlier = encode(pipe, ["an ocean"])["an ocean"].context
    encoder = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    ids = pipe.tokenizer("an ocean", padding="max_length", return_tensors="pt").input_ids
    layers = []
    hook = encoder.encoder.layers[0].register_forward_hook(lambda layer, given, made: layers.append(made))
    pipe.text_encoder(ids)
    hook.remove()
    first = layers[0] if isinstance(layers[0], torch.Tensor) else layers[0][0]
    assert torch.allclose(earlier, encoder.final_layer_norm(first)[0], atol=1e-5)
    assert not torch.allclose(earlier, plain, atol=1e-2)
    off = Scene.parse({"enabled": False})
    assert torch.allclose(picture(pipe, scene=off).float(), picture(pipe, scene=Scene()).float(), atol=1)


def test_another_vae_decodes(pipe, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in pipe.vae.state_dict().items()}
    tensors["decoder.conv_out.bias"] += 0.5
    save_file(tensors, tmp_path / "bright.safetensors")
    bright = load_pipeline(vae=str(tmp_path / "bright.safetensors"))
    assert picture(bright).float().mean() > picture(pipe).float().mean() + 20
    assert torch.equal(picture(load_pipeline(vae=str(builtin_model()))), picture(pipe)), "of a model's folder, its own"


# --- What is wrong


def wrong(pipe, tmp_path):
    made = pairs(pipe)
    lora = kohya(made, tmp_path, "right")
    other = kohya({"unet": (torch.ones(4, 7), torch.ones(5, 4), torch.tensor(4.0))}, tmp_path, "other")
    save_file({"lora_unet_x_y.lora_down.weight": torch.ones(2, 2), "lora_unet_x_y.lora_up.weight": torch.ones(2, 2)},
              tmp_path / "strange.safetensors")  # fmt: skip
    save_file({"lora_unet_a.hada_w1_a": torch.ones(2, 2)}, tmp_path / "loha.safetensors")
    save_file({"emb_params": torch.ones(1, 7)}, tmp_path / "wide.safetensors")
    (tmp_path / "old.pt").write_bytes(b"\x80\x02")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "right.safetensors").read_bytes()[:-9])
    vae = str(builtin_model() / "vae" / "diffusion_pytorch_model.safetensors")
    where = str(tmp_path)
    return {
        "no such LoRA": (["--lora", f"{where}/none.safetensors:0.5"], "no file", "expected a LoRA"),
        "a VAE as LoRA": (["--lora", vae], "seems to be a VAE", "expected a LoRA"),
        "other sizes": (["--lora", other], "another architecture", "5×7"),
        "other layers": (["--lora", f"{where}/strange.safetensors"], "another architecture", "no layer lora_unet_x_y"),
        "a LoHa": (["--lora", f"{where}/loha.safetensors"], "a LoHa", "expected a LoRA"),
        "cut off": (["--lora", f"{where}/cut.safetensors"], "cut off at byte", ""),
        "a LoRA as embedding": (["--embedding", lora], "seems to be a LoRA", "expected a textual inversion"),
        "another width": (["--embedding", f"{where}/wide.safetensors"], "another architecture", "64"),
        "a pickle": (["--embedding", f"{where}/old.pt"], "a pickle", ".safetensors"),
        "a LoRA as VAE": (["--vae", lora], "seems to be a LoRA", "expected a VAE"),
        "an empty folder": (["--vae", where + "/empty"], "", "VAE"),
        "no such sampler": (["--sampler", "Eler"], "expected one of Euler, ", "'Eler'"),
        "too much clip skip": (["--clip-skip", "9"], "expected 1 to 2", "9"),
        "a LoRA that is nowhere": (
            ["--prompt", "a <lora:nowhere:1>", "--lora-dir", where], "no file nowhere.safetensors", where,
        ),
        "a weight that is none": (["--prompt", "a <lora:right:much>", "--lora-dir", where], "finite number", "'much'"),
    }  # fmt: skip


def test_what_is_wrong_is_said_in_one_line(pipe, tmp_path, capsys):
    scene = tmp_path / "scene.json"
    scene.write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, (options, *words) in wrong(pipe, tmp_path).items():
        code = main(["render", str(scene), "--out", str(tmp_path / "out"), "--steps", "1", *options])
        said = capsys.readouterr().err.strip()
        lines = [line for line in said.splitlines() if "Loading" not in line]
        assert code == 2 and len(lines) == 1, (name, said)
        assert all(word in lines[0] for word in words), (name, lines[0])
    with pytest.raises(ModelError):
        additions.add_lora(pipe, networks.Lora(str(tmp_path / "other.safetensors")))


# --- The command line, and going on


def test_what_is_added_is_part_of_the_render_s_identity(pipe, tmp_path, capsys):
    scene = tmp_path / "scene.json"
    scene.write_text(json.dumps({"concepts": [{"prompt": "an ocean<lora:style:0.5>"}]}))
    file = kohya(pairs(pipe), tmp_path)
    out = tmp_path / "out"
    command = ["render", str(scene), "--out", str(out), "--steps", "1", "--size", "64x64", "--lora-dir", str(tmp_path)]
    more = ["--sampler", "DDIM", "--clip-skip", "2"]
    assert main([*command, *more]) == 0
    settings = json.loads((out / "job.json").read_text())["settings"]
    assert (settings["sampler"], settings["clip_skip"]) == ("DDIM", 2)
    assert main([*command, *more, "--resume"]) == 0
    assert main([*command, "--sampler", "DDIM", "--resume"]) == 2
    assert "settings.clip_skip" in capsys.readouterr().err
    kohya(pairs(pipe, alpha=1.0), tmp_path)
    assert main([*command, *more, "--resume"]) == 2
    assert f"model.lora/{file.rpartition('/')[2]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, file, weight",
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("C:\\a.safetensors", "C:\\a.safetensors", 1.0),
        ("a.safetensors:-1", "a.safetensors", -1.0),
    ],
)
def test_a_lora_on_the_command_line(text, file, weight):
    assert networks.lora(text) == (file, weight)


def test_the_first_to_name_a_lora_decides():
    assert networks.tags(["a <lora:x:0.5> b<lora:y>", "<lora:x:2>"]) == {"x": 0.5, "y": 1.0}
    assert networks.without_tags("a <lora:x:0.5:0.3> b") == "a  b"
