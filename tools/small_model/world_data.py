"""Pictures of the world on disk: shards of specs, attributes and pixels, and the latents made of them.

    python -m tools.small_model.world_data pictures --work DIR --shards 8     DIR/pictures-000.pt ...
    python -m tools.small_model.world_data latents  --work DIR --vae DIR/vae.pt

Shard number n holds the same pictures on every run (its seeds follow from n), so more shards can be added later,
shards can be made on several machines, and a run that was stopped goes on with the first one missing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random

import torch

from .world import between
from .world_captions import Spec, draw
from .world_render import render

SIDE = 256
SHARD = 256  # pictures of a shard; of a wide one, half as many
WIDE_EVERY = 4  # every fourth shard has pictures of 256x512
LEVELS = 6  # steps a picture that turns into another is made of


def turning(left: torch.Tensor, right: torch.Tensor, share: torch.Tensor, seed: int) -> torch.Tensor:
    """`[3, H, W]`: a picture whose attributes go from `left` to `right` `[K]` as the map `share` `[H, W]` says.

    Pictures of LEVELS points on the way are blended between neighbours; of the same seed, they differ little.
    """
    height, width = share.shape
    levels = render(torch.stack([between(left, right, i / (LEVELS - 1)) for i in range(LEVELS)]), [seed] * LEVELS,
                    height, width)  # fmt: skip
    at = share.clamp(0, 1) * (LEVELS - 1)
    weights = torch.stack([(1 - (at - i).abs()).clamp(0, 1) for i in range(LEVELS)])
    return (weights[:, None] * levels).sum(0)


def ramp(random: Random, height: int, width: int) -> torch.Tensor:
    """`[H, W]` shares of the right end: 0 at the left edge, 1 at the right, linear between two places."""
    start, end = sorted((random.uniform(0.0, 0.4), random.uniform(0.6, 1.0)))
    x = (torch.arange(width) + 0.5) / width
    return ((x - start) / (end - start)).clamp(0, 1).expand(height, width)


def picture(spec: Spec, seed: int, height: int = SIDE, width: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture `[3, H, W]` in [0, 1] of `spec` and the attributes `[2, K]` of its ends."""
    random = Random(seed)
    left, right = spec.points(random)
    if spec.kind == "turning":
        image = turning(left, right, ramp(random, height, width), seed)
    elif spec.kind == "beside":
        image = torch.cat([render(p[None], [seed + i], height, width // 2)[0] for i, p in enumerate((left, right))], 2)
    else:
        image = render(left[None], [seed], height, width)[0]
    return image, torch.stack([left, right])


def make_shard(number: int, side: int = SIDE, count: int = SHARD) -> dict:
    """{images `[N, 3, H, W]` uint8, attributes `[N, 2, K]`, specs: list of records} of one shard.

    Wide shards have `count` / 2 pictures, twice as wide as high.
    """
    wide = number % WIDE_EVERY == WIDE_EVERY - 1
    width, count = (2 * side, count // 2) if wide else (side, count)
    random = Random(7919 * (number + 1))
    specs = [draw(random) for _ in range(count)]
    images, attributes = [], []
    for i, spec in enumerate(specs):
        image, ends = picture(spec, seed=number * SHARD + i, height=side, width=width)
        images.append((image * 255).round().byte())
        attributes.append(ends)
    return {"images": torch.stack(images), "attributes": torch.stack(attributes), "specs": [s.record() for s in specs]}


def shard_files(work: Path, kind: str) -> list[Path]:
    """The finished shards of `kind` (pictures or latents) in order."""
    return sorted(work.glob(f"{kind}-*.pt"))


def save(value: dict, path: Path) -> None:
    """Write a file so that it is there whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(value, part)
    part.rename(path)


def make_pictures(work: Path, shards: range) -> None:
    """Write the shards that are missing."""
    work.mkdir(parents=True, exist_ok=True)
    for number in shards:
        path = work / f"pictures-{number:03d}.pt"
        if not path.exists():
            start = time.time()
            save(make_shard(number), path)
            print(f"{path.name} {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def make_latents(work: Path, vae: Path, batch: int = 8) -> None:
    """Encode every shard of pictures with the autoencoder `vae`; keeps specs and attributes beside the latents.

    Shards of latents by the same encoder stay as they are. Raises ValueError where the encoder is still learning.
    """
    from .local_vae import LocalVAE

    if not torch.load(vae, map_location="cpu")["frozen"]:
        raise ValueError(f"vae: the encoder of {vae} is still learning; go on with train_local_vae")
    model = LocalVAE.load(vae)
    encoder = model.fingerprint()
    for path in shard_files(work, "pictures"):
        out = work / path.name.replace("pictures", "latents")
        if out.exists() and torch.load(out, mmap=True)["encoder"] == encoder:
            continue
        shard = torch.load(path)
        latents = [model.encode(rows.float() / 127.5 - 1).half() for rows in shard["images"].split(batch)]
        save({"latents": torch.cat(latents), "encoder": encoder, "attributes": shard["attributes"],
              "specs": shard["specs"]}, out)  # fmt: skip
        print(out.name, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pictures of the world and their latents.")
    parser.add_argument("what", choices=("pictures", "latents"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the training files")
    parser.add_argument("--shards", type=int, default=16, help=f"shards of {SHARD} pictures")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--vae", type=Path, help="weights that train_local_vae wrote")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "pictures":
        make_pictures(args.work, range(args.first, args.first + args.shards))
    elif not args.vae:
        parser.error("--vae: expected a file")
    else:
        make_latents(args.work, args.vae)


if __name__ == "__main__":
    main()
