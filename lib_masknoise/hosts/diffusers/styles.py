"""What has been found of the directions of a pipeline's model."""

from __future__ import annotations

from diffusers import DiffusionPipeline

from lib_masknoise.noise.feature import Subspaces
from lib_masknoise.scene import Scene


def known(pipe: DiffusionPipeline, scene: Scene) -> Subspaces:
    return {}
