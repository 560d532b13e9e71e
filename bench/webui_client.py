"""A running WebUI as the benchmarks use it: jobs by its API, and the CPU time of its process."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class WebUI:
    """url: where it runs. job: fields that every job has."""

    url: str
    job: dict[str, Any] = field(default_factory=dict)

    def images(
        self, prompt: str, scene: dict | None = None, scripts: dict[str, list] | None = None, **fields: Any
    ) -> np.ndarray:
        """The pictures of a txt2img job, `[S, H, W, 3]` uint8, without grids and animation files.

        scene: MaskNoise's. scripts: arguments of other AlwaysOn scripts by title. Raises RuntimeError with the answer
        when the job is not done.
        """
        always_on = {title: {"args": args} for title, args in (scripts or {}).items()}
        if scene is not None:
            always_on["MaskNoise"] = {"args": [scene]}
        job = {**self.job, "prompt": prompt, "alwayson_scripts": always_on, **fields}
        answer = self._post("/sdapi/v1/txt2img", job)
        count = len(json.loads(answer["info"])["all_seeds"])
        return np.stack([_pixels(item) for item in answer["images"][:count]])

    def _post(self, path: str, body: dict) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url.rstrip("/") + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=3600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read().decode(errors='replace')[:1000]}") from error

    def process(self) -> Any:
        """The server's process, where it runs on this machine: whoever listens on its port (`psutil.Process`)."""
        import psutil

        port = urlsplit(self.url).port
        for process in psutil.process_iter():
            try:
                listening = [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
            except psutil.Error:
                continue
            if any(c.laddr.port == port for c in listening):
                return process
        raise RuntimeError(f"no process of this machine listens on port {port}")


def _pixels(item: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item))).convert("RGB"))


def levels(a: Sequence, b: Sequence) -> tuple[int, float]:
    """The largest and the mean absolute difference of two sets of pictures, in levels of 255."""
    apart = np.abs(np.asarray(a).astype(int) - np.asarray(b))
    return int(apart.max()), float(apart.mean())
