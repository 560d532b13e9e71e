"""Train the patch classifier on 16x16 patches of the pictures and of their VAE reconstructions.

    python -m tools.small_model.train_classifier --work DIR --steps 3000     -> DIR/patch_classifier.npz

Fourteen concepts and "other": even blends of two concepts, flat and coloured noise, textures with their
colour channels exchanged. Reconstructions are among the data so that the classifier judges what is drawn,
not how sharply.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .networks import MODEL, Networks
from .patch_classifier import CONCEPTS, LABELS, PATCH, PatchClassifier
from .textures import BASE_ADJECTIVES
from .train_vae import cosine

OTHER = len(CONCEPTS)
GREYISH = torch.tensor([CONCEPTS.index(name) for name in ("night sky", "snow", "storm clouds")])
RATE = 2e-3


def network() -> nn.Sequential:
    """The classifier; `PatchClassifier` runs the same layers in numpy, by these indices."""
    features = [
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
    ]  # fmt: skip
    return nn.Sequential(*features, nn.Linear(64 * 16, 96), nn.ReLU(), nn.Linear(96, len(LABELS)))


@torch.no_grad()
def reconstructions(nets: Networks, images: torch.Tensor) -> torch.Tensor:
    """`[N, 3, 128, 128]` uint8: the middles of the pictures after encoder and decoder."""
    parts = []
    for part in images[:, :, 64:192, 64:192].split(16):
        parts.append(nets.decode(nets.encode(part.float() / 255), scaled=False).permute(0, 3, 1, 2))
    return torch.cat(parts)


def random_patches(images: torch.Tensor, labels: torch.Tensor, pictures: int, each: int):
    """`each` random patches of `pictures` random images: `[N, 3, 16, 16]` in [0, 1] and labels `[N]`."""
    chosen, patches = torch.randint(0, len(images), (pictures,)), []
    for i in chosen:
        corners = torch.randint(0, images.shape[-1] - PATCH + 1, (each, 2)).tolist()
        patches += [images[i, :, y : y + PATCH, x : x + PATCH] for y, x in corners]
    return torch.stack(patches).float() / 255, labels[chosen].repeat_interleave(each)


def others(patches: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Patches that are none of the concepts; up to `count` blends and a third as many of the other kinds."""
    order = torch.randperm(len(patches))
    first, second = order[:count], order.roll(1)[:count]
    share = torch.empty(len(first), 1, 1, 1).uniform_(0.35, 0.65)
    blends = (patches[first] * share + patches[second] * (1 - share))[labels[first] != labels[second]]
    third = count // 3
    noise = torch.rand(third, 3, 1, 1) + 0.35 * torch.randn(third, 3, 1, 1) * torch.rand(third, 1, 1, 1)
    smooth = F.interpolate(torch.randn(third, 3, 6, 6), size=PATCH, mode="bilinear")
    noise = noise + 0.4 * smooth * torch.rand(third, 1, 1, 1)
    noise = noise + 0.25 * torch.randn(third, 3, PATCH, PATCH) * torch.rand(third, 1, 1, 1)
    # a grey texture survives the exchange of its channels
    exchanged = patches[first[:third]][:, [1, 2, 0]][~torch.isin(labels[first[:third]], GREYISH)]
    return torch.cat([blends, noise.clamp(0, 1), exchanged])


def train(net: nn.Module, sources: list[tuple[torch.Tensor, torch.Tensor, int]], steps: int) -> None:
    """Train `net` on (images, labels, images a step) of each source."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-4)
    for step in range(steps):
        drawn = [random_patches(images, labels, count, 3) for images, labels, count in sources]
        patches, labels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        rest = others(patches, labels, 96)
        x = torch.cat([patches, rest])
        y = torch.cat([labels, torch.full((len(rest),), OTHER)])
        x = (x * (1 + 0.04 * torch.randn(len(x), 1, 1, 1)) + 0.01 * torch.randn_like(x)).clamp(0, 1)
        for group in optimizer.param_groups:
            group["lr"] = RATE * cosine(step, steps)
        loss = F.cross_entropy(net(x * 2 - 1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 200 == 0:
            print(f"{step + 1} loss {loss.item():.4f}", flush=True)


def report(path: Path, images: torch.Tensor, labels: torch.Tensor, name: str) -> None:
    """Print the shares right of every concept over all patches of the held-out `images`."""
    classifier = PatchClassifier(path)
    grids = np.stack([classifier.grid_probs(image.permute(1, 2, 0).numpy()).argmax(-1) for image in images])
    right = (grids == labels.numpy()[:, None, None]).mean((1, 2))
    per_concept = {c: round(float(right[labels == i].mean()), 4) for i, c in enumerate(CONCEPTS)}
    print(f"{name}: {right.mean():.4f}", per_concept)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the patch classifier.")
    parser.add_argument("--work", type=Path, required=True, help="folder with images.pt")
    parser.add_argument("--model", type=Path, default=MODEL, help="diffusers folder whose VAE reconstructs")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data = torch.load(args.work / "images.pt", mmap=True)
    known = torch.nonzero(data["adjective"] < BASE_ADJECTIVES)[:, 0]
    held_out, rows = known[known % 10 == 0], known[known % 10 != 0]
    concepts, nets = data["concept"], Networks.load(args.model)
    seen = rows[torch.randperm(len(rows))[:1680]]
    rebuilt = reconstructions(nets, data["images"][seen])
    net, path = network(), args.work / "patch_classifier.npz"
    sources = [(data["images"][rows], concepts[rows], 96), (rebuilt, concepts[seen], 64)]
    train(net, sources, args.steps)
    np.savez_compressed(path, **{name: value.numpy() for name, value in net.state_dict().items()})
    report(path, data["images"][held_out], concepts[held_out], "held-out pictures")
    report(path, reconstructions(nets, data["images"][held_out]), concepts[held_out], "held-out reconstructions")


if __name__ == "__main__":
    main()
