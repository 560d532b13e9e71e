"""What lies at a model's path, judged by names and headers before anything is loaded.

Nothing here runs code of the file, reads its weights, or asks the network.
"""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers

from lib_masknoise.errors import ModelError

ENDING = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".pkl", ".bin")
EXPECTED = "expected a Stable Diffusion 1.x, 2.x or XL model: a .safetensors file or a diffusers folder"
PIPELINES = {
    "StableDiffusionPipeline": "unet",
    "StableDiffusionXLPipeline": "unet",
    "WanPipeline": "transformer",
    "PRXPipeline": "transformer",
    "FluxPipeline": "transformer",
    "StableDiffusion3Pipeline": "transformer",
    "QwenImagePipeline": "transformer",
    "Flux2Pipeline": "transformer",
    "Flux2KleinPipeline": "transformer",
    "ZImagePipeline": "transformer",
    "Lumina2Pipeline": "transformer",
}
"""The pipelines that are known here, and the folder of what predicts the noise."""
NEEDS_FTFY = ("WanPipeline", "PRXPipeline")
LONGEST_HEADER = 100_000_000  # bytes, the format's own bound

CHANNELS = {
    9: "an inpainting model (its U-Net takes 9 channels)",
    8: "an instruct model, which edits pictures (its U-Net takes 8 channels)",
}

FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"

KINDS: Sequence[tuple[str, Sequence[str]]] = (
    ("a LoRA", ("lora_unet_", "lora_te", "lora_up.", "lora_down.", "lora_A.", "lora_B.", ".lora.", "hada_w", "lokr_w")),
    ("a ControlNet", ("control_model.", "controlnet_", "input_hint_block.")),
    ("an IP-Adapter", ("ip_adapter.", "image_proj.")),
    ("a textual inversion", ("emb_params", "string_to_param")),
    ("another architecture, Flux", ("double_blocks.", "single_transformer_blocks.")),
    ("another architecture, Stable Diffusion 3", ("joint_blocks.",)),
    ("a U-Net without text encoder", ("diffusion_model.input_blocks.", "down_blocks.0.attentions", "input_blocks.1.")),
    ("another architecture, of transformer blocks", ("transformer_blocks.0.", "blocks.0.self_attn", "blocks.0.attn")),
    ("a VAE", ("first_stage_model.", "decoder.up.", "decoder.up_blocks.", "encoder.down.", "encoder.down_blocks.")),
    ("a text encoder", ("text_model.", "cond_stage_model.", "conditioner.", "encoder.block.0.", "resblocks.")),
)
"""What a file seems to be, by parts of its tensors' names; the first that has one decides."""


def check_file(path: Path) -> dict[str, Any]:
    """The header of a checkpoint in one file: its tensors' names, dtypes, shapes and places. Raises ModelError."""
    check_ending(path, "a .safetensors file or a diffusers folder")
    header = read_header(path)
    _check_kind(path, header)
    return header


def check_ending(path: Path, expected: str) -> None:
    """Raise ModelError for a file that is none of safetensors by its name."""
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{path}: a pickle ({path.suffix}), which can run any code when it is read, and is refused for that; "
            "expected a .safetensors file (most models are published as one, too)"
        )
    if path.suffix.lower() != ENDING:
        wanted = expected if ENDING in expected else f"{expected} as a {ENDING} file"
        raise ModelError(f"{path}: expected {wanted}")


def read_header(path: Path) -> dict[str, Any]:
    """The header of a whole .safetensors file. Raises ModelError for a damaged one, and for what only has its name."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(512)
        _check_start(path, start, size)
        (length,) = struct.unpack("<Q", start[:8])
        if start[8:9] != b"{" or length > LONGEST_HEADER:
            raise ModelError(f"{path}: not a safetensors file (it begins with {start[:8].hex()}); {EXPECTED}")
        if 8 + length > size:
            raise ModelError(f"{path}: cut off at byte {size:,}, within its header of {length:,}; fetch it again")
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise ModelError(f"{path}: not a safetensors file (its header cannot be read); {EXPECTED}") from None
    if size < whole:
        raise ModelError(f"{path}: cut off at byte {size:,} of {whole:,}; fetch it again")
    return header


def _check_start(path: Path, start: bytes, size: int) -> None:
    text = start.lstrip()[:40].lower()
    found = ""
    if not size:
        found = "an empty file"
    elif start.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer, not the model it stands for (git lfs pull fetches that)"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        found = "an HTML page, probably the answer to a download that was refused"
    elif start.startswith(b"PK\x03\x04") or start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        found = "a pickle by another name, which can run any code when it is read"
    elif size < 9:
        found = f"cut off at byte {size}"
    if found:
        raise ModelError(f"{path}: {found}; {EXPECTED}")


def _check_kind(path: Path, header: Mapping[str, Any]) -> None:
    names = [name for name in header if name != "__metadata__"]
    texts = ("cond_stage_model.", "conditioner.")
    whole = FIRST_LAYER in header and any(name.startswith(texts) for name in names)
    if FIRST_LAYER in header:
        _check_channels(path, header[FIRST_LAYER]["shape"][1])
    if not whole:
        raise ModelError(f"{path}: {kind(names)}; {EXPECTED}")


def kind(names: Iterable[str]) -> str:
    """What a file seems to be, by its tensors' names, in words."""
    names = list(names)
    for found, parts in KINDS:
        if any(part in name for part in parts for name in names):
            return f"seems to be {found}"
    some = ", ".join(names[:2])
    return f"no model that is known here (it holds {some or 'nothing'}{' …' if len(names) > 2 else ''})"


def _check_channels(path: Path, channels: Any) -> None:
    if channels != 4:
        found = CHANNELS.get(channels, f"a model whose U-Net takes {channels} channels")
        raise ModelError(f"{path}: {found}; expected one that makes pictures from text alone, with 4")


def denoiser(path: Path) -> str:
    """The folder of what predicts the noise in a diffusers folder, "unet" or "transformer". Raises ModelError where the
    folder is of no kind that is known here."""
    return PIPELINES[_pipeline(path, _json(path, path / "model_index.json"))]


def check_folder(path: Path) -> str | None:
    """The variant ("fp16" or None) in which a diffusers folder has its weights. Raises ModelError."""
    index = _json(path, path / "model_index.json")
    name = _pipeline(path, index)
    parts = [part for part, given in index.items() if isinstance(given, list) and given[:1] not in ([None], [])]
    main = (PIPELINES[name], "vae")
    for part in (*main, *(part for part in parts if part not in (*main, "safety_checker"))):
        if not (path / part).is_dir():
            raise ModelError(f"{path}: without the folder {part}/, which its model_index.json names; {EXPECTED}")
    if "unet" in main:
        _check_channels(path, _json(path, path / "unet" / "config.json").get("in_channels"))
    variants = {_variant(path, path / part) for part in main if (path / part).is_dir()}
    for file in sorted(path.glob(f"*/*{ENDING}")):
        read_header(file)
    return "fp16" if variants == {"fp16"} else None


def _pipeline(path: Path, index: Mapping[str, Any]) -> str:
    """The name of a pipeline that is known here and installed."""
    name = index.get("_class_name")
    if isinstance(name, list):
        raise ModelError(f"{path}: a pipeline class of its own, {name[-1]}, whose code is not run; {EXPECTED}")
    if name not in PIPELINES:
        others = ", ".join(known.removesuffix("Pipeline") for known, part in PIPELINES.items() if part != "unet")
        raise ModelError(f"{path} holds a {name}; expected Stable Diffusion 1.x, 2.x or XL, or one of {others}")
    if not hasattr(diffusers, name):
        raise ModelError(f"{path} holds a {name}, which diffusers {diffusers.__version__} lacks; a newer one has it")
    if name in NEEDS_FTFY and importlib.util.find_spec("ftfy") is None:
        raise ModelError(f"{path}: a {name} needs the package ftfy to read prompts (pip install ftfy)")
    return str(name)


def _variant(path: Path, part: Path) -> str | None:
    files = [file.name for file in part.iterdir() if file.suffix in (ENDING, ".bin")]
    if not files:
        raise ModelError(f"{path}: no weights in {part.name}/; expected a {ENDING} file there")
    return "fp16" if all(".fp16." in name or ".fp16-" in name for name in files) else None


def _json(path: Path, file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{path}: a folder without {file.relative_to(path).as_posix()}; {EXPECTED}")
    try:
        data = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file}: expected an object")
    return data
