"""Measure the model by the patch classifier: concepts alone, composite latents, cores of a ramp.

    python -m tools.small_model.evaluate --out figures.json --sheet sheet.jpg

- alone: `a <concept>` at 128x128; share of the 16x16 patches that the classifier gives to the concept.
- composite: two textures encoded on their own, their latents set side by side (a hard edge in the middle of
  128x256), decoded; share of patches given to the concept on their side. `upper` is the same for the
  textures themselves, without the model; `pixels` for a composite of pixels sent through encoder and
  decoder.
- ramp: `a <left>` fading linearly into `a <right>` by blending the two contexts in every cross-attention;
  share of the patches on each side where its weight is 1 ("cores"). Both orders of the pair where `--orders
  2`.

Pairs are all 91; 20 Euler steps, CFG 4, empty negative prompt, weights rounded to half precision as shipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch

from . import sampling
from .networks import MODEL, Networks
from .patch_classifier import CONCEPTS, LABELS, PATCH, PatchClassifier
from .textures import texture

SIZE = 128
RAMP = (
    0.3125,
    0.6875,
)  # edges of the ramp, on patch borders of a 256-pixel image: five columns of core each side
Pair = tuple[int, int]
PAIRS: list[Pair] = list(itertools.combinations(range(len(CONCEPTS)), 2))


def phrase(words: str) -> str:
    """`words` with the indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def labels_of(classifier: PatchClassifier, images: torch.Tensor) -> np.ndarray:
    """`[B, H, W, 3]` -> `[B, rows, columns]` label numbers, "other" included."""
    return np.stack([classifier.grid_probs(image.numpy()).argmax(-1) for image in images])


def halves_right(labels: np.ndarray, pairs: list[Pair], core: int) -> np.ndarray:
    """`[B, 2]` share of patches right among the `core` outer columns of each side."""
    left = [(grid[:, :core] == a).mean() for grid, (a, _) in zip(labels, pairs, strict=True)]
    right = [(grid[:, -core:] == b).mean() for grid, (_, b) in zip(labels, pairs, strict=True)]
    return np.stack([left, right], 1)


def by_concept(shares: np.ndarray, pairs: list[Pair]) -> dict[str, float]:
    """Mean share of each concept over the sides it stands on."""
    sums = {name: [] for name in CONCEPTS}
    for row, pair in zip(shares, pairs, strict=True):
        for share, concept in zip(row, pair, strict=True):
            sums[CONCEPTS[concept]].append(share)
    return {name: round(float(np.mean(values)), 4) for name, values in sums.items() if values}


def summary(shares: np.ndarray, pairs: list[Pair]) -> dict:
    """Mean, worst pair and per-concept means of paired shares."""
    per_pair = shares.mean(1)
    worst = pairs[int(per_pair.argmin())]
    return {
        "mean": round(float(shares.mean()), 4),
        "worst_pair": [CONCEPTS[i] for i in worst] + [round(float(per_pair.min()), 4)],
        "per_concept": by_concept(shares, pairs),
    }


def alone(nets: Networks, classifier: PatchClassifier, count: int, steps: int, cfg: float) -> dict:
    """Figures of each concept alone, from `count` samples each."""
    result, tiles, empty = {}, [], nets.contexts([""])[0]
    for i, concept in enumerate(CONCEPTS):
        context = nets.contexts([phrase(concept)]).expand(count, -1, -1)
        regions = sampling.plain_regions(context, SIZE // 8, SIZE // 8)
        images = nets.decode(sampling.sample(nets.unet, regions, empty, steps=steps, cfg=cfg, seed=100 + i))
        labels = labels_of(classifier, images)
        wrong = np.bincount(labels.ravel(), minlength=len(LABELS))
        wrong[i] = 0
        result[concept] = {
            "right": round(float((labels == i).mean()), 4),
            "worst_image": round(float((labels == i).mean((1, 2)).min()), 4),
            "taken_for": LABELS[wrong.argmax()] if wrong.any() else None,
        }
        tiles.append(images[0])
    shares = [figures["right"] for figures in result.values()]
    return {
        "mean": round(float(np.mean(shares)), 4), "lowest": min(shares), "per_concept": result, "tiles": tiles
    }  # fmt: skip


def composite(nets: Networks, classifier: PatchClassifier, pairs: list[Pair], rounds: int) -> dict:
    """Figures of composite latents over `pairs`, from `rounds` fresh pictures of every concept."""
    generator = torch.Generator().manual_seed(9)
    shares: dict[str, list[np.ndarray]] = {"latents": [], "pixels": [], "upper": []}
    columns = SIZE // PATCH
    for _ in range(rounds):
        pictures = torch.cat([texture(concept, 1, SIZE, SIZE, generator) for concept in CONCEPTS])
        latents = nets.encode(pictures)
        for start in range(0, len(pairs), 13):
            part = pairs[start : start + 13]
            left, right = ([pair[side] for pair in part] for side in (0, 1))
            pixels = torch.cat([pictures[left], pictures[right]], 3)
            images = {
                "latents": nets.decode(torch.cat([latents[left], latents[right]], 3), scaled=False),
                "pixels": nets.decode(nets.encode(pixels), scaled=False),
                "upper": (pixels * 255).round().byte().permute(0, 2, 3, 1),
            }
            for name, pictures_ in images.items():
                shares[name].append(halves_right(labels_of(classifier, pictures_), part, columns))
    figures = {name: summary(np.concatenate(parts), pairs * rounds) for name, parts in shares.items()}
    return {"mean": figures["latents"]["mean"], **figures}


def ramp(nets: Networks, classifier: PatchClassifier, pairs: list[Pair], seeds: int, steps: int, cfg: float) -> dict:
    """Figures of a ramp between the contexts of each of `pairs`, left to right."""
    contexts, empty = nets.contexts([phrase(c) for c in CONCEPTS]), nets.contexts([""])[0]
    core = round(RAMP[0] * 2 * SIZE / PATCH)
    shares, tiles = [], []
    for seed in range(seeds):
        for start in range(0, len(pairs), 13):
            part = pairs[start : start + 13]
            left, right = ([pair[side] for pair in part] for side in (0, 1))
            regions = sampling.ramp_regions(contexts[left], contexts[right], SIZE // 8, SIZE // 4, RAMP)
            latents = sampling.sample(nets.unet, regions, empty, steps=steps, cfg=cfg, seed=7000 + 100 * seed + start)
            images = nets.decode(latents)
            shares.append(halves_right(labels_of(classifier, images), part, core))
            tiles += list(images) if seed == 0 else []
    return {**summary(np.concatenate(shares), pairs * seeds), "tiles": tiles}


def contact_sheet(tiles: list[torch.Tensor], ramps: list[torch.Tensor], path: Path) -> None:
    """Write the 14 concepts in two rows and, below, six of the ramps in two rows."""
    from PIL import Image

    rows = [torch.cat(tiles[i : i + 7], 1) for i in (0, 7)]
    ramps = ramps[:: max(1, len(ramps) // 6)][:6]
    if len(ramps) == 6:
        rows += [torch.cat([*ramps[i : i + 3], torch.full((SIZE, SIZE, 3), 255, dtype=torch.uint8)], 1) for i in (0, 3)]
    Image.fromarray(torch.cat(rows).numpy()).save(path, quality=75)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the model by the patch classifier.")
    parser.add_argument("--model", type=Path, default=MODEL, help="diffusers folder (default: the shipped one)")
    parser.add_argument("--samples", type=int, default=24, help="samples of each concept alone")
    parser.add_argument("--rounds", type=int, default=4, help="fresh pictures of each concept for composites")
    parser.add_argument("--seeds", type=int, default=2, help="samples of each ramp")
    parser.add_argument("--orders", type=int, choices=(1, 2), default=2, help="2: each pair in both orders")
    parser.add_argument("--pair-step", type=int, default=1, help="take every n-th pair, for a quick look")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--only", nargs="+", choices=("alone", "composite", "ramp"), help="measure only these")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet to this image file")
    args = parser.parse_args()
    nets, classifier = Networks.load(args.model), PatchClassifier()
    pairs = PAIRS[:: args.pair_step]
    ordered = pairs + [(b, a) for a, b in pairs] if args.orders == 2 else pairs
    wanted = args.only or ("alone", "composite", "ramp")
    figures: dict = {"steps": args.steps, "cfg": args.cfg}
    tiles: dict[str, list[torch.Tensor]] = {"alone": [], "ramp": []}
    for name in wanted:
        started = time.time()
        if name == "alone":
            figures[name] = alone(nets, classifier, args.samples, args.steps, args.cfg)
        elif name == "composite":
            figures[name] = composite(nets, classifier, pairs, args.rounds)
        else:
            figures[name] = ramp(nets, classifier, ordered, args.seeds, args.steps, args.cfg)
        tiles[name] = figures[name].pop("tiles", [])
        figures[name]["seconds"] = round(time.time() - started, 1)
        print(name, figures[name]["mean"], json.dumps(figures[name]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if args.sheet and tiles["alone"]:
        contact_sheet(tiles["alone"], tiles["ramp"], args.sheet)


if __name__ == "__main__":
    main()
