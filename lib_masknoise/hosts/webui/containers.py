"""Infotext in files that hold little of it: no picture may be lost over our masks.

A1111 and its kin write the infotext of JPEG, WebP and AVIF as an EXIF comment of two bytes a letter, and stop with an
error where it is too long: after the sampling, so that the pictures are gone. There the masks go into a file beside.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import shared

from lib_masknoise import infotext
from lib_masknoise.disk import replace_file
from lib_masknoise.hosts.webui.prompts import WILDCARDS
from lib_masknoise.scene import Scene

JPEG = 65_000
"""Bytes of EXIF data: a JPEG's segment has 65,533, of which some are the host's own."""
OTHERS = 2**20

LIMITS = {".jpg": JPEG, ".jpeg": JPEG, ".webp": OTHERS, ".avif": OTHERS, ".jxl": OTHERS}
"""Of what is not here (PNG, GIF) no limit is known that an infotext could reach."""

IN_FILE = "masknoise_masks_in_file"
"""The setting by which masks go into a file whatever the container, for people who read infotexts."""

OUTPUTS = ("outdir_samples", "outdir_txt2img_samples", "outdir_img2img_samples", "outdir_save")
"""The settings with the host's output folders."""


def before_image_saved(params: Any) -> None:
    """The host's callback. params: `ImageSaveParams`, whose infotext is made shorter where it has to be."""
    text = params.pnginfo.get("parameters")
    ending = Path(params.filename).suffix
    if getattr(params.p, "masknoise", None) and (shared.state.interrupted or shared.state.skipped):
        params.filename = f"{params.filename.removesuffix(ending)}-interrupted{ending}"
    if isinstance(text, str) and _too_long(text, ending):
        folder = getattr(params.p, "outpath_samples", None) or Path(params.filename).parent
        params.pnginfo["parameters"] = infotext.lighter(text, _writer(Path(folder)))


def add_setting() -> None:
    """The host's callback: the extension's own page of settings."""
    label = "Keep masks in a file beside the images, named in the infotext by its hash (only where images are saved)"
    shared.opts.add_option(IN_FILE, shared.OptionInfo(False, label, section=("masknoise", "MaskNoise")))
    label = "Folder of wildcard files for concepts' prompts, besides those of Dynamic Prompts and of Wildcards"
    shared.opts.add_option(WILDCARDS, shared.OptionInfo("", label, section=("masknoise", "MaskNoise")))


def described(p: Any, scene: Scene) -> dict[str, str]:
    """A scene's infotext parameters for a job, as the settings want them."""
    params = infotext.write(scene)
    if getattr(shared.opts, IN_FILE, False) and p.save_samples():
        return infotext.beside(params, _writer(Path(p.outpath_samples)))
    return params


def shorten(p: Any, pictures: list[Any]) -> None:
    """Of a job's pictures: the infotext with which the host's API will encode them."""
    ending = f".{shared.opts.samples_format.lower()}"
    keep = _writer(Path(p.outpath_samples)) if p.save_samples() else lambda name, content: False
    for picture in pictures:
        text = getattr(picture, "info", {}).get("parameters")
        if isinstance(text, str) and _too_long(text, ending):
            picture.info["parameters"] = infotext.lighter(text, keep)


def find(name: str) -> bytes | None:
    """The content of a file of masks, wherever among the output folders it lies."""
    folders = (getattr(shared.opts, setting, "") for setting in OUTPUTS)
    paths = (Path(folder) / infotext.FOLDER / name for folder in folders if folder)
    return next((path.read_bytes() for path in paths if path.is_file()), None)


def _too_long(text: str, ending: str) -> bool:
    limit = LIMITS.get(ending.lower())
    return limit is not None and len(text.encode("utf-16-be", "surrogatepass")) > limit


def _writer(folder: Path) -> Callable[[str, bytes], bool]:
    def keep(name: str, content: bytes) -> bool:
        path = folder / infotext.FOLDER / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                replace_file(path, content)
        except OSError as error:  # a full disk must not cost the picture either
            print(f"MaskNoise: the masks were not written: {error}")
            return False
        return True

    return keep
