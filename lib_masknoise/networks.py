"""LoRAs as people name them: `<lora:NAME:0.8>` in a prompt, `FILE:WEIGHT` on the command line, and where they lie."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ENDING = ".safetensors"
TAG = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?(?::[^<>]*)?>")
USUAL_WEIGHT = 1.0


class Lora(NamedTuple):
    """A file, and how much of it is added to the model's weights."""

    file: str
    weight: float = USUAL_WEIGHT


def lora(text: str) -> Lora:
    """`FILE` or `FILE:WEIGHT`. Raises ValueError for a weight that is no finite number."""
    file, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists() or weight.lower().endswith(ENDING):
        return Lora(text)
    return Lora(file, _weight(weight, text))


def without_tags(prompt: str) -> str:
    """A prompt without its `<lora:…>`, as the text encoder is to see it."""
    return TAG.sub("", prompt)


def tags(prompts: Iterable[str]) -> dict[str, float]:
    """The LoRAs that prompts name, and how much of each: the first to name one decides. Raises ValueError."""
    found: dict[str, float] = {}
    for prompt in prompts:
        for match in TAG.finditer(prompt):
            weight = USUAL_WEIGHT if match[2] is None else _weight(match[2], match[0])
            found.setdefault(match[1], weight)
    return found


def named(prompts: Iterable[str], folders: Sequence[str | Path]) -> list[Lora]:
    """The LoRAs that prompts name, each found by its name in one of the folders or below.

    Raises FileNotFoundError, which says where it was looked for.
    """
    return [Lora(str(find(name, folders)), weight) for name, weight in tags(prompts).items()]


def find(name: str, folders: Sequence[str | Path]) -> Path:
    wanted = f"{name}{ENDING}"
    for folder in map(Path, folders):
        beside = folder / wanted
        if beside.is_file():
            return beside
        below = sorted(path for path in folder.rglob(f"*{ENDING}") if path.name == wanted)
        if below:
            return below[0]
    looked = " and ".join(str(folder) for folder in folders) or "no folder"
    raise FileNotFoundError(f"<lora:{name}>: no file {wanted} in {looked} (--lora-dir says where LoRAs lie)")


def beside(model: str | None, lora_dir: str | None) -> list[str]:
    """Where the LoRAs of prompts are looked for: in the folder for them, and in the model's own or the one it is in."""
    own = [] if model is None else [str(Path(model) if Path(model).is_dir() else Path(model).parent)]
    return [*([] if lora_dir is None else [lora_dir]), *own]


def _weight(text: str, whole: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"{whole}: expected a finite number as its weight, got {text!r}")
    return weight
