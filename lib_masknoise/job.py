"""A scene and its settings → a folder of frames, animations and a summary."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from lib_masknoise import animation, smoothness
from lib_masknoise.plan import TEXT_KEY, Plan, PlanChanged, Settings, frame_path, replace_file, whole_frames
from lib_masknoise.scene import Scene

__all__ = ["PlanChanged", "Settings", "write"]

BATCH_SIZES = (1, 2, 4, 8, 16)
BATCH_STEPS = 4  # denoising steps to tell the quickest batch size by
BATCH_GAIN = 0.97  # a larger batch must take at most this part of the time a frame, or its memory is wasted

MANY_LOOKS = 64  # enough to learn the pace of a short motion; a long one is looked at half as often as it has frames

Advance = Callable[[float], object]
Images = Callable[[Scene, Settings, Sequence[Sequence[float]], Advance], Iterator[Image.Image]]
"""Batches of frame times → their images, in order; `Advance` hears of every (part of a) frame that is made."""


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
    frames over that many processes of a Ray cluster (`lib_masknoise.distributed`).

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
        with _bar("checking", plan.total) as bar:
            frames = whole_frames(plan, frames_folder, bar.update)
    kept = len(frames)
    interrupted = False
    try:
        if kept < plan.total:
            with _studio(plan.settings, workers, address) as images:
                plan = _decide(plan, images, folder)
                _remove_others(frames_folder, frames)
                _make_frames(plan, images, frames_folder, frames, announce)
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
        "times": [plan.times[index] for index in indices],
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
    size = plan.settings.batch_size
    seen_times = times[:looks]  # the end of a loop is its beginning, which has been seen
    batches = [seen_times[start : start + size] for start in range(0, looks, size)]
    with _bar("looking ahead", looks) as bar:
        seen = images(plan.scene, plan.settings, batches, bar.update)
        _, steps = smoothness.steps(seen, plan.loops)
    return smoothness.even_times(times, steps, plan.total, plan.loops)


def _make_frames(
    plan: Plan, images: Images, folder: Path, frames: dict[int, str], announce: Callable[[Path], None]
) -> None:
    """Adds every missing frame to `frames` (index → sha256) as soon as its file is whole, so that an interrupt finds
    what there is."""
    batches = [batch for batch in plan.batches if not all(index in frames for index in batch)]
    times = [[plan.times[index] for index in batch] for batch in batches]
    rendered = sum(map(len, batches))
    with _bar("rendering", plan.total, initial=plan.total - rendered) as bar:
        made = images(plan.scene, plan.settings, times, bar.update)
        for index, image in zip(chain(*batches), made, strict=True):
            if index not in frames:
                path = frame_path(folder, index)
                frames[index] = _save_png(image, path, plan.text(index))
                announce(path)


def _smoothness(paths: Sequence[Path], loop: bool) -> dict[str, Any]:
    with _bar("measuring", len(paths)) as bar:

        def images() -> Iterator[Image.Image]:
            for path in paths:
                with Image.open(path) as image:
                    yield image.convert("RGB")
                bar.update(1)

        return smoothness.measure(images(), loop)


def _animate(plan: Plan, paths: Sequence[Path], folder: Path) -> list[Path]:
    options = plan.scene.animation
    with _bar("writing", None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return animation.write(
            paths,
            folder,
            folder.name,
            options.formats,
            options.fps,
            options.rubber_band,
            plan.metadata,
            progress,
            interpolate=options.interpolate,
            loop=plan.loops and len(paths) == plan.total,
        )


@contextmanager
def _bar(what: str, total: int | None, initial: int = 0) -> Iterator[Any]:
    """A progress bar of frames: how many, how fast, how long to go."""
    from tqdm import tqdm

    counts = "{n:.1f}/{total} frames, {rate_noinv_fmt}, {elapsed} gone, {remaining} to go"
    bar_format = "{desc}: {percentage:3.0f}% |{bar}| " + counts
    with tqdm(total=total, initial=initial, desc=what, unit=" frames", bar_format=bar_format, leave=False) as bar:
        yield bar


def _studio(settings: Settings, workers: int | None, address: str | None) -> AbstractContextManager[Images]:
    if workers is None and address is None:
        return this_process(settings)
    from lib_masknoise.distributed import cluster

    return cluster(settings, workers, address)


@contextmanager
def this_process(settings: Settings) -> Iterator[Images]:
    """Make images here, on one pipeline."""
    load_pipeline, render = host()
    pipe = load_pipeline(settings.model)

    def images(
        scene: Scene, settings: Settings, batches: Sequence[Sequence[float]], advance: Advance
    ) -> Iterator[Image.Image]:
        done = 0.0

        def on_step(progress: Any) -> None:
            nonlocal done
            advance(progress.frames - done)
            done = progress.frames

        # One call for all batches, which are of one size but for the last: the prompts are encoded once.
        times = list(chain(*batches))
        for frame in render(pipe, scene, **host_options(settings, times, len(batches[0])), on_step=on_step):
            yield frame.image

    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        yield images
    finally:
        torch.set_num_threads(threads_before)


def host_options(settings: Settings, times: Sequence[float], batch_size: int) -> dict[str, Any]:
    """The arguments of the host's `render` after the pipeline and the scene."""
    return {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "seed": settings.seed,
        "steps": settings.steps,
        "size": settings.size,
        "guidance_scale": settings.guidance_scale,
        "frames": times,
        "batch_size": batch_size,
    }


def host() -> tuple[Callable, Callable]:
    """`load_pipeline` and `render` of the diffusers host, which takes seconds to import; its libraries' own progress
    bars and hints kept quiet."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    from lib_masknoise.hosts.diffusers import load_pipeline, render

    return load_pipeline, render


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
