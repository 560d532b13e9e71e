"""Model files → pipelines of diffusers."""

from __future__ import annotations

import warnings
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from lib_masknoise import builtin_model


def load_pipeline(
    model: str | Path | None = None, device: str | None = None, dtype: torch.dtype | None = None
) -> DiffusionPipeline:
    """Load a text-to-image pipeline of the Stable Diffusion 1.x, 2.x or XL family.

    model: None for the built-in model, a folder in the diffusers layout, or a single `.safetensors` file.
    device: CUDA, else Apple's MPS, else the CPU when None. dtype: float16 on CUDA, float32 elsewhere when None.
    Raises FileNotFoundError when there is nothing at `model`, ValueError when it is not such a model.
    """
    path = builtin_model() if model is None else Path(model)
    if not path.exists():
        raise FileNotFoundError(f"no model at {path}: expected a diffusers folder or a .safetensors file")
    device = device or _best_device()
    dtype = dtype or (torch.float16 if device.startswith("cuda") else torch.float32)
    with warnings.catch_warnings():
        # diffusers 0.42 renames `torch_dtype`; its old name is the one that all supported versions know.
        warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
        if path.is_dir():
            pipe = DiffusionPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
        else:
            pipe = _load_single_file(path, dtype)
    if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise ValueError(f"{path} holds a {type(pipe).__name__}; expected Stable Diffusion 1.x, 2.x or XL")
    pipe.set_progress_bar_config(disable=True)  # `render` has its own, which knows about frames
    return pipe.to(device)


def quiet() -> None:
    """No progress bars and hints of the libraries themselves, for as long as the process lasts."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def default_size(pipe: DiffusionPipeline) -> tuple[int, int]:
    """The size of picture that the model was made for: (height, width) in pixels."""
    sample = pipe.unet.config.sample_size
    height, width = (sample, sample) if isinstance(sample, int) else sample
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def _load_single_file(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """A checkpoint file. Its configuration is a diffusers folder of the same name beside it, else the standard one of
    its family, which diffusers fetches once and keeps."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a .safetensors file or a diffusers folder")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as checkpoint:
        is_xl = any(key.startswith("conditioner.embedders.1.") for key in checkpoint.keys())
    pipeline = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    folder = path.with_suffix("")
    config = {"config": str(folder), "local_files_only": True} if folder.is_dir() else {}
    try:
        return pipeline.from_single_file(path, torch_dtype=dtype, **config)
    except OSError as error:
        raise ValueError(
            f"{path}: its configuration could not be fetched; put the configuration files of its diffusers layout "
            f"into a folder named {folder.name} beside it"
        ) from error


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
