"""The animation into a WebUI's output folder, gallery and API answer."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from modules import images, shared
from PIL import Image

from lib_masknoise import animation, infotext
from lib_masknoise.scene import Scene

SHOWN = (".gif", ".webp", ".png")  # what a gallery of images can play; an MP4 is named beside it
LONGEST_NAME = 200  # bytes, of the 255 that file systems allow, with room for the ending


def hand_out(p: Any, processed: Any, scene: Scene, frames: Sequence[Image.Image]) -> None:
    """Write the animation of a scene's frames, all or some, and add its files to what the host returns.

    Where the host saves images it lies beside them, under the host's own rules for folders and names; otherwise in the
    temporary folder, if a gallery is to show it. Through the API each file is one more item of `images`, base64;
    `extra_generation_params` names the files.
    """
    if len(frames) < 2:
        return
    saved = p.save_samples()
    folder, stem = _place(p, frames[0]) if saved else (Path(tempfile.mkdtemp(prefix="masknoise-")), "frames")
    shared.state.textinfo = "MaskNoise: writing the animation"
    info = processed.infotexts[processed.index_of_first_image]
    with ExitStack() as leaving:
        if not saved:
            leaving.callback(shutil.rmtree, folder, ignore_errors=True)
        written = animation.write_scene(scene, frames, folder, stem, {"scene": scene.to_dict(), "parameters": info})
        p.extra_generation_params[infotext.FILES] = "; ".join(path.name for path in written)
        for path in written:
            _add(p, processed, path, frames[0], info)
        if not p.is_api:
            leaving.pop_all()  # a gallery shows the files; an answer has them


def _add(p: Any, processed: Any, path: Path, frame: Image.Image, info: str) -> None:
    if p.is_api:
        processed.images.append(base64.b64encode(path.read_bytes()).decode())
    elif path.suffix in SHOWN:
        # The gallery shows the file an image says it was saved as.
        shown: Any = frame.copy()
        shown.already_saved_as = str(path)
        processed.images.append(shown)
    else:
        p.comment(f"MaskNoise wrote {path}")
        processed.comments += f"MaskNoise wrote {path}\n"
        return
    processed.infotexts.append(info)


def _place(p: Any, frame: Image.Image) -> tuple[Path, str]:
    """The folder and the name without ending that the host would give an image of this job."""
    opts = shared.opts
    names = images.FilenameGenerator(p, p.all_seeds[0], p.all_prompts[0], frame)
    folder = p.outpath_samples
    if opts.save_to_dirs:
        folder = os.path.join(folder, names.apply(opts.directories_filename_pattern or "[prompt_words]").strip(" \\/"))
    usual = "[seed]" if opts.save_to_dirs else "[seed]-[prompt_spaces]"
    stem = names.apply(opts.samples_filename_pattern or usual)
    if opts.save_images_add_number or not stem:
        number = images.get_next_sequence_number(folder, "") if os.path.isdir(folder) else 0
        stem = f"{number:05}-{stem}".rstrip("-")
    stem = stem.encode()[:LONGEST_NAME].decode(errors="ignore") + "-animation"
    return Path(folder), _unused(Path(folder), stem)


def _unused(folder: Path, stem: str) -> str:
    """The name, or one with a number where files of that name are there already."""
    for number in range(10_000):
        name = f"{stem}-{number}" if number else stem
        if not any((folder / f"{name}{ending}").exists() for ending in animation.ENDINGS.values()):
            return name
    return stem
