"""What people add to a model: LoRAs, textual inversions, another VAE, another sampler.

Files are read as `.safetensors` only: a pickle can run code. A LoRA is added to the weights themselves,
`W + weight · α/r · up·down`, so that sampling costs what it did; where it is for one render, the weights it changes
are kept and put back.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from lib_masknoise import networks
from lib_masknoise.errors import ModelError
from lib_masknoise.hosts.diffusers import inspection
from lib_masknoise.networks import Lora

# --- Samplers

_SDE = {"algorithm_type": "sde-dpmsolver++"}

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {**_SDE, "solver_order": 2}),
    "DPM++ 3M SDE": ("DPMSolverMultistepScheduler", {**_SDE, "solver_order": 3}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}
"""The WebUIs' names, and diffusers' schedulers with what makes them that sampler."""

KARRAS = " Karras"


def sampler_names() -> list[str]:
    """Every name that `scheduler` takes."""
    return [spelled for name in SAMPLERS for spelled in (name, *([name + KARRAS] if _has_karras(name) else []))]


def scheduler(name: str, before: Any) -> Any:
    """The scheduler of a sampler's name, in whatever case, with the model's own noise schedule. before: the model's.

    Raises ValueError, with the names there are.
    """
    known = {one.lower(): one for one in sampler_names()}
    found = known.get(name.lower())
    if found is None:
        raise ValueError(f"--sampler: expected one of {', '.join(sampler_names())}; got {name!r}")
    kind, options = SAMPLERS[found.removesuffix(KARRAS)]
    made = getattr(diffusers, kind)
    karras = {"use_karras_sigmas": found.endswith(KARRAS)} if _has_karras(found.removesuffix(KARRAS)) else {}
    return made.from_config(before.config, **options, **karras)


def _has_karras(name: str) -> bool:
    init = getattr(diffusers, SAMPLERS[name][0]).__init__
    return "use_karras_sigmas" in init.__wrapped__.__code__.co_varnames


# --- LoRA

DOWN = re.compile(r"^(.+?)[._](?:lora[._]down|lora_A|lora\.down|lora_linear_layer\.down)(?:\.default)?\.weight$")
UNKNOWN_KINDS = {
    "hada_w1_a": "a LoHa",
    "lokr_w": "a LoKr",
    "dora_scale": "a DoRA",
    "lora_mid": "a LoCon with a middle",
}


def add_lora(pipe: DiffusionPipeline, one: Lora) -> list[tuple[Tensor, Tensor]]:
    """Add a LoRA to a pipeline's weights. Returns each weight that it has changed and what it was.

    Layers are named as kohya's scripts or diffusers name them. Raises FileNotFoundError, and ModelError for what is no
    LoRA, or is one of another architecture.
    """
    path = Path(one.file)
    tensors = _read(path, "a LoRA")
    kinds = [kind for part, kind in UNKNOWN_KINDS.items() if any(part in name for name in tensors)]
    if kinds:
        raise ModelError(f"{path}: {kinds[0]}; expected a LoRA of pairs of matrices (down and up)")
    downs = [match for name in tensors if (match := DOWN.match(name))]
    if not downs:
        raise ModelError(f"{path}: {inspection.kind(tensors)}; expected a LoRA")
    tensors = _in_diffusers_names(tensors, pipe)
    layers = _layers(pipe)
    changes: list[tuple[Tensor, Tensor]] = []
    unknown: list[str] = []
    for match in filter(None, map(DOWN.match, tensors)):
        layer = layers.get(_flat(match[1]))
        if layer is None:
            unknown.append(match[1])
            continue
        down, up = tensors[match[0]], tensors[_partner(match[0])]
        alpha = tensors.get(f"{match[1]}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / len(down)
        delta = _product(up, down)
        if delta.numel() != layer.weight.numel() or delta.shape[0] != layer.weight.shape[0]:
            _undo(changes)
            sizes = [f"{t.shape[0]}×{t[0].numel()}" for t in (delta, layer.weight)]
            raise ModelError(
                f"{path}: a LoRA of another architecture: {match[1]} is {sizes[0]}, the model's layer {sizes[1]}"
            )
        changes.append((layer.weight, layer.weight.detach().clone()))
        with torch.no_grad():
            layer.weight += (one.weight * scale * delta).reshape(layer.weight.shape).to(layer.weight)
    if unknown:
        _undo(changes)
        raise ModelError(
            f"{path}: a LoRA of another architecture: the model has no layer {unknown[0]}"
            + (f" (nor {len(unknown) - 1} others of it)" if len(unknown) > 1 else "")
        )
    return changes


def _undo(changes: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for weight, before in reversed(changes):
            weight.copy_(before)


def _partner(name: str) -> str:
    for down, up in (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up"), (".down.", ".up.")):
        if down in name:
            return name.replace(down, up)
    return name.replace("_lora.down", "_lora.up")


def _product(up: Tensor, down: Tensor) -> Tensor:
    """`up·down` in float32: `[out, r (, 1, 1)]` and `[r, in (, k, k)]`."""
    return (up.float().flatten(1) @ down.float().flatten(1)).reshape(len(up), *down.shape[1:])


def _layers(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Every layer with a weight by its flat name: `unet_…`, `te_…` (`te1_…` and `te2_…` of two text encoders)."""
    found = {}
    parts = {"unet": pipe.unet, "te": pipe.text_encoder, "te1": pipe.text_encoder}
    parts["te2"] = getattr(pipe, "text_encoder_2", None)
    for prefix, part in parts.items():
        for name, module in part.named_modules() if part is not None else ():
            if isinstance(module, nn.Linear | nn.Conv2d):
                # Newer versions of transformers have no `text_model` between a text encoder and its layers.
                flat = name.removeprefix("text_model.").replace(".", "_")
                found[f"{prefix}_{flat}"] = module
    return found


def _flat(name: str) -> str:
    """A layer's name in a LoRA as one in `_layers`."""
    name = name.removesuffix("_lora").replace(".processor", "")
    name = re.sub(r"^text_encoder_2\.", "te2_", re.sub(r"^text_encoder\.", "te_", name)).removeprefix("lora_")
    name = re.sub(r"(to_out)$", r"\1_0", name.replace(".", "_"))
    return re.sub(r"^(te[12]?_)text_model_", r"\1", name)


def _in_diffusers_names(tensors: dict[str, Tensor], pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Kohya's files of SDXL name blocks as the original code does: they get diffusers' names."""
    if not any(re.match(r"lora_unet_(input|middle|output)_blocks?_", name) for name in tensors):
        return tensors
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    try:
        return _maybe_map_sgm_blocks_to_diffusers(dict(tensors), pipe.unet.config)
    except ValueError:  # it has blocks that the model has not: the layers' names will say so
        return tensors


@contextmanager
def loras_of(pipe: DiffusionPipeline, prompts: Sequence[str]) -> Iterator[None]:
    """The LoRAs that prompts name, in the pipeline's weights for as long as this lasts; then they are as before, to the
    bit. Raises what `networks.named` and `add_lora` raise."""
    changes: list[tuple[Tensor, Tensor]] = []
    try:
        for one in networks.named(prompts, lora_folders(pipe)):
            changes += add_lora(pipe, one)
        yield
    finally:
        _undo(changes)


# --- What a pipeline is told once

_SOURCE, _FOLDERS, _CLIP_SKIP = "_masknoise_source", "_masknoise_lora_folders", "_masknoise_clip_skip"


def lora_folders(pipe: DiffusionPipeline) -> Sequence[str]:
    """Where the LoRAs are that prompts name."""
    return getattr(pipe, _FOLDERS, ())


def clip_skip(pipe: DiffusionPipeline) -> int:
    """How many layers before its end the text encoder is read: 1 is the end, as the WebUIs count."""
    return getattr(pipe, _CLIP_SKIP, 1)


def source(pipe: DiffusionPipeline) -> str:
    """Where its model was loaded from; nowhere that exists where that is not known."""
    return str(getattr(pipe, _SOURCE, None) or getattr(pipe, "name_or_path", None) or "unknown model")


def tell(pipe: DiffusionPipeline, path: Path | str, folders: Sequence[str], skip: int) -> None:
    """path: where the model comes from. Raises ValueError where the text encoder has not so many layers."""
    layers = getattr(pipe.text_encoder.config, "num_hidden_layers", 0) if pipe.text_encoder is not None else 0
    if skip != 1 and not 1 <= skip <= layers:
        raise ValueError(f"--clip-skip: expected 1 to {layers}, the layers of the model's text encoder, got {skip}")
    setattr(pipe, _SOURCE, str(path))
    setattr(pipe, _FOLDERS, tuple(folders))
    setattr(pipe, _CLIP_SKIP, skip)


# --- Textual inversions


def add_embedding(pipe: DiffusionPipeline, file: str) -> None:
    """A textual inversion, whose word in prompts is the file's name without its ending. Raises FileNotFoundError, and
    ModelError for what is none, or is one of another architecture."""
    path = Path(file)
    vectors = {name: t for name, t in _read(path, "a textual inversion").items() if t.ndim in (1, 2)}
    encoders = [(pipe.tokenizer, pipe.text_encoder)]
    wanted = ["emb_params", "clip_l", *vectors][:3]
    own = [next((vectors[name] for name in wanted if name in vectors), None)]
    if isinstance(pipe, StableDiffusionXLPipeline):
        encoders.append((pipe.tokenizer_2, pipe.text_encoder_2))
        own.append(vectors.get("clip_g"))
    if own[0] is None or len(vectors) > len(encoders):
        raise ModelError(f"{path}: {inspection.kind(vectors)}; expected a textual inversion")
    for (tokenizer, encoder), given in zip(encoders, own, strict=True):
        width = encoder.config.hidden_size
        if given is None or given.shape[-1] != width:
            found = "none for its second text encoder" if given is None else f"vectors of {given.shape[-1]} numbers"
            raise ModelError(f"{path}: a textual inversion of another architecture: {found}; the model's have {width}")
        try:
            pipe.load_textual_inversion(
                {path.stem: given.reshape(-1, width)}, token=path.stem, text_encoder=encoder, tokenizer=tokenizer
            )
        except ValueError as error:  # the word is one of the model's own
            raise ModelError(f"{path}: {str(error).splitlines()[0][:200]}; rename the file") from None


# --- VAE


def put_vae(pipe: DiffusionPipeline, place: str) -> None:
    """Another VAE of the model's own kind: a file in the original or diffusers' names, or a folder of diffusers. Raises
    FileNotFoundError and ModelError."""
    path = Path(place)
    if path.is_dir():
        path = path / "vae" if (path / "vae").is_dir() else path
        files = sorted(path.glob(f"*{inspection.ENDING}"))
        if not files:
            raise ModelError(f"{path}: a folder without a {inspection.ENDING} file; expected a VAE")
        path = files[0]
    tensors = _read(path, "a VAE")
    if not any(name.endswith(("decoder.conv_in.weight", "decoder.conv_out.weight")) for name in tensors):
        raise ModelError(f"{path}: {inspection.kind(tensors)}; expected a VAE")
    vae = copy.deepcopy(pipe.vae)
    if not any("down_blocks." in name for name in tensors):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        tensors = convert_ldm_vae_checkpoint(tensors, dict(vae.config))
    try:
        AutoencoderKL._fix_state_dict_keys_on_load(vae, tensors)
        vae.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:200]
        raise ModelError(f"{path}: a VAE of another architecture: {reason}") from None
    pipe.vae = vae


def _read(path: Path, what: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected {what}")
    inspection.check_ending(path, what)
    inspection.read_header(path)
    return load_file(path)
