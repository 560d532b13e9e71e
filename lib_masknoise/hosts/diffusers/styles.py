"""What has been found of the directions of a pipeline's model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from diffusers import DiffusionPipeline

from lib_masknoise import builtin_model
from lib_masknoise.calibrate.profile import HOME
from lib_masknoise.calibrate.style import kept
from lib_masknoise.disk import file_hash
from lib_masknoise.hosts.diffusers import additions
from lib_masknoise.noise.feature import Subspaces
from lib_masknoise.scene import Scene
from lib_masknoise.scene.dimensions import FOUND


def model_hash(model: str | Path | None) -> str:
    """Of a model's weights: of a file, its SHA-256, as the WebUIs have it; of a folder, that of all its weights'."""
    path = builtin_model() if model is None else Path(model)
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for file in sorted(path.glob("*/*.safetensors")):
        digest.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def known(pipe: DiffusionPipeline, scene: Scene) -> Subspaces:
    """What a scene needs of it, by the profile of the model that the pipeline was loaded from."""
    feature = scene.noise.feature
    if not (scene.enabled and feature.strength and feature.dimensions in FOUND):
        return {}
    source = additions.source(pipe)
    return kept(model_hash(source), [HOME]) if Path(source).exists() else {}
