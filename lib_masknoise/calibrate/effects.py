"""What is measured: each effect as a scene whose frames are strengths.

Frames of one scene differ in the strength alone, so every host that renders frames can measure, in batches of its own.
All of the picture is under the effect: masks and pins only take from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lib_masknoise.calibrate.profile import ORIGINS
from lib_masknoise.controls import control
from lib_masknoise.scene import Scene


class Case(NamedTuple):
    """Two prompts that an effect is measured on: what noise moves and what a concept asks for; and the base that a
    concept is put over."""

    prompt: str
    base: str


def cases(prompts: Sequence[str]) -> list[Case]:
    """Each prompt over the next one; a single prompt over an empty one."""
    others = [*prompts[1:], prompts[0]] if len(prompts) > 1 else [""]
    return [Case(prompt, base) for prompt, base in zip(prompts, others, strict=True)]


@dataclass(frozen=True)
class Effect:
    """path: of its control. lowest: the smallest strength above the origin that is tried. gain: how far a finished
    picture moves for what the denoiser is heading for, about; where the first short run is made. breaks: the change of
    the picture, in distances of two seeds, up to which it holds; loses: the one from which on more than half of it is
    lost, as far as the curve is carried on beyond the range; None where change does not do it. base: the image's
    prompt in its scenes. plain: the prompt whose plain picture its scenes make at the origin. frames: a scene of
    strengths."""

    path: str
    lowest: float
    gain: float
    breaks: float | None
    loses: float | None
    base: Callable[[Case], str]
    plain: Callable[[Case], str]
    frames: Callable[[Case, Sequence[float], Scene], dict[str, Any]]

    @property
    def origin(self) -> float:
        return ORIGINS[self.path]

    @property
    def highest(self) -> float:
        """The largest strength, the control's bound."""
        return float(control(self.path).high or 0.0)

    def scales(self, count: int) -> list[float]:
        """That many strengths from the lowest to the highest, at equal ratios above the origin."""
        low, high = self.lowest, self.highest - self.origin
        return [self.origin + low * (high / low) ** (i / (count - 1)) for i in range(count)]

    def scene(self, case: Case, strengths: Sequence[float], like: Scene) -> Scene:
        """One frame for each strength. like: whose other settings it has."""
        data = self.frames(case, strengths, like)
        return Scene.parse({**data, "animation": {"frames": max(2, len(strengths))}})


def _noise(name: str) -> Callable[[Case, Sequence[float], Scene], dict[str, Any]]:
    def frames(case: Case, strengths: Sequence[float], like: Scene) -> dict[str, Any]:
        """A motion that multiplies the largest strength by what each frame has of it."""
        most = max(strengths)
        keys = [{"frame": i, "value": value / most} for i, value in enumerate(strengths)]
        own = getattr(like.noise, name).to_dict()
        motion = {"kind": "keyframes", "keyframes": keys, "loop": False}
        return {"noise": {"seed": like.noise.seed, name: {**own, "strength": most, "motion": motion}}}

    return frames


def _concept(mode: str) -> Callable[[Case, Sequence[float], Scene], dict[str, Any]]:
    def frames(case: Case, strengths: Sequence[float], like: Scene) -> dict[str, Any]:
        """A concept everywhere, whose weight is each frame's strength."""
        keys = [{"frame": i, "weight": value} for i, value in enumerate(strengths)]
        blend = {"mode": mode, "scale": 1.0, "preserve_norm": like.blend.preserve_norm}
        return {"concepts": [{"prompt": case.prompt, "keyframes": keys}], "blend": blend}

    return frames


def _base(case: Case) -> str:
    return case.base


def _prompt(case: Case) -> str:
    return case.prompt


# `gain` and `breaks` are what two cases on the built-in model had (docs/calibration.md): `breaks` where a fifth of
# the patches were no longer what they should be, of a weight with the prompt that breaks first. Visual noise leaves the
# latent white and of variance 1: another seed's picture is no broken one.
EFFECTS: tuple[Effect, ...] = (
    Effect("blend.scale", 1 / 10, 1.0, 0.45, 1.6, _base, _base, _concept(mode="add")),
    Effect("concepts[].weight", 1 / 32, 0.55, 0.5, None, _base, _prompt, _concept(mode="interpolate")),
    Effect("noise.visual.strength", 1 / 64, 1.1, None, None, _prompt, _prompt, _noise("visual")),
    Effect("noise.concept.strength", 1 / 8, 0.7, 0.4, None, _prompt, _prompt, _noise("concept")),
    Effect("noise.feature.strength", 1 / 32, 0.55, 0.55, 1.4, _prompt, _prompt, _noise("feature")),
)
