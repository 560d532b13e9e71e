"""Train U-Net and text encoder of the world from nothing, or go on with them.

    python -m tools.small_model.train_world_unet --work DIR --steps 14000      -> DIR/unet.pt

Reads the shards of latents in DIR (`world_data latents`), whose encoder has to stand still; the decoder may go on
learning. As with the autoencoder, `unet.pt` holds all that the same command needs to go on, and --steps is
the whole training.

A step shows pictures with their captions, or two pictures with a soft edge between them: with a caption of both where
it says "beside", else with that of one of them, whose loss counts only where that picture is. So a place learns to
follow its own conditioning whatever lies beside it. Contexts are never blended in training: whether a blend of them
shows what lies between is a question to the model, not something it was taught.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from .networks import MODEL, Average, mixed
from .sampling import TRAIN_STEPS, alphas_cumprod
from .train_local_vae import log, soft_halves
from .train_unet import descend, freeze_unknown, loss_weights, parameter_groups
from .train_vae import cosine
from .world_captions import BREAK, Captions, Spec, Tokens
from .world_data import save, shard_files
from .world_model import fresh_text, fresh_unet

# latent height, width, rows of a step, in turn; wide ones come from wide shards alone
_CYCLE = ((16, 16, 8), (32, 32, 3), (16, 16, 8), (16, 32, 4))
SHAPES = (*_CYCLE, *_CYCLE, *_CYCLE[:3], (32, 64, 2))
PAIRS = 0.40  # steps' rows with two pictures
EMPTY = 0.1  # captions without words, for guidance
LONG_EVERY = 6  # steps; the others take the first chunk of a long caption
SMALLEST = 0.08
HIGHEST_WEIGHT = 8.0  # of very noisy times


@dataclass
class Batch:
    """latents `[B, 4, h, w]`, of unit variance; ids `[B, chunks, 77]`; weight `[B, h, w]`, where the caption holds."""

    latents: Tensor
    ids: Tensor
    weight: Tensor


class Latents:
    """Crops of the latents with captions. scale: factor to unit variance."""

    def __init__(self, work: Path, tokenizer: CLIPTokenizer):
        shards = [torch.load(path) for path in shard_files(work, "latents")]
        if not shards:
            raise ValueError(f"work: expected latents-*.pt in {work}; make some with world_data")
        encoders = {shard["encoder"] for shard in shards}
        if len(encoders) > 1:
            raise ValueError(
                f"work: expected latents of one encoder in {work}, found {len(encoders)}; run world_data latents"
            )
        (self.encoder,) = encoders
        self.shards = [(shard["latents"], [_spec(record) for record in shard["specs"]]) for shard in shards]
        self.scale = 1 / self.shards[0][0].float().std().item()
        self.tokens = Tokens(tokenizer)
        self.known = self.tokens.known(Captions(Random(0)))
        self.empty = torch.tensor(self.tokens.chunks(""))

    def batch(self, step: int, seed: int) -> Batch:
        """What step number `step` shows; the same on every run with this seed and these shards."""
        random = Random(seed * 1_000_003 + step)
        torch.manual_seed(seed * 1_000_003 + step)
        height, width, rows = SHAPES[step % len(SHAPES)]
        fitting = [s for s in self.shards if s[0].shape[2] >= height and s[0].shape[3] >= width]
        if not fitting:
            height, width, rows, fitting = *SHAPES[0], self.shards
        captions, long = Captions(random), step % LONG_EVERY == 0
        drawn = [self._row(random, captions, fitting, height, width) for _ in range(rows)]
        latents, texts, weight = zip(*drawn, strict=True)
        chunks = [self.tokens.chunks(text if long else text.split(BREAK)[0]) for text in texts]
        most = max(len(c) for c in chunks)
        ids = torch.tensor([c + self.empty.tolist() * (most - len(c)) for c in chunks])
        return Batch(torch.stack(latents) * self.scale, ids, torch.stack(weight))

    def _row(self, random: Random, captions: Captions, shards, height: int, width: int) -> tuple[Tensor, str, Tensor]:
        first, spec = self._crop(random, shards, height, width)
        text, weight = captions.text(spec), torch.ones(height, width)
        if random.random() < PAIRS:
            second, other = self._crop(random, shards, height, width)
            if random.random() < 0.3 and spec.kind == other.kind == "alone":
                text = captions.text(Spec(spec.a, other.a, kind="beside", words=spec.words))
                x = (torch.arange(width) + 0.5) / width - random.uniform(0.35, 0.65)
                mask = torch.sigmoid(x * width / random.uniform(0.15, 2)).expand(height, -1)
            else:
                generator = torch.Generator().manual_seed(random.getrandbits(60))
                mask = soft_halves(1, height, width, generator)[0, 0]
                weight = 1 - mask
            first = torch.lerp(first, second, mask)
        if random.random() < EMPTY or weight.mean() < SMALLEST:
            return first, "", torch.ones(height, width)
        return first, text, weight

    def _crop(self, random: Random, shards, height: int, width: int) -> tuple[Tensor, Spec]:
        """A crop; pictures that change from left to right, or with a horizon, stay whole where they can."""
        latents, specs = random.choice(shards)
        while True:
            number = random.randrange(len(specs))
            whole = latents.shape[2] == height and latents.shape[3] == width
            if whole or (specs[number].kind != "turning" and (not specs[number].view or height == latents.shape[2])):
                break
        top, left = random.randint(0, latents.shape[2] - height), random.randint(0, latents.shape[3] - width)
        return latents[number, :, top : top + height, left : left + width].float(), specs[number]


def time_weights() -> Tensor:
    """`[1000]` weights of the squared noise error: min-SNR, and above it `snr ** -0.5` where noise is stronger.

    Which place a picture is of, and with that its colours, is decided at strong noise, where an error of the noise is
    small whatever place is guessed.
    """
    power = alphas_cumprod()
    snr = power / (1 - power)
    return loss_weights() * snr.rsqrt().clamp(1.0, HIGHEST_WEIGHT)


def _spec(record: dict) -> Spec:
    return Spec(**{**record, "words": tuple(record["words"])})


class Trainer:
    """U-Net and text encoder, their averages and the optimizer, at some step."""

    def __init__(self, latents: Latents, steps: int, rate: float, guidance_from: int | None, seed: int):
        torch.manual_seed(seed)
        self.latents, self.steps, self.rate, self.seed, self.step = latents, steps, rate, seed, 0
        self.guidance_from = guidance_from
        self.unet, self.text = fresh_unet().train(), fresh_text().train()
        freeze_unknown(self.text, latents.known)
        self.averages = {"unet": Average(self.unet, 0.999), "text_encoder": Average(self.text, 0.999)}
        groups = parameter_groups(self.unet, self.text)
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)
        self.weights, self.power = time_weights(), alphas_cumprod()

    def state(self) -> dict:
        """All that a later run needs."""
        return {
            "step": self.step, "scale": self.latents.scale, "encoder": self.latents.encoder,
            "unet": self.unet.state_dict(), "text_encoder": self.text.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": {name: average.module.state_dict() for name, average in self.averages.items()},
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Go on from `state`; the optimizer starts anew where a packed one (`world_checkpoint`) lacks it.

        Raises ValueError where the latents are those of another encoder.
        """
        if state["encoder"] != self.latents.encoder:
            raise ValueError("work: expected latents of the encoder that unet.pt was trained on; it has changed")
        self.latents.scale = state["scale"]
        self.unet.load_state_dict(state["unet"])
        self.text.load_state_dict(state["text_encoder"])
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        for name, average in self.averages.items():
            average.module.load_state_dict(state["average"][name])
            average.steps = self.step

    def context(self, ids: Tensor) -> Tensor:
        """`[B, chunks, 77]` ids -> `[B, chunks * 77, D]`, each chunk encoded by itself."""
        return self.text(ids.flatten(0, 1))[0].unflatten(0, ids.shape[:2]).flatten(1, 2)

    def update(self) -> float:
        """One step; returns its loss."""
        batch = self.latents.batch(self.step, self.seed)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["factor"] * cosine(self.step, self.steps, warmup=500)
        loss = self.loss(batch)
        descend(
            loss, self.optimizer, [self.averages[name] for name in ("unet", "text_encoder")], (self.unet, self.text)
        )
        self.step += 1
        return loss.item()

    def loss(self, batch: Batch) -> Tensor:
        """Weighted noise-prediction loss; from `guidance_from` on, of the prediction guided at a scale of 2."""
        times = torch.randint(0, TRAIN_STEPS, (len(batch.latents),))
        noise, power = torch.randn_like(batch.latents), self.power[times].view(-1, 1, 1, 1)
        noisy = power.sqrt() * batch.latents + (1 - power).sqrt() * noise
        context = self.context(batch.ids)
        with mixed():
            predicted = self.unet(noisy, times, context).sample.float()
            if self.guidance_from is not None and self.step >= self.guidance_from:
                with torch.no_grad():
                    empty = self.context(self.latents.empty[None]).expand(len(noisy), -1, -1)
                    plain = self.unet(noisy, times, empty).sample.float()
                predicted = plain + 2 * (predicted - plain)
        error = F.mse_loss(predicted, noise, reduction="none").mean(1) * batch.weight
        return (error.sum((1, 2)) / batch.weight.sum((1, 2)) * self.weights[times]).mean()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train U-Net and text encoder of the world.")
    parser.add_argument("--work", type=Path, required=True, help="folder with latents-*.pt")
    parser.add_argument("--steps", type=int, default=14000, help="of the whole training, over all runs")
    parser.add_argument("--until", type=int, help="stop this run at this step")
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--guidance-from", type=int, help="step from which the loss is that of guided predictions "
                        "(default: 0.8 of --steps)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=int, default=100, help="steps between reports and checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    latents = Latents(args.work, CLIPTokenizer.from_pretrained(MODEL / "tokenizer"))
    trainer = Trainer(latents, args.steps, args.rate, args.guidance_from or round(0.8 * args.steps), args.seed)
    path = args.work / "unet.pt"
    if path.exists():
        trainer.restore(torch.load(path))
    losses, start, last = deque(maxlen=args.report), time.time(), args.until or args.steps
    while trainer.step < last:
        losses.append(trainer.update())
        if trainer.step % args.report == 0 or trainer.step == last:
            save(trainer.state(), path)
            spent = f"{time.time() - start:.0f} s, cpu {time.process_time():.0f} s"
            log(args.work / "unet.log", f"{trainer.step} loss {sum(losses) / len(losses):.4f} {spent}")


if __name__ == "__main__":
    main()
