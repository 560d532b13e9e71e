"""The order of the initial noise on the built-in model, against other seeds: what erasing, leaning, choosing are worth.

    python bench/initial_noise.py [--pairs all|N] [--seeds 3] [--own-seeds] [--steps 8] [--results FILE] [--report DIR]

Every pair of concepts on a ramp with both ends held, some seeds each, by every way of ARMS, all from the same noise.
Judged by the patch classifier: how many of the patches held by a concept show it, and how probable it is there. A pair
is a line of the results, written as soon as it is done; those that are there are not done again. --report: prints the
tables of docs/initial-noise.md and writes its plot and pictures, from what results there are.

Paired by pair and seed. Intervals: bootstrap over pairs; p: sign-flip test over pairs, of a difference of 0. All pairs
have the same seeds, so both are about pairs at these seeds: what the seeds' own luck is, "another seed" says. With
--own-seeds each pair has seeds of its own, and intervals are about both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `tools` and `bench`, which no installation includes

from bench import quality_measures as measures  # noqa: E402
from bench.quality_measures import CONCEPTS, FIXED_PAIRS, PAIRS, phrase  # noqa: E402
from bench.quality_sampling import Sampler  # noqa: E402
from lib_masknoise.hosts.diffusers import load_pipeline  # noqa: E402
from lib_masknoise.hosts.diffusers.asking import Asking  # noqa: E402
from lib_masknoise.hosts.diffusers.rendering import Job  # noqa: E402
from lib_masknoise.noise import initial  # noqa: E402
from lib_masknoise.scene import InitialNoise, Scene  # noqa: E402
from tools.small_model.patch_classifier import PatchClassifier  # noqa: E402

SIZE = (64, 128)
SPAN = (0.3125, 0.6875)  # three of eight columns of patches held on each side
GUIDANCE = 4.0
OTHER_SEED = 1000  # added to a seed
WEAKEST = ("marsh", "brick wall", "storm clouds")
TIMES = [1000, 900, 800, 700, 600]  # five of equal weight, as published
DRAWS = 20_000  # of both tests


@dataclass(frozen=True)
class Arm:
    """One way to begin: a scene's options, or another function of noise. rows: of the model that it takes, for two
    concepts."""

    label: str
    options: dict[str, Any] | None = None
    rows: int = 0
    control: Callable[[Tensor, Asking, int], Tensor] | None = None
    exchanged: bool = False
    """Whether the noise is made with the prompts in each other's places."""


def _spread(factor: float) -> Callable[..., Tensor]:
    return lambda z, *_: z * factor


def _another(z: Tensor, ask: Asking, seed: int) -> Tensor:
    return torch.randn(z[None].shape, generator=torch.Generator().manual_seed(seed + OTHER_SEED))[0]


def _coloured(strength: float) -> Callable[..., Tensor]:
    """The text's part added as it is and only the whole scaled back: what the bound on its share costs or saves."""

    def lean(z: Tensor, ask: Asking, seed: int) -> Tensor:
        (guess,) = ask(z[None], initial.BEGINNING, guided=True)
        leaning = z + strength * initial.orthogonal(guess.towards, z)
        return leaning * (z.std() / leaning.std())

    return lean


def _published(strength: float, restandardise: bool) -> dict[str, Any]:
    return {"inject": {"form": "prediction", "strength": strength, "times": TIMES, "restandardise": restandardise}}


def _text(strength: float, time: int = initial.BEGINNING, **more: Any) -> dict[str, Any]:
    return {"inject": {"strength": strength, "times": [time]}, **more}


ARMS = {
    "plain": Arm("as it is", control=_spread(1.0)),
    "seed": Arm("another seed", control=_another),
    "erase": Arm("erase, n = 8", {"erase": 8}),
    "published": Arm("inject as published, strength 0.2", _published(0.2, False), 5),
    "prediction": Arm("prediction, strength 0.8", _published(0.8, True), 5),
    "text": Arm("text, strength 1.4", _text(1.4), 2),
    "text far": Arm("text, strength 10", _text(10.0), 2),
    "text late": Arm("text, strength 10, time 700", _text(10.0, 700), 2),
    "exchanged": Arm("text, strength 10, prompts exchanged", _text(10.0), 2, exchanged=True),
    "coloured": Arm("text, strength 10, unbound", None, 2, _coloured(10.0)),
    "choose 4": Arm("choose of 4", {"choose": 4}, 12),
    "less": Arm("spread × 0.95", control=_spread(0.95)),
    "more": Arm("spread × 1.05", control=_spread(1.05)),
}
SHOWN = ("plain", "seed", "erase", "text", "text far", "coloured", "prediction", "published", "choose 4")


class Bench:
    def __init__(self, steps: int) -> None:
        self.pipe = load_pipeline()
        self.sampler = Sampler(self.pipe, SIZE, steps, GUIDANCE)
        self.classifier = PatchClassifier()
        self.steps = steps

    def images(self, pair: tuple[int, int], seeds: Sequence[int], arms: Sequence[str]) -> tuple[np.ndarray, dict]:
        """`[arms·seeds, H, W, 3]`, and the seconds that each arm's noise has taken."""
        prompts = [phrase(CONCEPTS[concept]) for concept in pair]
        scene = measures.ramp(*prompts, *SPAN)
        noise, seconds = [], {}
        for arm in arms:
            start = time.process_time()
            own = measures.ramp(*reversed(prompts), *SPAN) if ARMS[arm].exchanged else scene
            noise += [self._noise(own, ARMS[arm], seed) for seed in seeds]
            seconds[arm] = (time.process_time() - start) / len(seeds)
        return self.sampler.decode(self.sampler.scene_latents(scene, seeds, noise=torch.stack(noise))), seconds

    def _noise(self, scene: Scene, arm: Arm, seed: int) -> Tensor:
        (z,) = self.sampler.noise([seed])
        job = Job(self.pipe, scene, ("", ""), seed, self.steps, SIZE, GUIDANCE)
        if arm.control is not None:
            return arm.control(z, Asking(job), seed)
        assert arm.options is not None
        return initial.ordered(z, InitialNoise.parse(arm.options), job.maps.weights()[0], seed, Asking(job))

    def judged(self, pair: tuple[int, int], seeds: Sequence[int]) -> dict:
        images, seconds = self.images(pair, seeds, tuple(ARMS))
        weights = measures.patch_weights(measures.ramp("", "", *SPAN), SIZE)
        probs = measures.probabilities(self.classifier, images).reshape(len(ARMS), len(seeds), *weights.shape[1:], -1)
        found: dict[str, Any] = {}
        for arm, of_arm in zip(ARMS, probs, strict=True):
            sides = [
                (concept, of_arm[:, where >= measures.PINNED]) for concept, where in zip(pair, weights, strict=True)
            ]
            found[arm] = {
                "share": [[round(float((p == c).mean()), 5) for p in patches.argmax(-1)] for c, patches in sides],
                "probability": [patches[..., c].mean(1).round(5).tolist() for c, patches in sides],
                "seconds": round(seconds[arm], 4),
            }
        return {"pair": list(pair), "arms": found}


# --- What the results say


def by_pair(results: Sequence[dict], arm: str, measure: str, weakest: bool = False) -> np.ndarray:
    """The mean of each pair over sides and seeds. weakest: only of sides of those concepts, and of pairs with some."""
    found = []
    for row in results:
        sides = [i for i, concept in enumerate(row["pair"]) if not weakest or CONCEPTS[concept] in WEAKEST]
        if sides:
            found.append(np.array(row["arms"][arm][measure])[sides].mean())
    return np.array(found)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the mean, bootstrap over pairs."""
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def sign_flip(values: np.ndarray) -> float:
    """How often a mean as far from 0 comes out where each pair's sign is a coin's."""
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=(DRAWS, len(values)))
    return float((np.abs((signs * values).mean(1)) >= abs(values.mean()) - 1e-12).mean())


def table(results: Sequence[dict], measure: str, weakest: bool = False) -> str:
    lines = [
        "| the noise | mean | against as it is | p | against another seed | rows of the model |",
        "|---|---|---|---|---|---|",
    ]
    own = {arm: by_pair(results, arm, measure, weakest) for arm in ARMS}
    for arm, one in ARMS.items():
        plain, seed = own[arm] - own["plain"], own[arm] - own["seed"]
        cells = ["", ""] if arm == "plain" else [_with_interval(plain), _p(sign_flip(plain))]
        cells.append("" if arm == "seed" else _with_interval(seed))
        lines.append(f"| {one.label} | {own[arm].mean():.4f} | {' | '.join(cells)} | {one.rows or ''} |")
    return "\n".join(lines)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _with_interval(values: np.ndarray) -> str:
    low, high = interval(values)
    return f"{values.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def plot(results: Sequence[dict], path: Path) -> None:
    """The difference of each arm from the noise as it is, with its interval, of all concepts and of the weakest."""
    from bench.quality_pictures import plt

    arms = [arm for arm in ARMS if arm not in ("plain", "published")]  # far outside the picture
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for axis, weakest in zip(axes, (False, True), strict=True):
        for place, arm in enumerate(reversed(arms)):
            values, plain = (by_pair(results, name, "probability", weakest) for name in (arm, "plain"))
            low, high = interval(values - plain)
            colour = "#888888" if ARMS[arm].options is None else "#0b6e99"
            axis.plot([low, high], [place, place], color=colour)
            axis.plot([(values - plain).mean()], [place], "o", color=colour, markersize=4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(arms)), [ARMS[arm].label for arm in reversed(arms)])
        axis.set_xlabel("probability of the right concept where it is held,\nless that of the noise as it is")
        axis.set_title(", ".join(WEAKEST) if weakest else "all concepts", fontsize=9)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def sheet(bench: Bench, path: Path) -> None:
    """The fixed pairs, a row each, by every arm of SHOWN from the same seed."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    height, width = SIZE
    picture = Image.new("RGB", (width * len(SHOWN), 30 + height * len(FIXED_PAIRS)), "white")
    for column, arm in enumerate(SHOWN):
        first, _, second = ARMS[arm].label.partition(", ")
        ImageDraw.Draw(picture).multiline_text((width * column + 4, 3), f"{first}\n{second}", "black", font, spacing=1)
    for row, pair in enumerate(FIXED_PAIRS):
        images, _ = bench.images(pair, [0], SHOWN)
        for column, image in enumerate(images):
            picture.paste(Image.fromarray(image), (width * column, 30 + height * row))
    picture.save(path, quality=85)


# --- The command


def main() -> None:
    options = _options()
    if options.report is not None:
        results = _read(options.results)
        print(f"{len(results)} pairs, {len(results[0]['arms']['plain']['share'][0])} seeds")
        for measure in ("probability", "share"):
            for weakest in (False, True):
                print(
                    f"\n{measure}{', ' + ', '.join(WEAKEST) if weakest else ''}\n\n{table(results, measure, weakest)}"
                )
        options.report.mkdir(parents=True, exist_ok=True)
        plot(results, options.report / "initial-noise.svg")
        sheet(Bench(options.steps), options.report / "initial-noise.jpg")
        return
    bench = Bench(options.steps)
    order = np.random.default_rng(0).permutation(len(PAIRS))  # so that a part of them is a sample of all
    done = {tuple(row["pair"]) for row in _read(options.results)}
    for count, index in enumerate(order[: options.pairs]):
        if PAIRS[index] in done:
            continue
        start = time.monotonic()
        first = index * options.seeds if options.own_seeds else 0
        row = bench.judged(PAIRS[index], range(first, first + options.seeds))
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
        print(f"{count + 1} of {options.pairs}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What the order of the initial noise is worth on the built-in model.")
    parser.add_argument("--pairs", type=_pairs, default=len(PAIRS), help='"all", or how many')
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--own-seeds", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "quality" / "initial-noise.jsonl")
    parser.add_argument("--report", type=Path, help="the folder for the plot and the pictures")
    return parser.parse_args()


def _pairs(text: str) -> int:
    return len(PAIRS) if text == "all" else int(text)


if __name__ == "__main__":
    main()
