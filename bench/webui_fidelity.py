"""Region fidelity and motion of images made by a running WebUI, judged as the core's are (docs/quality.md).

    python bench/webui_fidelity.py [--url URL] [--checkpoint textures] [--pairs 91] [--seeds 2] [--steps 12]

The WebUI needs the built-in model as a single file. Two concepts on a ramp, both ends pinned; a patch is right where
the classifier gives it to the pinned concept, and fidelity is the share of right patches over that of plain generation
of the same concept with the same seeds, through the same API. The animation is that of `bench/quality.py`'s motion.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `tools` and `bench`, which no installation includes

from bench import quality_measures as measures  # noqa: E402
from bench.quality_measures import CONCEPTS, PAIRS, phrase  # noqa: E402
from bench.webui_client import WebUI  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402
from tools.small_model.patch_classifier import PatchClassifier  # noqa: E402

SIZE = (128, 256)
RAMP = (0.3125, 0.6875)
FRAMES = 12
STAGE = {
    "concepts": [
        {"prompt": "a wheat field", "mask": {"kind": "split", "from": 0, "to": 0.33, "feather": 0.2}},
        {"prompt": "an ocean", "mask": {"kind": "split", "from": 0.67, "to": 1, "feather": 0.2}},
    ],
    "noise": {"visual": {"strength": 1.0}, "concept": {"strength": 1.0}, "feature": {"strength": 1.0}},
    "motion": {"kind": "circle"},
    "animation": {"frames": FRAMES},
}


def main() -> None:
    options = _options()
    job = {"width": SIZE[1], "height": SIZE[0], "steps": options.steps, "sampler_name": "Euler", "cfg_scale": 4}
    job |= {"seed": 0, "batch_size": options.seeds, "negative_prompt": "", "do_not_save_grid": True}
    settings = {"sd_model_checkpoint": options.checkpoint} if options.checkpoint else {}
    job |= {"override_settings": settings, "override_settings_restore_afterwards": False}
    webui = WebUI(options.url, job)
    classifier = PatchClassifier()
    core = _core_figures(options)
    rows = []
    plain: dict[int, np.ndarray] = {}
    weights = measures.patch_weights(measures.ramp("", "", *RAMP), SIZE)
    for left, right in _evenly(PAIRS, options.pairs):
        for concept in (left, right):
            if concept not in plain:
                plain[concept] = measures.probabilities(classifier, webui.images(phrase(CONCEPTS[concept])))
        scene = measures.ramp(phrase(CONCEPTS[left]), phrase(CONCEPTS[right]), *RAMP)
        probs = measures.probabilities(classifier, webui.images("", scene.to_dict()))
        found = measures.fidelity(probs, [plain[left], plain[right]], weights, (left, right))
        rows.append({"pair": (left, right), "shares": found.shares, "plain": found.plain, "fidelity": found.ratios})
        print(f"{CONCEPTS[left]} – {CONCEPTS[right]}: {np.mean(found.ratios):.1%}", file=sys.stderr, flush=True)
    motion = [_motion(webui, seed) for seed in range(options.seeds)] if not options.no_motion else []
    _report(rows, core, motion)
    if options.out:
        options.out.write_text(json.dumps({"pairs": rows, "motion": motion}))


def _motion(webui: WebUI, seed: int) -> dict[str, float]:
    frames = webui.images("a marsh", STAGE, seed=seed, batch_size=4)
    found = measures.motion(frames, Scene.parse(STAGE))
    return {"fluid": found.fluid, "anchored": found.anchored, "ratio": found.ratio}


def _report(rows: list[dict], core: dict, motion: list[dict]) -> None:
    of_pairs = [float(np.mean(row["fidelity"])) for row in rows]
    right, alone = (float(np.mean([row[key] for row in rows])) for key in ("shares", "plain"))
    print("| | fidelity | right | right alone | median pair | worst pair | pairs below 95 % |")
    print("|---|---|---|---|---|---|---|")
    _row("through the WebUI", of_pairs, right, alone)
    same = [core[tuple(row["pair"])] for row in rows if tuple(row["pair"]) in core]
    if same:
        right, alone = (float(np.mean([one[key] for one in same])) for key in ("shares", "plain"))
        _row(
            "diffusers (docs/quality), the same pairs", [float(np.mean(one["fidelity"])) for one in same], right, alone
        )
        apart = [np.mean(row["fidelity"]) - np.mean(one["fidelity"]) for row, one in zip(rows, same, strict=True)]
        print(f"per pair, WebUI less diffusers: median {np.median(apart):+.3f}, {min(apart):+.3f} to {max(apart):+.3f}")
    for seed, of_seed in enumerate(motion):
        print("motion, seed {}: fluid {fluid:.2f}, anchored {anchored:.2f}, ratio {ratio:.1f}".format(seed, **of_seed))


def _row(name: str, of_pairs: list[float], right: float, alone: float) -> None:
    below = sum(one < 0.95 for one in of_pairs)
    print(
        f"| {name} | {np.mean(of_pairs):.1%} | {right:.1%} | {alone:.1%} | {np.median(of_pairs):.1%} "
        f"| {min(of_pairs):.1%} | {below} of {len(of_pairs)} |"
    )


def _core_figures(options: argparse.Namespace) -> dict[tuple[int, int], dict]:
    """The core's own figures of the pairs, where they were made with as many seeds and steps."""
    ramps = json.loads((ROOT / "docs" / "quality" / "figures.json").read_text(encoding="utf-8"))["ramps"]
    if (ramps["seeds"], ramps["steps"]) != (options.seeds, options.steps):
        return {}
    return {tuple(row["pair"]): row["conditioning"] for row in ramps["pairs"]}


def _evenly(pairs: tuple, count: int) -> list:
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, count).round().astype(int)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--checkpoint", help="the WebUI's name of the built-in model; its current one when left out")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="how many of the 91, evenly spaced")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--no-motion", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file for every pair's figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
