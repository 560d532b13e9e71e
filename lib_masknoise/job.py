"""A scene and its settings → a folder of frames, animations and a summary."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from lib_masknoise import animation
from lib_masknoise.scene import Scene


@dataclass(frozen=True)
class Settings:
    """Everything of a render that is not in the scene. size: (height, width), None for the model's own."""

    prompt: str = ""
    negative_prompt: str = ""
    model: str | None = None
    seed: int = 0
    steps: int = 20
    size: tuple[int, int] | None = None
    guidance_scale: float = 4.0
    batch_size: int = 4


def write(
    scene: Scene, settings: Settings, folder: Path, announce: Callable[[Path], None] = lambda path: None
) -> dict[str, Any]:
    """Render all frames into `folder/frames`, write the animations the scene asks for and `summary.json`.

    announce: called with each file once it is whole. Returns the summary. An interrupt (Ctrl+C) ends the sampling: the
    frames made so far are kept, the animations are written of what there is, and the summary says so.
    Raises FileNotFoundError and ValueError where the model or the settings do not fit.
    """
    start = time.monotonic()
    frames_folder = folder / "frames"
    frames_folder.mkdir(parents=True, exist_ok=True)
    metadata = {"scene": scene.to_dict(), "settings": asdict(settings)}
    frames: list[Path] = []
    interrupted = False
    try:
        _render_frames(scene, settings, frames_folder, metadata, frames, announce)
        _remove_others(frames_folder, frames)
    except KeyboardInterrupt:
        interrupted = True
    files = list(frames)
    if frames and scene.animation.frames > 1:
        options = scene.animation
        written = animation.write(
            frames, folder, folder.name, options.formats, options.fps, options.rubber_band, metadata
        )
        for path in written:
            announce(path)
        files += written
    summary = {
        "frames": len(frames),
        "seconds": round(time.monotonic() - start, 3),
        "interrupted": interrupted,
        "files": [str(path.relative_to(folder)) for path in files],
        "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in frames],
        **metadata,
    }
    path = folder / "summary.json"
    _replace(path, lambda part: part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8"))
    announce(path)
    return summary


def _render_frames(
    scene: Scene,
    settings: Settings,
    folder: Path,
    metadata: dict[str, Any],
    frames: list[Path],
    announce: Callable[[Path], None],
) -> None:
    """Appends every frame's file to `frames` as soon as it is whole, so that an interrupt finds what there is."""
    from tqdm import tqdm

    load_pipeline, render = _host()
    pipe = load_pipeline(settings.model)
    bar_format = "{desc}: {percentage:3.0f}% |{bar}| {n:.1f}/{total} frames, {elapsed} gone, {remaining} to go"
    with tqdm(total=scene.animation.frames, desc="rendering", bar_format=bar_format, leave=False) as bar:
        made = render(
            pipe,
            scene,
            settings.prompt,
            settings.negative_prompt,
            seed=settings.seed,
            steps=settings.steps,
            size=settings.size,
            guidance_scale=settings.guidance_scale,
            batch_size=settings.batch_size,
            on_step=lambda progress: bar.update(progress.frames - bar.n),
        )
        for frame in made:
            path = folder / f"{frame.index:05}.png"
            _save_png(frame.image, path, {**metadata, "frame": frame.index})
            frames.append(path)
            announce(path)


def _host() -> tuple[Callable, Callable]:
    """The diffusers host, which takes seconds to import; its libraries' own progress bars and hints kept quiet."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    from lib_masknoise.hosts.diffusers import load_pipeline, render

    return load_pipeline, render


def _remove_others(folder: Path, frames: list[Path]) -> None:
    """Frames of an earlier, longer render under the same name would pass for frames of this one."""
    for path in folder.glob("[0-9]" * 5 + ".png"):
        if path not in frames:
            path.unlink()


def _save_png(image: Image.Image, path: Path, metadata: dict[str, Any]) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("masknoise", json.dumps(metadata))
    _replace(path, lambda part: image.save(part, format="PNG", pnginfo=info))


def _replace(path: Path, save: Callable[[Path], Any]) -> None:
    """Write under a temporary name and move into place: a file that is there is whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
