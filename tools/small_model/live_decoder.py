"""Distil the built-in model's decoder into the few weights that live painting decodes by (assets/live_decoder.npz).

    python -m tools.small_model.live_decoder --minutes 20

Latents: textures through the encoder, mixed by soft masks as scenes mix them, and what the U-Net makes of prompts.
Targets: what the decoder itself makes of them. Prints the mean absolute error on latents it was not trained on, of the
distilled decoder and of the best linear map from a latent's channels to a colour.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline

from lib_masknoise.hosts.diffusers import load_pipeline
from lib_masknoise.live.decoding import FILE, TinyDecoder, fingerprint
from tools.small_model.data import soft_masks
from tools.small_model.textures import CONCEPTS, texture

SIDE = 128
HELD_OUT = 48
BATCH = 12


@torch.no_grad()
def textures_latents(pipe: StableDiffusionPipeline, each: int) -> torch.Tensor:
    """``[14 · each, 4, 16, 16]``."""
    made = []
    for i, concept in enumerate(CONCEPTS):
        images = texture(concept, each, SIDE, SIDE, torch.Generator().manual_seed(i))
        made += [pipe.vae.encode(image[None] * 2 - 1).latent_dist.mode() for image in images]
    return torch.cat(made) * pipe.vae.config.scaling_factor


def mixed(latents: torch.Tensor, count: int, random: Random) -> torch.Tensor:
    """Two textures each, divided by a soft mask, a fifth of them not divided."""
    made = []
    for i in range(count):
        first, second = latents[random.randrange(len(latents))], latents[random.randrange(len(latents))]
        share = soft_masks(random, SIDE // 8, SIDE // 8, 2)[0] if i % 5 else torch.ones(1, 1)
        made.append(share * first + (1 - share) * second)
    return torch.stack(made)


@torch.no_grad()
def sampled(pipe: StableDiffusionPipeline, count: int, random: Random) -> torch.Tensor:
    """What few steps make of one prompt or two."""
    made = []
    for start in range(0, count, 4):
        prompts = [" next to ".join(random.sample(list(CONCEPTS), 1 + i % 2)) for i in range(4)]
        generator = torch.Generator().manual_seed(start)
        out = pipe(prompts, num_inference_steps=4, guidance_scale=4.0, generator=generator, output_type="latent")
        made.append(out.images)
    return torch.cat(made)


@torch.no_grad()
def decoded(pipe: StableDiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """The decoder's own pictures, bytes ``[N, 3, 128, 128]``."""
    scale = pipe.vae.config.scaling_factor
    rows = [pipe.vae.decode(latent[None] / scale).sample[0] for latent in latents]
    return ((torch.stack(rows) / 2 + 0.5).clamp(0, 1) * 255).round().byte()


def linear_error(latents: torch.Tensor, pictures: torch.Tensor, held: slice) -> float:
    """Of the best linear map from a latent's channels to its block's colour, shown smoothly enlarged."""
    ones = torch.cat([latents, torch.ones_like(latents[:, :1])], 1)
    small = F.avg_pool2d(pictures.float() / 255, 8)
    rows, colours = (t[HELD_OUT:].permute(0, 2, 3, 1).flatten(0, 2) for t in (ones, small))
    matrix = torch.linalg.lstsq(rows, colours).solution
    guess = torch.einsum("bchw,cr->brhw", ones[held], matrix)
    guess = F.interpolate(guess, scale_factor=8, mode="bilinear").clamp(0, 1)
    return (guess - pictures[held].float() / 255).abs().mean().item()


def train(latents: torch.Tensor, pictures: torch.Tensor, minutes: float) -> TinyDecoder:
    model = TinyDecoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    random = torch.Generator().manual_seed(0)
    start, step = time.monotonic(), 0
    while (way := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 30) * max(1 - way, 0.02)
        rows = torch.randint(HELD_OUT, len(latents), (BATCH,), generator=random)
        wanted = pictures[rows].float() / 255
        error = model(latents[rows]) - wanted
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        loss = error.abs().mean() + error.pow(2).mean() + 0.5 * edges
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"step {step}: {loss.item():.4f}", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="of training (default: %(default)s)")
    parser.add_argument("--count", type=int, default=640, help="pictures made for it (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="where to keep them, for the next time")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    pipe = load_pipeline(device="cpu")
    if args.data and args.data.is_file():
        latents, pictures = torch.load(args.data)
    else:
        random = Random(0)
        own = sampled(pipe, args.count // 4, random)
        latents = torch.cat([own, mixed(textures_latents(pipe, 8), args.count - len(own), random)])
        latents = latents[torch.randperm(len(latents), generator=torch.Generator().manual_seed(1))]
        pictures = decoded(pipe, latents)
        if args.data:
            torch.save((latents, pictures), args.data)
    print(f"{len(latents)} pictures", flush=True)
    model = train(latents, pictures, args.minutes)
    held = slice(0, HELD_OUT)
    with torch.no_grad():
        error = (model(latents[held]).clamp(0, 1) - pictures[held].float() / 255).abs().mean().item()
    print(f"error: distilled {error:.4f}, linear {linear_error(latents, pictures, held):.4f}")
    model.save(args.out, fingerprint(pipe.vae.decoder.state_dict()))
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
