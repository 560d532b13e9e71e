"""The networks of the world's model: their sizes, fresh ones, and the diffusers folder made of trained ones.

    python -m tools.small_model.world_model --work DIR --out FOLDER        DIR/vae.pt and DIR/unet.pt

The layout is that of Stable Diffusion 1. The sizes divide those of 1.5: channels 64, 128, 192 are a fifth of 320, 640,
960; contexts of 96 an eighth of 768; the text encoder has twelve heads; every attention of the U-Net has
four, half of those of 1.5, as most of a step goes into them. A copy in which each channel is repeated, with further
heads of zeros, is therefore a model of the sizes that programs recognise. The autoencoder has room in any width
(`local_vae`).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from .local_vae import LocalVAE, to_autoencoder
from .networks import MODEL, UNET_FILE, save_weights, to_half

CONTEXT = 96
CHANNELS = (64, 128, 192)
HEADS = 4
TEXT = dict(
    vocab_size=49408, hidden_size=CONTEXT, intermediate_size=4 * CONTEXT, num_hidden_layers=3, num_attention_heads=12,
    max_position_embeddings=77, projection_dim=CONTEXT, hidden_act="quick_gelu", bos_token_id=49406, pad_token_id=49407,
    eos_token_id=2,
)  # fmt: skip
FINAL_BIAS = 0.15  # of the last layer norm: the WebUIs' "original" emphasis divides by a context's mean


def fresh_unet() -> UNet2DConditionModel:
    """A U-Net with random weights."""
    levels = len(CHANNELS)
    return UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=CHANNELS, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels, up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=CONTEXT, attention_head_dim=HEADS,
    )  # fmt: skip


def fresh_text() -> CLIPTextModel:
    """A text encoder with random weights and an empty embedding table."""
    text = CLIPTextModel(CLIPTextConfig(**TEXT))
    with torch.no_grad():
        text.get_input_embeddings().weight.zero_()
        norms = [module for name, module in text.named_modules() if name.endswith("final_layer_norm")]
        norms[-1].bias.fill_(FINAL_BIAS)
    return text


def write_folder(out: Path, vae: Path, unet: Path, template: Path = MODEL) -> None:
    """Write a diffusers folder. vae, unet: what the trainings wrote; template: a folder for tokenizer and schedule."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(template / name, out / name, dirs_exist_ok=True)
    shutil.copyfile(template / "model_index.json", out / "model_index.json")
    saved = torch.load(unet, map_location="cpu")
    nets = {"unet": fresh_unet(), "text_encoder": fresh_text()}
    for name, module in nets.items():
        module.load_state_dict(saved["average"][name])
        module.save_config(out / name) if name == "unet" else module.config.save_pretrained(out / name)
    save_weights(out, unet=nets["unet"], text=nets["text_encoder"])
    config, state = to_autoencoder(LocalVAE.load(vae), scaling_factor=saved["scale"])
    (out / "vae").mkdir(exist_ok=True)
    (out / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(to_half(state), out / "vae" / UNET_FILE, metadata={"format": "pt"})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a diffusers folder of the world's trained networks.")
    parser.add_argument("--work", type=Path, required=True, help="folder with vae.pt and unet.pt")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write_folder(args.out, args.work / "vae.pt", args.work / "unet.pt")


if __name__ == "__main__":
    main()
