"""The checkpoint that a WebUI has loaded, and what is known of it."""

from __future__ import annotations

from pathlib import Path

from modules import sd_models, shared

from lib_masknoise import ASSETS
from lib_masknoise.calibrate.profile import HOME
from lib_masknoise.calibrate.style import kept
from lib_masknoise.disk import file_hash
from lib_masknoise.noise.feature import Subspaces
from lib_masknoise.scene import Scene
from lib_masknoise.scene.dimensions import FOUND

PROFILES = ASSETS.parent / "profiles"
"""Where the WebUI keeps those of checkpoints, in the extension's folder."""


def checkpoint() -> tuple[str, str]:
    """The hash of the loaded checkpoint's weights and its name: the SHA-256 of its file, which the host may know. Both
    empty where none is loaded yet, or it is no file; asking loads none."""
    holder = getattr(sd_models, "model_data", None)
    model = shared.sd_model if holder is None else getattr(holder, "sd_model", None)
    info = getattr(model, "sd_checkpoint_info", None)
    file = Path(getattr(info, "filename", "") or "")
    known = getattr(info, "sha256", None) or (file_hash(file) if file.is_file() else "")
    return str(known), str(getattr(info, "name_for_extra", "") or file.stem)


def subspaces(scene: Scene) -> Subspaces:
    """What a scene needs of the directions that were found for the loaded checkpoint. Raises SceneError where its
    profile cannot be used."""
    feature = scene.noise.feature
    if not (scene.enabled and feature.strength and feature.dimensions in FOUND):
        return {}
    model, _ = checkpoint()
    return kept(model, (PROFILES, HOME)) if model else {}
