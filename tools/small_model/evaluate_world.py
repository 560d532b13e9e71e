"""Measure a model of the world by ground truth: places alone, side by side and on a ramp, and what lies between.

    python -m tools.small_model.evaluate_world --model FOLDER --out figures.json
    python -m tools.small_model.evaluate_world --vae DIR/vae.pt --only composite      before there is a U-Net
    python -m tools.small_model.evaluate_world --only standards                       the renderer and a crossfade

- alone: share of the patches given to the place, for `a <place>` at 256x256.
- composite: the latents of two places side by side, decoded; `upper` are the same pictures without the model.
- ramp: cores of a ramp between two places, as in `evaluate`.
- between: ramps and constant mixtures over every middle, by three methods (`world_measures`).
- standards: the measures of `between` on the renderer's own pictures and on crossfades.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from . import sampling
from .local_vae import LocalVAE
from .networks import MODEL, Networks
from .sampling import BlendedAttention, BlendedOutputs, Regions
from .world import BY_NAME, INDEX, MIDDLES, PLACES, Middle, between, stray
from .world_captions import PLAIN
from .world_data import turning
from .world_measures import Way, backward, ghosting, inconsistency, seen
from .world_render import render
from .world_truth import LABELS, WorldTruth

NAMES = [place.name for place in PLACES]
PAIRS = tuple(itertools.combinations(range(len(PLACES)), 2))
RAMP = (0.25, 0.75)
SHARES = (0.25, 0.5, 0.75)
CORE = 2  # columns of patches of 32 pixels on each side of a ramp of 256
METHODS = {"conditioning": BlendedAttention, "outputs": BlendedOutputs, "hard": BlendedAttention}


def as_bytes(images: Tensor) -> Tensor:
    """`[B, 3, H, W]` in [0, 1] -> `[B, H, W, 3]` uint8."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)


def right(truth: WorldTruth, images: Tensor, place: int) -> np.ndarray:
    """`[B]` share of the patches that are given to a place."""
    return (truth.probabilities(images).argmax(-1) == place).mean((1, 2))


def drawn(place: int, seed: int, height: int = 128, width: int = 128) -> Tensor:
    """`[3, H, W]` a fresh picture of a place."""
    return render(stray(PLACES[place], Random(seed))[None], [seed], height, width)[0]


def alone(nets: Networks, truth: WorldTruth, count: int, steps: int, cfg: float) -> dict:
    """Each place by itself; `upper`: the renderer's pictures."""
    figures, upper, empty = {}, {}, nets.contexts([""])[0]
    for i, name in enumerate(NAMES):
        regions = sampling.plain_regions(nets.contexts([PLAIN[name]]).expand(count, -1, -1), 32, 32)
        images = nets.decode(sampling.sample(nets.unet, regions, empty, steps=steps, cfg=cfg, seed=100 + i))
        figures[name] = float(right(truth, images, i).mean())
        fresh = torch.stack([drawn(i, 8_000_000 + 100 * i + j, 256, 256) for j in range(count)])
        upper[name] = float(right(truth, as_bytes(fresh), i).mean())
    means = [float(np.mean(list(shares.values()))) for shares in (figures, upper)]
    return {"mean": means[0], "upper": means[1], "lowest": min(figures, key=figures.get), "places": figures,
            "upper_places": upper}  # fmt: skip


@torch.no_grad()
def composite(vae: LocalVAE, truth: WorldTruth, pairs: list[tuple[int, int]]) -> dict:
    """Latents of two places side by side, and each side's own picture through the autoencoder for comparison."""
    pictures = torch.stack([drawn(i, 8_500_000 + i) for i in range(len(PLACES))])
    latents = torch.cat([vae.encode(part * 2 - 1) for part in pictures.split(4)])
    single = torch.cat([vae.decode(part) * 0.5 + 0.5 for part in latents.split(4)])
    by_place: dict[str, list[float]] = {name: [] for name in NAMES}
    whole = []
    for a, b in pairs:
        image = vae.decode(torch.cat([latents[a], latents[b]], 2)[None]) * 0.5 + 0.5
        for side, place in ((image[..., :128], a), (image[..., 128:], b)):
            by_place[NAMES[place]].append(float(right(truth, as_bytes(side), place)[0]))
        inner = (image[0, :, :, :96] - single[a][:, :, :96]).abs().mean()
        whole.append(float(inner))
    places = {name: float(np.mean(shares)) for name, shares in by_place.items() if shares}
    ends = [float(np.mean([right(truth, as_bytes(p[i : i + 1]), i)[0] for i in range(len(PLACES))]))
            for p in (single, pictures)]  # fmt: skip
    return {"mean": float(np.mean([s for shares in by_place.values() for s in shares])), "single": ends[0],
            "upper": ends[1], "changed_by_neighbour": float(np.mean(whole)), "places": places}  # fmt: skip


def ramp(nets: Networks, truth: WorldTruth, pairs: list[tuple[int, int]], steps: int, cfg: float) -> dict:
    """Cores of a ramp of 128x256 between two places."""
    empty, shares = nets.contexts([""])[0], []
    for number, (a, b) in enumerate(pairs):
        contexts = nets.contexts([PLAIN[NAMES[a]], PLAIN[NAMES[b]]])
        regions = sampling.ramp_regions(contexts[:1], contexts[1:], 16, 32, RAMP)
        image = nets.decode(sampling.sample(nets.unet, regions, empty, steps=steps, cfg=cfg, seed=7000 + number))
        labels = truth.probabilities(image)[0].argmax(-1)
        shares.append(((labels[:, :CORE] == a).mean(), (labels[:, -CORE:] == b).mean()))
    return {"mean": float(np.mean(shares)), "pairs": {f"{NAMES[a]} / {NAMES[b]}": [float(s) for s in row]
                                                      for (a, b), row in zip(pairs, shares, strict=True)}}  # fmt: skip


_WAYS: dict[tuple[str, int], Way] = {}


def _way(name: str, truth: WorldTruth) -> Way:
    """The way over a middle, read once."""
    key = name, truth.size
    if key not in _WAYS:
        _WAYS[key] = Way.over(next(m for m in MIDDLES if m.name == name), truth)
    return _WAYS[key]


def judged(truth: WorldTruth, middle: Middle, ramps: Tensor, constant: dict[float, Tensor]) -> dict:
    """The four measures of ramps `[S, H, W, 3]` and pictures of one mixture by its share, over one middle."""
    way = _way(middle.name, truth)
    readings = way.read(truth, ramps)
    mixtures = {share: way.read(truth, images) for share, images in constant.items()}
    columns = readings.shape[2]
    levels = np.clip(((np.arange(columns) + 0.5) / columns - RAMP[0]) / (RAMP[1] - RAMP[0]), 0, 1)
    a, b = (BY_NAME[name].attributes for name in middle.parents)
    directions = [float(p[INDEX["direction"]]) for p in (a, b)]
    grain = min(float(p[INDEX["grain"]]) for p in (a, b))
    turned = grain >= 0.3 and abs(directions[0] - directions[1]) >= 0.15
    return {
        "inconsistency": inconsistency(readings, levels, mixtures), **seen(mixtures[0.5], way),
        "backward": backward(readings, way), "ghosting": ghosting(constant[0.5], *directions) if turned else None,
    }  # fmt: skip


def between_by(nets: Networks, truth: WorldTruth, method: str, middle: Middle, seeds: int, steps: int,
               cfg: float) -> tuple[dict, Tensor]:  # fmt: skip
    """The measures of one method over one middle, and its ramps."""
    contexts, empty = nets.contexts([PLAIN[name] for name in middle.parents]), nets.contexts([""])[0]
    both = contexts[None].expand(seeds, -1, -1, -1)

    def images(regions: Regions) -> Tensor:
        regions = sampling.hardened(regions) if method == "hard" else regions
        return nets.decode(sampling.sample(nets.unet, regions, empty, steps=steps, cfg=cfg, seed=4000,
                                           blend=METHODS[method]))  # fmt: skip

    ramps = images(sampling.ramp_regions(both[:, 0], both[:, 1], 16, 32, RAMP))
    constant = {}
    for share in SHARES:
        maps = torch.tensor([1 - share, share]).view(1, 2, 1, 1).expand(seeds, -1, 16, 16)
        constant[share] = images(Regions(both, maps))
    return judged(truth, middle, ramps, constant), ramps


def standard(truth: WorldTruth, middle: Middle, seeds: int, crossfade: bool) -> dict:
    """The measures of the renderer's own pictures, or of crossfades between pictures of the two ends."""
    a, b = (BY_NAME[name].attributes for name in middle.parents)
    x = (torch.arange(256) + 0.5) / 256
    share = ((x - RAMP[0]) / (RAMP[1] - RAMP[0])).clamp(0, 1).expand(128, 256)
    ramps, constant = [], {t: [] for t in SHARES}
    for seed in range(6_000_000, 6_000_000 + seeds):
        if crossfade:
            left, right_ = render(torch.stack([a, b]), [seed, seed + 500], 128, 256)
            ramps.append(torch.lerp(left, right_, share))
            others = render(torch.stack([a, b]), [seed + 1000, seed + 1500], 128, 128)
            for t in SHARES:
                constant[t].append(torch.lerp(*others, t))
        else:
            ramps.append(turning(a, b, share, seed))
            for t in SHARES:
                constant[t].append(render(between(a, b, t)[None], [seed + 500], 128, 128)[0])
    pictures = {t: as_bytes(torch.stack(images)) for t, images in constant.items()}
    return judged(truth, middle, as_bytes(torch.stack(ramps)), pictures)


def means(rows: dict[str, dict]) -> dict[str, float]:
    """Mean of each measure over the middles that have it."""
    names = next(iter(rows.values())).keys()
    columns = {name: [row[name] for row in rows.values() if row[name] is not None] for name in names}
    return {name: float(np.mean(values)) for name, values in columns.items() if values}


def _measure(name: str, args: argparse.Namespace, nets: Networks | None, truth: WorldTruth, pairs) -> dict:
    if name == "standards":
        rows = {
            kind: {m.name: standard(truth, m, args.seeds, kind == "crossfade") for m in MIDDLES}
            for kind in ("renderer", "crossfade")
        }
        return {kind: {"mean": means(of_kind), "middles": of_kind} for kind, of_kind in rows.items()}
    if name == "composite":
        vae = LocalVAE.load(args.vae) if args.vae else _local(args.model)
        return composite(vae, truth, pairs)
    if name == "alone":
        return alone(nets, truth, args.samples, args.steps, args.cfg)
    if name == "ramp":
        return ramp(nets, truth, pairs, args.steps, args.cfg)
    out = {}
    for method in METHODS:
        rows = {m.name: between_by(nets, truth, method, m, args.seeds, args.steps, args.cfg)[0] for m in MIDDLES}
        out[method] = {"mean": means(rows), "middles": rows}
    return out


def _local(folder: Path) -> LocalVAE:
    from .local_vae import from_autoencoder
    from .networks import read_config, read_weights

    return from_autoencoder(read_config(folder, "vae"), read_weights(folder, "vae"))


def main() -> None:
    """Command line."""
    every = ("alone", "composite", "ramp", "between", "standards")
    parser = argparse.ArgumentParser(description="Measure a model of the world by ground truth.")
    parser.add_argument("--model", type=Path, default=MODEL, help="diffusers folder of a model of the world")
    parser.add_argument("--vae", type=Path, help="an autoencoder of train_local_vae, for composite")
    parser.add_argument("--truth", type=Path, help="weights of the ground truth (default: the shipped ones)")
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--pair-step", type=int, default=1, help="take every n-th pair, for a quick look")
    parser.add_argument("--samples", type=int, default=4, help="samples of each place alone")
    parser.add_argument("--seeds", type=int, default=4, help="samples of each ramp and mixture of `between`")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    needs_model = set(args.only) - {"composite", "standards"}
    nets = Networks.load(args.model) if needs_model else None
    truth = WorldTruth(32, args.truth) if args.truth else WorldTruth(32)
    pairs, figures = PAIRS[:: args.pair_step], {"labels": LABELS}
    for name in args.only:
        started = time.time()
        figures[name] = _measure(name, args, nets, truth, pairs)
        short = {k: v for k, v in figures[name].items() if not isinstance(v, dict)} or {
            k: v["mean"] for k, v in figures[name].items()
        }
        print(name, json.dumps(short), f"{time.time() - started:.0f} s", flush=True)
        if args.out:
            args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
