"""What a render is going to make: kept in its folder as job.json and in every frame, so that it can be continued."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lib_masknoise import __version__
from lib_masknoise.conditioning import negatives, prompts
from lib_masknoise.disk import replace_file
from lib_masknoise.render.weights import Weights, digests, weights
from lib_masknoise.scene import Scene
from lib_masknoise.scene.errors import shown
from lib_masknoise.settings import Settings

FILE = "job.json"
TEXT_KEY = "masknoise"  # of the text in a frame's PNG file


class PlanChanged(ValueError):
    """A render cannot be continued because it would not be the same one. ``differences``: one line each."""

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__("\n".join(differences))
        self.differences = tuple(differences)


@dataclass(frozen=True)
class Plan:
    """A render, decided down to its bytes.

    times: the moment of the animation that each frame shows, in frames; None as long as `settings.even` leaves them to
    be found. versions: of the programs on which a frame's rounding depends. weights: the model's files, none where it
    lies on other machines only. machine: what computes, and in which numbers; None until the first of them is ready.
    """

    scene: Scene
    settings: Settings
    times: tuple[float, ...] | None
    versions: Mapping[str, str]
    weights: Weights
    machine: Mapping[str, str] | None = None

    @classmethod
    def of(cls, scene: Scene, settings: Settings, known: Weights | None = None) -> Plan:
        """known: files of the model that need not be read again."""
        settings = replace(settings, threads=settings.threads or torch.get_num_threads())
        times = None if settings.even else tuple(range(scene.animation.frames))
        added = settings.files(spoken(scene, settings))
        return cls(scene, settings, times, versions(), weights(settings.model, known, added))

    def on(self, machine: Mapping[str, str]) -> Plan:
        """The plan for a machine. Raises PlanChanged with every difference where it was begun on another kind."""
        if self.machine and (different := list(differences(self.machine, machine, "machine"))):
            raise PlanChanged(different)
        return replace(self, machine=machine)

    @property
    def total(self) -> int:
        return self.scene.animation.frames

    @property
    def loops(self) -> bool:
        return self.scene.loops

    @property
    def decided(self) -> bool:
        return self.times is not None and self.settings.batch_size is not None

    @property
    def batch_size(self) -> int:
        """Once it is decided."""
        assert self.settings.batch_size is not None
        return self.settings.batch_size

    def time(self, frame: int) -> float:
        """The moment that a frame shows, once it is decided."""
        assert self.times is not None
        return self.times[frame]

    @property
    def batches(self) -> list[range]:
        """The frames that are sampled together. A frame's last bit may depend on its neighbours in the batch, so a
        batch is always made of the same frames, also where only some of them are missing."""
        size = self.batch_size
        return [range(start, min(start + size, self.total)) for start in range(0, self.total, size)]

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What every file of the render carries."""
        return {"scene": self.scene.to_dict(), "settings": self.settings.record()}

    def text(self, frame: int) -> str:
        """What a frame's file carries: JSON."""
        return json.dumps({**self.metadata, "frame": frame, "time": self.time(frame)})

    def write(self, folder: Path) -> None:
        replace_file(folder / FILE, (json.dumps(self._record, indent=2) + "\n").encode())

    @classmethod
    def resumed(cls, scene: Scene, settings: Settings, folder: Path) -> Plan:
        """The plan of the render in a folder, if it is of this scene and these settings; a new one if there is none.

        What the settings leave open (None) is taken from there. Raises PlanChanged with every difference.
        """
        path = folder / FILE
        if not path.exists():
            return cls.of(scene, settings)
        try:
            record = json.loads(path.read_bytes())
            times, decided, read = record["times"], record["settings"], record["model"]
            known = {name: decided[name] for name in ("batch_size", "threads") if getattr(settings, name) is None}
            plan = cls.of(scene, replace(settings, **known), read)
            plan = replace(plan, weights=plan.weights or read, machine=record["machine"])
            different = list(differences(_comparable(record), _comparable(json.loads(json.dumps(plan._record)))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanChanged([f"{path}: not a render's plan ({error!r})"]) from None
        if different:
            raise PlanChanged(different)
        return replace(plan, times=None if times is None else tuple(times))

    @property
    def _record(self) -> dict[str, Any]:
        made = {"versions": self.versions, "machine": self.machine, "model": self.weights}
        return {**made, **self.metadata, "times": self.times}


def spoken(scene: Scene, settings: Settings) -> list[str]:
    """Every prompt of a render, the picture's first: those that may name LoRAs."""
    return [settings.prompt, settings.negative_prompt, *prompts(scene), *negatives(scene)]


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A plan's record with the scene's fields under their own paths, as a scene's problems name them."""
    parts = {name: record[name] for name in ("settings", "versions")}
    return {**record["scene"], **parts, "model": digests(record["model"])}


def versions() -> dict[str, str]:
    """Of the programs that decide how a frame is rounded."""
    return {"masknoise": __version__, **{name: metadata.version(name) for name in ("torch", "diffusers", "Pillow")}}


def differences(was: Any, now: Any, path: str = "") -> Iterator[str]:
    """Every place where two JSON values differ, as `path: was X, is Y`."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            yield from differences(was.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, (before, after) in enumerate(zip(was, now, strict=True)):
            yield from differences(before, after, f"{path}[{i}]")
    elif was != now:
        yield f"{path}: was {shown(was)}, is {shown(now)}"


def whole_frames(plan: Plan, folder: Path, looked: Callable[[int], object]) -> dict[int, str]:
    """The frames of a plan that are in the folder already: index → sha256 of the file.

    A file counts if it is a complete PNG, every checksum in it right, and carries the very text that it would be
    written with now. looked: called with 1 after each.
    """
    if not plan.decided:
        return {}
    found = {}
    for index in range(plan.total):
        path = frame_path(folder, index)
        if path.exists() and _is_whole(data := path.read_bytes(), plan.text(index)):
            found[index] = hashlib.sha256(data).hexdigest()
        looked(1)
    return found


def _is_whole(png: bytes, text: str) -> bool:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.info.get(TEXT_KEY) != text:  # `image.text` would decode the pixels
                return False
            image.verify()  # every chunk's checksum, up to the end
            return True
    except Exception:  # Pillow raises many kinds for a damaged file
        return False


def frame_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05}.png"
