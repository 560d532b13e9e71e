"""A scene and its settings → a folder of frames, animations and a summary."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from lib_masknoise import animation, smoothness
from lib_masknoise.disk import replace_file
from lib_masknoise.render.plan import TEXT_KEY, Plan, frame_path, whole_frames
from lib_masknoise.render.progress import progress
from lib_masknoise.render.studio import Images, Studio, this_process
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

BATCH_SIZES = (1, 2, 4, 8, 16)
BATCH_STEPS = 4  # denoising steps to tell the quickest batch size by
BATCH_GAIN = 0.97  # a larger batch must take at most this part of the time a frame, or its memory is wasted

MANY_LOOKS = 64  # enough to learn the pace of a short motion; a long one is looked at half as often as it has frames


def write(
    scene: Scene,
    settings: Settings,
    folder: Path,
    announce: Callable[[Path], None] = lambda path: None,
    *,
    resume: bool = False,
    workers: int | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """Render all frames into `folder/frames`, write the animations the scene asks for and `summary.json`.

    announce: called with each file once it is whole. resume: keep the frames that an interrupted render of the same
    scene and settings has left in the folder; the others come out as they would have. workers, address: spread the
    frames over that many processes of a Ray cluster (`lib_masknoise.render.ray`).

    Returns the summary. An interrupt (Ctrl+C) ends the sampling: the frames made so far are kept, the animations are
    written of what there is, and the summary says so. Raises PlanChanged where `resume` meets another render,
    FileNotFoundError and ValueError where the model or the settings do not fit, ImportError where the animation
    cannot be encoded, OSError where a file cannot be written or the cluster is lost: every frame announced by then is
    whole.
    """
    start = time.monotonic()
    if scene.animation.frames > 1:
        animation.require_encoders(scene.animation.formats, scene.animation.interpolate)
    frames_folder = folder / "frames"
    plan = Plan.resumed(scene, settings, folder) if resume else Plan.of(scene, settings)
    frames_folder.mkdir(parents=True, exist_ok=True)
    frames: dict[int, str] = {}  # index → sha256
    if resume:
        with progress("checking", plan.total) as looked:
            frames = whole_frames(plan, frames_folder, looked)
    kept = len(frames)
    interrupted = False
    try:
        if kept < plan.total:
            with _studio(plan, workers, address) as studio:
                plan = plan.on(studio.machine)
                _remove_others(frames_folder, frames)
                plan = _decide(plan, studio.images, folder)
                _make_frames(plan, studio.images, frames_folder, frames, announce)
    except KeyboardInterrupt:
        interrupted = True
    indices = sorted(frames)
    paths = [frame_path(frames_folder, index) for index in indices]
    smooth = None
    files = list(paths)
    if len(paths) > 1 and not interrupted:
        smooth = _smoothness(paths, plan.loops)
    if paths and scene.animation.frames > 1:
        written = _animate(plan, paths, folder)
        for path in written:
            announce(path)
        files += written
    summary = {
        "frames": len(paths),
        "kept": kept,
        "seconds": round(time.monotonic() - start, 3),
        "interrupted": interrupted,
        "files": [str(path.relative_to(folder)) for path in files],
        "sha256": [frames[index] for index in indices],
        "times": [plan.time(index) for index in indices],
        "smoothness": smooth,
        **plan.metadata,
    }
    path = folder / "summary.json"
    replace_file(path, (json.dumps(summary, indent=2) + "\n").encode())
    announce(path)
    return summary


def _decide(plan: Plan, images: Images, folder: Path) -> Plan:
    """Find out what the settings leave open, and write the plan: before the first frame, so that it can be resumed."""
    plan.write(folder)
    if plan.settings.batch_size is None:
        plan = replace(plan, settings=replace(plan.settings, batch_size=_best_batch_size(plan, images)))
    if plan.times is None:
        plan = replace(plan, times=tuple(_even_times(plan, images)))
    plan.write(folder)
    return plan


def _best_batch_size(plan: Plan, images: Images) -> int:
    """The batch size with the least time a frame here, measured with a few steps; the smallest of about equal ones."""
    quick = replace(plan.settings, steps=min(plan.settings.steps, BATCH_STEPS))

    def seconds_each(size: int) -> float:
        start = time.perf_counter()
        for _ in images(plan.scene, quick, [range(size)], lambda frames: None):
            pass
        return (time.perf_counter() - start) / size

    seconds_each(1)  # the first pass also pays for what is set up once
    best, least = 1, seconds_each(1)
    for size in BATCH_SIZES[1:]:
        if size > plan.total:
            break
        try:
            each = seconds_each(size)
        except RuntimeError as error:
            if "out of memory" not in str(error).lower():
                raise
            break
        if each < BATCH_GAIN * least:
            best, least = size, each
    return best


def _even_times(plan: Plan, images: Images) -> list[float]:
    """Look at the whole motion at evenly spaced times, then place the frames at equal perceptual distances."""
    if plan.total < 3:
        return list(range(plan.total))
    looks = max(min(plan.total, MANY_LOOKS), plan.total // 2)
    times = smoothness.coarse_times(plan.total, looks + int(plan.loops), plan.loops)
    size = plan.batch_size
    seen_times = times[:looks]  # the end of a loop is its beginning, which has been seen
    batches = [seen_times[start : start + size] for start in range(0, looks, size)]
    with progress("looking ahead", looks) as advance:
        seen = images(plan.scene, plan.settings, batches, advance)
        _, steps = smoothness.steps(seen, plan.loops)
    return smoothness.even_times(times, steps, plan.total, plan.loops)


def _make_frames(
    plan: Plan, images: Images, folder: Path, frames: dict[int, str], announce: Callable[[Path], None]
) -> None:
    """Adds every missing frame to `frames` (index → sha256) as soon as its file is whole, so that an interrupt finds
    what there is."""
    batches = [batch for batch in plan.batches if not all(index in frames for index in batch)]
    times = [[plan.time(index) for index in batch] for batch in batches]
    rendered = sum(map(len, batches))
    with progress("rendering", plan.total, initial=plan.total - rendered) as advance:
        made = images(plan.scene, plan.settings, times, advance)
        for index, image in zip(chain(*batches), made, strict=True):
            if index not in frames:
                path = frame_path(folder, index)
                frames[index] = _save_png(image, path, plan.text(index))
                announce(path)


def _smoothness(paths: Sequence[Path], loop: bool) -> dict[str, Any]:
    with progress("measuring", len(paths)) as advance:

        def images() -> Iterator[Image.Image]:
            for path in paths:
                with Image.open(path) as image:
                    yield image.convert("RGB")
                advance(1)

        return smoothness.measure(images(), loop)


def _animate(plan: Plan, paths: Sequence[Path], folder: Path) -> list[Path]:
    done = 0.0
    with progress("writing", len(plan.scene.animation.formats), unit="files") as advance:

        def written(files: float, total: int) -> None:
            nonlocal done
            advance(files - done)
            done = files

        return animation.write_scene(plan.scene, paths, folder, folder.name, plan.metadata, written)


def _studio(plan: Plan, workers: int | None, address: str | None) -> AbstractContextManager[Studio]:
    if workers is None and address is None:
        return this_process(plan.settings)
    from lib_masknoise.render.ray import cluster

    return cluster(plan.settings, workers, address, plan.weights)


def _remove_others(folder: Path, frames: dict[int, str]) -> None:
    """What an earlier render has left under the same names would pass for frames of this one."""
    keep = {frame_path(folder, index) for index in frames}
    for path in (*folder.glob("[0-9]" * 5 + ".png"), *folder.glob(".*.part")):
        if path not in keep:
            path.unlink()


def _save_png(image: Image.Image, path: Path, text: str) -> str:
    """Returns the file's sha256."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(TEXT_KEY, text)
    data = io.BytesIO()
    image.save(data, format="PNG", pnginfo=info)
    replace_file(path, data.getvalue())
    return hashlib.sha256(data.getvalue()).hexdigest()
