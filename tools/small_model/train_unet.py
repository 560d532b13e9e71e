"""Tune the U-Net and the text encoder on the (fixed) latents: single textures and composites with captions.

    python -m tools.small_model.train_unet --work DIR --steps 500      -> DIR/unet.pt {unet, text}

Noise prediction with the loss weighted by min-SNR-5; a caption of one region counts only inside that
region. Only the token embeddings that captions use move; the rows of all other tokens stay zero.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from .captions import Captioner
from .data import Batch, Latents, captioned
from .networks import MODEL, Average, Networks, mixed
from .patch_classifier import CONCEPTS
from .sampling import TRAIN_STEPS, alphas_cumprod
from .train_vae import cosine

# (share of the steps, latent height, latent width, rows)
SHAPES = (
    (0.20, 8, 16, 32),
    (0.10, 16, 8, 32),
    (0.40, 16, 16, 24),
    (0.18, 16, 32, 12),
    (0.07, 32, 16, 12),
    (0.05, 32, 32, 6),
)
WEAK = {"storm clouds": 1.6, "sunset sky": 1.6, "brick wall": 1.6, "coral": 1.6, "marsh": 1.6}
SNR_CAP, LOWEST_WEIGHT = 5.0, 0.1
EMBEDDING_RATE = 5.0  # times the rate, since a word is in few captions
DECAY = 0.99


def shape_at(step: int) -> tuple[int, int, int]:
    """Latent height, width and rows of a step: the shapes by their shares, evenly mixed."""
    u = step * 37 % 100 / 100
    for share, height, width, rows in SHAPES:
        if u < share:
            return height, width, rows
        u -= share
    return SHAPES[-1][1:]


def loss_weights() -> torch.Tensor:
    """`[1000]` min-SNR weights of the squared noise error."""
    power = alphas_cumprod()
    snr = power / (1 - power)
    return (snr.clamp(max=SNR_CAP) / snr).clamp(min=LOWEST_WEIGHT)


def step_loss(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    batch: Batch,
    empty: torch.Tensor,
    guidance: float,
    weights: torch.Tensor,
    half: bool = True,
) -> torch.Tensor:
    """Weighted noise-prediction loss of one batch at random times. half: compute in bfloat16.

    With `guidance` g > 1 the loss is that of the guided prediction `u + g (c - u)`, u being the prediction for the
    caption `empty` `[77]`, held fixed. The difference that guidance multiplies becomes 1/g of what it was, so that
    sampling at a scale of s looks like one at s/g: it exaggerates contrasts and colours less.
    """
    times = torch.randint(0, TRAIN_STEPS, (len(batch.latents),))
    noise = torch.randn_like(batch.latents)
    power = alphas_cumprod()[times].view(-1, 1, 1, 1)
    noisy = power.sqrt() * batch.latents + (1 - power).sqrt() * noise
    context = text(batch.ids)[0]
    with mixed(half):
        predicted = unet(noisy, times, context).sample.float()
        if guidance != 1:
            with torch.no_grad():
                plain = unet(noisy, times, text(empty[None])[0].expand_as(context)).sample.float()
            predicted = plain + guidance * (predicted - plain)
    error = (predicted - noise).square().mean(1)
    error = (error * batch.weight).sum((1, 2)) / batch.weight.sum((1, 2))
    return (error * weights[times]).mean()


def freeze_unknown(text: CLIPTextModel, known: list[int]) -> None:
    """Keep the embeddings of tokens outside `known` at zero: their gradients are dropped."""
    embedding = text.get_input_embeddings().weight
    keep = torch.zeros(len(embedding), 1)
    keep[known] = 1
    with torch.no_grad():
        fresh = embedding[known].abs().sum(1) == 0  # words that earlier captions did not use
        embedding[torch.tensor(known)[fresh]] = torch.randn(int(fresh.sum()), embedding.shape[1]) * 0.02
        embedding.mul_(keep)
    embedding.register_hook(lambda gradient: gradient * keep)


def parameter_groups(unet: UNet2DConditionModel, text: CLIPTextModel) -> list[dict]:
    """AdamW groups: decay on the U-Net's matrices only, a higher rate for the word embeddings."""
    embedding = text.get_input_embeddings().weight
    matrices = [p for p in unet.parameters() if p.ndim > 1]
    rest = [p for p in unet.parameters() if p.ndim <= 1] + [p for p in text.parameters() if p is not embedding]
    return [
        {"params": matrices, "weight_decay": 1e-2, "factor": 1.0},
        {"params": rest, "weight_decay": 0.0, "factor": 1.0},
        {"params": [embedding], "weight_decay": 0.0, "factor": EMBEDDING_RATE},
    ]


def descend(
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    averages: Sequence[Average],
    modules: Sequence[torch.nn.Module],
) -> None:
    """One step down the gradient of `loss`, which is clipped, after which the averages follow their modules."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    for average, module in zip(averages, modules, strict=True):
        average.update(module)


def train(
    nets: Networks,
    work: Path,
    steps: int,
    rate: float,
    guidance: float,
    seed: int,
    report: int,
    name: str,
    half: bool = True,
) -> None:
    """Tune `nets.unet` and `nets.text` in place; write the averages to `work / name` at every report."""
    torch.manual_seed(seed)
    random = Random(seed)
    captioner, latents = Captioner(nets.tokenizer, random), Latents(work / "latents.pt", random)
    unet, text = nets.unet.train().requires_grad_(True), nets.text.train().requires_grad_(True)
    freeze_unknown(text, captioner.known)
    averages = Average(unet, DECAY), Average(text, DECAY)
    optimizer = torch.optim.AdamW(parameter_groups(unet, text), lr=rate, betas=(0.9, 0.99))
    empty = torch.tensor(captioner.empty)
    weights, draw = loss_weights(), [WEAK.get(name, 1.0) for name in CONCEPTS]
    started, losses = time.time(), []
    for step in range(steps):
        height, width, rows = shape_at(step)
        batch = captioned(latents, captioner, nets.scale, rows, height, width, draw)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"] * cosine(step, steps)
        loss = step_loss(unet, text, batch, empty, guidance, weights, half)
        descend(loss, optimizer, averages, (unet, text))
        losses.append(loss.item())
        if (step + 1) % report == 0 or step + 1 == steps:
            spent = f"{time.time() - started:.0f} s, cpu {time.process_time():.0f} s"
            print(f"{step + 1} loss {sum(losses) / len(losses):.4f} {spent}", flush=True)
            losses = []
            torch.save(
                {"unet": averages[0].module.state_dict(), "text": averages[1].module.state_dict()},
                work / name,
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Tune the U-Net and the text encoder on composite latents.")
    parser.add_argument("--work", type=Path, required=True, help="folder with latents.pt")
    parser.add_argument("--model", type=Path, default=MODEL, help="diffusers folder to start from")
    parser.add_argument("--resume", type=Path, help="start from the weights of an earlier run")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--guidance", type=float, default=2.0, help="scale inside the loss; 1 for none")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="quicker on a processor without AVX-512 bf16")
    parser.add_argument("--report", type=int, default=50, help="steps between reports and checkpoints")
    parser.add_argument("--name", default="unet.pt", help="file of the weights, in the work folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    nets = Networks.load(args.model)
    if args.resume:
        state = torch.load(args.resume)
        nets.unet.load_state_dict(state["unet"])
        nets.text.load_state_dict(state["text"])
    train(nets, args.work, args.steps, args.rate, args.guidance, args.seed, args.report, args.name, not args.float32)


if __name__ == "__main__":
    main()
