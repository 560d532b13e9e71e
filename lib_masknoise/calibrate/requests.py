"""What a calibration is asked for, strictly read: the body of the route, and what the accordion sends."""

# No `from __future__ import annotations`: pydantic reads the annotations of what is defined here.

from collections.abc import Sequence
from typing import Any, ClassVar

from lib_masknoise.calibrate import style
from lib_masknoise.calibrate.measuring import Probe, calibrate
from lib_masknoise.calibrate.profile import Profile
from lib_masknoise.explore.between import Stage
from lib_masknoise.explore.folder import Folder
from lib_masknoise.explore.requests import Asked, Presets
from lib_masknoise.scene import Problem, Scene, pydantic
from lib_masknoise.scene.rules import Rule, check_list
from lib_masknoise.scene.strict import each
from lib_masknoise.settings import Settings

MAX_PROMPTS = 8
FEW = 3
"""How many of a scene's prompts are measured where none are named."""
USUAL_PROMPTS = ("a wheat field", "an ocean", "a forest")
"""Where neither a prompt nor a scene says what it is to be measured with."""


def prompts_of(prompts: tuple[str, ...], prompt: str, scene: Scene | None) -> tuple[str, ...]:
    """What is measured with: the prompts that are named; else the first few of the scene's concepts and the image's
    own, each once; else some of everywhere."""
    own = [*(concept.prompt for concept in scene.acting.concepts), prompt] if scene else [prompt]
    found = tuple(dict.fromkeys(text.strip() for text in (prompts or own) if text.strip()))
    return (found if prompts else found[:FEW]) or USUAL_PROMPTS


class CalibrateRequest(Asked):
    """The useful range of every strength with the loaded model."""

    view: ClassVar[str] = "calibrate"

    prompts: tuple[str, ...] = pydantic.Field(
        (), maxItems=MAX_PROMPTS, description="What is measured with; the scene's and the image's own when empty."
    )
    scene: Scene | None = pydantic.Field(None, description="Whose prompts and whose settings of the noises count.")
    style: bool = pydantic.Field(False, description="Find the directions of style and layout, in place of the ranges.")
    again: bool = pydantic.Field(False, description="Measure also where there is a profile of the same prompts.")

    @pydantic.validator("prompts", pre=True, always=True, allow_reuse=True)
    def _texts(cls, value: Any) -> tuple[str, ...]:
        return each(Rule(str).check, check_list(value, 0, MAX_PROMPTS))

    def problems(self) -> list[Problem]:
        wrong = self.style and self.prompts
        return [Problem("prompts", "expected none: style is measured with prompts of its own")] if wrong else []

    @property
    def measured(self) -> tuple[str, ...]:
        return prompts_of(self.prompts, self.prompt, self.scene)

    @property
    def like(self) -> Scene:
        return self.scene or Scene()

    def make(self, model: Any, settings: Settings, folder: Folder, stage: Stage, presets: Presets) -> dict[str, Any]:
        """A view whose `profile` is what was found; it has no page of its own."""
        if self.style:
            profile = styled(model, settings, stage)
        else:
            profile = calibrate(model, self.measured, settings, self.like, stage)
        return {"view": self.view, "interrupted": False, "files": [], "profile": profile.to_dict()}


def styled(model: Probe, settings: Settings, stage: Stage, prompts: Sequence[str] = style.PROMPTS) -> Profile:
    """A profile of the directions of style alone, measured with the first seed of `settings` and at their size."""

    def measure(subject: style.Subject) -> style.Found:
        rows = style.calls(len(style.layer_groups(subject.levels)))
        with stage("style", rows, "rows") as report:
            return style.find(subject, prompts, settings.seed, report=report)

    found = model.styled(settings, measure)
    key, name = model.identity()
    return Profile(key, (), {}, name, style=found.to_dict())
