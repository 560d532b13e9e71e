"""Model files → pipelines of diffusers."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from lib_masknoise import builtin_model, networks
from lib_masknoise.errors import ModelError
from lib_masknoise.hosts.diffusers import additions, inspection
from lib_masknoise.hosts.diffusers.families import family
from lib_masknoise.networks import Lora


def load_pipeline(
    model: str | Path | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    *,
    loras: Sequence[Lora | tuple[str, float]] = (),
    lora_dir: str | None = None,
    embeddings: Sequence[str] = (),
    vae: str | None = None,
    sampler: str | None = None,
    clip_skip: int = 1,
) -> DiffusionPipeline:
    """Load a text-to-image pipeline of Stable Diffusion 1.x, 2.x or XL, or of one of the transformers of
    `inspection.PIPELINES`.

    model: None for the built-in model, a folder in the diffusers layout, or a single `.safetensors` file (Stable
    Diffusion only). device: CUDA, else Apple's MPS, else the CPU when None. dtype: float16 on CUDA (bfloat16 for
    transformers, whose text encoders overflow in float16), float32 elsewhere when None.
    loras: files and their weights, added to the model. lora_dir: where those lie that prompts name (`<lora:NAME:0.8>`),
    besides the model's own folder. embeddings: files of textual inversions, whose words are their names. vae: a file or
    folder instead of the model's. sampler: by the WebUIs' name (`additions.SAMPLERS`). clip_skip: as the WebUIs count.
    Raises FileNotFoundError when there is nothing at `model`, ModelError when it is not such a model: which file, what
    it seems to be, what was expected.
    """
    path = builtin_model() if model is None else Path(model)
    if not path.exists():
        raise FileNotFoundError(f"no model at {path}: expected a diffusers folder or a .safetensors file")
    device = device or _best_device()
    if dtype is None:
        transformer = path.is_dir() and inspection.denoiser(path) == "transformer"
        half = torch.bfloat16 if transformer else torch.float16
        dtype = half if device.startswith("cuda") else torch.float32
    with warnings.catch_warnings():
        # diffusers 0.42 renames `torch_dtype`; its old name is the one that all supported versions know.
        warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
        pipe = _load_folder(path, dtype) if path.is_dir() else _load_single_file(path, dtype)
    _check_complete(path, pipe)
    try:
        family(pipe)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    additions.tell(pipe, path, networks.beside(None if model is None else str(path), lora_dir), clip_skip)
    if sampler is not None:
        pipe.scheduler = additions.scheduler(sampler, pipe.scheduler)
    for one in loras:
        additions.add_lora(pipe, Lora(*one))
    for file in embeddings:
        additions.add_embedding(pipe, file)
    if vae is not None:
        additions.put_vae(pipe, vae)
    pipe.set_progress_bar_config(disable=True)  # `render` has its own, which knows about frames
    return pipe.to(device)


def usual_guidance(model: str | Path, other: float) -> float:
    """The guidance scale of a model where none is asked for: a transformer's is what its pipeline has by default.
    other: of a U-Net."""
    path = Path(model)
    try:
        if path.is_dir() and inspection.denoiser(path) == "transformer":
            kind = getattr(diffusers, json.loads((path / "model_index.json").read_bytes())["_class_name"])
            return float(signature(kind.__call__).parameters["guidance_scale"].default)
    except (ModelError, AttributeError, KeyError):
        pass  # whoever loads it says what is wrong with it
    return other


def quiet() -> None:
    """No progress bars and hints of the libraries themselves, for as long as the process lasts."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def default_size(pipe: DiffusionPipeline) -> tuple[int, int]:
    """The size of picture that the model was made for: (height, width) in pixels."""
    return family(pipe).default_size


def _load_folder(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    variant = inspection.check_folder(path)
    try:
        return DiffusionPipeline.from_pretrained(path, torch_dtype=dtype, variant=variant, local_files_only=True)
    except Exception as error:  # of many kinds, none of which is a disk that failed
        raise ModelError(f"{path}: {_reason(error)}") from error


def _check_complete(path: Path, pipe: DiffusionPipeline) -> None:
    """Some versions of diffusers leave what the files lack without any numbers."""
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            lacking = [key for key, tensor in part.named_parameters() if tensor.is_meta]
            if lacking:
                raise ModelError(f"{path}: {len(lacking)} of the weights of {name} are missing, {lacking[0]} for one")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"could not be loaded ({lines[0][:200]})"


@contextmanager
def _in_small_letters(path: Path) -> Iterator[Path]:
    """The file under a name that ends in .safetensors: of one in capitals the loader thinks it is a pickle."""
    if path.suffix == inspection.ENDING:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="masknoise-") as folder:
        link = Path(folder) / f"{path.stem}{inspection.ENDING}"
        try:
            link.symlink_to(path.resolve())
        except OSError:  # Windows, without the right to
            shutil.copyfile(path, link)
        yield link


def _load_single_file(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """A checkpoint file. Its configuration is a diffusers folder of the same name beside it, else the standard one of
    its family, which diffusers fetches once and keeps."""
    is_xl = any(key.startswith("conditioner.embedders.1.") for key in inspection.check_file(path))
    pipeline = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    folder = path.with_suffix("")
    config = {"config": str(folder), "local_files_only": True} if folder.is_dir() else {}
    try:
        with _in_small_letters(path) as file:
            return pipeline.from_single_file(file, torch_dtype=dtype, **config)
    except OSError as error:
        raise ModelError(
            f"{path}: its configuration could not be fetched; put the configuration files of its diffusers layout "
            f"into a folder named {folder.name} beside it"
        ) from error
    except Exception as error:
        raise ModelError(f"{path}: {_reason(error)}") from error


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
