"""How well the useful range is found: where a change is seen, where pictures break, how even the way between them is.

    python -m bench.calibration measure --out figures.jsonl [--model FOLDER] [--prompts "a forest,lava,…"]
    python -m bench.calibration table figures.jsonl …

For each effect and prompt the range is found as `calibrate` does, with and without the patch classifier as its judge.
The truth comes from whole pictures afterwards: at fixed places of the range that was found and round its lower end,
four seeds each. The three prompts that set the constants of `lib_masknoise/calibrate/effects.py` (a wheat field, an
ocean, a brick wall) are not among the usual ones here. Models: the built-in one, and one tuned from it
(docs/calibration.md).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_masknoise import smoothness
from lib_masknoise.calibrate import measuring
from lib_masknoise.calibrate.effects import EFFECTS, Case, Effect, cases
from lib_masknoise.calibrate.profile import Band
from lib_masknoise.hosts.diffusers import load_pipeline
from lib_masknoise.hosts.diffusers.calibrating import PipelineProbe
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings
from tools.small_model.patch_classifier import PatchClassifier

PROMPTS = "a forest,lava"
STEPS, SEEDS = 10, 4
"""Of the pictures that are the truth."""
PLACES = (0, 20, 40, 60, 80, 100, 130)
"""Per cent of the range."""
ROUND = (-1.0, -0.5, 0.5, 1.0)
"""Octaves from the visible end."""
SETTINGS = Settings(size=(64, 64), guidance_scale=4.0)
CLASSIFIER = PatchClassifier()


def judge(image: Image.Image, effect: Effect, case: Case) -> float:
    """The share of the patches that the classifier gives to what is asked for: where prompts are added, to either."""
    asked = {case.prompt, case.base} if effect.path == "blend.scale" else {case.prompt}
    names = [text.removeprefix("an ").removeprefix("a ") for text in asked]
    return float(np.isin(CLASSIFIER.grid(np.asarray(image.convert("RGB")))[0], names).mean())


class Truth:
    """Whole pictures of an effect on a case."""

    def __init__(self, bench: measuring.Bench, effect: Effect, case: Case) -> None:
        self.bench, self.effect, self.case = bench, effect, case
        self.plain = bench.plain(effect.plain(case))

    def pictures(self, strengths: Sequence[float]) -> list[list[Image.Image]]:
        """A row of seeds for each strength."""
        scene = self.effect.scene(self.case, strengths, self.bench.like)
        seeds = [self.bench.settings.seed + i for i in range(SEEDS)]
        columns = []
        for seed in seeds:
            settings = replace(self.bench.settings, prompt=self.effect.base(self.case), seed=seed)
            frames = range(len(strengths))
            columns.append(list(self.bench.probe.rendered(scene, settings, frames, lambda more: None)))
        return [list(row) for row in zip(*columns, strict=True)]

    def change(self, images: Sequence[Image.Image]) -> float:
        moved = measuring.pixels(images) - measuring.pixels(self.plain.images[:SEEDS])
        return float(moved.square().mean().sqrt()) / self.plain.image_unit

    def right(self, images: Sequence[Image.Image]) -> float:
        """As a part of what the plain pictures are."""

        def share(images: Sequence[Image.Image]) -> float:
            return float(np.mean([judge(image, self.effect, self.case) for image in images]))

        return min(1.0, share(images) / share(self.plain.images[:SEEDS]))


def measured(short: measuring.Bench, whole: measuring.Bench, effect: Effect, case: Case) -> dict[str, Any]:
    """The figures of an effect on a case."""
    look = short.look(effect, case)
    run, runs = short.runner(effect, case, judge), {}

    def known(strength: float) -> measuring.Run:
        return runs.setdefault(strength, run(strength)) if strength not in runs else runs[strength]

    found = {
        "judged": measuring.band(look, known),
        "alone": measuring.band(look, lambda strength: replace(known(strength), right=None)),
    }
    truth = Truth(whole, effect, case)
    line: dict[str, Any] = {"effect": effect.path, "case": list(case), "raw": look.changes, "scales": list(look.scales)}
    line["first"] = measuring.crossing([s - effect.origin for s in look.scales], look.changes, measuring.VISIBLE)
    line["runs"] = [asdict(one) for one in runs.values()]
    known_places: dict[tuple[float | None, ...], dict[str, Any]] = {}
    for name, band in found.items():
        ends = band.visible, band.broken, band.lost
        known_places[ends] = known_places[ends] if ends in known_places else _places(truth, band)
        line[name] = {"visible": band.visible, "broken": band.broken, "lost": band.lost, **known_places[ends]}
    line["truth"] = _seen(truth, found["judged"])
    return line


def _places(truth: Truth, band: Band) -> dict[str, Any]:
    """What pictures at fixed places of a range are."""
    strengths = [band.value(percent) for percent in PLACES]
    if band.visible is None or None in strengths:
        return {}
    most = truth.effect.highest
    held = [min(strength, most) for strength in strengths if strength is not None]
    rows = truth.pictures(held)
    inside = rows[: PLACES.index(100) + 1]
    pixel, seen = zip(*(smoothness.steps(list(images), False) for images in zip(*inside, strict=True)), strict=True)
    return {
        "strengths": held,
        "changes": [truth.change(row) for row in rows],
        "right": [truth.right(row) for row in rows],
        "even": float(np.mean([smoothness.evenness(steps) for steps in seen])),
        "even_pixels": float(np.mean([smoothness.evenness(steps) for steps in pixel])),
        "even_mean": float(smoothness.evenness(np.mean(seen, axis=0))),
    }


def _seen(truth: Truth, band: Band) -> dict[str, Any]:
    """Where a change of whole pictures is seen, from pictures round the end that was found."""
    origin, most = truth.effect.origin, truth.effect.highest
    middle = (band.visible if band.visible is not None else most) - origin
    above = sorted({min(middle * 2**octaves, most - origin) for octaves in (*ROUND, 0.0)})
    changes = [truth.change(row) for row in truth.pictures([origin + one for one in above])]
    place = measuring.crossing(above, changes, measuring.VISIBLE)
    return {"above": above, "changes": changes, "visible": None if place is None else origin + place}


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    probe = PipelineProbe(load_pipeline(options.model), options.model)
    short = measuring.Bench(probe, SETTINGS, Scene(), lambda more: None)
    whole = measuring.Bench(probe, SETTINGS, Scene(), lambda more: None)
    whole.settings = replace(whole.settings, steps=STEPS)
    with options.out.open("a") as file:
        for case in cases(options.prompts.split(",")):
            for effect in EFFECTS:
                line = {"model": probe.identity()[1], **measured(short, whole, effect, case)}
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(case.prompt, effect.path, flush=True)


# --- Tables


def table(options: argparse.Namespace) -> None:
    lines = [json.loads(line) for file in options.files for line in file.read_text().splitlines()]
    for model in dict.fromkeys(line["model"] for line in lines):
        own = [line for line in lines if line["model"] == model]
        print(f"\n{model}: {len(own)} cases")
        _visible(own)
        for name in ("judged", "alone"):
            _broken(own, name)


def _octaves(found: float | None, true: float | None, origin: float) -> float | None:
    if found is None or true is None:
        return 0.0 if found is true else None
    return abs(math.log2((found - origin) / (true - origin)))


def _visible(lines: Sequence[dict[str, Any]]) -> None:
    """How far the visible end is from the truth, before and after the short runs."""
    for label, place in (("one call", "first"), ("with the runs", "judged")):
        off = []
        for line in lines:
            origin = 1.0 if "weight" in line["effect"] else 0.0
            found = line[place]["visible"] if place == "judged" else line["first"]
            found = found + origin if place == "first" and found is not None else found
            off.append(_octaves(found, line["truth"]["visible"], origin))
        known = [one for one in off if one is not None]
        within = sum(one <= 0.5 for one in known) / len(off)
        low, high = _interval(sum(one <= 0.5 for one in known), len(off))
        print(
            f"visible end, {label}: median {np.median(known):.2f} octaves, 90 % {np.quantile(known, 0.9):.2f}, "
            f"within half an octave {within:.0%} ({low:.0%} to {high:.0%})"
        )


def _broken(lines: Sequence[dict[str, Any]], name: str) -> None:
    ranged = [line[name] for line in lines if line[name].get("right")]
    breaking = [one["right"][-1] for one in ranged if one["broken"] is not None]
    losing = [one["right"][-1] for one in ranged if one["lost"] is not None]
    even = [one["even_mean"] for one in ranged]
    at_100 = [one["right"][PLACES.index(100)] for one in ranged]
    for label, values, good in (
        ("right at 100 %, at least 80 %", at_100, [one >= 0.8 for one in at_100]),
        ("right at 130 %, less than half", breaking, [one < 0.5 for one in breaking]),
        ("the same where 130 % was found within the bound", losing, [one < 0.5 for one in losing]),
        ("evenness of 20 % steps, at least 0.9", even, [one >= 0.9 for one in even]),
    ):
        low, high = _interval(sum(good), len(good))
        median = f"median {np.median(values):.2f}, " if values else ""
        shown = f"{median}{sum(good)} of {len(good)} ({low:.0%} to {high:.0%})"
        print(f"{name}: {label}: {shown}")


def _interval(good: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not total:
        return 0.0, 1.0
    share, spread = good / total, z**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def main() -> None:
    parser = argparse.ArgumentParser(description="How well the useful range is found.")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("--model", help="a diffusers folder (default: the built-in model)")
    one.add_argument("--prompts", default=PROMPTS, help="separated by commas")
    one.add_argument("--out", type=Path, required=True, help="JSON lines, added to what is there")
    one.set_defaults(run=measure)
    other = commands.add_parser("table")
    other.add_argument("files", type=Path, nargs="+")
    other.set_defaults(run=table)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
