"""Write the model as one SD1 checkpoint, as WebUIs load it.

    python -m tools.small_model.export_single_file --out DIR [--wide] [--clip FOLDER]

gives `DIR/textures.safetensors` (half precision, the original Stable Diffusion names; 17 MB), `DIR/textures.yaml`
(the configuration that A1111 and reForge read beside a checkpoint) and `DIR/clip-tiny/` (configuration and
tokenizer of the text encoder). The yaml's `version` names that folder; `--clip` writes another path there,
since the WebUI resolves it from its own working directory. The written file is read back and compared
tensor by tensor.

Forge and Forge Neo read no sizes from a yaml: they know a model by its widths, and refuse this one ("Failed to
recognize model type"). `--wide` writes the same function in the widths of SD 1.5 (widen.py):
`DIR/textures-wide.safetensors` (0.64 GB), which these load, and yaml and `DIR/clip-wide/` for A1111.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from . import layout, widen
from .local_vae import from_autoencoder, to_autoencoder
from .networks import MODEL, read_config, read_weights
from .sampling import BETA_END, BETA_START, TRAIN_STEPS

NAME = "textures"
CLIP_FOLDER = "clip-tiny"
WIDE_NAME = "textures-wide"
WIDE_CLIP_FOLDER = "clip-wide"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
YAML = """model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: {latent_size}
    channels: {latent_channels}
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {scale:.6f}
    use_ema: False

    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32 # unused
        in_channels: {latent_channels}
        out_channels: {latent_channels}
        model_channels: {channels}
        attention_resolutions: {attention}
        num_res_blocks: {layers}
        channel_mult: {multipliers}
        num_heads: {heads}
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: {context}
        use_checkpoint: False
        legacy: False

    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: {latent_channels}
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: {latent_channels}
          resolution: {image_size}
          in_channels: 3
          out_ch: 3
          ch: {vae_channels}
          ch_mult: {vae_multipliers}
          num_res_blocks: {vae_layers}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity

    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {clip}
        device: cpu
        max_length: {length}
        layer: last
"""


def schedule_tensors() -> dict[str, torch.Tensor]:
    """The `[1000]` float32 tables of the noise schedule that SD1 checkpoints carry."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    alphas = 1 - betas
    power = alphas.cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), power[:-1]])
    variance = betas * (1 - before) / (1 - power)
    tables = {
        "betas": betas,
        "alphas_cumprod": power,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": power.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - power).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - power).log(),
        "sqrt_recip_alphas_cumprod": (1 / power).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / power - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - power),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - power),
    }
    return {name: table.float() for name, table in tables.items()}


def sd1_vae(model: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Configuration and state dict of a folder's autoencoder as SD1 programs build it: 32 groups, with attention."""
    config, state = read_config(model, "vae"), read_weights(model, "vae")
    if config["norm_num_groups"] == 32:
        return config, state
    local = from_autoencoder(config, state)
    scale, size = config["scaling_factor"], config["sample_size"]
    config, state = to_autoencoder(local, groups=32, scaling_factor=scale)
    return {**config, "sample_size": size}, state


@dataclass(frozen=True)
class Parts:
    """The three networks of a model as they are written: tensors by diffusers' names, and configurations."""

    unet: dict[str, torch.Tensor]
    vae: dict[str, torch.Tensor]
    text: dict[str, torch.Tensor]
    unet_config: dict
    vae_config: dict
    text_config: dict

    @classmethod
    def read(cls, model: Path, wide: bool = False) -> Parts:
        """Of a diffusers folder, in half precision; wide: in the widths of SD 1.5 (see widen.py)."""
        configs = [read_config(model, "unet"), sd1_vae(model)[0], read_config(model, "text_encoder")]
        given = (read_weights(model, "unet"), sd1_vae(model)[1], read_weights(model, "text_encoder"))
        states = [{key: value.half() for key, value in state.items()} for state in given]
        if wide:
            broad = widen.configs(*configs)
            networks = (widen.unet, widen.vae, widen.text)
            states = [make(*three) for make, *three in zip(networks, states, configs, broad, strict=True)]
            configs = list(broad)
        return cls(*states, *configs)

    @property
    def sd1(self) -> dict[str, torch.Tensor]:
        """The whole SD1 state dict."""
        state = layout.to_sd1(self.unet, self.vae, self.text, self.unet_config, self.vae_config)
        return {**state, **schedule_tensors()}

    def yaml(self, clip: str = CLIP_FOLDER) -> str:
        """The SD1 configuration; clip: what the text encoder's `version` should say."""
        unet, vae = self.unet_config, self.vae_config
        channels, vae_channels = unet["block_out_channels"], vae["block_out_channels"]
        cross = [2**i for i, kind in enumerate(unet["down_block_types"]) if kind.startswith("CrossAttn")]
        return YAML.format(
            latent_size=unet["sample_size"],
            latent_channels=unet["in_channels"],
            scale=vae["scaling_factor"],
            channels=channels[0],
            attention=cross,
            layers=unet["layers_per_block"],
            multipliers=[c // channels[0] for c in channels],
            heads=unet["attention_head_dim"],
            context=unet["cross_attention_dim"],
            image_size=vae["sample_size"],
            vae_channels=vae_channels[0],
            vae_multipliers=[c // vae_channels[0] for c in vae_channels],
            vae_layers=vae["layers_per_block"],
            clip=clip,
            length=self.text_config["max_position_embeddings"],
        )


def from_single_file(path: Path, unet_config: dict, vae_config: dict) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts {unet, vae, text_encoder} of an SD1 file with the sizes of the configurations."""
    with torch.device("meta"):  # only the names are needed
        unet_keys = UNet2DConditionModel.from_config(unet_config).state_dict().keys()
        vae_keys = AutoencoderKL.from_config(vae_config).state_dict().keys()
    parts = layout.from_sd1(load_file(path), unet_keys, vae_keys, unet_config, vae_config)
    return dict(zip(("unet", "vae", "text_encoder"), parts, strict=True))


def verify(path: Path, parts: Parts) -> None:
    """Raise ValueError where the file, read back into diffusers' layout, differs from the networks."""
    originals = {"unet": parts.unet, "vae": parts.vae, "text_encoder": parts.text}
    for part, state in from_single_file(path, parts.unet_config, parts.vae_config).items():
        original = originals[part]
        if state.keys() != original.keys():
            raise ValueError(f"{part}: other parameters: {sorted(state.keys() ^ original.keys())[:3]}")
        changed = [key for key, value in state.items() if not torch.equal(value, original[key])]
        if changed:
            raise ValueError(f"{part}: changed on the way: {changed[:3]}")


def export(model: Path, out: Path, name: str = NAME, clip: str | None = None, wide: bool = False) -> list[Path]:
    """Write checkpoint, yaml and text-encoder folder into `out`; returns what was written.

    clip: what the yaml gives for the text encoder, by default the folder's name. wide: see `Parts.read`.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = Parts.read(model, wide)
    clip_folder = out / (WIDE_CLIP_FOLDER if wide else CLIP_FOLDER)
    weights, config = out / f"{name}.safetensors", out / f"{name}.yaml"
    save_file(parts.sd1, weights, metadata={"format": "pt"})
    verify(weights, parts)
    config.write_text(parts.yaml(clip or clip_folder.name), encoding="utf-8")
    clip_folder.mkdir(exist_ok=True)
    for file in TOKENIZER_FILES:
        shutil.copyfile(model / "tokenizer" / file, clip_folder / file)
    (clip_folder / "config.json").write_text(json.dumps(parts.text_config, indent=2) + "\n", encoding="utf-8")
    return [weights, config, clip_folder]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the model as one SD1 checkpoint.")
    parser.add_argument("--model", type=Path, default=MODEL, help="diffusers folder (default: the shipped one)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, such as models/Stable-diffusion")
    parser.add_argument("--wide", action="store_true", help="in the widths of SD 1.5, for Forge and Neo (0.64 GB)")
    parser.add_argument("--name", help=f'file name without suffix (default: "{NAME}", or "{WIDE_NAME}")')
    parser.add_argument("--clip", help="path the yaml gives for the text encoder (default: the written folder's)")
    args = parser.parse_args()
    name = args.name or (WIDE_NAME if args.wide else NAME)
    clip = args.clip or (args.out / (WIDE_CLIP_FOLDER if args.wide else CLIP_FOLDER)).resolve().as_posix()
    for path in export(args.model, args.out, name, clip, args.wide):
        print(path)


if __name__ == "__main__":
    main()
