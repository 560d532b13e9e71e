"""A painted scene, for the benches: four masks of twenty strokes each, drawn as with a hand."""

from __future__ import annotations

import math
import random
from typing import Any

CONCEPTS, STROKES, POINTS = 4, 20, 40


def scene(**parts: Any) -> dict[str, Any]:
    """As JSON. parts: of the scene, such as noise and motion."""
    hand = random.Random(0)
    return {"concepts": [{"prompt": prompt, "mask": mask(hand)} for prompt in "abcd"[:CONCEPTS]], **parts}


def mask(hand: random.Random) -> dict[str, Any]:
    return {"kind": "strokes", "strokes": [_stroke(hand) for _ in range(STROKES)]}


def _stroke(hand: random.Random) -> dict[str, Any]:
    """A bent line of POINTS places with pressure, about half the image long."""
    x, y, turn = hand.random(), hand.random(), hand.uniform(0, 2 * math.pi)
    points = []
    for _ in range(POINTS):
        points.append([round(min(max(v, 0.0), 1.0), 4) for v in (x, y, hand.uniform(0.6, 1.0))])
        turn += hand.gauss(0, 0.2)
        x, y = x + math.cos(turn) / (2 * POINTS), y + math.sin(turn) / (2 * POINTS)
    return {"points": points, "radius": round(hand.uniform(0.02, 0.08), 4), "hardness": 0.5}
