"""Where images are saved, and under which names."""

from __future__ import annotations

import io
import os
import re
from types import SimpleNamespace
from typing import Any

from modules import script_callbacks, shared
from PIL import Image, PngImagePlugin


class FilenameGenerator:
    """Fills in a pattern like `[seed]-[prompt_words]`."""

    def __init__(self, p: Any, seed: int, prompt: str, image: Image.Image):
        self.p, self.seed, self.prompt, self.image = p, seed, prompt, image

    def apply(self, pattern: str) -> str:
        known = {
            "seed": str(self.seed),
            "none": "",
            "steps": str(self.p.steps),
            "prompt_words": " ".join(re.findall(r"\w+", self.prompt)[:8]) or "empty",
            "prompt_spaces": re.sub(r'[<>:"/\\|?*\n]', "_", self.prompt)[:128].rstrip(" ."),
        }
        return re.sub(r"\[(\w+)\]", lambda found: known.get(found[1], found[0]), pattern)


def get_next_sequence_number(path: str, basename: str) -> int:
    numbers = [int(found[0]) for name in os.listdir(path) if (found := re.match(r"\d+(?=[-.])", name))]
    return max(numbers, default=-1) + 1


def save_image(image: Image.Image, p: Any, seed: int, prompt: str, info: str) -> str:
    names, opts, folder = FilenameGenerator(p, seed, prompt, image), shared.opts, p.outpath_samples
    if opts.save_to_dirs:
        folder = os.path.join(folder, names.apply(opts.directories_filename_pattern or "[prompt_words]"))
    os.makedirs(folder, exist_ok=True)
    stem = names.apply(opts.samples_filename_pattern or ("[seed]" if opts.save_to_dirs else "[seed]-[prompt_spaces]"))
    if opts.save_images_add_number:
        stem = f"{get_next_sequence_number(folder, ''):05}-{stem}"
    image.already_saved_as = os.path.join(folder, f"{stem}.{opts.samples_format}")
    params = SimpleNamespace(image=image, p=p, filename=image.already_saved_as, pnginfo={"parameters": info})
    script_callbacks.call("before_image_saved", params)
    image.already_saved_as = params.filename
    with open(image.already_saved_as, "wb") as file:
        file.write(encoded(image, params.pnginfo["parameters"]))
    return image.already_saved_as


def encoded(image: Image.Image, info: str) -> bytes:
    """In the format of the settings: as text in a PNG, elsewhere as an EXIF comment of two bytes a letter."""
    data, kind = io.BytesIO(), shared.opts.samples_format
    if kind == "png":
        text = PngImagePlugin.PngInfo()
        text.add_text("parameters", info)
        image.save(data, "PNG", pnginfo=text)
    else:
        exif = Image.Exif()
        exif[0x8769] = {0x9286: b"UNICODE\0" + info.encode("utf-16-be")}
        image.save(data, {"jpg": "JPEG"}.get(kind, kind.upper()), exif=exif.tobytes())
    return data.getvalue()
