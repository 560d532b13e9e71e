"""Profiles of the model at hand: made in a workshop's turn on it, kept by its hash, and reused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from lib_masknoise.calibrate.measuring import described
from lib_masknoise.calibrate.profile import Profile, Profiles, in_numbers
from lib_masknoise.calibrate.requests import CalibrateRequest
from lib_masknoise.explore.workshop import Made, Workshop
from lib_masknoise.scene import SceneError


class Calibrator:
    """workshop: of a host whose model can be measured. identity: the hash of the loaded model, and its name."""

    def __init__(self, workshop: Workshop, profiles: Profiles, identity: Callable[[], tuple[str, str]]) -> None:
        self.workshop, self.profiles, self.identity = workshop, profiles, identity

    def current(self) -> Profile | None:
        """Of the model at hand; None where there is none, or none that can be read."""
        try:
            return self.profiles.load(self.identity()[0])
        except (SceneError, OSError, ValueError):
            return None

    def numbers(self, data: object) -> object:
        """A preset's JSON types with every strength that says per cent as a number of the model at hand."""
        return in_numbers(data, self.current())

    def known(self, asked: CalibrateRequest) -> Profile | None:
        """A profile of the same prompts, settings and model; where style is asked for, one that has it."""
        profile = None if asked.again else self.current()
        if profile is None or asked.style:
            return profile if profile is not None and profile.style is not None else None
        wanted = described(self.workshop.host.settings(asked), asked.like)
        return profile if profile.answers(asked.measured, wanted) else None

    def make(self, asked: CalibrateRequest) -> Profile:
        """Raises SceneError, Stop, and what the host raises."""
        return self.known(asked) or self.keep(self.workshop.make(asked))

    def events(self, asked: CalibrateRequest) -> Iterator[Profile | tuple[str, float, float]]:
        """Progress, and at last the profile; see `Workshop.events`."""
        known = self.known(asked)
        if known is not None:
            yield known
            return
        for event in self.workshop.events(asked):
            yield self.keep(event) if isinstance(event, Made) else event

    def keep(self, made: Made) -> Profile:
        """What was found, kept with the rest of the profile that was there: with its style, or of style its ranges."""
        found = Profile.parse(made.view["profile"])
        if not found.model:  # of no file whose hash could name it
            return found
        before = self.profiles.load(found.model)
        if before is None:
            profile = found
        elif found.style is not None:
            profile = replace(before, style=found.style)
        else:
            profile = replace(found, style=before.style)
        self.profiles.save(profile)
        return profile
