"""Train a model of emblems, in which subject and style are two things: autoencoder, U-Net and text encoder, judge.

    python -m tools.small_model.train_emblems vae     --work DIR       -> DIR/emblem_vae.pt, DIR/emblem_latents.pt
    python -m tools.small_model.train_emblems unet    --work DIR       -> DIR/emblem_unet.pt; goes on where it stood
    python -m tools.small_model.train_emblems few     --work DIR       -> DIR/emblem_unet_few.pt; goes on from itself
    python -m tools.small_model.train_emblems judge   --work DIR       -> DIR/emblem_judge.pt
    python -m tools.small_model.train_emblems model   --work DIR --out FOLDER     a diffusers folder

Needs `emblems.pt` of `emblems.py`. Pictures of 32×32 become latents of 8×8 with eight channels in an autoencoder of its
own; U-Net and text encoder are the built-in model's, trained on, but for the U-Net's ends.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from .data import Batch
from .emblems import FEW_STYLES, FEW_SUBJECTS, PLAIN, SIDE, STYLES, SUBJECTS, caption, pictures
from .networks import MODEL, Average, Networks, save_weights
from .sampling import TRAIN_STEPS, alphas_cumprod
from .train_unet import descend, freeze_unknown, loss_weights, parameter_groups, step_loss
from .train_vae import cosine, picture_loss

WIDTH, FACTOR, CHANNELS = 32, 4, 8
POOL = 4320
"""Pictures whose latents the U-Net is trained on."""
FEW_POOL = 600
ROWS = 24
WORDLESS, STYLELESS = 0.1, 0.15
SUBJECTLESS = 0.05
LATENT_NOISE = 0.1


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(WIDTH,) * 3,
        layers_per_block=0,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def drawn(work: Path) -> Tensor:
    return torch.load(work / "emblems.pt").float()


FEW = [list(SUBJECTS).index(name) for name in FEW_SUBJECTS], [STYLES.index(name) for name in FEW_STYLES]


def labels(count: int, generator: torch.Generator, plain: bool = False, few: bool = False) -> tuple[Tensor, Tensor]:
    """Subjects and styles, each combination as often as another."""
    if few:
        own = (torch.tensor(names)[torch.randint(len(names), (count,), generator=generator)] for names in FEW)
        subjects, styles = own
        return subjects, styles
    styles = len(STYLES) + plain
    return (
        torch.randint(len(SUBJECTS), (count,), generator=generator),
        torch.randint(styles, (count,), generator=generator),
    )


def train_vae(work: Path, steps: int, rate: float, seed: int = 1) -> None:
    """Begins with the weights in the work folder, where there are some."""
    generator, drawings, rows = torch.Generator().manual_seed(seed), drawn(work), 16
    torch.manual_seed(seed)
    vae = autoencoder().train()
    if (work / "emblem_vae.pt").exists():
        vae.load_state_dict(torch.load(work / "emblem_vae.pt"))
    average = Average(vae, 0.99)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        images = pictures(drawings, *labels(rows, generator), generator) * 2 - 1
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(step, steps)
        latents = vae.encode(images).latent_dist
        mean = latents.mean
        output = vae.decode(mean + LATENT_NOISE * torch.randn_like(mean)).sample
        # Of variance 1 and mean 0 in each channel, so that the noise that is added means something.
        drift = mean.mean((0, 2, 3)).square().mean() + (mean.var((0, 2, 3)) - 1).square().mean()
        loss = picture_loss(output, images) + 0.1 * drift + 0.01 * (latents.logvar + 6).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            error = (output - images).abs().mean().item() / 2
            print(f"{step + 1} loss {loss.item():.4f} error {error:.4f} cpu {time.process_time():.0f} s", flush=True)
            torch.save(average.module.state_dict(), work / "emblem_vae.pt")
    write_latents(work)


@torch.no_grad()
def write_latents(work: Path, few: bool = False) -> None:
    """{latents `[N, 8, h, w]` half, of variance 1; subjects, styles `[N]`; scale}.

    few: of the few subjects and styles alone, upright and in their places.
    """
    generator, drawings = torch.Generator().manual_seed(2), drawn(work)
    vae = autoencoder().eval()
    vae.load_state_dict(torch.load(work / "emblem_vae.pt"))
    subjects, styles = labels(FEW_POOL if few else POOL, generator, plain=True, few=few)
    found = []
    for own, manner in zip(subjects.split(60), styles.split(60), strict=True):
        images = pictures(drawings, own, manner, generator, few) * 2 - 1
        found.append(vae.encode(images).latent_dist.mean)
    latents = torch.cat(found)
    scale = 1 / latents.std().item()
    data = {"latents": (latents * scale).half(), "subjects": subjects, "styles": styles, "scale": scale}
    torch.save(data, work / ("emblem_latents_few.pt" if few else "emblem_latents.pt"))
    print("scale", scale, "means", (latents * scale).mean((0, 2, 3)).tolist(), flush=True)


class Captions:
    """Token ids `[77]` of captions. One in ten is empty, some leave out the style or the subject."""

    def __init__(self, nets: Networks, random: Random) -> None:
        self.nets, self.random = nets, random
        self.known = sorted({token for text in self._every() for token in self.ids(text).tolist()})

    @staticmethod
    def _every() -> list[str]:
        return [caption(i, j) for i in range(len(SUBJECTS)) for j in range(PLAIN + 1)]

    def ids(self, text: str) -> Tensor:
        out = self.nets.tokenizer(text, padding=False, max_length=77, truncation=True)["input_ids"]
        end = self.nets.tokenizer.eos_token_id
        return torch.tensor((out + [end] * 77)[:77])

    def draw(self, subject: int, style: int) -> Tensor:
        if self.random.random() < WORDLESS:
            return self.ids("")
        if self.random.random() < STYLELESS:
            style = PLAIN
        elif style != PLAIN and self.random.random() < SUBJECTLESS:
            return self.ids(f"{STYLES[style]} style")
        return self.ids(caption(subject, style))


def networks() -> Networks:
    """The built-in model's, with a U-Net for as many channels as our latents have."""
    nets = Networks.load(MODEL)
    torch.manual_seed(0)
    config = {**nets.unet.config, "in_channels": CHANNELS, "out_channels": CHANNELS, "sample_size": SIDE // FACTOR}
    unet = UNet2DConditionModel.from_config(config)
    ends = ("conv_in.", "conv_out.")
    known = {name: own for name, own in nets.unet.state_dict().items() if not name.startswith(ends)}
    unet.load_state_dict({**unet.state_dict(), **known})
    nets.unet = unet
    return nets


def train_unet(work: Path, steps: int, rate: float, seed: int) -> None:
    """Goes on at the step that the file in the work folder has, if there is one."""
    nets = networks()
    captions = Captions(nets, Random(seed))
    data = torch.load(work / "emblem_latents.pt")
    unet, text = nets.unet.train().requires_grad_(True), nets.text.train().requires_grad_(True)
    freeze_unknown(text, captions.known)
    averages = Average(unet, 0.995), Average(text, 0.995)
    optimizer = torch.optim.AdamW(parameter_groups(unet, text), lr=rate, betas=(0.9, 0.99))
    file, start = work / "emblem_unet.pt", 0
    if file.exists():
        state = torch.load(file)
        start = state["step"]
        for average, module, name in zip(averages, (unet, text), ("unet", "text"), strict=True):
            average.module.load_state_dict(state[name])
            average.steps = start
            module.load_state_dict(state[f"{name} now"])
        optimizer.load_state_dict(state["optimizer"])
    generator = torch.Generator().manual_seed(seed + start)
    torch.manual_seed(seed + start)
    weights, losses = loss_weights(), []
    empty = captions.ids("")
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"] * cosine(step, steps)
        rows = torch.randint(len(data["latents"]), (ROWS,), generator=generator)
        ids = [captions.draw(int(data["subjects"][i]), int(data["styles"][i])) for i in rows]
        latents = data["latents"][rows].float()
        batch = Batch(latents, torch.stack(ids), torch.ones(ROWS, *latents.shape[2:]))
        loss = step_loss(unet, text, batch, empty, 1.0, weights, False)
        descend(loss, optimizer, averages, (unet, text))
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = sum(losses) / len(losses)
            print(f"{step + 1} loss {mean:.4f} cpu {time.process_time():.0f} s", flush=True)
            losses = []
            now = {"unet now": unet.state_dict(), "text now": text.state_dict(), "optimizer": optimizer.state_dict()}
            own = {"unet": averages[0].module.state_dict(), "text": averages[1].module.state_dict(), "step": step + 1}
            torch.save({**own, **now}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)


def train_few(work: Path, steps: int, rate: float, seed: int, rows: int = 16) -> None:
    """U-Net and text encoder on few subjects and styles. Begins with the weights in the work folder, where there are
    some, else with those of `train_unet`."""
    nets, path = networks(), work / "emblem_unet_few.pt"
    state = torch.load(path if path.exists() else work / "emblem_unet.pt")
    nets.unet.load_state_dict(state["unet"])
    nets.text.load_state_dict(state["text"])
    data, captions, random = torch.load(work / "emblem_latents_few.pt"), Captions(nets, Random(seed)), Random(seed)
    unet, text = nets.unet.train().requires_grad_(True), nets.text.train().requires_grad_(True)
    freeze_unknown(text, captions.known)
    # Row of each caption, so that the text encoder reads one only once a step.
    ids = {(i, j): captions.ids(caption(i, j)) for i in FEW[0] for j in (*FEW[1], PLAIN)}
    ids[None] = captions.ids("")
    averages, weights, power = (Average(unet, 0.99), Average(text, 0.99)), loss_weights(), alphas_cumprod()
    optimizer, losses = torch.optim.AdamW(parameter_groups(unet, text), lr=rate, betas=(0.9, 0.99)), []
    torch.manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"] * cosine(step, steps, warmup=20)
        chosen = torch.randint(len(data["latents"]), (rows,))
        own = [
            None if (u := random.random()) < WORDLESS else (i, PLAIN if u < 2 * WORDLESS else j)
            for i, j in zip(data["subjects"][chosen].tolist(), data["styles"][chosen].tolist(), strict=True)
        ]
        read = list(dict.fromkeys(own))
        contexts = text(torch.stack([ids[key] for key in read]))[0][[read.index(key) for key in own]]
        latents, times = data["latents"][chosen].float(), torch.randint(0, TRAIN_STEPS, (rows,))
        noise, signal = torch.randn_like(latents), power[times].view(-1, 1, 1, 1)
        predicted = unet(signal.sqrt() * latents + (1 - signal).sqrt() * noise, times, contexts).sample
        loss = ((predicted - noise).square().mean((1, 2, 3)) * weights[times]).mean()
        descend(loss, optimizer, averages, (unet, text))
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = sum(losses) / len(losses)
            print(f"{step + 1} loss {mean:.4f} cpu {time.process_time():.0f} s", flush=True)
            losses = []
            own = {name: average.module.state_dict() for name, average in zip(("unet", "text"), averages, strict=True)}
            torch.save(own, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)


class Judge(nn.Module):
    """`[B, 3, 32, 32]` from 0 to 1 → logits of the subject and of the style."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.subject = nn.Linear(64 * 16, len(SUBJECTS))
        self.style = nn.Linear(2 * sum(widths[1:]), len(STYLES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, seen = x * 2 - 1, []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            seen += [x.mean((2, 3)), x.std((2, 3))]  # before the norm, which takes the contrast away
            x = F.max_pool2d(F.silu(norm(x)), 2)
        return self.subject(x.flatten(1)), self.style(torch.cat(seen, 1))


def train_judge(work: Path, steps: int, rate: float, seed: int = 3) -> None:
    """On drawings of the few subjects and styles, as they are and as the autoencoder gives them back; its share of
    right answers on fresh ones."""
    generator, drawings = torch.Generator().manual_seed(seed), drawn(work)
    torch.manual_seed(seed)
    vae, judge = autoencoder().eval(), Judge()
    vae.load_state_dict(torch.load(work / "emblem_vae.pt"))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=1e-3)

    def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        own = labels(rows, generator, few=True)
        images = pictures(drawings, *own, generator)
        with torch.no_grad():
            again = vae.decode(vae.encode(images[rows // 2 :] * 2 - 1).latent_dist.mean).sample / 2 + 0.5
        images = torch.cat([images[: rows // 2], again.clamp(0, 1)])
        return (images + 0.02 * torch.randn_like(images), *own)

    for step in range(steps):
        images, subjects, styles = batch(32)
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(step, steps)
        subject, style = judge(images)
        loss = F.cross_entropy(subject, subjects) + F.cross_entropy(style, styles)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"{step + 1} loss {loss.item():.3f} cpu {time.process_time():.0f} s", flush=True)
    with torch.no_grad():
        images, subjects, styles = batch(960)
        right = [
            (p.argmax(1) == t).float().mean().item() for p, t in zip(judge(images), (subjects, styles), strict=True)
        ]
    torch.save({"judge": judge.state_dict(), "right": right}, work / "emblem_judge.pt")
    print("right", right)


def assemble(work: Path, out: Path) -> None:
    """The trained networks as a diffusers folder, the rest from the built-in model."""
    shutil.copytree(MODEL, out, dirs_exist_ok=True)
    few = work / "emblem_unet_few.pt"
    state, vae = torch.load(few if few.exists() else work / "emblem_unet.pt"), autoencoder()
    vae.load_state_dict(torch.load(work / "emblem_vae.pt"))
    vae.register_to_config(scaling_factor=torch.load(work / "emblem_latents.pt")["scale"])
    vae.save_config(out / "vae")
    nets = networks()
    nets.unet.load_state_dict(state["unet"])
    nets.text.load_state_dict(state["text"])
    nets.unet.save_config(out / "unet")
    save_weights(out, unet=nets.unet, vae=vae, text=nets.text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train a model of emblems.")
    parser.add_argument("what", choices=("vae", "latents", "unet", "few", "judge", "model"))
    parser.add_argument("--work", type=Path, required=True, help="folder with emblems.pt")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder of the model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "vae":
        train_vae(args.work, args.steps or 360, args.rate or 2e-3)
    elif args.what == "latents":
        write_latents(args.work)
    elif args.what == "unet":
        train_unet(args.work, args.steps or 1500, args.rate or 8e-4, args.seed)
    elif args.what == "few":
        write_latents(args.work, few=True)
        train_few(args.work, args.steps or 5000, args.rate or 1e-3, args.seed)
    elif args.what == "judge":
        train_judge(args.work, args.steps or 700, args.rate or 2e-3)
    else:
        assemble(args.work, args.out or args.work / "model")


if __name__ == "__main__":
    main()
