"""A view as a folder: explore.json, pictures, and an index.html that works from the disk."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lib_masknoise.disk import replace_file

PAGE = Path(__file__).parent / "page"
PICTURES = "pictures"
PNG_LEVEL = 1  # of 9: a sixth larger, and three times as quick, where there are hundreds of them


class Folder:
    """Where a view is written. announce: called with each file once it is whole."""

    def __init__(self, path: Path, announce: Callable[[Path], object] = lambda path: None) -> None:
        self.path, self.announce = path, announce
        self.files: list[str] = []
        (path / PICTURES).mkdir(parents=True, exist_ok=True)
        for old in (path / PICTURES).glob("*.png"):  # of an earlier view under the same name
            old.unlink()

    def picture(self, name: str, image: Image.Image) -> str:
        """Write a picture, without loss; returns its path in the folder, with `/`."""
        data = io.BytesIO()
        image.save(data, "PNG", compress_level=PNG_LEVEL)
        return self.write(f"{PICTURES}/{name}.png", data.getvalue())

    def known(self, name: str) -> str | None:
        """The path of a picture, where it has been written: also where an interrupt came right after that."""
        path = f"{PICTURES}/{name}.png"
        return path if path in self.files else None

    def write(self, name: str, data: bytes) -> str:
        replace_file(self.path / name, data)
        return self.wrote(name)

    def wrote(self, name: str) -> str:
        self.files.append(name)
        self.announce(self.path / name)
        return name

    def finish(self, view: Mapping[str, Any]) -> dict[str, Any]:
        """Write explore.json and index.html."""
        whole = {**view, "files": list(self.files)}
        self.write("explore.json", (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
        self.write("index.html", page(whole).encode())
        return whole


def page(view: Mapping[str, Any], sources: Mapping[str, str] | None = None, name: str = "") -> str:
    """The page of a view: one file that needs no server, script or font of anybody's. sources: where its files are to
    be had, where that is not beside the page. name: by which the page around it knows the view."""
    parts = {name: (PAGE / f"explore.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    # "</script" in a prompt would end the element that the data stand in.
    data = json.dumps({**view, "sources": sources or {}, "name": name}, ensure_ascii=False).replace("<", "\\u003c")
    made = parts["html"]
    for name, text in (("CSS", parts["css"]), ("SCRIPT", parts["js"]), ("VIEW", data)):
        made = made.replace(f"/*{name}*/", text, 1)
    return made
