"""Scenes and masks for the tests."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def split(start: float, end: float, feather: float = 0.0, axis: str = "x") -> dict[str, Any]:
    return {"kind": "split", "axis": axis, "from": start, "to": end, "feather": feather}


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def painted(invert: bool = False) -> dict[str, Any]:
    """A mask image with every grey from black to white in it, and no symmetry."""
    y, x = np.mgrid[0:48, 0:64]
    grey = 255 * np.clip(1.4 * x / 63 * (0.4 + 0.6 * y / 47) - 0.1, 0, 1)
    return {"kind": "image", "data": png(grey), "invert": invert}


def concept(prompt: str, negative: str = "", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "negative": negative, **more}


def everywhere(prompt: str, negative: str = "") -> dict[str, Any]:
    """One concept with a full mask."""
    return {"concepts": [concept(prompt, negative)]}


def halves(left: str, right: str, feather: float = 0.0, **more: Any) -> dict[str, Any]:
    concepts = [
        concept(left, mask=split(0, 0.5, feather)),
        concept(right, mask=split(0.5, 1, feather)),
    ]
    return {"concepts": concepts, **more}


def animated(frames: int = 4, *formats: str, strength: float = 0.7, **motion: Any) -> dict[str, Any]:
    """The left third is pinned, the rest breathes."""
    return {
        "concepts": [concept("an ocean", mask=split(0, 0.34))],
        "noise": {"exponent": 1.0, "visual": {"strength": strength}, "concept": {"strength": 0.6}},
        "motion": {"kind": "circle", **motion},
        "animation": {"frames": frames, "formats": list(formats) or ["gif"]},
    }


BUSY = {
    "concepts": [
        concept("an ocean", "lava", mask=split(0, 0.4, 0.2), weight=1.2),
        concept("a forest:1.1 AND snow:0.4", mask=painted()),
        concept("[lava:desert:0.5]", mask={"kind": "ellipse", "x": 0.7, "y": 0.6, "rx": 0.2, "ry": 0.3}),
    ],
    "blend": {"preserve_norm": True},
    "noise": {
        "visual": {"strength": 0.4},
        "concept": {"strength": 0.5},
        "feature": {"strength": 0.3, "dimensions": "0-15"},
    },
}
"""Everything at once."""
