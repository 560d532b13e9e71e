"""Directions of style on a model in which subject and style are two things: emblems in several styles.

    nice -n 10 python -m bench.emblems --model FOLDER --judge work/emblem_judge.pt --work work/emblems

The model and the judge are those of `tools.small_model.train_emblems`; nothing of them is in the repository. What is
measured is what `bench.style` measures on the built-in model, and what a classifier says of the finished pictures:
whether the subject is still the same, and whether the style is another one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from bench.style import (
    STEPS,
    changes,
    compared,
    described,
    interval,
    measured,
    overlap_of,
    overlap_of_effects,
    resampled,
)
from lib_masknoise.calibrate import style
from lib_masknoise.hosts.diffusers import render
from lib_masknoise.hosts.diffusers.styling import PipelineSubject
from lib_masknoise.scene import Scene
from tools.small_model.emblems import PLAIN, SIDE, STYLES, SUBJECTS, caption
from tools.small_model.train_emblems import FEW, Judge

SIZE = (SIDE, SIDE)
NAMES = ("style", "principal", "random")
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
PICTURES, SEED = 36, 7000
PROMPTS = tuple(caption(i, j) for i in FEW[0] for j in (*FEW[1], PLAIN))


def halves() -> tuple[list[str], list[str]]:
    """Each with every subject in three styles and every style on three subjects, and three subjects without one."""
    own: tuple[list[str], list[str]] = ([], [])
    for i, subject in enumerate(FEW[0]):
        for j, manner in enumerate(FEW[1]):
            own[(j - i) % 6 not in (0, 1, 3)].append(caption(subject, manner))
        own[i % 2].append(caption(subject, PLAIN))
    return own


def pictures(pipe, found: style.Found, name: str, i: int, work: Path) -> Tensor:
    """Picture i plain and at each strength along one kind of directions, `[1 + S, 3, H, W]`, as users' scenes give
    them: one field over nearly all of the picture."""
    files = [work / f"{i}-{name}-{strength:g}.png" for strength in (0.0, *STRENGTHS)]
    if not all(file.exists() for file in files):
        most = max(STRENGTHS)
        keys = [{"frame": f, "value": value / most} for f, value in enumerate((0.0, *STRENGTHS))]
        motion = {"kind": "keyframes", "keyframes": keys, "loop": False}
        feature = {"strength": most, "dimensions": "style", "size": 4.0, "motion": motion}
        scene = Scene.parse({"noise": {"feature": feature}, "animation": {"frames": len(files)}})
        options = dict(seed=SEED + i, steps=STEPS, size=SIZE, subspaces=compared(found, name, SEED + i))
        for file, frame in zip(files, render(pipe, scene, prompt_of(i), **options), strict=True):
            frame.image.save(file)
    made = [torch.from_numpy(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255) for file in files]
    return torch.stack(made).movedim(-1, 1)


def prompt_of(i: int) -> str:
    """Of the half that had no part in finding the directions; all subjects and styles in turn."""
    own = [prompt for prompt in halves()[1] if "style" in prompt]
    return own[(7 * i) % len(own)]


@torch.no_grad()
def judged(judge: Judge, made: Tensor) -> dict[str, Tensor]:
    """`[P, 1 + S, 3, H, W]` → of each picture and strength, `[P, S]`: whether the subject is that of the plain picture,
    and whether the style is another; and of the plain pictures, `[P, 1]`, whether they show what was asked for."""
    asked = [next(k for k, name in enumerate(SUBJECTS) if f"a {name}," in prompt_of(i)) for i in range(len(made))]
    subject, manner = (logits.argmax(1).unflatten(0, made.shape[:2]) for logits in judge(made.flatten(0, 1)))
    return {
        "subject": (subject[:, 1:] == subject[:, :1]).float(),
        "style": (manner[:, 1:] != manner[:, :1]).float(),
        "plain subject": (subject[:, :1] == torch.tensor(asked)[:, None]).float(),
        "plain style": torch.tensor([[float(STYLES[int(manner[i, 0])] in prompt_of(i))] for i in range(len(made))]),
    }


def finished(made: dict[str, Tensor], judge: Judge) -> dict:
    """Of each kind the changes at each strength; layout's for a change of style against the others'; and what the judge
    says: of the pictures whose style is another, how many still show the subject."""
    squares, seen = {}, {}
    for name, own in made.items():
        pairs = [torch.stack(changes(own[:, 0], own[:, 1 + s]), 1).square() for s in range(len(STRENGTHS))]
        squares[name] = torch.stack(pairs, 1)  # [P, S, 2]
        seen[name] = judged(judge, own)
    result: dict = {"strengths": list(STRENGTHS)}
    for name in made:
        amounts = squares[name].mean(0).sqrt()
        result[name] = {
            "style": amounts[:, 0].tolist(),
            "layout": amounts[:, 1].tolist(),
            **{f"judge: {what}": own.mean(0).tolist() for what, own in seen[name].items()},
        }

    def layout_at(name: str, rows: Tensor, wanted: float) -> float:
        """Layout's change where style's is as large as wanted, by straight lines between the strengths."""
        of_style, of_layout = squares[name][rows].mean(0).sqrt().T.numpy()
        return float(np.interp(wanted, [0.0, *of_style], [0.0, *of_layout]))

    every = torch.arange(PICTURES)
    wanted = min(float(own.mean(0).sqrt()[-1, 0]) for own in squares.values()) * 0.8
    result["at a change of style of"] = wanted
    for name in NAMES[1:]:
        ratios = [layout_at("style", rows, wanted) / layout_at(name, rows, wanted) for rows in resampled(PICTURES)]
        whole = layout_at("style", every, wanted) / layout_at(name, every, wanted)
        result[f"style / {name}"] = interval(whole, ratios)
    kept = {
        name: [share(own["style"][rows], own["subject"][rows]) for rows in (every, *resampled(PICTURES))]
        for name, own in seen.items()
    }
    result["subject kept where the style is another"] = {
        **{name: interval(whole, _known(drawn)) for name, (whole, *drawn) in kept.items()},
        **{
            f"style - {name}": interval(
                kept["style"][0] - kept[name][0],
                _known([a - b for a, b in zip(kept["style"][1:], kept[name][1:], strict=True)]),
            )
            for name in NAMES[1:]
        },
    }
    return result


def share(moved: Tensor, kept: Tensor) -> float:
    """Of those that are moved, how many are kept too; NaN where there is none."""
    count = float(moved.sum())
    return float((moved * kept).sum()) / count if count else math.nan


def _known(drawn: Sequence[float]) -> list[float]:
    return [one for one in drawn if not math.isnan(one)]


def figures(pipe, judge: Judge, work: Path) -> dict:
    subject = PipelineSubject(pipe, SIZE)
    parts = [
        measured(subject, own, [prompt for prompt in own if "style" in prompt], work / f"responses{half}.pt", half)
        for half, own in enumerate(halves())
    ]
    basis, groups, responses = parts[0]
    found = style.solved(basis, groups, responses)
    result = {
        **described(found, basis, groups, responses),
        "overlap of halves of the prompts": overlap_of(subject, PROMPTS, *parts),
        "the same, by what they change": overlap_of_effects(
            subject, [prompt for prompt in PROMPTS if "style" in prompt], *parts, file=work / "responses-both.pt"
        ),
    }
    print(json.dumps(result, indent=2), flush=True)
    made = {name: torch.stack([pictures(pipe, found, name, i, work) for i in range(PICTURES)]) for name in NAMES}
    return {**result, "pictures": PICTURES, "finished": finished(made, judge)}


def sheet(work: Path, rows: Sequence[int], strength: float, scale: int = 3) -> Image.Image:
    """Some of the pictures, larger: plain, then along each kind of directions."""
    side = SIDE * scale
    columns = [("style", 0.0), *((name, strength) for name in NAMES)]
    made = Image.new("RGB", (len(columns) * (side + 4) - 4, len(rows) * (side + 4) - 4), "white")
    for y, row in enumerate(rows):
        for x, (name, own) in enumerate(columns):
            image = Image.open(work / f"{row}-{name}-{own:g}.png").resize((side, side), Image.Resampling.NEAREST)
            made.paste(image, (x * (side + 4), y * (side + 4)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/quality/style-emblems.json"))
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5], help="of the sheet of pictures")
    parser.add_argument("--strength", type=float, default=2.0, choices=STRENGTHS, help="of the sheet of pictures")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    state, judge = torch.load(options.judge), Judge().eval()
    judge.load_state_dict(state["judge"])
    pipe = DiffusionPipeline.from_pretrained(options.model)  # the program's own loader wants latents of four channels
    pipe.set_progress_bar_config(disable=True)
    result = {"judge right": state["right"], **figures(pipe, judge, options.work)}
    options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result["finished"], indent=2))
    sheet(options.work, options.rows, options.strength).save(options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
