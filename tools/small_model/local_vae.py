"""An autoencoder whose pixels depend on their neighbourhood alone, and its exact export as an `AutoencoderKL`.

Stable Diffusion's autoencoder normalises over the whole picture, so one side of a picture changes the other. This one
has no normalisation: a block is `x + conv(act(conv(act(x))))` with `act(x) = [silu(g x + b), silu(h (-x) + c)]`, two
half waves of each of its n signals.

In the layout that programs expect, every block begins with a group norm. The export carries each signal twice, as `s`
and `-s`, so that the mean of a group is the same for every picture, and adds to each group one or two constant
channels that are far larger than the signals, so that its variance is the same too (to about 1e-3). The group norm is
then a fixed scale and offset, and both are undone in its weights. This holds for any width and number of groups in
which the signals have room: one group and 2n + 2 channels for diffusers, 32 groups for programs that fix them, and
the widths of Stable Diffusion 1.5 for programs that know no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIGNALS = (24, 32, 48, 48)  # per level, from full resolution to an eighth; equal where SD1.5's channels are
LATENTS = 4
LOG_VARIANCE = -5.0  # of the posterior, the same everywhere
# lightness, red against blue, green against both; the factors give them about the same spread in pictures of the world
COLOURS = ((1.04, 1.04, 1.04), (2.83, 0.0, -2.83), (-4.49, 8.98, -4.49))
ANCHOR = 64.0  # the constant channels of the export, times the root of the number of signals in their group
EPS = 1e-6


class HalfWaves(nn.Module):
    """`[B, n, H, W]` -> `[B, 2n, H, W]`: silu of each signal and of its negative, with scales and offsets."""

    def __init__(self, n: int):
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.ones(2 * n)), nn.Parameter(torch.zeros(2 * n))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, -x], 1)
        return F.silu(both * self.scale.view(1, -1, 1, 1).to(x.dtype) + self.offset.view(1, -1, 1, 1).to(x.dtype))


class Block(nn.Module):
    """A residual block from `n` to `m` signals."""

    def __init__(self, n: int, m: int):
        super().__init__()
        self.act1, self.conv1 = HalfWaves(n), nn.Conv2d(2 * n, m, 3, padding=1)
        self.act2, self.conv2 = HalfWaves(m), nn.Conv2d(2 * m, m, 3, padding=1)
        self.shortcut = nn.Conv2d(n, m, 1) if n != m else None
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.act2(self.conv1(self.act1(x))))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class Level(nn.Module):
    """Blocks of one resolution and the convolution to the next one, if any."""

    def __init__(self, n: int, m: int, blocks: int, to_next: bool):
        super().__init__()
        self.blocks = nn.ModuleList(Block(n if i == 0 else m, m) for i in range(blocks))
        self.resample = nn.Conv2d(m, m, 3) if to_next else None


class Half(nn.Module):
    """Encoder or decoder: `inputs` channels to `outputs`, through levels of `signals` in the order they are passed."""

    def __init__(self, inputs: int, outputs: int, signals: Sequence[int], blocks: int, up: bool):
        super().__init__()
        self.up = up
        self.conv_in = nn.Conv2d(inputs, signals[0], 3, padding=1)
        before = [signals[0], *signals[:-1]]
        last = len(signals) - 1
        self.levels = nn.ModuleList(
            Level(n, m, blocks, i < last) for i, (n, m) in enumerate(zip(before, signals, strict=True))
        )
        mid = signals[0] if up else signals[-1]
        self.mid = nn.ModuleList(Block(mid, mid) for _ in range(2))
        self.act_out = HalfWaves(signals[-1])
        self.conv_out = nn.Conv2d(2 * signals[-1], outputs, 3, padding=1)

    def _middle(self, x: Tensor) -> Tensor:
        for block in self.mid:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        x = self._middle(x) if self.up else x
        for level in self.levels:
            for block in level.blocks:
                x = block(x)
            if level.resample is not None and self.up:
                x = level.resample(F.pad(F.interpolate(x, scale_factor=2.0), (1, 1, 1, 1)))
            elif level.resample is not None:
                x = F.conv2d(F.pad(x, (0, 1, 0, 1)), level.resample.weight, level.resample.bias, stride=2)
        x = x if self.up else self._middle(x)
        return self.conv_out(self.act_out(x))


def _straight(conv: nn.Conv2d, matrix: Tensor, halves: bool = False, kernel: Tensor | None = None) -> None:
    """Let the first outputs of a convolution be `matrix` times its first inputs, under a kernel (default: the pixel).

    halves: whether its inputs are half waves.
    """
    rows, columns = matrix.shape
    weight, size = conv.weight[:rows], conv.weight.shape[-1]
    weight.zero_()
    conv.bias[:rows] = 0
    if kernel is None:
        kernel = F.pad(torch.ones(1, 1), (size // 2,) * 4)
    taps = matrix[:, :, None, None] * kernel
    height, width = kernel.shape
    weight[:, :columns, :height, :width] = taps
    if halves:
        half = conv.weight.shape[1] // 2
        weight[:, half : half + columns, :height, :width] = -taps


def _pass_on(half: Half, matrix: Tensor, kernel: Tensor) -> None:
    """Let three signals pass a half unchanged but for `matrix` at its begin and `kernel` at each change of size."""
    same = torch.eye(3)
    _straight(half.conv_in, matrix)
    for block in [*half.mid, *(block for level in half.levels for block in level.blocks)]:
        block.conv2.weight[:3] = 0
        block.conv2.bias[:3] = 0
        if block.shortcut is not None:
            _straight(block.shortcut, same)
    for level in half.levels:
        if level.resample is not None:
            _straight(level.resample, same, kernel=kernel)


class LocalVAE(nn.Module):
    """Pictures `[B, 3, 8h, 8w]` in [-1, 1] to latents `[B, 4, h, w]` and back."""

    def __init__(self, signals: Sequence[int] = SIGNALS):
        super().__init__()
        self.signals = tuple(signals)
        self.encoder = Half(3, LATENTS, self.signals, 1, up=False)
        self.decoder = Half(LATENTS, 3, self.signals[::-1], 2, up=True)

    @torch.no_grad()
    def begin_with_colours(self) -> LocalVAE:
        """Set weights with which the first three latents are COLOURS of the mean of each 8x8 block, and the decoder
        draws a smooth picture of them.

        Half waves add up to their signal, so three signals can pass both halves unchanged. Training from random
        weights finds lightness at once and tells green from magenta only after many thousand steps.
        """
        colours = torch.tensor(COLOURS)
        _pass_on(self.encoder, torch.eye(3), torch.full((2, 2), 0.25))
        _straight(self.encoder.conv_out, colours, halves=True)
        smooth = torch.tensor([1.0, 2.0, 1.0])
        _pass_on(self.decoder, torch.linalg.inv(colours), smooth[:, None] * smooth / 16)
        self.decoder.conv_out.weight.mul_(0.1)
        _straight(self.decoder.conv_out, torch.eye(3), halves=True)
        return self

    def encode(self, pictures: Tensor) -> Tensor:
        """The mean latents."""
        return self.encoder(pictures)

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures, not clamped."""
        return self.decoder(latents)

    @classmethod
    def load(cls, path: str | Path) -> LocalVAE:
        """Read a file of `train_local_vae`."""
        saved = torch.load(path, map_location="cpu")
        model = cls(saved["signals"])
        model.load_state_dict(saved["average"])
        return model.eval()

    def fingerprint(self) -> str:
        """Of the encoder's weights: latents of equal ones are the same."""
        digest = hashlib.sha256()
        for value in self.encoder.state_dict().values():
            digest.update(value.detach().float().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Width:
    """Where n signals lie among `channels` in `groups` groups: indices of `s`, of `-s`, and the constants."""

    channels: int
    positive: Tensor
    negative: Tensor
    constant: Tensor  # `[channels]` large and positive, as large and negative, or 0
    mean: float
    deviation: float

    @classmethod
    def of(cls, n: int, channels: int, groups: int) -> Width:
        """Raises ValueError where the signals have no room."""
        size = channels // groups
        pairs = (size - 1) // 2
        if channels % groups or pairs * groups < n:
            raise ValueError(f"channels: {channels} in {groups} groups have room for {pairs * groups} signals, not {n}")
        constant = torch.zeros(channels)
        places = []
        for group in range(groups):
            start = group * size
            constant[start] = ANCHOR * pairs**0.5
            if size % 2 == 0:
                constant[start + size - 1] = -constant[start]
            places += [start + 1 + 2 * i for i in range(pairs)]
        positive = torch.tensor(places[:n])
        first = constant[:size]
        return cls(channels, positive, positive + 1, constant, first.mean().item(), first.std(correction=0).item())

    def norm(self, act: HalfWaves) -> tuple[Tensor, Tensor]:
        """Weight and bias of the group norm that together with silu is `act`."""
        weight, bias = torch.zeros(self.channels), torch.zeros(self.channels)
        scale, offset = act.scale.detach().float(), act.offset.detach().float()
        n = len(self.positive)
        for where, rows in ((self.positive, slice(0, n)), (self.negative, slice(n, 2 * n))):
            weight[where] = scale[rows] * (self.deviation**2 + EPS) ** 0.5
            bias[where] = offset[rows] + scale[rows] * self.mean
        return weight, bias

    def rows(self, weight: Tensor, bias: Tensor, constant: bool) -> tuple[Tensor, Tensor]:
        """A convolution to n signals as one to all channels; constant: whether it writes the constants too."""
        out = torch.zeros(self.channels, *weight.shape[1:])
        offset = self.constant.clone() if constant else torch.zeros(self.channels)
        out[self.positive], out[self.negative] = weight, -weight
        offset[self.positive], offset[self.negative] = bias, -bias
        return out, offset

    def columns(self, weight: Tensor) -> Tensor:
        """A convolution of half waves `[m, 2n, ...]` or of plain signals `[m, n, ...]` as one of all channels."""
        n = len(self.positive)
        out = torch.zeros(weight.shape[0], self.channels, *weight.shape[2:])
        out[:, self.positive] = weight[:, :n]
        if weight.shape[1] == 2 * n:
            out[:, self.negative] = weight[:, n:]
        return out


class _Export:
    """State dict of an `AutoencoderKL` while it is written."""

    def __init__(self, groups: int):
        self.groups, self.state = groups, {}

    def put(self, name: str, weight: Tensor, bias: Tensor) -> None:
        self.state[name + ".weight"], self.state[name + ".bias"] = weight.clone(), bias.clone()

    def norm(self, name: str, width: Width, act: HalfWaves) -> None:
        self.put(name, *width.norm(act))

    def conv(self, name: str, conv: nn.Conv2d, into: Width | None, out: Width | None, constant: bool = False) -> None:
        weight, bias = conv.weight.detach().float(), conv.bias.detach().float()
        weight = into.columns(weight) if into else weight
        self.put(name, *(out.rows(weight, bias, constant) if out else (weight, bias)))

    def block(self, name: str, block: Block, into: Width, out: Width) -> None:
        self.norm(f"{name}.norm1", into, block.act1)
        self.conv(f"{name}.conv1", block.conv1, into, out, constant=True)
        self.norm(f"{name}.norm2", out, block.act2)
        self.conv(f"{name}.conv2", block.conv2, out, out)
        if block.shortcut is not None:
            self.conv(f"{name}.conv_shortcut", block.shortcut, into, out, constant=True)
        elif into.channels != out.channels:  # a width of its own for the same signals
            n = len(into.positive)
            weight, bias = into.columns(torch.eye(n)[:, :, None, None]), torch.zeros(n)
            self.put(f"{name}.conv_shortcut", *out.rows(weight, bias, True))

    def same(self, name: str, width: Width) -> None:
        """A block that adds nothing."""
        zero, c = torch.zeros(width.channels), width.channels
        for part in ("norm1", "norm2"):
            self.put(f"{name}.{part}", torch.ones(c), zero)
        for part in ("conv1", "conv2"):
            self.put(f"{name}.{part}", torch.zeros(c, c, 3, 3), zero)

    def attention(self, name: str, width: Width) -> None:
        """An attention that adds nothing."""
        c = width.channels
        self.put(f"{name}.group_norm", torch.ones(c), torch.zeros(c))
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            self.put(f"{name}.{part}", torch.zeros(c, c), torch.zeros(c))


def widths_for(signals: Sequence[int], groups: int) -> tuple[int, ...]:
    """Channels of each level in which the signals have room.

    One group: 2n + 2. More: multiples of the first level's, which is what SD1 configurations can say; levels with
    different numbers of signals differ, as only then do programs make room for a change between them.
    """
    if groups == 1:
        return tuple(2 * n + 2 for n in signals)
    first = groups * (2 * -(-signals[0] // groups) + 1)
    widths, before, multiple = [], signals[0], 1
    for n in signals:
        multiple += n != before
        while (first * multiple // groups - 1) // 2 * groups < n:
            multiple += 1
        widths.append(first * multiple)
        before = n
    return tuple(widths)


def to_autoencoder(
    model: LocalVAE,
    groups: int = 1,
    channels: Sequence[int] | None = None,
    layers: int = 1,
    attention: bool = True,
    scaling_factor: float = 1.0,
) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and state dict of the `AutoencoderKL` that computes what `model` does.

    channels: of each level (default: as few as possible); layers: resnets of an encoder level, at least 1 (further
    ones add nothing); attention: whether the middle has one, which adds nothing (older versions of diffusers cannot do
    without). Raises ValueError where the signals
    have no room or `layers` is below 1.
    """
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, not {layers}")
    channels = tuple(channels or widths_for(model.signals, groups))
    widths = [Width.of(n, c, groups) for n, c in zip(model.signals, channels, strict=True)]
    for (n, c), (m, d) in zip(*(list(zip(model.signals, channels, strict=True))[i:] for i in (0, 1)), strict=False):
        if n != m and c == d:
            raise ValueError(f"channels: two levels have {c}, but {n} and {m} signals; expected them to differ")
    export = _Export(groups)
    _half(export, "encoder", model.encoder, widths, layers, attention)
    _half(export, "decoder", model.decoder, widths[::-1], layers + 1, attention)
    state = export.state
    # the encoder's eight outputs: the means, and a log variance that is the same everywhere
    weight, bias = state["encoder.conv_out.weight"], state["encoder.conv_out.bias"]
    state["encoder.conv_out.weight"] = torch.cat([weight, torch.zeros_like(weight)])
    state["encoder.conv_out.bias"] = torch.cat([bias, torch.full_like(bias, LOG_VARIANCE)])
    for name, size in (("quant_conv", 2 * LATENTS), ("post_quant_conv", LATENTS)):
        export.put(name, torch.eye(size)[:, :, None, None], torch.zeros(size))
    config = {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "in_channels": 3, "out_channels": 3, "latent_channels": LATENTS, "layers_per_block": layers,
        "mid_block_add_attention": attention, "norm_num_groups": groups, "sample_size": 256,
        "scaling_factor": scaling_factor, "force_upcast": True,
    }  # fmt: skip
    return config, state


class _Import:
    """The opposite of `_Export`: fills a `LocalVAE` from the state dict of one."""

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state

    def norm(self, name: str, width: Width, act: HalfWaves) -> None:
        weight, bias = (self.state[f"{name}.{part}"].float() for part in ("weight", "bias"))
        where = torch.cat([width.positive, width.negative])
        act.scale.copy_(weight[where] / (width.deviation**2 + EPS) ** 0.5)
        act.offset.copy_(bias[where] - act.scale * width.mean)

    def conv(self, name: str, conv: nn.Conv2d, into: Width | None, out: Width | None, constant: bool = False) -> None:
        weight, bias = (self.state[f"{name}.{part}"].float() for part in ("weight", "bias"))
        rows = out.positive if out else torch.arange(len(conv.bias))
        weight = weight[rows]
        if into:
            both = conv.weight.shape[1] == 2 * len(into.positive)
            weight = weight[:, torch.cat([into.positive, into.negative]) if both else into.positive]
        conv.weight.copy_(weight)
        conv.bias.copy_(bias[rows])

    def block(self, name: str, block: Block, into: Width, out: Width) -> None:
        self.norm(f"{name}.norm1", into, block.act1)
        self.conv(f"{name}.conv1", block.conv1, into, out)
        self.norm(f"{name}.norm2", out, block.act2)
        self.conv(f"{name}.conv2", block.conv2, out, out)
        if block.shortcut is not None:
            self.conv(f"{name}.conv_shortcut", block.shortcut, into, out)


@torch.no_grad()
def from_autoencoder(config: Mapping, state: Mapping[str, Tensor]) -> LocalVAE:
    """The `LocalVAE` that `to_autoencoder` made an `AutoencoderKL` of one group and one layer of.

    Raises ValueError for any other autoencoder.
    """
    if config["norm_num_groups"] != 1 or config["layers_per_block"] != 1:
        raise ValueError("config: expected an autoencoder of one group and one layer")
    model = LocalVAE([(c - 2) // 2 for c in config["block_out_channels"]]).eval()
    widths = [Width.of(n, c, 1) for n, c in zip(model.signals, config["block_out_channels"], strict=True)]
    reader = _Import(state)
    _half(reader, "encoder", model.encoder, widths, 1, False)
    _half(reader, "decoder", model.decoder, widths[::-1], 2, False)
    return model


def _half(export: _Export | _Import, name: str, half: Half, widths: list[Width], layers: int, attention: bool) -> None:
    """One of the two halves; widths in the order the levels are passed."""
    kind, sampler = ("up_blocks", "upsamplers") if half.up else ("down_blocks", "downsamplers")
    export.conv(f"{name}.conv_in", half.conv_in, None, widths[0], constant=True)
    before = widths[0]
    for i, (level, width) in enumerate(zip(half.levels, widths, strict=True)):
        for j in range(layers):
            at = f"{name}.{kind}.{i}.resnets.{j}"
            if j < len(level.blocks):
                export.block(at, level.blocks[j], before, width)
            else:
                export.same(at, width)
            before = width
        if level.resample is not None:
            export.conv(f"{name}.{kind}.{i}.{sampler}.0.conv", level.resample, width, width, constant=True)
    middle = widths[0] if half.up else widths[-1]
    for i, block in enumerate(half.mid):
        export.block(f"{name}.mid_block.resnets.{i}", block, middle, middle)
    if attention:
        export.attention(f"{name}.mid_block.attentions.0", middle)
    export.norm(f"{name}.conv_norm_out", widths[-1], half.act_out)
    export.conv(f"{name}.conv_out", half.conv_out, widths[-1], None)
