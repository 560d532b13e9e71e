"""Train the autoencoder of the world from nothing, or go on with it.

    python -m tools.small_model.train_local_vae --work DIR --steps 6000      -> DIR/vae.pt

Reads the shards of pictures in DIR and looks for new ones at every report. `vae.pt` holds weights, their average,
the optimizer and the step: the same command goes on where the last run stopped. The learning rate follows the step,
so --steps is the length of the whole training, over all runs.

Loss: absolute error at three sizes and of the differences between pixels. From --freeze on, the encoder is its average
and stands still, so that latents can be made and the U-Net can learn while the decoder gets better. From --sharpen on,
a judge of patches (hinge loss) asks for detail that an absolute error lets blur away: single pixels count less then,
and the judge weighs as much as all else, by the gradients at the last layer (Esser et al. 2021).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .local_vae import LOG_VARIANCE, SIGNALS, LocalVAE
from .networks import Average, mixed
from .train_vae import cosine, edges
from .world_data import save, shard_files

SIZES = ((96, 96, 4), (64, 128, 4), (128, 64, 4), (64, 64, 8))  # height, width, rows of a step, in turn
COMPOSITES = 0.3
SPREAD_WEIGHT = 1e-3
JUDGE_RATE = 1e-3
JUDGE_SHARE = 1.0  # its gradient at the decoder's last layer over that of all else
SHARP = 0.25  # weight of single pixels beside the judge
BLOCKS = ((4, 0.7), (8, 1.5))  # pixels, weight
HELD_OUT = 16  # pictures of the first shard


class Pictures:
    """Random crops of all shards; the first HELD_OUT pictures of the first shard stay out."""

    def __init__(self, work: Path):
        self.work, self.files, self.shards = work, [], []
        self.refresh()
        if not self.shards:
            raise ValueError(f"work: expected pictures-*.pt in {work}; make some with world_data")
        self.held_out = self.shards[0][:HELD_OUT]

    def refresh(self) -> None:
        """Take in shards that were written meanwhile."""
        for path in shard_files(self.work, "pictures"):
            if path not in self.files:
                self.files.append(path)
                self.shards.append(torch.load(path, mmap=True)["images"])

    def draw(self, rows: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """`[rows, 3, height, width]` in [-1, 1]."""

        def integer(below: int) -> int:
            return int(torch.randint(below, (1,), generator=generator))

        out = []
        for _ in range(rows):
            number = integer(len(self.shards))
            shard = self.shards[number]
            first = HELD_OUT if number == 0 else 0
            image = shard[first + integer(len(shard) - first)]
            top, left = integer(image.shape[1] - height + 1), integer(image.shape[2] - width + 1)
            crop = image[:, top : top + height, left : left + width].float() / 127.5 - 1
            out.append(crop.flip(2) if integer(2) else crop)
        return torch.stack(out)


def detail(images: Tensor) -> Tensor:
    """What differs from the mean of 5x5 pixels around, enlarged: all that the judge sees.

    With colours and large forms before it, it was right about no more than half of the patches after 700 steps; so it
    is after ten.
    """
    return 4 * (images - F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), 5, 1))


def judge() -> nn.Sequential:
    """Scores of overlapping patches of `detail`, higher for real pictures."""

    def layer(n: int, m: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(n, m, 4, stride, 1), nn.LeakyReLU(0.2)]

    net = nn.Sequential(*layer(3, 32, 2), *layer(32, 64, 2), *layer(64, 96, 1), nn.Conv2d(96, 1, 3, padding=1))
    for part in net:
        if isinstance(part, nn.Conv2d):  # from weights that let signals fade it learns nothing for a thousand steps
            nn.init.kaiming_normal_(part.weight, 0.2)
    return net


def error(output: Tensor, target: Tensor, fine: float = 1.0) -> Tensor:
    """Absolute error of pixels and of their differences, times `fine`, and of means over 4x4 and 8x8 blocks.

    The last keep the latents' colours, which training begins with (`LocalVAE.begin_with_colours`).
    """
    off = output - target
    blocks = sum(weight * F.avg_pool2d(off, size).abs().mean() for size, weight in BLOCKS)
    return fine * (off.abs().mean() + 0.5 * edges(off)) + blocks


def soft_halves(rows: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """`[rows, 1, height, width]` masks with one straight edge of random place, direction and softness."""
    angle, place, soft = torch.rand(3, rows, 1, 1, generator=generator)
    y, x = (
        (torch.arange(height) + 0.5).view(1, -1, 1) - height / 2,
        (torch.arange(width) + 0.5).view(1, 1, -1) - width / 2,
    )
    across = x * torch.cos(angle * 6.283) + y * torch.sin(angle * 6.283) + (place - 0.5) * min(height, width) * 0.6
    return torch.sigmoid(across / (0.15 + 2.5 * soft**2))[:, None]


class Trainer:
    """The autoencoder, its average and optimizers, at some step.

    steps: of the whole training; rate: the highest learning rate; sharpen: step from which the judge takes part, or
    None; freeze: step from which the encoder stands still, or None.
    """

    def __init__(self, steps: int, rate: float, sharpen: int | None, freeze: int | None, seed: int):
        torch.manual_seed(seed)
        self.steps, self.rate, self.seed, self.step = steps, rate, seed, 0
        self.sharpen, self.freeze = sharpen, freeze
        self.model, self.judge = LocalVAE().begin_with_colours(), judge()
        self.average = Average(self.model, 0.998)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self.judging = torch.optim.AdamW(self.judge.parameters(), lr=JUDGE_RATE, betas=(0.5, 0.95))

    _PARTS = ("model", "judge", "optimizer", "judging")

    def state(self) -> dict:
        """All that a later run needs."""
        parts = {name: getattr(self, name).state_dict() for name in self._PARTS}
        average = {"average": self.average.module.state_dict(), "average_steps": self.average.steps}
        return {"signals": SIGNALS, "step": self.step, "frozen": self.frozen, **average, **parts}

    def restore(self, state: dict) -> None:
        """Go on from `state`; what a packed one lacks (`world_checkpoint`) starts anew."""
        for name in self._PARTS:
            if name in state:
                getattr(self, name).load_state_dict(state[name])
        self.average.module.load_state_dict(state["average"])
        self.average.steps, self.step = state["average_steps"], state["step"]
        if state.get("frozen"):
            self._stand_still()

    @property
    def frozen(self) -> bool:
        """Whether the encoder stands still."""
        return not self.model.encoder.conv_in.weight.requires_grad

    def _stand_still(self) -> None:
        self.model.encoder.load_state_dict(self.average.module.encoder.state_dict())
        self.model.encoder.requires_grad_(False)

    def update(self, pictures: Pictures) -> dict[str, float]:
        """One step; returns the parts of its loss."""
        if self.freeze is not None and self.step >= self.freeze and not self.frozen:
            self._stand_still()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        height, width, rows = SIZES[self.step % len(SIZES)]
        real = pictures.draw(rows, height, width, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * cosine(self.step, self.steps, warmup=100)
        with mixed():
            latents = self.model.encode(real).float()
            latents, target = self._composed(latents, real, generator)
            noisy = latents + torch.randn_like(latents) * 2.718281828 ** (LOG_VARIANCE / 2)
            output = self.model.decode(noisy).float()
            judged = self.sharpen is not None and self.step >= self.sharpen
            loss = error(output, target, SHARP if judged else 1.0) + SPREAD_WEIGHT * latents.square().mean()
            parts = {"loss": loss.item()}
            if judged:
                loss = loss + self._asked(output, loss)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model)
        if judged:
            parts["judge"] = self._teach(target, output.detach())
        self.step += 1
        return parts

    def _asked(self, output: Tensor, loss: Tensor) -> Tensor:
        """What the judge asks of `output`, beside `loss`."""
        wish = -self.judge(detail(output)).float().mean()
        last = self.model.decoder.conv_out.weight
        ours, its = (torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (loss, wish))
        return JUDGE_SHARE * (ours / (its + 1e-6)).clamp(max=10.0) * wish

    def _composed(self, latents: Tensor, real: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some rows blended with the next one by a mask, in the latents and in the pixels."""
        rows, _, height, width = real.shape
        chosen = (torch.rand(rows, 1, 1, 1, generator=generator) < COMPOSITES).float()
        mask = soft_halves(rows, height // 8, width // 8, generator) * chosen
        fine = F.interpolate(mask, size=(height, width), mode="bilinear")
        return torch.lerp(latents, latents.roll(1, 0), mask), torch.lerp(real, real.roll(1, 0), fine)

    def _teach(self, real: Tensor, output: Tensor) -> float:
        """One step of the judge."""
        with mixed():
            true, made = (self.judge(detail(images)).float() for images in (real, output))
            loss = F.relu(1 - true).mean() + F.relu(1 + made).mean()
        self.judging.zero_grad()
        loss.backward()
        self.judging.step()
        return loss.item()

    @torch.no_grad()
    def held_out(self, pictures: Pictures) -> dict[str, float]:
        """Mean absolute error of unseen pictures in [0, 1] and of how green their blocks are, the latents' spread."""
        model = self.average.module
        target = pictures.held_out.float() / 127.5 - 1
        latents = torch.cat([model.encode(rows) for rows in target.split(4)])
        output = torch.cat([model.decode(rows).clamp(-1, 1) for rows in latents.split(4)])
        off = (output - target) / 2
        psnr = -10 * off.square().mean((1, 2, 3)).log10().mean()
        colour = F.avg_pool2d(off, 8)
        green = (colour[:, 1] - (colour[:, 0] + colour[:, 2]) / 2).abs().mean()
        return {"error": off.abs().mean().item(), "psnr": psnr.item(), "green": green.item(),
                "spread": latents.std().item(), "sharpness": (edges(output) / edges(target)).item()}  # fmt: skip


def log(path: Path, line: str) -> None:
    """Print a line and append it to a file."""
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the autoencoder of the world.")
    parser.add_argument("--work", type=Path, required=True, help="folder with pictures-*.pt")
    parser.add_argument("--steps", type=int, default=6000, help="of the whole training, over all runs")
    parser.add_argument("--until", type=int, help="stop this run at this step")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--sharpen", type=int, help="step from which the judge takes part (default: 0.35 of --steps)")
    parser.add_argument("--freeze", type=int, help="step from which the encoder stands still "
                        "(default: 0.35 of --steps)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=int, default=100, help="steps between reports and checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = args.work / "vae.pt"
    sharpen, freeze = args.sharpen or round(0.35 * args.steps), args.freeze or round(0.35 * args.steps)
    trainer = Trainer(args.steps, args.rate, sharpen, freeze, args.seed)
    if path.exists():
        trainer.restore(torch.load(path))
    pictures, parts, start, last = Pictures(args.work), [], time.time(), args.until or args.steps
    while trainer.step < last:
        parts.append(trainer.update(pictures))
        if trainer.step % args.report and trainer.step != last:
            continue
        save(trainer.state(), path)
        pictures.refresh()
        means = {k: f"{sum(p.get(k, 0) for p in parts) / len(parts):.4f}" for k in parts[-1]}
        off = {k: f"{v:.4f}" for k, v in trainer.held_out(pictures).items()}
        spent = f"{time.time() - start:.0f} s, cpu {time.process_time():.0f} s"
        log(args.work / "vae.log", f"{trainer.step} {means} held out {off} {len(pictures.shards)} shards {spent}")
        parts = []


if __name__ == "__main__":
    main()
