"""The training data: pictures, their latents, and images made of several regions.

    python -m tools.small_model.data pictures --work DIR      procedural pictures      -> DIR/images.pt
    python -m tools.small_model.data latents  --work DIR      their latents by the VAE -> DIR/latents.pt

Pictures are 256x256; training takes crops. A composite of k pictures is the sum of their crops weighted by
k soft masks; in the latents as in the pixels, which is what lets the decoder learn to render composite
latents.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F

from .captions import Captioner, Subject
from .networks import MODEL, Networks
from .patch_classifier import CONCEPTS
from .textures import ADJECTIVES, BASE_ADJECTIVES, adjective, texture

SIDE = 256
GRID = SIDE // 8  # latent side of a picture
BASE_BATCHES, EXTRA_BATCHES, BATCH = 50, 14, 8
BASE_SEED, EXTRA_SEED = 1234, 4321
PLAIN_SHARE = 0.7


def base_pictures(generator: torch.Generator, concept: str, batches: int = BASE_BATCHES):
    """Yield (picture `[3, H, W]` uint8, adjective): mostly plain ones, the rest bright, dark or blurry."""
    for _ in range(batches):
        for image in texture(concept, BATCH, SIDE, SIDE, generator).split(1):
            u = torch.rand(1, generator=generator).item()
            manner = 0 if u < PLAIN_SHARE else 1 + int((u - PLAIN_SHARE) / 0.1001)
            yield _bytes(adjective(image, ADJECTIVES[manner])), manner


def extra_pictures(generator: torch.Generator, concept: str, batches: int = EXTRA_BATCHES):
    """Yield (picture, adjective) for the adjectives the classifier does not know, in turn."""
    for _ in range(batches):
        for i, image in enumerate(texture(concept, BATCH, SIDE, SIDE, generator).split(1)):
            manner = BASE_ADJECTIVES + i % (len(ADJECTIVES) - BASE_ADJECTIVES)
            yield _bytes(adjective(image, ADJECTIVES[manner])), manner


def _bytes(image: torch.Tensor) -> torch.Tensor:
    return (image[0] * 255).round().byte()


def make_pictures(path: Path) -> None:
    """Write {images `[N, 3, 256, 256]` uint8, concept, adjective `[N]`}: base pictures, then extra ones."""
    images, concepts, manners = [], [], []
    for source, seed in ((base_pictures, BASE_SEED), (extra_pictures, EXTRA_SEED)):
        generator = torch.Generator().manual_seed(seed)
        for number, concept in enumerate(CONCEPTS):
            for image, manner in source(generator, concept):
                images.append(image)
                concepts.append(number)
                manners.append(manner)
            print(source.__name__, concept, len(images), flush=True)
    torch.save(
        {
            "images": torch.stack(images),
            "concept": torch.tensor(concepts),
            "adjective": torch.tensor(manners),
        },
        path,
    )


def chosen_rows(base: int, extra: int) -> list[int]:
    """Rows of the first `base` base pictures and the first `extra` extra pictures of every concept."""
    base_size, extra_size = BASE_BATCHES * BATCH, EXTRA_BATCHES * BATCH
    offset = base_size * len(CONCEPTS)
    rows = [c * base_size + k for c in range(len(CONCEPTS)) for k in range(min(base, base_size))]
    return rows + [offset + c * extra_size + k for c in range(len(CONCEPTS)) for k in range(min(extra, extra_size))]


@torch.no_grad()
def make_latents(pictures: Path, model: Path, path: Path, base: int, extra: int, batch: int = 4) -> None:
    """Write the latents (unscaled) of some of the pictures.

    The file holds mean, std `[N, 4, 32, 32]` float16; concept, adjective and row (of the picture) `[N]`.
    """
    data, vae = torch.load(pictures, mmap=True), Networks.load(model).vae
    rows, started, means, stds = torch.tensor(chosen_rows(base, extra)), time.time(), [], []
    for start in range(0, len(rows), batch):
        images = data["images"][rows[start : start + batch]]
        posterior = vae.encode(images.float() / 127.5 - 1).latent_dist
        means.append(posterior.mean.half())
        stds.append(posterior.std.half())
        if start % (100 * batch) == 0:
            print(f"{start} of {len(rows)}, {time.time() - started:.0f} s", flush=True)
    mean, std = torch.cat(means), torch.cat(stds)
    power = mean.float().var(correction=0) + std.float().square().mean()
    print(f"scaling_factor of these latents: {power.rsqrt().item():.6f}")
    torch.save({"mean": mean, "std": std, "row": rows, "concept": data["concept"][rows],
                "adjective": data["adjective"][rows]}, path)  # fmt: skip


def stripes(random: Random, height: int, width: int, count: int, softness: float) -> torch.Tensor:
    """`[k, h, w]` bands in some direction, mostly upright or level; softness: edge width in latent pixels."""
    u = random.random()
    angle = 0.0 if u < 0.47 else math.pi / 2 if u < 0.8 else random.uniform(0, math.pi)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    length = max(height, width)
    along = (along - along.min()) / (along.max() - along.min()) * length
    cuts = [random.uniform(0.2, 0.8)] if count == 2 else [random.uniform(0.22, 0.42), random.uniform(0.58, 0.78)]
    below = [torch.sigmoid((along - cut * length) / softness) for cut in cuts]
    steps = torch.stack([torch.ones_like(along), *below, torch.zeros_like(along)])
    return (steps[:-1] - steps[1:]).clamp(min=0)


def disc(random: Random, height: int, width: int, softness: float) -> torch.Tensor:
    """`[2, h, w]`: outside and inside of a disc."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    away = ((x - width * random.uniform(0.3, 0.7)) ** 2 + (y - height * random.uniform(0.3, 0.7)) ** 2).sqrt()
    outside = torch.sigmoid((away - random.uniform(0.25, 0.45) * min(height, width)) / softness)
    return torch.stack([outside, 1 - outside])


def blobs(height: int, width: int, count: int, softness: float) -> torch.Tensor:
    """`[k, h, w]` smooth random regions."""
    field = torch.randn(1, count, max(2, height // 5), max(2, width // 5))
    return (F.interpolate(field, size=(height, width), mode="bicubic")[0] * 2.5 / softness).softmax(0)


def soft_masks(random: Random, height: int, width: int, count: int) -> torch.Tensor:
    """`[k, h, w]` masks of 2 or 3 regions that sum to 1, in random order (a disc has 2 whatever `count`)."""
    softness, u = random.uniform(0.12, 1.6), random.random()
    if u < 0.1:  # one long ramp over much of the image, the case users paint
        softness = random.uniform(1.6, 3.5)
    if u < 0.75:
        masks = stripes(random, height, width, count, softness)
    elif u < 0.88:
        masks = disc(random, height, width, softness)
    else:
        masks = blobs(height, width, count, softness)
    masks = masks / masks.sum(0, keepdim=True)
    return masks[torch.randperm(len(masks))]


@dataclass
class Crop:
    """Latents `[4, h, w]` (unscaled) of a crop, what it shows, and where in which picture it lies."""

    latents: torch.Tensor
    subject: Subject
    picture: int
    top: int
    left: int


class Latents:
    """Random crops of the cached latents.

    path: what `make_latents` wrote; hold_out: draw from the twentieth that training leaves out.
    """

    def __init__(self, path: Path, random: Random, hold_out: bool = False):
        data = torch.load(path)
        self.random, self.mean, self.std = random, data["mean"], data["std"]
        self.concept, self.adjective, self.picture = (data[k].tolist() for k in ("concept", "adjective", "row"))
        rows = [i for i in range(len(self.mean)) if (i % 20 == 0) == hold_out]
        self.rows: dict[int, list[int]] = {c: [] for c in range(len(CONCEPTS))}
        for row in rows:
            self.rows[self.concept[row]].append(row)

    def crop(self, concept: int, height: int, width: int) -> Crop:
        """A crop of a random picture of `concept`, drawn from the VAE's posterior."""
        row = self.random.choice(self.rows[concept])
        top, left = self.random.randint(0, GRID - height), self.random.randint(0, GRID - width)
        window = (row, slice(None), slice(top, top + height), slice(left, left + width))
        mean, std = self.mean[window].float(), self.std[window].float()
        subject = Subject(concept, self.adjective[row])
        return Crop(mean + std * torch.randn_like(mean), subject, self.picture[row], top, left)

    def regions(
        self, height: int, width: int, composite: bool, weights: list[float] | None = None
    ) -> tuple[list[Crop], torch.Tensor]:
        """Crops of different concepts and their masks `[k, h, w]`; one and a full mask if not `composite`."""
        if not composite:
            masks = torch.ones(1, height, width)
        else:
            masks = soft_masks(self.random, height, width, 3 if self.random.random() < 0.25 else 2)
        concepts: list[int] = []
        while len(concepts) < len(masks):
            drawn = self.random.choices(range(len(CONCEPTS)), weights)[0]
            concepts += [] if drawn in concepts else [drawn]
        return [self.crop(concept, height, width) for concept in concepts], masks


@dataclass
class Batch:
    """latents `[B, 4, h, w]` (scaled); ids `[B, 77]`; weight `[B, h, w]`, where the caption holds."""

    latents: torch.Tensor
    ids: torch.Tensor
    weight: torch.Tensor


SINGLE_SHARE, JOINT_SHARE = 0.40, 0.15
SMALLEST_REGION = 0.08


def captioned(
    latents: Latents, captioner: Captioner, scale: float, rows: int, height: int, width: int,
    weights: list[float] | None = None,
) -> Batch:  # fmt: skip
    """A batch for the U-Net: single textures, composites with a caption of all or with that of one region.

    A region's caption counts only where that region lies: so a location learns to follow its own conditioning
    whatever its neighbours show.
    """
    images, ids, masks = [], [], []
    for _ in range(rows):
        u = latents.random.random()
        crops, regions = latents.regions(height, width, u >= SINGLE_SHARE, weights)
        images.append(sum(m * crop.latents for m, crop in zip(regions, crops, strict=True)))
        if u < SINGLE_SHARE + JOINT_SHARE:
            caption, mask = captioner.caption(*(crop.subject for crop in crops)), torch.ones(height, width)
        else:
            caption, mask = captioner.caption(crops[0].subject), regions[0]
            if mask.mean() < SMALLEST_REGION:
                caption = captioner.empty
            if caption == captioner.empty:
                mask = torch.ones(height, width)
        ids.append(caption)
        masks.append(mask)
    return Batch(torch.stack(images) * scale, torch.tensor(ids), torch.stack(masks))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the training data.")
    parser.add_argument("what", choices=("pictures", "latents"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the training files")
    parser.add_argument("--model", type=Path, default=MODEL, help="diffusers folder whose VAE makes the latents")
    parser.add_argument("--base", type=int, default=160, help="base pictures of each concept to encode")
    parser.add_argument("--extra", type=int, default=56, help="pictures with further adjectives to encode")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "pictures":
        make_pictures(args.work / "images.pt")
    else:
        make_latents(args.work / "images.pt", args.model, args.work / "latents.pt", args.base, args.extra)


if __name__ == "__main__":
    main()
