"""Plain HTTP to a WebUI's API: what any script does, with nothing but the standard library."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from PIL import Image

TITLE = "MaskNoise"
FILES = "MaskNoise files"
MISSING = object()


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.status} {self.body[:1000].decode(errors='replace')}"


class Images:
    """The answer to a job: its pictures, and the animation's files behind them."""

    def __init__(self, answer: dict[str, Any]):
        self.raw = [base64.b64decode(item) for item in answer["images"]]
        self.info: dict[str, Any] = json.loads(answer["info"])

    @property
    def parameters(self) -> dict[str, Any]:
        return self.info["extra_generation_params"]

    @property
    def infotexts(self) -> list[str]:
        return self.info["infotexts"]

    @property
    def file_names(self) -> list[str]:
        return [name for name in self.parameters.get(FILES, "").split("; ") if name]

    @property
    def files(self) -> dict[str, bytes]:
        """The animation's files, by ending."""
        names = self.file_names
        last = self.raw[len(self.raw) - len(names) :]
        return {name.rpartition(".")[2]: raw for name, raw in zip(names, last, strict=True)}

    @cached_property
    def pixels(self) -> list[np.ndarray]:
        """The pictures without the animation's files, `[height, width, 3]`, 0 to 255."""
        pictures = self.raw[: len(self.raw) - len(self.file_names)]
        return [np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).astype(np.int16) for raw in pictures]

    @property
    def hashes(self) -> list[str]:
        """Of the pixels: the files also hold the infotext."""
        return [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in self.pixels]


def difference(one: Images, other: Images) -> int:
    """The largest difference of two answers, of 255, over all their pictures."""
    assert len(one.pixels) == len(other.pixels), f"{len(one.pixels)} pictures against {len(other.pixels)}"
    return max(int(abs(a - b).max()) for a, b in zip(one.pixels, other.pixels, strict=True))


def _whole(value: Any) -> Any:
    """A setting as the host keeps it. The API gives whole numbers as floats, and some are used as they are: with an
    order of 3.0 UniPC fails."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class WebUI:
    """A running WebUI. `defaults`: of every job."""

    def __init__(self, url: str, auth: str = "", timeout: float = 600, **defaults: Any):
        self.url, self.timeout, self.defaults = url.rstrip("/"), timeout, defaults
        token = base64.b64encode(auth.encode()).decode()
        self._headers = {"Authorization": f"Basic {token}"} if auth else {}

    def request(self, method: str, path: str, body: Any = MISSING, *, authorised: bool = True) -> Answer:
        """body: JSON, or bytes as they are."""
        headers = dict(self._headers) if authorised else {}
        if body is not MISSING:
            headers["Content-Type"] = "application/json"
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, None if body is MISSING else body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return Answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers.get("Content-Type", ""), error.read())

    def stream(self, path: str, body: Any) -> Iterator[Any]:
        """The lines of JSON that a route answers with, as they come."""
        headers = {**self._headers, "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            for line in answer:
                yield json.loads(line)

    def get(self, path: str) -> Any:
        answer = self.request("GET", path)
        assert answer.status == 200, f"GET {path}: {answer}"
        return answer.json

    def post(self, path: str, body: Any = MISSING) -> Any:
        answer = self.request("POST", path, {} if body is MISSING else body)
        assert answer.status == 200, f"POST {path}: {answer}"
        return answer.json

    def ask(self, scene: Any = MISSING, *, args: Any = MISSING, path: str = "txt2img", **job: Any) -> Answer:
        """A job, whatever comes of it. args: the script's, where they are not just the scene."""
        body = {**self.defaults, **job}
        if args is MISSING and scene is not MISSING:
            args = [scene]
        if args is not MISSING:
            body["alwayson_scripts"] = {**body.get("alwayson_scripts", {}), TITLE: {"args": args}}
        return self.request("POST", f"/sdapi/v1/{path}", body)

    def txt2img(self, scene: Any = MISSING, **job: Any) -> Images:
        """A job that must be done."""
        answer = self.ask(scene, **job)
        assert answer.status == 200, str(answer)
        return Images(answer.json)

    def img2img(self, picture: str, **job: Any) -> Images:
        answer = self.ask(path="img2img", init_images=[picture], denoising_strength=0.6, **job)
        assert answer.status == 200, str(answer)
        return Images(answer.json)

    @contextmanager
    def settings(self, **changes: Any) -> Iterator[None]:
        """Other settings for a while. Skips the test where the host has no such setting."""
        if not changes:
            yield
            return
        before = self.get("/sdapi/v1/options")
        missing = [name for name in changes if name not in before]
        if missing:
            pytest.skip(f"this host has no setting {', '.join(missing)}")
        self.post("/sdapi/v1/options", changes)
        try:
            yield
        finally:
            self.post("/sdapi/v1/options", {name: _whole(before[name]) for name in changes})

    @property
    def progress(self) -> dict[str, Any]:
        return self.get("/sdapi/v1/progress?skip_current_image=true")
