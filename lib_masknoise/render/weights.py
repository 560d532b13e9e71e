"""Which model it is: a digest of every file that loading it reads.

A plan keeps the digests with the sizes and times of the files, so a render that goes on reads only what looks changed
since. Elsewhere the whole model is read once more before it is loaded, which then finds it in the system's cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib_masknoise import builtin_model

READ = (".bin", ".json", ".model", ".safetensors", ".txt")  # what a loader reads of all that lies there
BLOCK = 2**20  # bytes

Weights = Mapping[str, Mapping[str, Any]]
"""Each file's path below the model's folder (a single file's name) → its sha256, and the size and time it had."""


def weights(model: str | None, known: Weights | None = None, added: Mapping[str, str] | None = None) -> Weights:
    """The files of a model, None for the built-in one; empty where nothing is there. What is `known` and has kept its
    size and its time of change is not read again. added: further files and folders, by names for them."""
    known = known or {}
    files = [*sorted(_files(model)), *(one for name, path in (added or {}).items() for one in _added(name, Path(path)))]
    return {name: _file(path, known.get(name, {})) for name, path in files}


def _added(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield name, path
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        if file.is_file():
            yield f"{name}/{file.relative_to(path).as_posix()}", file


def digests(weights: Weights) -> dict[str, str]:
    """Each file's path → its sha256."""
    return {name: file["sha256"] for name, file in weights.items()}


def _files(model: str | None) -> Iterator[tuple[str, Path]]:
    path = builtin_model() if model is None else Path(model)
    if path.is_file():
        yield path.name, path
        path = path.with_suffix("")  # the folder beside it, if there is one, has its configuration
    for file in path.rglob("*"):
        inside = file.relative_to(path)
        if file.suffix.lower() in READ and file.is_file() and not any(part.startswith(".") for part in inside.parts):
            yield inside.as_posix(), file


def _file(path: Path, known: Mapping[str, Any]) -> Mapping[str, Any]:
    status = path.stat()
    looks = {"size": status.st_size, "changed": status.st_mtime_ns}
    if "sha256" in known and looks.items() <= known.items():
        return known
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return {"sha256": digest.hexdigest(), **looks}
