"""The optional extension in tests/webui/extension, which sees from the inside what the API does not show."""

from __future__ import annotations

from typing import Any

import pytest

from tests.webui import hosts
from tests.webui.client import WebUI

CRASHES = ("process", "before sampling", "sampler", "U-Net", "attention", "sample")
"""Where it can break a job off."""


class Watcher:
    SWALLOWED = ("process", "before sampling")
    """Places whose exceptions the hosts log and forget: the job goes on."""

    def __init__(self, webui: WebUI):
        self._webui = webui

    def hooks(self) -> dict[str, int]:
        """How many callbacks, module hooks and patches are installed in the host."""
        return self._webui.get("/masknoise-watcher/hooks")

    def cost(self) -> dict[str, int]:
        """How often the denoiser was called since the start, and the memory of the host's process in bytes (0 where
        that is not known)."""
        return self._webui.get("/masknoise-watcher/cost")

    def crash(self, place: str, step: int) -> dict[str, Any]:
        """alwayson_scripts of a job that breaks off there, at this call of the U-Net."""
        return {"MaskNoise watcher": {"args": [place, step]}}


def _installed() -> bool:
    return bool(hosts.URL) and hosts.webui().request("GET", "/masknoise-watcher/hooks").status == 200


needs_watcher = pytest.mark.skipif(
    bool(hosts.URL) and not _installed(), reason="the extension in tests/webui/extension is not linked into this WebUI"
)
