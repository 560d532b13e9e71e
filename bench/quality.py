"""Images on the built-in model, judged: fidelity of regions, transitions, motion, for several methods.

    python bench/quality.py [--pairs all|N] [--seeds 5] [--only ramps wide …] [--out docs/quality]

Renders every experiment, judges it by the patch classifier, writes the pictures and `figures.json` and prints the
tables that docs/quality.md quotes. An experiment's figures are written as soon as it is done; --only renews some and
keeps the others. quality_measures.py defines the measures, quality_sampling.py the methods.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `tools` and `bench`, which no installation includes

from bench import quality_measures as measures  # noqa: E402
from bench import quality_pictures as pictures  # noqa: E402
from bench import quality_tables as tables  # noqa: E402
from bench.quality_measures import CONCEPTS, FIXED_PAIRS, PAIRS, phrase  # noqa: E402
from bench.quality_sampling import Sampler  # noqa: E402
from lib_masknoise.hosts.diffusers import load_pipeline, render  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402
from tools.small_model.patch_classifier import PatchClassifier  # noqa: E402

SIZE = (128, 256)
RAMP = (0.3125, 0.6875)  # five columns of patches at weight 1 on each side, a sixth at 0.92
WIDE = (0.0625, 0.9375)
RAMP_METHODS = ("conditioning", "outputs", "predictions", "hard")
WIDE_METHODS = ("conditioning", "preserve_norm", "outputs", "predictions")
BOTH = ("conditioning", "outputs")
COMPARED = (*BOTH, "predictions")
WAYS = ("decoded whole", "decoded apart")
MIDDLE = (0.25, 0.75)  # weights between which a patch belongs to the middle of a transition
WEIGHTS = (-0.5, 0.5, 1.5, 2.0)
FRAMES = 12


@dataclass(frozen=True)
class Bench:
    """What all experiments share."""

    pipe: DiffusionPipeline
    classifier: PatchClassifier
    seeds: range
    steps: int
    pairs: Sequence[tuple[int, int]]

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self.pipe, SIZE, self.steps)

    @cached_property
    def plain(self) -> list[np.ndarray]:
        """The probabilities of plain generation of every concept."""
        prompts = _counted("plain", [phrase(concept) for concept in CONCEPTS])
        return [self.judge(self.sampler.plain(prompt, self.seeds)) for prompt in prompts]

    def judge(self, images: np.ndarray) -> np.ndarray:
        return measures.probabilities(self.classifier, images)


def ramps(bench: Bench) -> tuple[dict, pictures.Pictures]:
    """All pairs on a ramp with both ends pinned: fidelity, and the passage from one concept to the other."""
    return _ramps(bench, "ramps", bench.pairs, RAMP, RAMP_METHODS)


def wide(bench: Bench) -> tuple[dict, pictures.Pictures]:
    """Every third pair on a ramp over nearly the whole width: most of the image lies between the concepts."""
    return _ramps(bench, "wide", bench.pairs[::3], WIDE, WIDE_METHODS)


def _ramps(
    bench: Bench,
    name: str,
    pairs: Sequence[tuple[int, int]],
    span: tuple[float, float],
    methods: Sequence[str],
) -> tuple[dict, pictures.Pictures]:
    weights = measures.patch_weights(measures.ramp("", "", *span), SIZE)
    rows, shown, passages, sharpness = [], {}, defaultdict(list), defaultdict(list)
    for left, right in _counted(name, sorted({*pairs, *FIXED_PAIRS})):
        scene = measures.ramp(phrase(CONCEPTS[left]), phrase(CONCEPTS[right]), *span)
        images = {method: bench.sampler.scene(scene, bench.seeds, method) for method in methods}
        if (left, right) in FIXED_PAIRS:
            shown[left, right] = {method: of_pair[0] for method, of_pair in images.items()}
        if (left, right) not in pairs:
            continue
        row: dict = {"pair": (left, right)}
        for method in methods:
            probs = bench.judge(images[method])
            passages[method].append(measures.passage(probs, left, right))
            sharpness[method].append(measures.sharpness(images[method]))
            row[method] = _judged(bench, probs, weights, (left, right))
            row[method]["distance"] = _distance(images[method], images["conditioning"], weights)
        rows.append(row)
    means = {
        method: {
            "passage": np.mean(passages[method], 0).tolist(),
            "sharpness": np.mean(sharpness[method], 0).tolist(),
        }
        for method in methods
    }
    return {"span": span, "weights": weights[:, 0].tolist(), "means": means, "pairs": rows}, shown


def _judged(bench: Bench, probs: np.ndarray, weights: np.ndarray, pair: tuple[int, int]) -> dict:
    """The figures of one pair by one method."""
    fidelity = measures.fidelity(probs, [bench.plain[concept] for concept in pair], weights, pair)
    left, right = measures.passage(probs, *pair)
    return {
        "shares": fidelity.shares,
        "plain": fidelity.plain,
        "fidelity": fidelity.ratios,
        "backward": measures.backward(right - left),
        "middle": _middle(probs, weights, pair),
    }


def _distance(images: np.ndarray, ours: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """How far a method's images are from those of blended conditioning, and from its own of the next seed."""
    pinned = (weights >= measures.PINNED).any(0)
    return {
        "pinned": measures.distance(images, ours, pinned),
        "transition": measures.distance(images, ours, ~pinned),
        "seeds": measures.distance(images, np.roll(images, 1, axis=0), ~pinned),
    }


def _middle(probs: np.ndarray, weights: np.ndarray, pair: tuple[int, int]) -> dict[str, float]:
    """What the classifier sees half-way: one of the pair, a third concept, or none it knows."""
    where = _between(weights)
    one = sum(measures.share(probs, concept, where) for concept in pair)
    other = measures.share(probs, len(CONCEPTS), where)
    return {"one of the pair": one, "a third": 1 - one - other, "other": other}


def _between(weights: np.ndarray) -> np.ndarray:
    low, high = MIDDLE
    return ((weights > low) & (weights < high)).all(0)


def decoder(bench: Bench) -> tuple[dict, pictures.Pictures]:
    """How much of the fidelity the decoder costs: the same sampled latents, decoded whole and each pinned part alone.

    A decoder's normalisation and attention look at the whole image, so one side of it changes the other.
    """
    rows = []
    weights = measures.patch_weights(measures.ramp("", "", *RAMP), SIZE)
    for pair in _counted("decoder", FIXED_PAIRS):
        prompts = [phrase(CONCEPTS[concept]) for concept in pair]
        row: dict = {"pair": pair, "plain": [], **{f"{method}, {way}": [] for method in BOTH for way in WAYS}}
        alone = [bench.sampler.plain_latents(prompt, bench.seeds) for prompt in prompts]
        blended = {m: bench.sampler.scene_latents(measures.ramp(*prompts, *RAMP), bench.seeds, m) for m in BOTH}
        for side, concept in enumerate(pair):
            pinned = np.flatnonzero((weights[side] >= measures.PINNED).all(0))
            columns = slice(2 * pinned[0], 2 * pinned[-1] + 2)  # of the latent: two to a patch
            row["plain"].append(_right(bench, bench.sampler.decode(alone[side][..., columns]), concept))
            for method, latents in blended.items():
                whole = bench.sampler.decode(latents)[:, :, 8 * columns.start : 8 * columns.stop]
                part = bench.sampler.decode(latents[..., columns])
                for way, images in zip(WAYS, (whole, part), strict=True):
                    row[f"{method}, {way}"].append(_right(bench, images, concept))
        rows.append(row)
    return {"pairs": rows}, {}


def _right(bench: Bench, images: np.ndarray, concept: int) -> float:
    return float((bench.judge(images).argmax(-1) == concept).mean())


def same_meaning(bench: Bench) -> tuple[dict, pictures.Pictures]:
    """Two prompts of one meaning whose tokens do not line up: between them the meaning should remain."""
    names = [phrase(concept) for concept in CONCEPTS]
    kinds: dict[str, list[tuple[tuple[int, ...], str, str]]] = {
        "paraphrase": [((i,), name, f"a photo of {name}") for i, name in enumerate(names)],
        "repeated": [((i,), name, ", ".join([f"a photo of {name}", name] * 5)) for i, name in enumerate(names)],
        "reversed": [
            ((i, j), f"{names[i]} next to {names[j]}", f"{names[j]} next to {names[i]}") for i, j in FIXED_PAIRS
        ],
    }
    rows: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for kind, concepts, left, right in _counted(
        "same meaning", [(kind, *case) for kind, cases in kinds.items() for case in cases]
    ):
        scene = measures.ramp(left, right, *WIDE)
        middle = _between(measures.patch_weights(scene, SIZE))
        images = {method: bench.sampler.scene(scene, bench.seeds, method) for method in COMPARED}
        images["plain"] = np.concatenate([bench.sampler.plain(prompt, bench.seeds) for prompt in (left, right)])
        row: dict = {"concepts": concepts, "prompts": (left, right)}
        for method, found in images.items():
            probs = bench.judge(found)
            row[method] = sum(measures.share(probs, concept, middle) for concept in concepts)
        rows[kind].append(row)
    return {"kinds": rows}, {}


def adjectives(bench: Bench) -> tuple[dict, pictures.Pictures]:
    """Prompts that share all tokens but one: brightness should pass evenly and the concept stay."""
    rows = []
    for concept in _counted("adjectives", range(len(CONCEPTS))):
        scene = measures.ramp(f"a dark {CONCEPTS[concept]}", f"a bright {CONCEPTS[concept]}", *WIDE)
        middle = _between(measures.patch_weights(scene, SIZE))
        row: dict = {"concept": concept, "plain": measures.share(bench.plain[concept], concept, middle)}
        for method in COMPARED:
            images = bench.sampler.scene(scene, bench.seeds, method)
            row[method] = {
                "share": measures.share(bench.judge(images), concept, middle),
                "luminance": measures.by_column(images).tolist(),
            }
        rows.append(row)
    return {"concepts": rows}, {}


def long_prompts(bench: Bench) -> tuple[dict, pictures.Pictures]:
    """A prompt of two chunks (154 tokens) beside one of a single chunk."""
    rows = []
    for pair in _counted("long prompts", FIXED_PAIRS):
        left, right = (phrase(CONCEPTS[concept]) for concept in pair)
        long = ", ".join([left, f"a photo of {left}"] * 9)
        scene = measures.ramp(long, right, *RAMP)
        weights = measures.patch_weights(scene, SIZE)
        alone = bench.sampler.scene(Scene.parse({"concepts": [{"prompt": long}]}), bench.seeds)
        plain = [bench.judge(alone), bench.plain[pair[1]]]
        row: dict = {"pair": pair, "alone": measures.share(plain[0], pair[0], weights[0] >= measures.PINNED)}
        for method in BOTH:
            probs = bench.judge(bench.sampler.scene(scene, bench.seeds, method))
            row[method] = {
                "fidelity": measures.fidelity(probs, plain, weights, pair).ratios,
                "middle": _middle(probs, weights, pair),
                "passage": measures.passage(probs, *pair).tolist(),
            }
        rows.append(row)
    return {"pairs": rows}, {}


def extrapolation(bench: Bench) -> tuple[dict, pictures.Pictures]:
    """Weights below 0 and above 1 over the whole image, along an adjective and between concepts.

    At weight 0 and 1 both methods are plain generation with the one or the other prompt.
    """
    sampler = Sampler(bench.pipe, (128, 128), bench.steps)
    everywhere = np.ones((8, 8), dtype=bool)

    def judged(images: np.ndarray, concepts: tuple[int, ...]) -> dict:
        probs = bench.judge(images)
        shares = [measures.share(probs, concept, everywhere) for concept in concepts]
        return {"shares": shares, "luminance": float(measures.luminance(images).mean())}

    def axis(base: str, prompt: str, concepts: tuple[int, ...]) -> dict:
        row = {"0": judged(sampler.plain(base, bench.seeds), concepts)}
        row["1"] = judged(sampler.plain(prompt, bench.seeds), concepts)
        for weight in WEIGHTS:
            scene = Scene.parse({"concepts": [{"prompt": prompt, "weight": weight}]})
            row[str(weight)] = {
                method: judged(sampler.scene(scene, bench.seeds, method, base), concepts) for method in BOTH
            }
        return row

    dark = [
        {"concept": i, "weights": axis(phrase(CONCEPTS[i]), f"a dark {CONCEPTS[i]}", (i,))}
        for i in _counted("extrapolation, adjective", range(len(CONCEPTS)))
    ]
    between = [
        {"pair": (a, b), "weights": axis(phrase(CONCEPTS[a]), phrase(CONCEPTS[b]), (a, b))}
        for a, b in _counted("extrapolation, concepts", FIXED_PAIRS)
    ]
    return {"adjective": dark, "concepts": between}, {}


def motion(bench: Bench) -> tuple[dict, pictures.Pictures]:
    """A held field, a held ocean and a free marsh between them: how much each noise moves which."""
    rows, shown = {}, {}
    for label, strengths in _counted("motion", MOVING.items()):
        scene = Scene.parse({**STAGE, "noise": {noise: {"strength": s} for noise, s in strengths.items()}})
        found = []
        for seed in bench.seeds:
            options = dict(seed=seed, steps=bench.steps, size=SIZE, batch_size=FRAMES)
            frames = [np.asarray(frame.image) for frame in render(bench.pipe, scene, "a marsh", **options)]
            found.append(measures.motion(np.stack(frames), scene))
            shown.setdefault(label, np.stack(frames))
        rows[label] = {
            "strengths": strengths,
            "fluid": [m.fluid for m in found],
            "anchored": [m.anchored for m in found],
            "ratio": [m.ratio for m in found],
            "profile": np.mean([m.profile for m in found], axis=0).tolist(),
        }
    return {"frames": FRAMES, "noises": rows}, shown


STAGE = {
    "concepts": [
        {"prompt": "a wheat field", "mask": {"kind": "split", "from": 0, "to": 0.33, "feather": 0.2}},
        {"prompt": "an ocean", "mask": {"kind": "split", "from": 0.67, "to": 1, "feather": 0.2}},
    ],
    "motion": {"kind": "circle"},
    "animation": {"frames": FRAMES},
}
MOVING = {
    "visual": {"visual": 1.0},
    "concept": {"concept": 1.0},
    "feature": {"feature": 1.0},
    "all three": {"visual": 1.0, "concept": 1.0, "feature": 1.0},
}
EXPERIMENTS = {
    "ramps": ramps,
    "wide": wide,
    "decoder": decoder,
    "same_meaning": same_meaning,
    "adjectives": adjectives,
    "long_prompts": long_prompts,
    "extrapolation": extrapolation,
    "motion": motion,
}


def main() -> None:
    options = _options()
    pipe = load_pipeline(options.model, device=options.device)
    pairs = [PAIRS[i] for i in np.linspace(0, len(PAIRS) - 1, options.pairs).round().astype(int)]
    bench = Bench(pipe, PatchClassifier(), range(options.seeds), options.steps, pairs)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "figures.json"
    for name in options.only:
        found, shown = EXPERIMENTS[name](bench)
        settings = {"seeds": options.seeds, "steps": options.steps, "guidance": bench.sampler.guidance_scale}
        # Read anew: two processes with an experiment each may share the folder.
        figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        figures[name] = _rounded({**settings, **found})
        path.write_text(json.dumps(figures, separators=(",", ":")) + "\n", encoding="utf-8")
        pictures.write(name, figures[name], shown, options.out)
    for name in options.only:
        print(tables.write(name, figures[name]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fidelity, transitions and motion on the built-in model.")
    parser.add_argument("--pairs", type=_pairs, default=len(PAIRS), help='"all", or how many, evenly spaced')
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quality")
    parser.add_argument("--model", help="a diffusers folder (default: the built-in model)")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _pairs(text: str) -> int:
    count = len(PAIRS) if text == "all" else int(text)
    if not 1 <= count <= len(PAIRS):
        raise ValueError
    return count


def _counted(name: str, items: Sequence | Iterator) -> Iterator:
    """The items, with a line on stderr for each."""
    items, start = list(items), time.monotonic()
    for i, item in enumerate(items):
        print(f"{name} {i + 1} of {len(items)}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        yield item


def _rounded(value):
    """Four places are more than the figures are worth."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(float(value), 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
