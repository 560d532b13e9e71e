"""Parameter names of the model in the two layouts: diffusers folder and SD1 single file.

The SD1 layout numbers the U-Net's blocks in one running list (`input_blocks.3.1`) where diffusers nests
them (`down_blocks.1.attentions.0`), and it keeps the VAE's attention projections as 1x1 convolutions.
Everything else is a change of names. The tables are built from the configuration, so they hold for any
SD1-like size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet_modules(levels: int, layers: int) -> list[tuple[str, str]]:
    """(diffusers module, SD1 module) of a U-Net with `levels` resolutions and `layers` resnets a level."""
    pairs = [
        ("conv_in", "input_blocks.0.0"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
    ]
    block = 0
    for level in range(levels):
        for layer in range(layers):
            block += 1
            pairs.append((f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0"))
            pairs.append((f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{block}.1"))
        if level < levels - 1:
            block += 1
            pairs.append((f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{block}.0.op"))
    block = -1
    for level in range(levels):
        for layer in range(layers + 1):
            block += 1
            pairs.append((f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0"))
            pairs.append((f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{block}.1"))
        if level < levels - 1:
            pairs.append((f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{block}.2.conv"))
    return pairs


def _vae_modules(levels: int, layers: int) -> list[tuple[str, str]]:
    """(diffusers module, SD1 module) of the autoencoder; the decoder's levels run the other way in SD1."""
    pairs = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    for half in ("encoder", "decoder"):
        pairs += [(f"{half}.conv_in", f"{half}.conv_in"), (f"{half}.conv_out", f"{half}.conv_out")]
        pairs.append((f"{half}.conv_norm_out", f"{half}.norm_out"))
        pairs.append((f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1"))
        pairs += [(f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}") for i in range(2)]
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        sd_down, sd_up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        pairs += [(f"{down}.resnets.{i}", f"{sd_down}.block.{i}") for i in range(layers)]
        pairs += [(f"{up}.resnets.{i}", f"{sd_up}.block.{i}") for i in range(layers + 1)]
        pairs.append((f"{down}.downsamplers.0.conv", f"{sd_down}.downsample.conv"))
        pairs.append((f"{up}.upsamplers.0.conv", f"{sd_up}.upsample.conv"))
    return pairs


def _rename(name: str, modules: Iterable[tuple[str, str]], inner: Mapping[str, Mapping[str, str]]) -> str:
    """`name` with its module renamed by `modules` and the rest of it by the `inner` table of that kind."""
    for ours, theirs in modules:
        if not name.startswith(ours + "."):
            continue
        rest = name[len(ours) + 1 :]
        table = next((table for kind, table in inner.items() if kind in ours), {})
        head, tail = rest.rsplit(".", 1)[0] if "." in rest else "", rest.rsplit(".", 1)[-1]
        return ".".join(part for part in (theirs, table.get(head, head), tail) if part)
    raise KeyError(f"{name}: no place for it in the SD1 layout")


def unet_names(keys: Iterable[str], config: Mapping) -> dict[str, str]:
    """diffusers name -> SD1 name (without prefix) for the U-Net's parameters."""
    modules = _unet_modules(len(config["block_out_channels"]), config["layers_per_block"])
    return {key: _rename(key, modules, {"resnets": _RESNET}) for key in keys}


def vae_names(keys: Iterable[str], config: Mapping) -> dict[str, str]:
    """diffusers name -> SD1 name (without prefix) for the autoencoder's parameters."""
    modules = _vae_modules(len(config["block_out_channels"]), config["layers_per_block"])
    inner = {"attentions": _VAE_ATTENTION, "resnets": {"conv_shortcut": "nin_shortcut"}}
    return {key: _rename(key, modules, inner) for key in keys}


def is_projection(sd1_name: str) -> bool:
    """Whether a VAE parameter is an attention projection: `[C, C, 1, 1]` in SD1, `[C, C]` in diffusers."""
    return ".mid.attn_1." in sd1_name and sd1_name.endswith("weight") and ".norm." not in sd1_name


def text_key(key: str) -> str:
    """A text encoder's key without `text_model.`, which transformers 5 dropped from its modules."""
    return key.removeprefix("text_model.")


def to_sd1(
    unet: Mapping[str, torch.Tensor],
    vae: Mapping[str, torch.Tensor],
    text: Mapping[str, torch.Tensor],
    unet_config: Mapping,
    vae_config: Mapping,
) -> dict[str, torch.Tensor]:
    """State dicts of the three networks -> one SD1 state dict, every tensor in its own precision."""
    out: dict[str, torch.Tensor] = {}
    for key, name in unet_names(unet, unet_config).items():
        out[UNET_PREFIX + name] = unet[key]
    for key, name in vae_names(vae, vae_config).items():
        value = vae[key]
        out[VAE_PREFIX + name] = value[:, :, None, None] if is_projection(name) else value
    for key, value in text.items():
        if not key.endswith("position_ids"):
            out[TEXT_PREFIX + text_key(key)] = value
    positions = text[
        "embeddings.position_embedding.weight"
        if "embeddings.position_embedding.weight" in text
        else "text_model.embeddings.position_embedding.weight"
    ].shape[0]
    out[TEXT_PREFIX + "embeddings.position_ids"] = torch.arange(positions).view(1, positions)
    return {key: value.contiguous() for key, value in out.items()}


def from_sd1(
    state: Mapping[str, torch.Tensor],
    unet_keys: Iterable[str],
    vae_keys: Iterable[str],
    unet_config: Mapping,
    vae_config: Mapping,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One SD1 state dict -> (U-Net, VAE, text) with diffusers names; text keys keep `text_model.`."""
    unet = {key: state[UNET_PREFIX + name] for key, name in unet_names(unet_keys, unet_config).items()}
    vae = {}
    for key, name in vae_names(vae_keys, vae_config).items():
        value = state[VAE_PREFIX + name]
        vae[key] = value[:, :, 0, 0] if is_projection(name) else value
    text = {
        "text_model." + key[len(TEXT_PREFIX) :]: value
        for key, value in state.items()
        if key.startswith(TEXT_PREFIX) and not key.endswith("position_ids")
    }
    return unet, vae, text
