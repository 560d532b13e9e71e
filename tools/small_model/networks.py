"""The networks of a diffusers folder: load, average, save in half precision."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

MODEL = Path(__file__).resolve().parents[2] / "assets" / "model"
UNET_FILE = "diffusion_pytorch_model.safetensors"
TEXT_FILE = "model.safetensors"


def mixed(enabled: bool = True) -> torch.autocast:
    """bfloat16 arithmetic for training where the CPU is quick at it; without AVX-512 it takes ten times as long."""
    quick = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled and quick)


@dataclass
class Networks:
    """The parts of one model, in float32 on the CPU."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    tokenizer: CLIPTokenizer

    @classmethod
    def load(cls, folder: str | Path = MODEL) -> Networks:
        """Read a diffusers folder."""
        folder = Path(folder)
        return cls(
            UNet2DConditionModel.from_pretrained(folder / "unet").float().eval(),
            AutoencoderKL.from_pretrained(folder / "vae").float().eval(),
            CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval(),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        )

    @property
    def scale(self) -> float:
        """Factor from the VAE's latents to the U-Net's."""
        return float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def contexts(self, prompts: list[str]) -> torch.Tensor:
        """`[B, T, D]` last hidden states of the prompts."""
        ids = self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return self.text(ids.input_ids)[0]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, scaled: bool = True) -> torch.Tensor:
        """`[B, 4, h, w]` -> `[B, 8h, 8w, 3]` uint8 pictures; `scaled` latents are the U-Net's."""
        images = self.vae.decode(latents / self.scale if scaled else latents).sample
        return ((images.clamp(-1, 1) * 0.5 + 0.5) * 255).round().byte().permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` in [0, 1] -> the VAE's mean latents `[B, 4, H / 8, W / 8]`."""
        return self.vae.encode(images * 2 - 1).latent_dist.mean


def to_half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Half-precision copy of a state dict; refuses values that half precision cannot hold."""
    out = {key: value.detach().half().contiguous() for key, value in state.items()}
    broken = [key for key, value in out.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f"not finite in half precision: {broken[:3]}")
    return out


def save_weights(folder: Path, *, unet: nn.Module | None = None, vae: nn.Module | None = None,
                 text: nn.Module | None = None) -> None:  # fmt: skip
    """Overwrite the weights of the given networks in a diffusers folder; its configurations stay."""
    for name, module, file in (
        ("unet", unet, UNET_FILE),
        ("vae", vae, UNET_FILE),
        ("text_encoder", text, TEXT_FILE),
    ):
        if module is None:
            continue
        state = to_half(module.state_dict())
        if name == "text_encoder":
            # transformers 4 and 5 both read the longer names, which 4 wrote
            state = {"text_model." + key.removeprefix("text_model."): value for key, value in state.items()}
            state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, path, metadata={"format": "pt"})
        path.chmod(0o644)


def read_config(folder: Path, part: str) -> dict:
    """The `config.json` of one part of a diffusers folder."""
    return json.loads((folder / part / "config.json").read_text(encoding="utf-8"))


def read_weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """The tensors of one part of a diffusers folder, as stored."""
    return load_file(folder / part / (TEXT_FILE if part == "text_encoder" else UNET_FILE))


class Average:
    """Exponential moving average of a module's parameters; it follows faster during the first steps."""

    def __init__(self, module: nn.Module, decay: float):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards `module`."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
