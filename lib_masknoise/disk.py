"""Files that are whole or not there."""

from __future__ import annotations

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
