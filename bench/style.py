"""What the directions of style change, beside random directions and principal ones, on the built-in model.

    nice -n 10 python -m bench.style --work work/style        goes on where it was stopped

The responses of `x0` are measured on eight pictures whose prompts are of one half of `calibrate.style.PROMPTS`.
Directions found from some of them are judged on the others. Those found from all are then rendered, by scenes as a
user writes them, on prompts of the other half and on other seeds: beside them as many random ones among the same
candidates, the first principal ones in all layers alike, and random ones in the layers alone that the directions of
style act on most.
"""

from __future__ import annotations

import argparse
import itertools
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
PICTURES, SEED = 10, 5000
STRENGTHS = {"style": 1.5, "principal": 1.5, "random": 2.0, "random, same layers": 2.0}
"""At which they change about as much of the style."""
RANKS = (1, 2, 4, 8, 12)
"""At which the overlap of what halves of the prompts give is looked at."""
DRAWS = 2000


def halves() -> tuple[list[str], list[str]]:
    order = torch.randperm(len(style.PROMPTS), generator=torch.Generator().manual_seed(15)).tolist()
    middle = len(order) // 2
    return [style.PROMPTS[i] for i in order[:middle]], [style.PROMPTS[i] for i in order[middle:]]


def understood(prompts: Sequence[str]) -> list[str]:
    """Prompts of which the built-in model knows every word."""
    known = {manner.format(subject) for subject in style.SUBJECTS[:KNOWN] for manner in style.MANNERS[:8]}
    return [prompt for prompt in prompts if prompt in known]


def measured(
    subject: PipelineSubject, prompts: Sequence[str], own: Sequence[str], file: Path, half: int
) -> tuple[Tensor, tuple[str, ...], style.Responses]:
    """The principal directions of a half of the prompts, the groups of layers, and the responses of eight pictures of
    some of its own; kept in a file."""
    if not file.exists():
        known = subject.encode(prompts)
        basis = style.principal([known[prompt] for prompt in prompts], style.CANDIDATES)
        chosen = [own[i * len(own) // style.PICTURES] for i in range(style.PICTURES)]
        seeds = range(1000 * (half + 1), 1000 * (half + 1) + style.PICTURES)
        torch.save((basis, style.responses(subject, basis, chosen, seeds)), file)
    basis, responses = torch.load(file, weights_only=False)
    return basis, style.layer_groups(subject.levels), responses


# --- What is measured of a small step, at once


def of_pictures(pictures: Sequence[int]) -> list[int]:
    """Where these pictures' responses are: one for each time."""
    return [time * style.PICTURES + picture for time in range(len(style.TIMES)) for picture in pictures]


def principal_mixtures(groups: int, n: int) -> Tensor:
    """The first principal directions, in all layers alike, `[N, K]`."""
    return torch.eye(n)[: style.RANK, None].expand(-1, groups, -1).flatten(1).T.double() / math.sqrt(groups)


def small_steps(responses: style.Responses, groups: int) -> dict:
    """Directions from some of the pictures, judged on the others: each picture by those found from all others, with
    intervals of a bootstrap over pictures; of layout as a whole, and of its parts, for directions found from the whole;
    and how far the directions from each half of the pictures agree."""
    count, n = style.PICTURES, responses.style.shape[1] // groups
    mixtures = {
        "principal": principal_mixtures(groups, n),
        "random": torch.eye(groups * n).double() / math.sqrt(groups * n),
    }
    light = style.COARSE**2
    parts = {
        "layout": responses,
        "lightness alone": style.Responses(responses.style, responses.layout[..., :light]),
        "self-attention alone": style.Responses(responses.style, responses.layout[..., light:]),
    }
    amounts: dict[str, list] = {part: [] for part in parts}
    for picture in range(count):
        s, layout = responses.grams(of_pictures([other for other in range(count) if other != picture]))
        own = {"style": style.directions(s, layout, style.RANK), **mixtures}
        for part, of_part in parts.items():
            held = of_part.grams(of_pictures([picture]))
            amounts[part].append([[float((e.T @ gram @ e).trace()) for gram in held] for e in own.values()])
    overlaps = []
    for first in itertools.combinations(range(count), count // 2):
        if 0 in first:
            rest = [one for one in range(count) if one not in first]
            bases = [style.directions(*responses.grams(of_pictures(half)), style.RANK) for half in (first, rest)]
            overlaps.append(style.overlap(*bases))
    return {
        **{part: _shares(torch.tensor(of_part), ("style", *mixtures)) for part, of_part in amounts.items()},
        "overlap of halves of the pictures": sum(overlaps) / len(overlaps),
        "overlap at random": style.RANK / (groups * n),
    }


def _shares(squares: Tensor, names: Sequence[str]) -> dict:
    """squares: of style and layout, `[pictures, names, 2]`."""

    def of(rows: Tensor) -> Tensor:
        own = squares[rows].mean(0)
        return (own[:, 1] / own[:, 0]).sqrt()

    whole, drawn = of(torch.arange(len(squares))), [of(rows) for rows in resampled(len(squares))]
    ratios = {
        f"style / {name}": interval(whole[0] / whole[i], [one[0] / one[i] for one in drawn])
        for i, name in enumerate(names)
        if i
    }
    return {"for style": dict(zip(names, whole.tolist(), strict=True)), **ratios}


def resampled(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(count, (count,), generator=generator) for _ in range(DRAWS)]


def interval(whole: float, drawn: Sequence[float]) -> list[float]:
    """A figure and its 95 % interval."""
    return [float(whole), *(float(np.quantile([float(x) for x in drawn], end)) for end in (0.025, 0.975))]


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


def file_of(work: Path, seed: int, name: str, strength: float) -> Path:
    return work / f"{seed}-{name}-{strength:g}.png".replace(", ", "-").replace(" ", "-")


def picture(pipe, prompt: str, seed: int, found: style.Found, name: str, strength: float, work: Path) -> Tensor:
    """`[3, H, W]` from 0 to 1."""
    file = file_of(work, seed, name, strength)
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


def described(found: style.Found, basis, groups, responses) -> dict:
    """Which directions were found, and what small steps along them change."""
    shares = found.mixtures["style"].square().sum((0, 2)) / style.RANK
    return {
        "rank": style.RANK,
        "candidates": len(groups) * len(basis),
        "share of each group of layers": dict(zip(groups, shares.tolist(), strict=True)),
        "small steps": small_steps(responses, len(groups)),
    }


def figures(pipe, work: Path) -> dict:
    subject = PipelineSubject(pipe, SIZE)
    parts = [
        measured(subject, own, understood(own), work / f"responses{half}.pt", half) for half, own in enumerate(halves())
    ]
    basis, groups, responses = parts[0]
    found = style.solved(basis, groups, responses)
    result = described(found, basis, groups, responses)
    print(json.dumps(result, indent=2), flush=True)
    _, others = halves()
    own = understood(others)
    jobs = [(own[3 * i % len(own)], SEED + i) for i in range(PICTURES)]
    plain = torch.stack([picture(pipe, prompt, seed, found, "plain", 0.0, work) for prompt, seed in jobs])
    amounts = {}
    for name, strength in STRENGTHS.items():
        made = torch.stack([picture(pipe, prompt, seed, found, name, strength, work) for prompt, seed in jobs])
        amounts[name] = torch.stack(changes(plain, made), dim=1).square()  # [P, style and layout]
    result = {**result, "pictures": PICTURES, "finished": finished(amounts)}
    print(json.dumps(result, indent=2), flush=True)
    return {
        **result,
        "overlap of halves of the prompts": overlap_of(subject, style.PROMPTS, *parts),
        "the same, by what they change": overlap_of_effects(
            subject, understood(style.PROMPTS), *parts, file=work / "responses-both.pt"
        ),
    }


def overlap_of(
    subject: PipelineSubject, prompts: Sequence[str], *halves: tuple[Tensor, tuple[str, ...], style.Responses]
) -> dict:
    """Of what two halves of the prompts gave, each with principal directions, pictures and seeds of its own: in the
    space of offsets of all groups of layers, measured by the covariance of all the prompts' contexts. At several ranks,
    and of the principal directions themselves, in one group of layers."""
    known = subject.encode(prompts)
    every = style.principal([known[prompt] for prompt in prompts], 3 * style.CANDIDATES)
    every = every[every.norm(dim=1) > 1e-2 * every[0].norm()]

    def orthonormal(offsets: Tensor) -> Tensor:
        """`[K, groups, D]` → `[groups·P, K]`, as mixtures of `every`."""
        whitened = torch.linalg.lstsq(every.T, offsets.flatten(0, 1).T).solution.T
        return torch.linalg.qr(whitened.unflatten(0, offsets.shape[:2]).flatten(1).T.double()).Q

    def found(name: str, rank: int) -> float:
        own = [style.solved(*half, rank) for half in halves]
        return style.overlap(*(orthonormal(torch.einsum("kgn,nd->kgd", one.mixtures[name], one.basis)) for one in own))

    return {
        **{name: {str(rank): found(name, rank) for rank in RANKS} for name in ("style", "layout")},
        "principal directions": style.overlap(*(orthonormal(basis[:, None]) for basis, *_ in halves)),
        "principal directions at random": style.CANDIDATES / len(every),
    }


def overlap_of_effects(
    subject: PipelineSubject, own: Sequence[str], *halves: tuple[Tensor, tuple[str, ...], style.Responses], file: Path
) -> dict:
    """Of the same, measured by what they do: the angles between the changes of `x0` that the one and the other make in
    the same pictures, whose style and layout count alike. Directions that do nothing do not count. At random: of
    mixtures of both halves' candidates that are drawn by chance."""
    (first, groups, _), (second, *_) = halves
    joined = torch.cat([first, second])
    if not file.exists():
        chosen = [own[i * len(own) // style.PICTURES] for i in range(style.PICTURES)]
        torch.save(style.responses(subject, joined, chosen, range(3000, 3000 + style.PICTURES)), file)
    s, layout = torch.load(file, weights_only=False).grams()
    values, vectors = torch.linalg.eigh(s / s.trace() + layout / layout.trace())
    root = (vectors * values.clamp_min(0).sqrt()).T  # mixtures → their effects

    def effects(mixtures: Tensor, half: int) -> Tensor:
        """Mixtures of a half's candidates, `[K, groups, n]` → an orthonormal basis of what they do, `[N, K]`."""
        before = half * len(first)
        padded = torch.nn.functional.pad(mixtures.double(), (before, len(joined) - before - mixtures.shape[2]))
        return torch.linalg.qr(root @ padded.flatten(1).T).Q

    def agreed(rank: int, name: str) -> float:
        return style.overlap(*(effects(style.solved(*own, rank).mixtures[name], i) for i, own in enumerate(halves)))

    generator = torch.Generator().manual_seed(0)

    def by_chance(rank: int) -> float:
        drawn = (torch.randn(rank, len(groups), len(own[0]), generator=generator) for own in halves)
        return style.overlap(*(effects(one, i) for i, one in enumerate(drawn)))

    return {
        **{name: {str(rank): agreed(rank, name) for rank in RANKS} for name in ("style", "layout")},
        "at random": {str(rank): sum(by_chance(rank) for _ in range(100)) / 100 for rank in RANKS},
    }


def finished(amounts: dict[str, Tensor]) -> dict:
    """Of finished pictures. Near the strengths measured, layout's change is taken as in proportion to style's."""

    def of(name: str, rows: Tensor) -> float:
        of_style, of_layout = amounts[name][rows].mean(0).sqrt()
        return float(of_layout / of_style)

    every = torch.arange(PICTURES)
    logs = {name: (own[:, 1] / own[:, 0]).sqrt().log() for name, own in amounts.items()}
    result: dict = {
        name: dict(zip(("style", "layout"), own.mean(0).sqrt().tolist(), strict=True)) for name, own in amounts.items()
    }
    for name in amounts:
        if name != "style":
            drawn = [of("style", rows) / of(name, rows) for rows in resampled(PICTURES)]
            result[f"style / {name}"] = interval(of("style", every) / of(name, every), drawn)
            logged = logs["style"] - logs[name]
            means = [logged[rows].mean().exp() for rows in resampled(PICTURES)]
            result[f"style / {name}, geometric mean"] = interval(logged.mean().exp(), means)
    return result


def sheet(work: Path, rows: Sequence[int]) -> Image.Image:
    """Some of the pictures: each one plain, with directions of style, with random ones, with principal ones."""
    columns = [("plain", 0.0), *((name, STRENGTHS[name]) for name in ("style", "random", "principal"))]
    height, width = SIZE
    made = Image.new("RGB", (len(columns) * (width + 4) - 4, len(rows) * (height + 4) - 4), "white")
    for y, row in enumerate(rows):
        for x, (name, strength) in enumerate(columns):
            made.paste(Image.open(file_of(work, SEED + row, name, strength)), (x * (width + 4), y * (height + 4)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/quality/style.json"))
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 1, 2, 3], help="of the sheet of pictures")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    result = figures(load_pipeline(), options.work)
    options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result, indent=2))
    sheet(options.work, options.rows).save(options.out.with_suffix(".jpg"), quality=88)


if __name__ == "__main__":
    main()
