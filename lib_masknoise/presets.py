"""Scenes kept by name: one JSON file each, in one folder.

A name becomes a file name on every system, and comes from a text field or a URL: it is checked before any path is made
of it, and nothing outside the folder is ever read, not through a symbolic link either.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lib_masknoise.disk import replace_file
from lib_masknoise.scene import Problem, Scene, SceneError

MAX_LENGTH = 64
MAX_BYTES = 200  # file systems have 255 for a whole file name

_PUNCTUATION = frozenset(" -_.,()+")
# Windows takes these for devices, in any case and whatever follows a dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin|conout|(com|lpt)[0-9¹²³])", re.IGNORECASE)


class PresetError(ValueError):
    """A name that no preset can have, or that is taken."""


class UnknownPreset(PresetError):
    """There is no preset of that name."""


def check_name(name: Any) -> str:
    """The name, if it can be one. Raises PresetError, which quotes it and says what is wrong, if not.

    Letters, marks and digits of any script, blanks and ``-_.,()+``; 1 to 64 characters; no blank or dot at either end;
    no name of a Windows device.
    """

    def refuse(reason: str) -> NoReturn:
        raise PresetError(f"{_quoted(name)} cannot be the name of a preset: {reason}")

    if not isinstance(name, str) or not name:
        refuse("expected some text")
    if len(name) > MAX_LENGTH or len(name.encode("utf-8", "replace")) > MAX_BYTES:
        refuse(f"expected at most {MAX_LENGTH} characters")
    wrong = [sign for sign in name if sign not in _PUNCTUATION and unicodedata.category(sign)[0] not in "LMN"]
    if wrong:
        refuse(f"expected letters, digits, blanks and -_.,()+, got {json.dumps(wrong[0])}")
    if name != name.strip(" ."):
        refuse("expected no blank or dot at either end")
    if _DEVICE.fullmatch(name.split(".")[0].strip()):
        refuse("Windows reserves it for a device")
    return name


def _quoted(name: object) -> str:
    text = name if isinstance(name, str) else type(name).__name__
    return json.dumps(text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "…")


class Presets:
    """The presets in a folder, which is made when the first one is saved.

    numbers: what makes a preset's JSON types a scene's, where strengths may say per cent of a model's useful range
    (`calibrate.profile.in_numbers`); raises SceneError.
    """

    def __init__(self, folder: str | os.PathLike[str], numbers: Callable[[Any], Any] = lambda data: data) -> None:
        self.folder, self.numbers = Path(folder), numbers

    def names(self) -> list[str]:
        """The names of all presets, sorted without regard to case. A file with a broken scene counts: `load` will say
        what is wrong with it. What could not be loaded under its name (a link, an odd file name) does not."""
        files = self.folder.glob("*.json") if self.folder.is_dir() else ()
        return sorted((path.stem for path in files if _is_name(path.stem) and _is_own_file(path)), key=str.casefold)

    def load(self, name: str) -> Scene:
        """The scene of that name. Raises PresetError for a name that cannot be one, UnknownPreset where there is none,
        SceneError, whose messages name the preset, where its file cannot be used."""
        path = self._existing(name)
        try:
            return self._read(path)
        except SceneError as error:
            within = f"(in the preset {_quoted(name)})"
            raise SceneError(tuple(Problem(path, f"{message} {within}") for path, message in error.problems)) from None

    def save(self, name: str, scene: Scene, overwrite: bool = True, said: Any = None) -> Path:
        """Keep a scene under a name; returns its file. What equals the defaults is left out, for people to read.

        said: the scene's JSON types with strengths in per cent, where it is to be kept like that.
        An interrupted write leaves the old preset. Raises PresetError for a name that cannot be one, or that is taken
        where ``overwrite`` is false; OSError.
        """
        path = self._path(name)
        if not overwrite and path.exists():
            raise PresetError(f"there already is a preset {_quoted(name)}")
        data = said or {"version": scene.version, **scene.to_dict(defaults=False)}
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())
        return path

    def delete(self, name: str) -> None:
        """Remove a preset. Raises PresetError for a name that cannot be one, UnknownPreset where there is none."""
        self._existing(name).unlink()

    def read(self, data: str | bytes) -> tuple[Scene, Any]:
        """The scene in JSON text in which strengths may say per cent, and its JSON types where any does, else None.
        Raises SceneError."""
        try:
            return Scene.parse(data), None
        except SceneError as error:
            try:
                said = json.loads(data)
            except ValueError:
                raise error from None
            numbers = self.numbers(said)
            if numbers == said:
                raise
            return Scene.parse(numbers), said

    def _read(self, path: Path) -> Scene:
        """A preset's scene. Version 0.1 left empty prompts out of its files, where they are to be said now."""
        data = path.read_bytes()
        try:
            return self.read(data)[0]
        except SceneError as error:
            if not all(_is_missing_prompt(problem) for problem in error.problems):
                raise
        old = json.loads(data)
        return Scene.parse({**old, "concepts": [{"prompt": "", **concept} for concept in old["concepts"]]})

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}.json"

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not _is_own_file(path):
            raise UnknownPreset(f"there is no preset {_quoted(name)}")
        return path


def _is_missing_prompt(problem: Problem) -> bool:
    return bool(re.fullmatch(r"concepts\[\d+\]\.prompt", problem.path)) and problem.message.startswith("missing")


def _is_own_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except PresetError:
        return False
    return True
