"""The model in the sizes of Stable Diffusion 1.5: more channels, the same function.

Some WebUIs recognise a checkpoint by its sizes and build text encoder and autoencoder from configurations of their own.
Here every channel becomes k equal ones, side by side: `[…, c, …]` → `[…, c, c, …, c, …]`. Layers read the first of
each k and write all of them, so no weight is rounded. Group and layer norms see the same values k times over, and with
that the same mean and variance. Three things are not copies:

- heads of attention: an inner channel keeps its head and its place there, the rest of a wider head and all further
  heads are 0. A wider head divides by a larger root, so the queries are multiplied by the ratio of the two;
- layers that the model does not have: they add nothing to what passes by. In the text encoder they come first, so that
  "Clip skip" counts from the same end;
- the latents' scale: that of SD 1.5, folded into the two 1×1 convolutions beside the latents.

Values that half precision would round (queries, these two convolutions) are float32 in the result, all others are as
they were. The result has 314 M parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

SD15_SCALE = 0.18215
SD15_CHANNELS = 320
SD15_VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "scaling_factor": SD15_SCALE}
SD15_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
SD15_HEADS = 8
INNER = ("to_q", "to_k", "to_v", "to_out", "q_proj", "k_proj", "v_proj", "out_proj")

State = dict[str, torch.Tensor]


def configs(unet: Mapping, vae: Mapping, text: Mapping) -> tuple[dict, dict, dict]:
    """The wide configurations of (U-Net, VAE, text encoder).

    Raises ValueError where a width of the model does not divide the wide one.
    """
    factor = SD15_CHANNELS // unet["block_out_channels"][0]
    wide_unet = copy.deepcopy(dict(unet))
    wide_unet["block_out_channels"] = [factor * c for c in unet["block_out_channels"]]
    wide_unet["attention_head_dim"] = SD15_HEADS
    wide_unet["cross_attention_dim"] = SD15_TEXT["hidden_size"]
    wide = wide_unet, {**vae, **SD15_VAE}, {**text, **SD15_TEXT}
    pairs = [
        *zip(unet["block_out_channels"], wide_unet["block_out_channels"], strict=True),
        (unet["block_out_channels"][0], SD15_CHANNELS),
        *zip(vae["block_out_channels"], SD15_VAE["block_out_channels"], strict=True),
        (text["hidden_size"], SD15_TEXT["hidden_size"]),
        (text["intermediate_size"], SD15_TEXT["intermediate_size"]),
    ]
    odd = [f"{narrow} to {broad}" for narrow, broad in pairs if broad % narrow]
    if odd:
        raise ValueError(f"expected widths that divide those of SD 1.5, got {', '.join(odd)}")
    return wide


def _factor(narrow: int, broad: int, name: str) -> int:
    if broad % narrow:
        raise ValueError(f"{name}: {broad} is no multiple of {narrow}")
    return broad // narrow


def _written(value: torch.Tensor, size: int, name: str) -> torch.Tensor:
    """`[n, …]` → `[size, …]`: each output channel k times, side by side."""
    return value.repeat_interleave(_factor(value.shape[0], size, name), 0)


def _read(value: torch.Tensor, size: int, name: str) -> torch.Tensor:
    """`[o, n, …]` → `[o, size, …]`: of k equal input channels the first is read."""
    wide = value.new_zeros(value.shape[0], size, *value.shape[2:])
    wide[:, :: _factor(value.shape[1], size, name)] = value
    return wide


def spread(value: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    """A parameter between ordinary layers, in a wider `shape`. Raises ValueError where the widths do not divide."""
    if value.dim() > 1:
        value = _read(value, shape[1], name)
    return _written(value, shape[0], name)


def _placed(value: torch.Tensor, size: int, heads: tuple[int, int], axis: int) -> torch.Tensor:
    """The inner channels along `axis`, in heads of another number and width; what is new is 0."""
    narrow, broad = heads
    value = value.movedim(axis, 0)
    wide = value.new_zeros(broad, size // broad, *value.shape[1:])
    wide[:narrow, : value.shape[0] // narrow] = value.view(narrow, -1, *value.shape[1:])
    return wide.view(size, *value.shape[1:]).movedim(0, axis)


def attention(value: torch.Tensor, shape: torch.Size, name: str, heads: tuple[int, int]) -> torch.Tensor:
    """A parameter of an attention layer; name: ends in q, k, v or out with `.weight` or `.bias`.

    heads: how many the narrow and the wide layer have.
    """
    if ".out" in name or "to_out" in name:
        if value.dim() == 1:
            return _written(value, shape[0], name)
        return _written(_placed(value, shape[1], heads, 1), shape[0], name)
    wide = _placed(value, shape[0], heads, 0)
    if value.dim() > 1:
        wide = _read(wide, shape[1], name)
    if ".q_proj" in name or ".to_q" in name:
        width, broad = value.shape[0] // heads[0], shape[0] // heads[1]
        return wide.float() * math.sqrt(broad / width)
    return wide


def _is_inner(name: str) -> bool:
    return any(
        f".{part}" in name for part in ("to_q", "to_k", "to_v", "to_out", "q_proj", "k_proj", "v_proj", "out_proj")
    )


def widened(state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size], heads: tuple[int, int]) -> State:
    """Every parameter of `state` in the shape that `shapes` gives for its name."""
    return {
        name: attention(value, shapes[name], name, heads) if _is_inner(name) else spread(value, shapes[name], name)
        for name, value in state.items()
    }


def shapes_of(module_class: type, config: Mapping) -> dict[str, torch.Size]:
    """Parameter shapes of a diffusers network."""
    with torch.device("meta"):
        module = module_class.from_config(dict(config))
    return {name: value.shape for name, value in module.state_dict().items()}


def unet(state: Mapping[str, torch.Tensor], config: Mapping, wide: Mapping) -> State:
    """The U-Net. Its time embedding's frequencies lie where copies of the narrow one's would."""
    heads = config["attention_head_dim"], wide["attention_head_dim"]
    return widened(state, shapes_of(UNet2DConditionModel, wide), heads)


def _resting(name: str, shape: torch.Size, channels: int) -> torch.Tensor:
    """A parameter of a resnet that lets everything pass; channels: how many different ones there are."""
    if "conv_shortcut.weight" in name:
        return spread(torch.eye(channels)[:, :, None, None], shape, name).half()
    return torch.ones(shape).half() if ".norm" in name and name.endswith("weight") else torch.zeros(shape).half()


def vae(state: Mapping[str, torch.Tensor], config: Mapping, wide: Mapping) -> State:
    """The autoencoder, with the latents' scale of `wide`. Its widths must all be the same before."""
    channels = set(config["block_out_channels"])
    if len(channels) > 1:
        raise ValueError(f"expected an autoencoder of one width, got {sorted(channels)}")
    shapes = shapes_of(AutoencoderKL, wide)
    out = widened(state, shapes, (1, 1))
    for name in shapes.keys() - state.keys():
        out[name] = _resting(name, shapes[name], *channels)
    ratio = config["scaling_factor"] / wide["scaling_factor"]
    out["post_quant_conv.weight"] = out["post_quant_conv.weight"].float() / ratio
    for part in ("weight", "bias"):  # the mean's rows; those of the logarithm of the variance below
        moments = out[f"quant_conv.{part}"].float()
        moments[: wide["latent_channels"]] *= ratio
        out[f"quant_conv.{part}"] = moments
    out["quant_conv.bias"][wide["latent_channels"] :] += 2 * math.log(ratio)
    return out


def _text_shape(name: str, wide: Mapping) -> torch.Size:
    hidden, inner = wide["hidden_size"], wide["intermediate_size"]
    table = {
        "token_embedding.weight": (wide["vocab_size"], hidden),
        "position_embedding.weight": (wide["max_position_embeddings"], hidden),
        "fc1.weight": (inner, hidden),
        "fc1.bias": (inner,),
        "fc2.weight": (hidden, inner),
    }
    fitting = [shape for ending, shape in table.items() if name.endswith(ending)]
    square = "proj" in name and name.endswith("weight")
    return torch.Size(fitting[0] if fitting else (hidden, hidden) if square else (hidden,))


def _embedding(value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`[rows, n]` → `[rows, N]`: a table's columns are outputs."""
    return _written(value.T, shape[1], "embedding").T


def text(state: Mapping[str, torch.Tensor], config: Mapping, wide: Mapping) -> State:
    """The text encoder; names keep or lack `text_model.` as in `state`."""
    heads = config["num_attention_heads"], wide["num_attention_heads"]
    more = wide["num_hidden_layers"] - config["num_hidden_layers"]
    out: State = {}
    for name, value in state.items():
        if name.endswith("position_ids"):
            continue
        shape = _text_shape(name, wide)
        if "embedding" in name:
            out[name] = _embedding(value, shape)
            continue
        wider = attention(value, shape, name, heads) if _is_inner(name) else spread(value, shape, name)
        head, layers, rest = name.partition("layers.")
        if not layers:
            out[name] = wider
            continue
        number, _, rest = rest.partition(".")
        out[f"{head}layers.{int(number) + more}.{rest}"] = wider
        if number == "0":
            for layer in range(more):
                fill = torch.ones if "layer_norm" in name and name.endswith("weight") else torch.zeros
                out[f"{head}layers.{layer}.{rest}"] = fill(shape, dtype=value.dtype)
    return out
