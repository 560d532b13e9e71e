"""Tune the autoencoder on images of several textures, without moving its latent space.

    python -m tools.small_model.train_vae --work DIR --steps 800      -> DIR/vae.pt

The decoder was trained on single textures; its group norms take their statistics over the whole image, so a
second texture beside the first shifts the colours of both. Here it learns to render composite *latents* as
the composite of the pictures. The encoder learns to give for composite pixels the composite of the single
textures' latents. Its answer for single textures is held fixed in the same way, so the U-Net's latents stay
what they were.
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
from diffusers import AutoencoderKL

from .data import Latents
from .networks import MODEL, Average, Networks, mixed
from .patch_classifier import CONCEPTS

SHAPES = ((8, 16), (16, 16), (16, 8), (8, 16))  # latent height, width; in turn
PIXELS_PER_STEP = 8 * 8 * 16  # latent pixels a step: rows = this / (height * width)
WEAK = {"storm clouds": 2.0, "sunset sky": 1.5, "desert": 1.5, "marsh": 1.5, "night sky": 1.5}
COMPOSITE_SHARE = 0.8
LATENT_NOISE = 0.15
# Guidance exaggerates what tells a texture from the rest: at CFG 4 its latents have 1.1 to 1.4 times the contrast,
# and means up to 1.2 times as far from the mean of all textures.
EXAGGERATED_SHARE = 0.6
CONTRAST, DISTANCE = (0.95, 1.5), (0.95, 1.25)
POSTERIOR_LOG_VARIANCE = -6.7  # of the encoder before this training


@dataclass
class Drawn:
    """latents, guided `[B, 4, h, w]` (unscaled; guided: what the decoder gets); pictures `[B, 3, 8h, 8w]`, -1 to 1."""

    latents: torch.Tensor
    guided: torch.Tensor
    pictures: torch.Tensor


class Pairs:
    """Composite latents and the pictures they should decode to."""

    def __init__(self, work: Path, random: Random, hold_out: bool = False):
        self.latents = Latents(work / "latents.pt", random, hold_out)
        self.images = torch.load(work / "images.pt", mmap=True)["images"]
        self.middle = self.latents.mean.float().mean((0, 2, 3)).view(4, 1, 1)
        self.weights = [WEAK.get(name, 1.0) for name in CONCEPTS]

    def draw(self, rows: int, height: int, width: int, composite: float, exaggerated: float = 0.0) -> Drawn:
        """Single textures or, with the probability `composite`, composites of 2 or 3."""
        random, latents, guided, pictures = self.latents.random, [], [], []
        for _ in range(rows):
            crops, masks = self.latents.regions(height, width, random.random() < composite, self.weights)
            fine = F.interpolate(masks[:, None], scale_factor=8, mode="bilinear")
            latents.append(sum(m * crop.latents for m, crop in zip(masks, crops, strict=True)))
            inputs = [self._guided(c.latents) if random.random() < exaggerated else c.latents for c in crops]
            guided.append(sum(m * z for m, z in zip(masks, inputs, strict=True)))
            pictures.append(sum(m * self._picture(crop) for m, crop in zip(fine, crops, strict=True)))
        return Drawn(torch.stack(latents), torch.stack(guided), torch.stack(pictures))

    def _guided(self, latents: torch.Tensor) -> torch.Tensor:
        """`latents` as guidance distorts them."""
        mean = latents.mean((1, 2), keepdim=True)
        contrast, distance = (self.latents.random.uniform(*span) for span in (CONTRAST, DISTANCE))
        return self.middle + distance * (mean - self.middle) + contrast * (latents - mean)

    def _picture(self, crop) -> torch.Tensor:
        height, width = crop.latents.shape[-2:]
        top, left = 8 * crop.top, 8 * crop.left
        window = self.images[crop.picture, :, top : top + 8 * height, left : left + 8 * width]
        return window.float() / 127.5 - 1


def edges(difference: torch.Tensor) -> torch.Tensor:
    """Mean absolute step from pixel to pixel of an error image: what plain L1 lets blur away."""
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def picture_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1, squared, fine-detail and mean-colour error of decoded pictures."""
    error = target - output
    colour = F.avg_pool2d(error, 8).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.3 * edges(error) + 1.5 * colour


def step_loss(vae: AutoencoderKL, drawn: Drawn) -> tuple[torch.Tensor, list[float]]:
    """Loss of one step and its parts (decoder, encoder)."""
    noise = LATENT_NOISE * torch.rand(len(drawn.latents), 1, 1, 1) * torch.randn_like(drawn.latents)
    with mixed():
        output = vae.decode(drawn.guided + noise).sample
        moments = vae.encode(drawn.pictures).latent_dist.parameters
    mean, log_variance = moments.float().chunk(2, 1)
    decoder = picture_loss(output.float(), drawn.pictures)
    drift = F.smooth_l1_loss(log_variance, torch.full_like(log_variance, POSTERIOR_LOG_VARIANCE))
    encoder = F.smooth_l1_loss(mean, drawn.latents) + 0.02 * drift
    return decoder + 0.3 * encoder, [decoder.item(), encoder.item()]


@torch.no_grad()
def held_out_errors(vae: AutoencoderKL, pairs: Pairs) -> dict[str, float]:
    """Mean absolute and colour error (pictures in [0, 1]) on fixed held-out single and composite images."""
    errors = {}
    for name, share in (("single", 0.0), ("composite", 1.0)):
        pairs.latents.random.seed(1)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            drawn = pairs.draw(14, 8, 16, share)
        error = (vae.decode(drawn.latents).sample - drawn.pictures) / 2
        errors[name] = round(error.abs().mean().item(), 4)
        errors[name + "_colour"] = round(F.avg_pool2d(error, 8).abs().mean().item(), 4)
        errors[name + "_encoder"] = round(
            (vae.encode(drawn.pictures).latent_dist.mean - drawn.latents).abs().mean().item(), 4
        )
    return errors


def cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to `floor`."""
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(
    vae: AutoencoderKL, work: Path, steps: int, rate: float, exaggerated: float, seed: int, report: int, name: str
) -> None:
    """Tune `vae` in place; write the average's weights to `work / name` at every report."""
    torch.manual_seed(seed)
    pairs, held_out = Pairs(work, Random(seed)), Pairs(work, Random(seed), hold_out=True)
    vae.train().requires_grad_(True)
    average = Average(vae, 0.99)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    print("start", held_out_errors(vae, held_out), flush=True)
    started, parts = time.time(), []
    for step in range(steps):
        height, width = SHAPES[step % len(SHAPES)]
        rows = PIXELS_PER_STEP // (height * width)
        drawn = pairs.draw(rows, height, width, COMPOSITE_SHARE, exaggerated)
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(step, steps)
        loss, values = step_loss(vae, drawn)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        parts.append(values)
        if (step + 1) % report == 0 or step + 1 == steps:
            decoder, encoder = torch.tensor(parts).mean(0).tolist()
            parts = []
            spent = f"{time.time() - started:.0f} s, cpu {time.process_time():.0f} s"
            print(f"{step + 1} decoder {decoder:.4f} encoder {encoder:.4f} {spent}", flush=True)
            print("  held out", held_out_errors(average.module, held_out), flush=True)
            torch.save(average.module.state_dict(), work / name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Tune the autoencoder on composites.")
    parser.add_argument("--work", type=Path, required=True, help="folder with images.pt and latents.pt")
    parser.add_argument("--model", type=Path, default=MODEL, help="diffusers folder to start from")
    parser.add_argument("--resume", type=Path, help="start from the weights of an earlier run")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument(
        "--exaggerated", type=float, default=EXAGGERATED_SHARE, help="share of decoder inputs with exaggerated contrast"
    )
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=int, default=50, help="steps between reports and checkpoints")
    parser.add_argument("--name", default="vae.pt", help="file of the weights, in the work folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vae = Networks.load(args.model).vae
    if args.resume:
        vae.load_state_dict(torch.load(args.resume))
    train(vae, args.work, args.steps, args.rate, args.exaggerated, args.seed, args.report, args.name)


if __name__ == "__main__":
    main()
