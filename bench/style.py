"""What the directions of style change, beside random directions and principal ones, on the built-in model.

    nice -n 10 python -m bench.style --work work/style        goes on where it was stopped

The directions are found twice, from two halves of the prompts, each with principal directions, pictures and seeds of
its own. Those of the first half are then rendered, by scenes as a user writes them, on prompts of the second half and
seeds that neither has seen: with directions of style; with as many random ones among the same candidates; with the
first principal ones, in all layers; and with random ones in the layers alone that the directions of style act on most.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_masknoise.calibrate import style
from lib_masknoise.hosts.diffusers import load_pipeline, render
from lib_masknoise.hosts.diffusers.styling import PipelineSubject
from lib_masknoise.noise.feature import Subspace
from lib_masknoise.scene import Scene

KNOWN = 14  # of the subjects, those that the built-in model knows; of the manners, the first eight
STEPS, SIZE = 8, (128, 128)
PICTURES = 8
STRENGTHS = {"style": (1.0, 2.0), "principal": (1.5, 3.5), "random": (2.0, 4.0), "random, same layers": (1.0, 2.5)}
DRAWS = 2000


def halves() -> tuple[list[str], list[str]]:
    order = torch.randperm(len(style.PROMPTS), generator=torch.Generator().manual_seed(15)).tolist()
    middle = len(order) // 2
    return [style.PROMPTS[i] for i in order[:middle]], [style.PROMPTS[i] for i in order[middle:]]


def understood(prompts: Sequence[str]) -> list[str]:
    """Prompts of which the built-in model knows every word."""
    known = {manner.format(subject) for subject in style.SUBJECTS[:KNOWN] for manner in style.MANNERS[:8]}
    return [prompt for prompt in prompts if prompt in known]


def found_of(pipe, half: int, work: Path) -> style.Found:
    """The directions of a half of the prompts."""
    file, subject = work / f"half{half}.pt", PipelineSubject(pipe, SIZE)
    if not file.exists():
        prompts = halves()[half]
        known = subject.encode(prompts)
        basis = style.principal([known[prompt] for prompt in prompts], style.CANDIDATES)
        own = understood(prompts)
        chosen = [own[i * len(own) // style.PICTURES] for i in range(style.PICTURES)]
        seeds = range(1000 * (half + 1), 1000 * (half + 1) + style.PICTURES)
        torch.save((basis, style.responses(subject, basis, chosen, seeds)), file)
    basis, responses = torch.load(file, weights_only=False)
    return style.solved(basis, style.layer_groups(subject.levels), responses)


# --- The subspaces that are compared


def subspace(found: style.Found, mixtures: Tensor) -> dict[str, Subspace]:
    return {"style": style.Found(found.basis, found.layers, {"style": mixtures}).subspaces["style"]}


def compared(found: style.Found, name: str, picture: int) -> dict[str, Subspace]:
    """As `noise.feature.dimensions: "style"` would have them. Random ones are others in each picture."""
    own = found.mixtures["style"]
    rank, groups, n = own.shape
    if name == "style":
        return subspace(found, own)
    if name == "principal":
        return subspace(found, torch.eye(n)[:rank, None].expand(rank, groups, n) / math.sqrt(groups))
    drawn = torch.randn(rank, groups, n, generator=torch.Generator().manual_seed(picture))
    if name == "random, same layers":
        drawn *= (torch.arange(groups) == own.square().sum((0, 2)).argmax())[None, :, None]
    return subspace(found, torch.linalg.qr(drawn.flatten(1).T).Q.T.unflatten(1, (groups, n)))


def picture(pipe, prompt: str, seed: int, found: style.Found, name: str, strength: float, work: Path) -> Tensor:
    """`[3, H, W]` from 0 to 1."""
    file = work / f"{seed}-{name}-{strength:g}.png".replace(", ", "-").replace(" ", "-")
    if not file.exists():
        # A patch as large as can be: the whole picture moves in one direction, nearly.
        feature = {"strength": strength, "dimensions": "style", "size": 4.0}
        scene = Scene.parse({"noise": {"feature": feature} if strength else {}})
        options = dict(seed=seed, steps=STEPS, size=SIZE, subspaces=compared(found, name, seed))
        next(render(pipe, scene, prompt, **options)).image.save(file)
    return torch.from_numpy(np.asarray(Image.open(file), dtype=np.float32) / 255).movedim(-1, 0)


# --- What is measured on finished pictures


def changes(plain: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Of style and of layout, `[P]` each, in distances of two of the plain pictures: `[P, 3, H, W]` both."""
    light = [torch.einsum("pchw,c->phw", x, torch.tensor(style.LUMA)) for x in (plain, changed)]
    parts = zip(*(style.style(x, y) for x, y in zip((plain, changed), light, strict=True)), strict=True)
    of_style = [((b - a) / style.spread_of(a)).square().sum(1) for a, b in parts]
    before, after = (style.layout(y) for y in light)
    of_layout = style.moved(before, after) / style.spread_of(before)
    return torch.stack(of_style).mean(0).sqrt(), of_layout.square().sum(1).sqrt()


def at_equal_style(curve: Tensor, target: float) -> float:
    """Layout's change where style changes by the target: `curve` `[strengths, 2]` of style and layout at two
    strengths, with a line through their logarithms."""
    (s0, l0), (s1, l1) = curve.log().tolist()
    slope = (l1 - l0) / (s1 - s0) if abs(s1 - s0) > 1e-6 else 1.0
    return math.exp(l0 + slope * (math.log(target) - s0))


def figures(pipe, work: Path) -> dict:
    first, second = (found_of(pipe, half, work) for half in (0, 1))
    prompts = understood(halves()[1])[:PICTURES]
    seeds = range(5000, 5000 + len(prompts))
    plain = torch.stack([picture(pipe, p, s, first, "plain", 0.0, work) for p, s in zip(prompts, seeds, strict=True)])
    curves = {}
    for name, strengths in STRENGTHS.items():
        made = []
        for strength in strengths:
            images = [picture(pipe, p, s, first, name, strength, work) for p, s in zip(prompts, seeds, strict=True)]
            made.append(torch.stack(changes(plain, torch.stack(images)), dim=1))
            print(name, strength, [round(float(x), 3) for x in made[-1].square().mean(0).sqrt()], flush=True)
        curves[name] = torch.stack(made)  # [strengths, P, 2]
    return {
        "overlap of halves": overlap_of(pipe, first, second),
        "rank": style.RANK,
        "candidates": len(first.layers) * len(first.basis),
        "first half, in x0": first.figures,
        "second half, in x0": second.figures,
        "style": {name: curve[..., 0].square().mean(1).sqrt().tolist() for name, curve in curves.items()},
        "layout": {name: curve[..., 1].square().mean(1).sqrt().tolist() for name, curve in curves.items()},
        **ratios(curves),
    }


def ratios(curves: dict[str, Tensor]) -> dict:
    """Layout's change of style's directions against the others', at equal style change, with 95 % intervals of a
    bootstrap over pictures."""
    count = curves["style"].shape[1]
    target = float(np.exp(np.mean([float(c[..., 0].square().mean(1).sqrt().log().mean()) for c in curves.values()])))

    def layouts(rows: Tensor) -> dict[str, float]:
        return {name: at_equal_style(c[:, rows].square().mean(1).sqrt(), target) for name, c in curves.items()}

    generator = torch.Generator().manual_seed(0)
    drawn = [layouts(torch.randint(count, (count,), generator=generator)) for _ in range(DRAWS)]
    whole = layouts(torch.arange(count))
    result = {"equal style change": target, "layout at equal style change": whole}
    for name in ("random", "principal", "random, same layers"):
        shares = [one["style"] / one[name] for one in drawn]
        low, high = np.quantile(shares, (0.025, 0.975))
        result[f"style / {name}"] = [whole["style"] / whole[name], float(low), float(high)]
    return result


def overlap_of(pipe, first: style.Found, second: style.Found) -> dict[str, float]:
    """In the space of offsets of all groups of layers, measured by the covariance of all the prompts' contexts."""
    subject = PipelineSubject(pipe, SIZE)
    known = subject.encode(style.PROMPTS)
    every = style.principal([known[prompt] for prompt in style.PROMPTS], 2 * style.CANDIDATES)
    every = every[every.norm(dim=1) > 1e-3 * every[0].norm()]

    def orthonormal(found: style.Found, name: str) -> Tensor:
        offsets = torch.einsum("kgn,nd->kgd", found.mixtures[name], found.basis)
        whitened = torch.linalg.lstsq(every.T, offsets.flatten(0, 1).T).solution.T
        return torch.linalg.qr(whitened.unflatten(0, offsets.shape[:2]).flatten(1).T.double()).Q

    return {name: style.overlap(orthonormal(first, name), orthonormal(second, name)) for name in first.mixtures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/quality/style.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    result = figures(load_pipeline(), options.work)
    options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
