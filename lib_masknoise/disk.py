"""Files that are whole or not there."""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
from pathlib import Path


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError where a folder to write to, or one that it lies in, is a file."""
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise FileNotFoundError(f"{part}: a file; expected a folder to write to, or a name that is free")
            return


def replace_file(path: Path, data: bytes) -> None:
    """Write under a temporary name (`.NAME.….part`) and move into place: a file that is there is whole, an interrupted
    write leaves the old one. Raises OSError."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def new_file(path: Path, data: bytes) -> None:
    """Write a file as `replace_file` does, and the folders it lies in that are not there. Raises OSError."""
    check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits; read once as long as the file is the same. Raises OSError."""
    known = path.stat()
    return _hash_of(str(path), known.st_size, known.st_mtime_ns)


@functools.lru_cache(64)
def _hash_of(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
