"""What a view is asked for, strictly read: the bodies of the routes, and what the accordion *Explore* sends.

Each request makes its view. Everything that a view depends on is in its request, but for the loaded model.
"""

# No `from __future__ import annotations`: pydantic reads the annotations of what is defined here.

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from lib_masknoise.conditioning import prompts
from lib_masknoise.explore import map as maps
from lib_masknoise.explore import views
from lib_masknoise.explore.between import Stage
from lib_masknoise.explore.folder import Folder
from lib_masknoise.explore.grid import Grid
from lib_masknoise.explore.map import Entry
from lib_masknoise.explore.model import Model
from lib_masknoise.scene import Part, Problem, Scene, SceneError, pydantic
from lib_masknoise.scene.rules import Rule, check_list
from lib_masknoise.scene.strict import each
from lib_masknoise.settings import Settings

LARGEST = 2048  # pixels, of a side
MAX_LISTED = 64
MAX_BLENDED = 16

Presets = Callable[[], Sequence[str]]
"""The prompts of the saved presets."""


def _each(rule: Rule, value: Any) -> tuple[Any, ...]:
    """A list whose entries a rule holds for. Raises SceneError with the problems of all, ValueError for no list."""
    return each(rule.check, check_list(value, 0, 2 * maps.MAX_PROMPTS))


class Asked(Part):
    """What all views have in common: the settings of their pictures."""

    view: ClassVar[str] = ""

    session: str = pydantic.Field("", description="A name by which /explore/stop can stop it.")
    prompt: str = pydantic.Field("", description="Of the image; the base of a scene.")
    negative_prompt: str = pydantic.Field("", description="Of all pictures.")
    seed: int = pydantic.Field(0, ge=0, le=2**63 - 1, description="Of all pictures.")
    steps: int = pydantic.Field(20, ge=1, le=150, description="Of every picture.")
    width: int = pydantic.Field(512, ge=64, le=LARGEST, description="In pixels, a multiple of 8.")
    height: int = pydantic.Field(512, ge=64, le=LARGEST, description="In pixels, a multiple of 8.")
    guidance_scale: float = pydantic.Field(7.0, ge=0, le=100, description="1 or less: no negative prompt.")
    sampler: str = pydantic.Field("", description="By the host's name; its usual one when empty.")
    scheduler: str = pydantic.Field("", description="By the host's name; its usual one when empty.")
    batch_size: int = pydantic.Field(4, ge=1, le=64, description="Pictures sampled at a time.")

    def _fill(self, given: Any) -> None:
        super()._fill(given)
        wrong = [
            Problem(name, f"expected a multiple of 8, got {value}")
            for name in ("width", "height")
            if (value := getattr(self, name)) % 8
        ]
        wrong += self.problems()
        if wrong:
            raise SceneError(wrong)

    def problems(self) -> list[Problem]:
        """What is wrong with the request as a whole."""
        return []

    @property
    def said(self) -> dict[str, Any]:
        """All that its view depends on, as JSON types."""
        return {"view": self.view, **{name: value for name, value in self.to_dict().items() if name != "session"}}

    def settings(self) -> Settings:
        return Settings(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            steps=self.steps,
            size=(self.height, self.width),
            guidance_scale=self.guidance_scale,
            batch_size=self.batch_size,
        )

    def make(self, model: Model, settings: Settings, folder: Folder, stage: Stage, presets: Presets) -> dict[str, Any]:
        """The view, in a folder. settings: the request's, as the host has them. Raises SceneError."""
        raise NotImplementedError


class JourneyRequest(Asked):
    """One pass step by step, of the prompt or of a scene over it."""

    view: ClassVar[str] = "journey"

    scene: Scene | None = pydantic.Field(None, description="The scene; null for the prompt alone.")

    def problems(self) -> list[Problem]:
        return [] if self.prompt or self.scene else [Problem("prompt", "expected one, or a scene")]

    def make(self, model: Model, settings: Settings, folder: Folder, stage: Stage, presets: Presets) -> dict[str, Any]:
        return views.journey(model, settings, self.scene, folder, stage)


class BetweenRequest(Asked):
    """What stands between two prompts, or two concepts of a scene."""

    view: ClassVar[str] = "between"

    from_: str = pydantic.Field("", alias="from", description="The first prompt; the first concept's when empty.")
    to: str = pydantic.Field("", description="The second prompt; the second concept's when empty.")
    stops: int = pydantic.Field(17, ge=2, le=129, description="From the first to the second, both counted.")
    even: bool = pydantic.Field(False, description="Place the stops at equal perceptual distances.")
    beyond: float = pydantic.Field(0.5, ge=0, le=1, description="How far beyond both ends, in parts of the way.")
    bridges: int = pydantic.Field(5, ge=0, le=16, description="How many named prompts to find along the way.")
    prompts: tuple[str, ...] = pydantic.Field(
        (), maxItems=maps.MAX_PROMPTS, description="Where bridges are looked for; the built-in list when empty."
    )
    scene: Scene | None = pydantic.Field(None, description="Whose two first concepts they are.")

    @pydantic.validator("prompts", pre=True, always=True)
    def _texts(cls, value: Any) -> tuple[str, ...]:
        return _each(Rule(str), value)

    @property
    def _own(self) -> list[str]:
        return [concept.prompt for concept in self.scene.concepts[:2]] if self.scene else []

    @property
    def ends(self) -> list[str]:
        own = [*self._own, "", ""]
        return [given.strip() or own[i] for i, given in enumerate((self.from_, self.to))]

    def problems(self) -> list[Problem]:
        message = "expected a prompt, or a scene with two concepts"
        return [Problem(name, message) for name, end in zip(("from", "to"), self.ends, strict=True) if not end]

    def make(self, model: Model, settings: Settings, folder: Folder, stage: Stage, presets: Presets) -> dict[str, Any]:
        first, second = self.ends
        used = self.scene if self._own == self.ends else None
        return views.between(
            model,
            replace(settings, prompt=first),
            second,
            folder,
            stage,
            stops=self.stops,
            even=self.even,
            reach=self.beyond,
            bridges=self.bridges,
            names=_entries(self.prompts) if self.bridges else [],
            scene=used,
            base=settings.prompt if used else "",
        )


class MapRequest(Asked):
    """Prompts laid out by the model's own encoder."""

    view: ClassVar[str] = "map"

    prompts: tuple[str, ...] = pydantic.Field(
        (), maxItems=2 * maps.MAX_PROMPTS, description="One an entry, # for headings; the built-in list when empty."
    )
    columns: int = pydantic.Field(8, ge=0, le=24, description="Of places that a picture is made of; 0 for none.")
    presets: bool = pydantic.Field(True, description="Put the prompts of the saved presets on the map as well.")
    scene: Scene | None = pydantic.Field(None, description="Whose prompts are put on the map as well.")

    @pydantic.validator("prompts", pre=True, always=True)
    def _texts(cls, value: Any) -> tuple[str, ...]:
        return _each(Rule(str), value)

    def listed(self, presets: Presets) -> list[Entry]:
        """The scene's prompts, the presets', and the list's, each once."""
        own = [Entry(text, "The scene") for text in (prompts(self.scene) if self.scene else ())]
        if self.prompt:
            own.insert(0, Entry(self.prompt, "The scene"))
        kept = [Entry(text, "The presets") for text in presets()] if self.presets else []
        found: dict[str, Entry] = {}
        for entry in (*own, *kept, *_entries(self.prompts)):
            if entry.prompt.strip():
                found.setdefault(entry.prompt, entry)
        return list(found.values())

    def make(self, model: Model, settings: Settings, folder: Folder, stage: Stage, presets: Presets) -> dict[str, Any]:
        entries = self.listed(presets)
        made = replace(settings, prompt="")
        return views.prompt_map(model, made, entries, folder, stage, columns=self.columns)


class GridRequest(Asked):
    """Every combination of seeds, step counts, guidances and words."""

    view: ClassVar[str] = "grid"

    seeds: tuple[int, ...] = pydantic.Field((1, 2, 3), minItems=1, maxItems=1024, description="Rows.")
    step_counts: tuple[int, ...] = pydantic.Field((), maxItems=MAX_LISTED, description="Rows; `steps` when empty.")
    guidances: tuple[float, ...] = pydantic.Field(
        (), maxItems=MAX_LISTED, description="Columns; `guidance_scale` when empty."
    )
    words: bool = pydantic.Field(False, description="The prompt word by word, too.")
    scene: Scene | None = pydantic.Field(None, description="To render in every cell, each in a pass of its own.")

    @pydantic.validator("seeds", pre=True, always=True)
    def _seeds(cls, value: Any) -> tuple[int, ...]:
        return _each(Rule(int, 0, 2**63 - 1), value)

    @pydantic.validator("step_counts", pre=True, always=True)
    def _steps(cls, value: Any) -> tuple[int, ...]:
        return _each(Rule(int, 1, 150), value)

    @pydantic.validator("guidances", pre=True, always=True)
    def _guidances(cls, value: Any) -> tuple[float, ...]:
        return _each(Rule(float, 0, 100), value)

    @property
    def grid(self) -> Grid:
        return Grid(
            self.prompt,
            tuple(dict.fromkeys(self.seeds)),
            tuple(dict.fromkeys(self.step_counts)) or (self.steps,),
            tuple(dict.fromkeys(self.guidances)) or (self.guidance_scale,),
            self.words,
        )

    def problems(self) -> list[Problem]:
        if self.words and not self.prompt.split():
            return [Problem("prompt", "expected at least one word")]
        try:
            _ = self.grid.cells
        except ValueError as error:
            return [Problem("", str(error))]
        return []

    def make(self, model: Model, settings: Settings, folder: Folder, stage: Stage, presets: Presets) -> dict[str, Any]:
        return views.grid(model, settings, self.grid, self.scene, folder, stage)


class PlaceRequest(Asked):
    """One picture of a place on a map: a blend of whole-picture prompts."""

    view: ClassVar[str] = "place"

    prompts: tuple[str, ...] = pydantic.Field(..., minItems=1, maxItems=MAX_BLENDED, description="What is blended.")
    weights: tuple[float, ...] = pydantic.Field(
        ..., minItems=1, maxItems=MAX_BLENDED, description="One for each prompt; they add up to 1."
    )

    @pydantic.validator("prompts", pre=True)
    def _texts(cls, value: Any) -> tuple[str, ...]:
        return _each(Rule(str), value)

    @pydantic.validator("weights", pre=True)
    def _numbers(cls, value: Any) -> tuple[float, ...]:
        return _each(Rule(float, -maps.FURTHEST, maps.FURTHEST + 1), value)

    def problems(self) -> list[Problem]:
        if len(self.prompts) != len(self.weights):
            return [Problem("weights", f"expected {len(self.prompts)}, one for each prompt, got {len(self.weights)}")]
        if abs(sum(self.weights) - 1) > 1e-3:
            return [Problem("weights", f"expected weights that add up to 1, got {sum(self.weights):g}")]
        return []

    def make(self, model: Model, settings: Settings, folder: Folder, stage: Stage, presets: Presets) -> dict[str, Any]:
        return views.place(model, settings, self.prompts, self.weights, folder, stage)


REQUESTS: dict[str, type[Asked]] = {
    one.view: one for one in (JourneyRequest, BetweenRequest, MapRequest, GridRequest, PlaceRequest)
}


def _entries(lines: Sequence[str]) -> list[Entry]:
    return maps.entries(lines) if any(line.strip() for line in lines) else maps.read_prompts(maps.BUILT_IN)
