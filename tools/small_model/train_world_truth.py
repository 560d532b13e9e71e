"""Train the ground truth of the world: places and attributes of patches, on pictures of the renderer.

    python -m tools.small_model.train_world_truth --work DIR --steps 4000      -> DIR/world_truth.npz and .json

Pictures: 45 % places with their room, 30 % mixtures of two places, the rest places with adjectives. Half of the
patches are made a little softer and noisier, so that a picture of a model is judged by what it shows, not by its
sharpness. Renders its pictures once (DIR/truth-pictures.pt), trains one net for each size of patch, measures both on
pictures of seeds of their own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .networks import mixed
from .train_vae import cosine
from .world import INDEX, PLACES, between, stray
from .world_captions import Spec, with_adjectives
from .world_data import save
from .world_render import render
from .world_truth import LABELS, READ, SIZES, TruthNet, WorldTruth, targets, visible

SIDE = 128
OTHER = len(LABELS) - 1
BATCH = 96
VALUE_WEIGHT = 8.0


def scene(random: Random, number: int) -> tuple[Tensor, int]:
    """Attributes `[K]` and the label of a picture; -1 where it has none."""
    place, u = number % len(PLACES), random.random()
    if u < 0.45:
        return stray(PLACES[place], random), place
    if u < 0.75:
        other = random.choice([i for i in range(len(PLACES)) if i != place])
        t = random.random()
        point = between(stray(PLACES[place], random), stray(PLACES[other], random), t)
        return point, OTHER if 0.3 < t < 0.7 else -1
    spec: Spec = with_adjectives(random, PLACES[place].name)
    return spec.points(random)[0], -1


def pictures(count: int, first_seed: int) -> dict[str, Tensor]:
    """{images `[N, 3, 128, 128]` uint8, attributes `[N, K]`, labels `[N]`} of `count` pictures."""
    random, images, attributes, labels = Random(first_seed), [], [], []
    for number in range(count):
        point, label = scene(random, number)
        images.append((render(point[None], [first_seed + number], SIDE, SIDE)[0] * 255).round().byte())
        attributes.append(point)
        labels.append(label)
    return {"images": torch.stack(images), "attributes": torch.stack(attributes), "labels": torch.tensor(labels)}


def softened(patches: Tensor) -> Tensor:
    """Half of the patches a little blurred, half a little noisy."""
    soft = F.avg_pool2d(F.pad(patches, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = (torch.rand(len(patches), 1, 1, 1) - 0.5).clamp(min=0) * 2
    noise = torch.randn_like(patches) * 0.04 * (torch.rand(len(patches), 1, 1, 1) - 0.5).clamp(min=0) * 2
    gain = 1 + 0.03 * torch.randn(len(patches), 1, 1, 1)
    return ((torch.lerp(patches, soft, share) + noise) * gain).clamp(0, 1)


def drawn(data: dict[str, Tensor], size: int, rows: int) -> tuple[Tensor, Tensor]:
    """Random patches `[rows, 3, size, size]` and the numbers of their pictures."""
    number = torch.randint(len(data["images"]), (rows,))
    at = torch.randint(SIDE - size + 1, (rows, 2)).tolist()
    patches = [data["images"][n, :, t : t + size, l : l + size] for n, (t, l) in zip(number.tolist(), at, strict=True)]  # noqa: E741
    return torch.stack(patches).float() / 255, number


def train(data: dict[str, Tensor], size: int, steps: int, report: int = 250) -> TruthNet:
    """A net for patches of `size` pixels."""
    net, start = TruthNet(size).train(), time.time()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    wanted, shown, losses = targets(data["attributes"]), visible(data["attributes"]), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * cosine(step, steps, warmup=100)
        patches, number = drawn(data, size, BATCH)
        with mixed():
            logits, values = net(softened(patches))
        logits, values = logits.float(), values.float()
        place = F.cross_entropy(logits, data["labels"][number], ignore_index=-1)
        error = F.smooth_l1_loss(values, wanted[number], reduction="none", beta=0.1) * shown[number]
        value = error.sum() / shown[number].sum()
        loss = place + VALUE_WEIGHT * value
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append((place.item(), value.item()))
        if (step + 1) % report == 0:
            means = torch.tensor(losses[-report:]).mean(0).tolist()
            print(f"{size} px, {step + 1}: place {means[0]:.3f} value {means[1]:.4f}, {time.time() - start:.0f} s",
                  flush=True)  # fmt: skip
    return net.eval()


@torch.no_grad()
def measured(truth: WorldTruth, data: dict[str, Tensor]) -> dict:
    """Errors on pictures that were not trained on: places of patches, attributes where they show."""
    images = data["images"].permute(0, 2, 3, 1).numpy()
    guess = torch.from_numpy(truth.probabilities(images)).flatten(1, 2).argmax(-1)
    right = guess == data["labels"][:, None]
    by_place = {}
    for i, name in enumerate(LABELS):
        chosen = data["labels"] == i
        taken = torch.bincount(guess[chosen].flatten(), minlength=len(LABELS))
        taken[i] = 0
        by_place[name] = {"right": right[chosen].float().mean().item(), "taken_for": LABELS[int(taken.argmax())]}
    places = torch.nonzero((data["labels"] >= 0) & (data["labels"] != OTHER))[:, 0]
    read, shown = truth.attributes(images), visible(data["attributes"])
    errors = {}
    for i, name in enumerate(READ):
        values = torch.from_numpy(read[name]).flatten(1)
        wanted = data["attributes"][:, INDEX[name]][:, None]
        off = (values - wanted).abs()
        chosen = shown[:, i] > 0
        truth_values, mean = wanted[chosen], values[chosen].mean(1)
        errors[name] = {"patch": off[chosen].mean().item(), "picture": (mean - truth_values[:, 0]).abs().mean().item(),
                        "spread": (truth_values - truth_values.mean()).abs().mean().item()}  # fmt: skip
    return {"places": right[places].float().mean().item(), "by_place": by_place, "attributes": errors}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the ground truth of the world.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=2400)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    path, weights = args.work / "truth-pictures.pt", args.work / "world_truth.npz"
    if not path.exists():
        save({"train": pictures(args.pictures, 5_000_000), "test": pictures(560, 9_000_000)}, path)
    data = torch.load(path)
    arrays = dict(np.load(weights)) if weights.exists() else {}
    for size in args.sizes:
        torch.manual_seed(args.seed)
        net = train(data["train"], size, args.steps)
        arrays.update({f"{size}.{k}": v.detach().half().numpy() for k, v in net.state_dict().items()})
        np.savez_compressed(weights, **arrays)
        figures = measured(WorldTruth(size, weights), data["test"])
        (args.work / f"world_truth_{size}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(size, json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
