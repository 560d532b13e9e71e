"""The useful range of an effect, by one call of the denoiser and two short runs.

On the way of a plain picture, at a noise level of about 4 (step 750 of 1000 in Stable Diffusion), the denoiser is asked
once for what it is heading for at eight strengths × four seeds. How far that moves, in distances between two seeds,

    r(s) = rms(x0_s − x0_0) / rms(x0_seed − x0_seed'),

follows how far the finished picture moves. What it is heading for also tells broken pictures: their spread, their
sharpness, or how much guidance adds leave the range that seeds have. Two short runs, one at each end, then say what
pictures of these strengths are, and the ends are moved accordingly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_masknoise.calibrate.effects import EFFECTS, Case, Effect, cases
from lib_masknoise.calibrate.profile import Band, Profile
from lib_masknoise.calibrate.style import Found, Subject
from lib_masknoise.explore.model import Recording, Report, Stop
from lib_masknoise.maps import Maps
from lib_masknoise.noise.latent import visual
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

SCALES, SEEDS = 8, 4
SHORT = 8
"""Steps of a short run."""
SIGMA = 4.0
"""The noise level at which the denoiser is asked: noise for each part of signal."""

VISIBLE = 0.3
"""A change is seen from here on, in distances of two seeds."""

STRAINED = 0.6
"""What the denoiser is heading for breaks where its spread or sharpness leaves the range of the seeds by this much, in
natural logarithms: 1.8 times what any seed has, or less than a 1.8th."""
OVERSTRAINED = 1.0
"""More than half is lost where it does by this much: 2.7 times, or less than a 2.7th."""
RIGHT = 0.8
"""How much of a picture is right where it just holds, in the eyes of a judge."""

Judge = Callable[[Image.Image, Effect, Case], float]
"""How much of a picture still is what it should be, 0 to 1."""

Stage = Callable[[str, int, str], AbstractContextManager[Report]]
"""Begins to show how much of something is done: what, how many, of what."""


class Probe(Protocol):
    """A loaded model. See `lib_masknoise.explore.model.Model` for the first two."""

    @property
    def size(self) -> tuple[int, int]: ...

    def identity(self) -> tuple[str, str]:
        """The hash of the model's weights ("" where they are no file) and its name."""

    def recorded(self, scene: Scene, settings: Settings, report: Report) -> Recording: ...

    def rendered(
        self, scene: Scene, settings: Settings, frames: Sequence[float], report: Report
    ) -> Iterator[Image.Image]: ...

    def styled(self, settings: Settings, measure: Callable[[Subject], Found]) -> Found:
        """What is measured of the model as a `style.Subject`, at the size that `settings` give."""

    def heading(
        self, scene: Scene, settings: Settings, frames: Sequence[float], x_t: Tensor, step: int, sigma: float
    ) -> Tensor:
        """What the denoiser is heading for at one call, `[F, C, h, w]`: of some frames of a scene, at a step of the
        run that `settings` describe, whose noise level is sigma. x_t: `[F, C, h, w]` of unit variance."""


@dataclass(frozen=True)
class Plain:
    """Short runs of one prompt without any effect, one for each seed, asked at the same step. step: which; sigma: its
    noise level; noise, x_t, x0: `[S, C, h, w]`, of unit variance the first two; images: S finished pictures."""

    step: int
    sigma: float
    noise: Tensor
    x_t: Tensor
    x0: Tensor
    images: Sequence[Image.Image]

    @property
    def unit(self) -> float:
        """The distance of two seeds in what the denoiser is heading for."""
        return _between(self.x0)

    @property
    def image_unit(self) -> float:
        """The distance of two seeds' pictures."""
        return _between(pixels(self.images))


class Look(NamedTuple):
    """An effect on a case: its strengths in ascending order, what the denoiser is heading for at each, `[F, S, C, h,
    w]`, and the plain runs it is compared with."""

    effect: Effect
    case: Case
    scales: Sequence[float]
    x0: Tensor
    plain: Plain

    @property
    def changes(self) -> list[float]:
        """r(s): how far each strength moves it, in distances of two seeds."""
        return [_rms(row - self.plain.x0) / self.plain.unit for row in self.x0]

    @property
    def steps(self) -> list[float]:
        """How far it is from each strength to the next one, the first from the plain picture, in the same distances."""
        rows = torch.cat([self.plain.x0[None], self.x0])
        return [_rms(step) / self.plain.unit for step in rows.diff(dim=0)]


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """`[S, 3, H, W]`, values from 0 to 1."""
    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _between(rows: Tensor) -> float:
    """The root mean square difference of two rows, over all pairs."""
    pairs = [rows[i] - rows[j] for i in range(len(rows)) for j in range(i)]
    return _rms(torch.stack(pairs))


class Bench:
    """One model being measured. like: the scene whose other settings count. settings: of the pictures."""

    def __init__(self, probe: Probe, settings: Settings, like: Scene, report: Report) -> None:
        self.probe, self.like, self.report = probe, like, report
        self.settings = replace(settings, steps=SHORT, size=settings.size or probe.size, batch_size=SCALES)
        self._plain: dict[str, Plain] = {}

    def plain(self, prompt: str) -> Plain:
        if prompt not in self._plain:
            off = Scene.parse({"enabled": False})
            runs = [self.probe.recorded(off, self._of(prompt, seed), self.report) for seed in self._seeds]
            if any(run.interrupted for run in runs):
                raise Stop
            self._plain[prompt] = _plain(runs)
        return self._plain[prompt]

    def look(self, effect: Effect, case: Case) -> Look:
        """One call of the denoiser for each seed, at all strengths."""
        plain, scales = self.plain(effect.plain(case)), effect.scales(SCALES)
        scene, frames = effect.scene(case, scales, self.like), range(SCALES)
        rows = []
        for i, seed in enumerate(self._seeds):
            settings = self._of(effect.base(case), seed)
            x_t = _moved(plain.x_t[i], plain.noise[i], plain.sigma, scene, frames, seed)
            rows.append(self.probe.heading(scene, settings, frames, x_t, plain.step, plain.sigma))
            self.report(1)
        return Look(effect, case, scales, torch.stack(rows, 1), plain)

    def run(self, effect: Effect, case: Case, strength: float) -> list[Image.Image]:
        """A short run at one strength: a picture of each seed."""
        scene = effect.scene(case, [strength], self.like)
        made: list[Image.Image] = []
        for seed in self._seeds:
            made += self.probe.rendered(scene, self._of(effect.base(case), seed), [0], self.report)
        return made

    def runner(self, effect: Effect, case: Case, judge: Judge | None) -> Callable[[float], Run]:
        """What makes a short run at a strength and says what became of its pictures."""
        plain = self.plain(effect.plain(case))

        def run(strength: float) -> Run:
            images = self.run(effect, case, strength)
            change = _rms(pixels(images) - pixels(plain.images)) / plain.image_unit
            return Run(strength, change, None if judge is None else min(1.0, share(judge, images) / best))

        def share(judge: Judge, images: Sequence[Image.Image]) -> float:
            return sum(judge(image, effect, case) for image in images) / len(images)

        best = 1.0 if judge is None else max(share(judge, plain.images), 1e-3)

        return run

    @property
    def _seeds(self) -> list[int]:
        return [self.settings.seed + i for i in range(SEEDS)]

    def _of(self, prompt: str, seed: int) -> Settings:
        return replace(self.settings, prompt=prompt, seed=seed)


def _plain(runs: Sequence[Recording]) -> Plain:
    calls = runs[0].moments[:-1]  # the last one is the end
    step = min(range(len(calls)), key=lambda i: abs(math.log(calls[i].sigma / SIGMA)))

    def rows(part: Callable[[Recording], Tensor]) -> Tensor:
        return torch.stack([part(run) for run in runs])

    return Plain(
        step,
        calls[step].sigma,
        rows(lambda run: run.moments[0].x_t),
        rows(lambda run: run.moments[step].x_t),
        rows(lambda run: run.moments[step].x0),
        [run.image for run in runs if run.image is not None],
    )


def _moved(x_t: Tensor, noise: Tensor, sigma: float, scene: Scene, frames: Sequence[float], seed: int) -> Tensor:
    """A plain latent `[C, h, w]` with some frames' visual noise in it, `[F, C, h, w]`: the noise that is still in it is
    exchanged in the way that the initial one would be."""
    rows = x_t.expand(len(frames), *x_t.shape)
    if not scene.noise.visual.strength:
        return rows
    maps, motion = Maps(scene, (x_t.shape[-2], x_t.shape[-1])), scene.noise.visual.motion or scene.motion
    drawn = seed if scene.noise.seed < 0 else scene.noise.seed
    moved = visual(noise, maps.amount("visual", frames), motion, frames, maps.total, drawn)
    return rows + (moved - noise) * sigma / math.sqrt(1 + sigma**2)


# --- What the curves say


def crossing(scales: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The scale at which values first reach a target, by straight lines in the logarithms of both; before the first one
    by the line of the first two, at most two octaves. scales: ascending, above 0. None where they do not reach it."""
    logs, wanted = [math.log(max(value, 1e-9)) for value in values], math.log(target)
    places = [math.log(scale) for scale in scales]
    above = next((i for i, value in enumerate(logs) if value >= wanted), None)
    if above is None:
        return None
    right = max(above, 1)
    slope = (logs[right] - logs[right - 1]) / (places[right] - places[right - 1])
    if slope <= 0:
        return scales[above]
    place = places[right - 1] + (wanted - logs[right - 1]) / slope
    return math.exp(max(place, places[0] - 2 * math.log(2)))


def at(scales: Sequence[float], values: Sequence[float], scale: float) -> float:
    """A value between those of some scales, by the same lines; beyond them the nearest one."""
    logs = np.log(np.maximum(values, 1e-9))
    return float(np.exp(np.interp(math.log(scale), np.log(scales), logs)))


def spread(x0: Tensor) -> Tensor:
    """How far what rows `[…, C, h, w]` are heading for spreads, as a logarithm."""
    return x0.double().std((-3, -2, -1), correction=0).log()


def sharpness(x0: Tensor) -> Tensor:
    """How much neighbours differ in it, as a part of its spread; as a logarithm."""
    x = x0.double()
    squared = x.diff(dim=-1).square().mean((-3, -2, -1)) + x.diff(dim=-2).square().mean((-3, -2, -1))
    return squared.sqrt().log() - spread(x0)


def strain(look: Look) -> list[float]:
    """By how much each strength leaves the range of the seeds in spread or sharpness, in logarithms: 0 within it."""
    found = []
    for measure in (spread, sharpness):
        seeds, rows = measure(look.plain.x0), measure(look.x0).mean(1)
        found.append(torch.maximum(rows - seeds.max(), seeds.min() - rows).clamp(min=0))
    return torch.stack(found).amax(0).tolist()


@dataclass(frozen=True)
class Run:
    """A short run at a strength: how far the pictures change, in distances of two seeds, and how much of them still is
    what it should be, as a part of how much of the plain ones is, where somebody judges that."""

    scale: float
    change: float
    right: float | None = None


def band(look: Look, run: Callable[[float], Run]) -> Band:
    """Where an effect is useful: the two ends that its curve predicts, each moved by what a short run there shows.
    run: makes one at a strength."""
    effect, origin = look.effect, look.effect.origin
    scales, changes = [scale - origin for scale in look.scales], look.changes
    most = scales[-1]

    def made(place: float) -> Run:
        found = run(origin + place)
        return replace(found, scale=place)

    first = made(min(crossing(scales, changes, VISIBLE / effect.gain) or most, most))
    pictures = [change * _ratio(scales, changes, first) for change in changes]
    strains = strain(look)

    def reaching(change: float | None, strained: float) -> float | None:
        moved = None if change is None else crossing(scales, pictures, change)
        return _least(moved, crossing(scales, strains, strained))

    last = made(min(reaching(effect.breaks, STRAINED) or most, most))
    ratios = _ratios(scales, changes, (first, last))
    pictures = (ratios * changes).tolist()
    visible, broken = crossing(scales, pictures, VISIBLE), reaching(effect.breaks, STRAINED)
    if last.right is not None and first.right is not None:
        broken = _least(broken, _judged(first, last))
    lost = reaching(effect.loses, OVERSTRAINED)
    return Band(
        effect.path,
        None if visible is None or visible > most else origin + visible,
        None if broken is None or broken >= most else origin + broken,
        rows=len(scales) * look.x0.shape[1],
        scales=tuple(round(scale, 6) for scale in look.scales),
        changes=tuple(round(change, 6) for change in pictures),
        lost=None if broken is None or lost is None or not broken < lost < most else origin + lost,
        lengths=tuple(round(length, 6) for length in np.cumsum(ratios * look.steps).tolist()),
    )


def _least(*given: float | None) -> float | None:
    return min((one for one in given if one is not None), default=None)


def _ratio(scales: Sequence[float], changes: Sequence[float], run: Run) -> float:
    """Of a picture's change to the one that the denoiser was heading for."""
    return max(run.change, 1e-6) / at(scales, changes, run.scale)


def _ratios(scales: Sequence[float], changes: Sequence[float], runs: Sequence[Run]) -> np.ndarray:
    """Of pictures' changes to what the denoiser was heading for, at each scale: those of the runs, which pass evenly
    from one to the other."""
    known = sorted((math.log(run.scale), math.log(_ratio(scales, changes, run))) for run in runs)
    places, ratios = zip(*known, strict=True)
    return np.exp(np.interp(np.log(scales), places, ratios))


def _judged(first: Run, last: Run) -> float | None:
    """Where pictures of two strengths, judged, say that RIGHT of them is; None where both are better than that."""
    assert first.right is not None and last.right is not None
    if last.right >= RIGHT:
        return None
    if first.right <= RIGHT or first.scale >= last.scale:
        return min(first.scale, last.scale)
    way = (first.right - RIGHT) / (first.right - last.right)
    return first.scale + way * (last.scale - first.scale)


def joined(bands: Sequence[Band]) -> Band:
    """One band of the same effect's with several prompts: the ends' means above the origin; broken or lost where it is
    for most."""
    first = bands[0]

    def mean(ends: Sequence[float | None]) -> float | None:
        known = [math.log(end - first.origin) for end in ends if end is not None]
        return first.origin + math.exp(sum(known) / len(known)) if 2 * len(known) > len(ends) else None

    return replace(
        first,
        visible=mean([one.visible for one in bands]),
        broken=mean([one.broken for one in bands]),
        changes=tuple(np.mean([one.changes for one in bands], axis=0).tolist()),
        lost=mean([one.lost for one in bands]),
        lengths=tuple(np.mean([one.lengths for one in bands], axis=0).tolist()),
    )


# --- All of it


def described(settings: Settings, like: Scene) -> dict[str, Any]:
    """What a profile depends on besides its model and prompts."""
    noise = like.noise
    return {
        "negative_prompt": settings.negative_prompt,
        "guidance_scale": settings.guidance_scale,
        "seed": settings.seed,
        "size": list(settings.size) if settings.size else None,
        "preserve_norm": like.blend.preserve_norm,
        "concept": {"rank": noise.concept.rank, "size": noise.concept.size},
        "feature": {"dimensions": str(noise.feature.dimensions), "size": noise.feature.size},
    }


def calibrate(
    probe: Probe,
    prompts: Sequence[str],
    settings: Settings,
    like: Scene,
    stage: Stage,
    judge: Judge | None = None,
    effects: Sequence[Effect] = EFFECTS,
) -> Profile:
    """The profile of a model. settings: of the pictures, seed and size and guidance. like: the scene whose settings of
    the noises count. judge: says how much of a picture is what it should be, where there is somebody who can. Raises
    Stop where `stage` wants no more, and leaves the model as it was."""
    model, name = probe.identity()
    listed = cases(prompts)
    plains = {prompt for case in listed for effect in effects for prompt in (effect.plain(case),)}
    total = SEEDS * (len(plains) + len(listed) * len(effects) * 3)
    found: dict[str, list[Band]] = {effect.path: [] for effect in effects}
    with stage("measuring", total, "pictures") as report:
        bench = Bench(probe, settings, like, report)
        for case in listed:
            for effect in effects:
                found[effect.path].append(band(bench.look(effect, case), bench.runner(effect, case, judge)))
    known = replace(settings, size=settings.size or probe.size)
    bands = {path: joined(some) for path, some in found.items()}
    return Profile(model, tuple(prompts), bands, name, described(known, like))
