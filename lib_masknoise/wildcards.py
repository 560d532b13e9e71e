r"""Choices in the prompts of concepts, written as users of Dynamic Prompts and of A1111's Wildcards write them.

    {ash|birch|{old|young} oak}    one of them          {2::ash|birch}       ash twice as often
    {2$$ash|birch|oak}             two, with commas     {1-2$$ and $$a|b}    one or two, joined by " and "
    __trees__                      a line of trees.txt  {2$$__trees__}       two different lines
    __trees/*__, __trees/**__      of all files there   \{ \| \}             the letters themselves

An image's seed decides, and which prompt it is; no two prompts share their luck. What is drawn is read again, so lines
may hold choices and wildcards. An expanded prompt holds nothing that could be expanded, so expanding twice is expanding
once. Braces without a ``|`` or ``$$`` in them, and braces that are not closed, are letters.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lib_masknoise.scene import Concept, Problem, Scene, SceneError
from lib_masknoise.scene.rules import suggestion

ENDINGS = (".txt", ".json", ".yaml", ".yml")
SEPARATOR = ", "
LONGEST = 20_000
"""Letters of a prompt: files that name each other many times over must not fill the memory."""
DEEPEST = 50

_NAME = re.compile(r"(?<![\w_])__(~?[\w*./ -]*?[\w*])__(?![\w_])")
_HEAD = re.compile(r"~?(?:(?P<low>\d*)(?P<dash>-)?(?P<high>\d*)\$\$(?:(?P<separator>[^$|{}]*)\$\$)?)?")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::")
_BRACES = re.compile(r"\\.|[{}|]|\$\$", re.DOTALL)
_PLAIN = re.compile(r"(?:\\.|[^\\{_])+", re.DOTALL)
_BEYOND = re.compile(r"(?<![\\$])\$\{|(?<!\\)\{@|(?<!\w)__@|__[\w*./ -]+\([^()]*\)__")

Folder = str | Path
Within = tuple[str, ...]
"""The files by which a text has been found, from the first one named."""


class Wildcards:
    """The files in some folders, read when one is first named. A file in the first folder goes before its namesake."""

    def __init__(self, folders: Sequence[Folder] = ()) -> None:
        self.folders = [Path(folder) for folder in folders]

    def values(self, pattern: str) -> list[str]:
        """The lines of the files whose names fit; ``*`` stands for letters but ``/``, ``**`` for any. Raises ValueError
        where there are none."""
        fits = re.compile("[^/]*".join(map(re.escape, pattern.split("*"))).replace("[^/]*[^/]*", ".*"))
        named = [name for name in self._files if fits.fullmatch(name)]
        found = [line for name in named for line in self._files[name]]
        if found:
            return found
        if not self.folders:
            raise ValueError(f"__{pattern}__: expected a folder of wildcards with {pattern}.txt in it, got none")
        looked = " and ".join(map(str, self.folders))
        if named:
            raise ValueError(f"__{pattern}__: the file has no lines, in {looked}")
        near = suggestion(pattern, list(self._files)).replace('"', "__")
        raise ValueError(f"__{pattern}__: no file {pattern}.txt in {looked}{near}")

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for folder in self.folders:
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                if path.suffix.lower() in ENDINGS and path.is_file():
                    inside = path.relative_to(folder)
                    for name, lines in _lists(path, inside):
                        found.setdefault(name, lines)
        return found


def _lists(path: Path, inside: Path) -> Iterator[tuple[str, list[str]]]:
    """The lists in a file, by their names. In JSON and YAML each list has the name of the keys that lead to it."""
    text = path.read_text("utf-8-sig", errors="replace")
    if path.suffix.lower() == ".txt":
        lines = map(str.strip, text.splitlines())
        yield inside.with_suffix("").as_posix(), [line for line in lines if line and not line.startswith("#")]
        return
    try:
        tree = json.loads(text) if path.suffix.lower() == ".json" else _yaml(text)
    except ValueError:
        return  # whoever names a list in it hears that there is none
    yield from _nested(tree, [step for step in inside.parent.as_posix().split("/") if step != "."])


def _yaml(text: str) -> Any:
    try:
        import yaml  # the WebUIs have it
    except ModuleNotFoundError:
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _nested(node: Any, steps: list[str]) -> Iterator[tuple[str, list[str]]]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _nested(child, [*steps, str(key)])
    elif isinstance(node, list):
        yield "/".join(steps), [str(entry) for entry in node]


def expand(scene: Scene, seed: int, wildcards: Wildcards | None = None) -> Scene:
    """A scene with what its acting concepts say decided, for an image with that seed; the scene itself where nothing is
    to be decided. All frames of an animation say the same; so do keyframes of a concept with the same text.

    Raises SceneError with every prompt that cannot be expanded.
    """
    wildcards = wildcards or Wildcards()
    wrong: list[Problem] = []

    def said(text: str, path: str) -> str:
        try:
            return expand_text(text, f"{seed}:{path}", wildcards)
        except ValueError as error:
            wrong.append(Problem(path, str(error)))
            return text

    def of_concept(concept: Concept, path: str) -> Concept:
        known: dict[tuple[str, str], str] = {}

        def changes(part: Any, path: str) -> dict[str, str]:
            found = {}
            for name in ("prompt", "negative"):
                text = getattr(part, name)
                if text is not None:
                    if (name, text) not in known:
                        known[name, text] = said(text, f"{path}.{name}")
                    if known[name, text] != text:
                        found[name] = known[name, text]
            return found

        own = changes(concept, path)
        of_keys = [changes(key, f"{path}.keyframes[{j}]") for j, key in enumerate(concept.keyframes)]
        if any(of_keys):
            keys = zip(concept.keyframes, of_keys, strict=True)
            return concept.copy(update={**own, "keyframes": tuple(key.copy(update=new) for key, new in keys)})
        return concept.copy(update=own) if own else concept

    concepts = tuple(
        of_concept(concept, f"concepts[{i}]") if concept.enabled else concept
        for i, concept in enumerate(scene.concepts)
    )
    common = said(scene.blend.common, "blend.common")
    if wrong:
        raise SceneError(wrong)
    if common == scene.blend.common and all(one is own for one, own in zip(concepts, scene.concepts, strict=True)):
        return scene
    return scene.copy(update={"concepts": concepts, "blend": scene.blend.copy(update={"common": common})})


def expand_text(text: str, luck: str, wildcards: Wildcards | None = None) -> str:
    """A prompt with its choices made. luck: decides them; the same text, luck and files give the same prompt. Raises
    ValueError for a file that is not there, files that name each other in a circle, and Dynamic Prompts' variables and
    cyclic choices, which only that extension has."""
    if "{" not in text and "__" not in text:
        return text
    return _Expansion(luck, wildcards or Wildcards())(text)


class _Expansion:
    def __init__(self, luck: str, wildcards: Wildcards) -> None:
        seed = int.from_bytes(hashlib.sha256(luck.encode()).digest()[:8], "big")
        # Of `random`, only `random()` is promised to stay the same from one version of Python to the next.
        self._random = random.Random(seed).random  # noqa: S311
        self.wildcards = wildcards

    def __call__(self, text: str, within: Within = (), depth: int = 0) -> str:
        if beyond := _BEYOND.search(text):
            what = "variables, parameters and cyclic choices are Dynamic Prompts' own, which expands the prompt alone"
            raise ValueError(f"{text[beyond.start() : beyond.start() + 20]}: {what}")
        if depth > DEEPEST:
            raise ValueError(f"expected choices at most {DEEPEST} deep in each other")
        closings, done, length, at = _closings(text), [], 0, 0
        while at < len(text):
            at, piece = self._next(text, at, closings, within, depth)
            done.append(piece)
            length += len(piece)
            if length > LONGEST:
                raise ValueError(f"expected at most {LONGEST:,} letters once its wildcards are expanded")
        return "".join(done)

    def _next(self, text: str, at: int, closings: Mapping[int, int], within: Within, depth: int) -> tuple[int, str]:
        """What stands at a place of a text, expanded, and where the text goes on."""
        plain = _PLAIN.match(text, at)
        if plain:
            return plain.end(), plain[0]
        if at in closings:
            return closings[at] + 1, self._choice(text[at + 1 : closings[at]], within, depth + 1)
        name = _NAME.match(text, at)
        if not name:
            return at + 1, text[at]
        pattern = name[1].removeprefix("~")
        if _in_tag(text, at) and not self._has(pattern):
            return name.end(), name[0]  # of a LoRA, whose file has underscores in its name
        lines = self._lines(pattern, within)
        return name.end(), self(lines[self._pick([1.0] * len(lines))], (*within, pattern), depth + 1)

    def _has(self, pattern: str) -> bool:
        try:
            return bool(self.wildcards.values(pattern))
        except ValueError:
            return False

    def _lines(self, pattern: str, within: Within) -> list[str]:
        if pattern in within:
            raise ValueError(f"wildcards name each other in a circle: {' → '.join([*within, pattern])}")
        return self.wildcards.values(pattern)

    def _choice(self, inside: str, within: Within, depth: int) -> str:
        head = _HEAD.match(inside)
        assert head is not None  # it matches nothing, too
        options, weights = [], []
        for option in _split(inside[head.end() :]):
            weight = _WEIGHT.match(option)
            options.append((option[weight.end() :] if weight else option, within))
            weights.append(float(weight[1]) if weight else 1.0)
        if len(options) == 1 and (name := _NAME.fullmatch(options[0][0].strip())):
            pattern = name[1].removeprefix("~")
            options = [(line, (*within, pattern)) for line in self._lines(pattern, within)]
            weights = [1.0] * len(options)
        chosen = []
        for _ in range(min(self._count(head, len(options)), len(options))):
            place = self._pick(weights)
            chosen.append(options.pop(place))
            weights.pop(place)
        separator = SEPARATOR if head["separator"] is None else head["separator"]
        return separator.join(self(option, inner, depth) for option, inner in chosen)

    def _count(self, head: re.Match[str], most: int) -> int:
        """How many options a choice takes: `2$$`, `1-2$$`, `-2$$` or `1-$$`."""
        low, high = head["low"], head["high"]
        if low is None:
            return 1
        if not head["dash"]:
            return int(low) if low else 1
        least, largest = int(low or 1), min(int(high or most), most)
        return least + int(self._random() * (max(largest - least, 0) + 1))

    def _pick(self, weights: Sequence[float]) -> int:
        """A place, each as likely as its weight says; all alike where all weights are 0."""
        total = sum(weights)
        if total <= 0:
            return int(self._random() * len(weights))
        left = self._random() * total
        for place, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return place
        return max(place for place, weight in enumerate(weights) if weight > 0)


def _closings(text: str) -> dict[int, int]:
    """Where each choice of a text begins and ends: braces with a ``|`` or ``$$`` of their own in them."""
    found: dict[int, int] = {}
    opened: list[int] = []
    chooses: set[int] = set()
    for match in _BRACES.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] in ("|", "$$"):
            chooses.update(opened[-1:])
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start in chooses:
                found[start] = match.start()
    return found


def _split(inside: str) -> list[str]:
    """The options of a choice: its text at each ``|`` that is in no inner braces."""
    options, depth, start = [], 0, 0
    for match in _BRACES.finditer(inside):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if match[0] == "|" and not depth:
            options.append(inside[start : match.start()])
            start = match.end()
    return [*options, inside[start:]]


def _in_tag(text: str, at: int) -> bool:
    """Whether a place is between ``<`` and ``>``."""
    return text.rfind("<", 0, at) > text.rfind(">", 0, at)
