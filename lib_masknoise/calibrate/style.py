"""Which directions of a model's text features change the style of a picture and leave its layout.

Candidates are the principal directions of the contexts of many prompts, whitened, in each group of cross-attention
layers by itself. Each is stepped along a little, and what that does to the model's idea of the finished picture, `x0`,
is split:

- layout: where the picture is light and dark at low frequencies, up to its brightness and contrast, and where its
  self-attention looks;
- style: the means and covariances of its channels, the spectrum of its gradients, their orientations.

Both are linear in a small step, so that what a mixture `e` of candidates changes is a quadratic form in the Gram
matrix of the candidates' responses: `eᵀ S e` of style, `eᵀ L e` of layout. The directions wanted are the first
solutions of the generalised eigenproblem `S e = λ (L + ρ) e`; of layout, with both exchanged. ρ keeps away from
directions that do nothing at all, whose ratio is noise.

A model is asked through `Subject`; everything here is arithmetic on what it answers.
"""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.calibrate.profile import Profile, Profiles
from lib_masknoise.conditioning import Encoded, LocationConditioning, unblended
from lib_masknoise.noise import SeparableNoise, sinks
from lib_masknoise.noise.feature import Subspace, Subspaces
from lib_masknoise.scene import Problem, SceneError
from lib_masknoise.scene.layers import GROUPS, canonical, tags_of

SUBJECTS = (
    "wheat field", "ocean", "forest", "desert", "night sky", "lava", "snow", "brick wall", "meadow with flowers",
    "storm clouds", "coral", "ice", "marsh", "sunset sky", "city street", "castle", "portrait of a woman", "cat",
    "horse", "bowl of fruit", "ship", "garden", "mountain lake", "bridge", "room with a window",
)  # fmt: skip
MANNERS = (
    "{}", "bright {}", "dark {}", "blurry {}", "warm {}", "cold {}", "faded {}", "coarse {}", "{}, oil painting",
    "{}, pencil drawing", "{}, watercolour", "{}, black and white photo", "{}, engraving", "{}, poster", "{}, mosaic",
    "{}, old photo",
)  # fmt: skip
PROMPTS = tuple(manner.format(subject) for i, subject in enumerate(SUBJECTS) for manner in MANNERS[i % 2 :: 2])
"""200, each subject in eight manners."""

CANDIDATES = 8
"""Principal directions."""
RANK = 4
"""Directions that are kept of each kind."""
PICTURES = 8
TIMES = (750, 400)
"""Steps of the schedule of 1000 at which `x0` is looked at: what is where is settled at the first, how it looks at the
second."""
STEP = 0.5
"""In standard deviations of the contexts."""
RIDGE = 1.0
"""ρ, in means of L's diagonal. Less follows the pictures that were measured more closely than others bear out."""
GUIDANCE = 4.0
TRAJECTORY = 8
"""Denoiser calls that make each picture that is looked at."""
ROWS = 16
"""Of a denoiser call."""
LUMA = (0.299, 0.587, 0.114)
COARSE = 8
"""Blocks a side of the picture whose mean lightness is its layout."""


class Subject(Protocol):
    """A model that is measured."""

    @property
    def alphas(self) -> Tensor:
        """The share of the signal's variance at each of the schedule's 1000 steps."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent."""

    @property
    def levels(self) -> Mapping[str, int]:
        """The blocks that see the text; see `scene.layers.tags_of`."""

    def encode(self, prompts: Sequence[str]) -> Mapping[str, Encoded]: ...

    def decoded(self, latents: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` → pictures `[B, 3, H, W]` from 0 to 1, float32 on the CPU."""

    def looked(self, seen: LocationConditioning, x: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """What the model predicts of `x` `[B, C, h, w]`, of variance 1, at a step of the schedule: the noise, and how
        much its self-attention looks at each place, `[B, maps, places]`. Both float32 on the CPU."""


Report = Callable[[int], object]


# --- What a picture is


def light_of(latents: Tensor, pictures: Tensor) -> Tensor:
    """By how much each channel of a latent makes a place lighter, `[C]`: a least-squares fit on some latents
    `[B, C, h, w]` and what they decode to. Every change is measured in the latents: only a few are decoded."""
    luma = torch.einsum("brhw,r->bhw", pictures, torch.tensor(LUMA))
    wanted = F.adaptive_avg_pool2d(luma[:, None], (latents.shape[2], latents.shape[3])).flatten()
    given = latents.movedim(1, -1).flatten(0, 2)
    given = torch.cat([given, torch.ones(len(given), 1)], dim=1)
    return torch.linalg.lstsq(given, wanted[:, None]).solution[:-1, 0]


def layout(light: Tensor) -> Tensor:
    """Where it is light and dark: `[B, h, w]` → `[B, M]`, the means of 8×8 blocks."""
    return F.adaptive_avg_pool2d(light[:, None], COARSE)[:, 0].flatten(1)


def moved(before: Tensor, after: Tensor) -> Tensor:
    """By how much a layout is another, `[B, M]`: what is left when brightness and contrast have been fitted. A contrast
    below 0 would turn light into dark, which is another layout."""
    a, b = (t - t.mean(-1, keepdim=True) for t in (before, after))
    contrast = (a * b).sum(-1, keepdim=True) / a.square().sum(-1, keepdim=True).clamp_min(1e-12)
    return b - contrast.clamp_min(0.0) * a


def style(x: Tensor, light: Tensor) -> tuple[Tensor, ...]:
    """The parts of the style of `[B, C, h, w]` whose lightness is `[B, h, w]`, each `[B, …]`: means and covariances of
    the channels, spectrum, orientations."""
    channels = x.flatten(2)
    means = channels.mean(2)
    centred = channels - means[..., None]
    covariances = centred @ centred.transpose(1, 2) / centred.shape[2]
    first, second = torch.triu_indices(x.shape[1], x.shape[1])
    return means, covariances[:, first, second], spectrum(light), orientations(light)


def spectrum(light: Tensor, bands: int = 5) -> Tensor:
    """The logarithm of the power of the gradient in octaves of frequency, the last one the finest: `[B, bands]`."""
    h, w = light.shape[1:]
    frequency = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w)[None])
    power = torch.fft.fft2(light - light.mean((1, 2), keepdim=True)).abs().square() * frequency.square()
    edges = [0.0, *(0.75 * 2.0**k for k in range(1 - bands, 1))]
    inside = [(frequency > low) & (frequency <= high) for low, high in zip(edges, edges[1:], strict=False)]
    found = torch.stack([power[:, band].sum(1) for band in inside if bool(band.any())], dim=1)
    return (found + 1e-3 * found.sum(1, keepdim=True) + 1e-12).log()


def orientations(light: Tensor, scales: int = 2) -> Tensor:
    """How far the gradients agree on a direction, as the cosine and sine of twice its angle: `[B, 2·scales]`."""
    found = []
    for _ in range(scales):
        across, down = light[:, :-1, 1:] - light[:, :-1, :-1], light[:, 1:, :-1] - light[:, :-1, :-1]
        energy = (across.square() + down.square()).sum((1, 2)).clamp_min(1e-12)
        found += [(across.square() - down.square()).sum((1, 2)) / energy, 2 * (across * down).sum((1, 2)) / energy]
        light = F.avg_pool2d(light[:, None], 2)[:, 0]
    return torch.stack(found, dim=1)


def spread_of(part: Tensor) -> Tensor:
    """How far two pictures are apart in something `[B, …]`, on average: by what changes are measured."""
    return (2 * part.flatten(1).var(0, correction=0).sum()).sqrt().clamp_min(1e-12)


# --- Candidates and their responses


def principal(contexts: Sequence[Encoded], count: int) -> Tensor:
    """The first principal directions of the means of contexts over their tokens, each times its standard deviation:
    `[count, D]`. An offset is the same for all tokens, so it is the mean that it moves."""
    means = torch.stack([one.context[~sinks(len(one.context))].mean(0) for one in contexts])
    _, scale, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    return (scale[:count, None] * directions[:count] / math.sqrt(max(len(means) - 1, 1))).contiguous()


def layer_groups(levels: Mapping[str, int]) -> tuple[str, ...]:
    """The groups of layers that are stepped along by themselves, as `noise.feature.layers` names them: what comes down
    and what goes up at each level, the middle block with the coarse ones that come down."""
    tags = tags_of(levels)
    found: list[str] = []
    for group in GROUPS:
        own = [block for block in levels if group in tags[block]]
        for side in ("in", "out"):
            blocks = [block for block in own if block.startswith(side) or (side == "in" and block == "mid")]
            if blocks and not set(blocks) & {block for name in found for block in name.split(",")}:
                found.append(",".join(blocks))
    return tuple(found)


def stepped(seen: LocationConditioning, groups: Sequence[str], offsets: Tensor) -> LocationConditioning:
    """A conditioning with an offset that is another in each row and group of layers: `[B, groups, D]`."""
    by_layers = tuple(((group,), offsets[:, i : i + 1].contiguous()) for i, group in enumerate(groups))
    tokens, ones = torch.ones(len(offsets), 1, seen.contexts.shape[1]), torch.ones(len(offsets), 1, 1, 1)
    return replace(seen, offset=SeparableNoise(tokens, by_layers[0][1], ones, by_layers))


@dataclass(frozen=True)
class Responses:
    """What N candidates change, in distances of two pictures a standard deviation of the contexts, for P pictures at
    each of the times: `style` `[P, N, s]` and `layout` `[P, N, l]`."""

    style: Tensor
    layout: Tensor

    def grams(self, pictures: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """S and L, each `[N, N]` in float64, over some of the pictures."""
        own = slice(None) if pictures is None else list(pictures)
        parts = (part[own].double() for part in (self.style, self.layout))
        s, layout = (torch.einsum("pnk,pmk->nm", part, part) / len(part) for part in parts)
        return s, layout


def calls(groups: int, pictures: int = PICTURES, candidates: int = CANDIDATES) -> int:
    """Rows of the denoiser that `responses` takes: the trajectories, the negative prompt's and the candidates'."""
    return pictures * (2 * TRAJECTORY + len(TIMES) * (2 + candidates * groups))


@torch.no_grad()
def responses(
    subject: Subject, basis: Tensor, prompts: Sequence[str], seeds: Sequence[int], report: Report = lambda rows: None
) -> Responses:
    """Step along every candidate, `basis` `[n, D]` in each group of layers, in the picture of each prompt and seed.

    report: hears how many rows have been denoised.
    """
    groups = layer_groups(subject.levels)
    known = subject.encode(["", *prompts])
    noise = torch.stack([torch.randn(subject.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    finished = torch.cat([
        _picture(subject, unblended(known[prompt]), unblended(known[""]), x[None], report)
        for prompt, x in zip(prompts, noise, strict=True)
    ])  # fmt: skip
    channels = light_of(finished, subject.decoded(finished))
    n = len(basis)
    offsets = torch.zeros(1 + n * len(groups), len(groups), basis.shape[1])
    for i in range(len(groups)):
        offsets[1 + i * n : 1 + (i + 1) * n, i] = STEP * basis
    of_style, of_layout = [], []
    for time in TIMES:
        found = [
            _answers(subject, known[prompt], known[""], groups, offsets, _noised(subject, x, e, time), time, report)
            for prompt, x, e in zip(prompts, finished, noise, strict=True)
        ]
        x0, looks = (torch.stack(parts) for parts in zip(*found, strict=True))  # [P, 1 + N, …]
        light = torch.einsum("pnchw,c->pnhw", x0, channels)
        of_style.append(_changes_of_style(x0, light))
        of_layout.append(_changes_of_layout(light, looks))
    return Responses(torch.cat(of_style), torch.cat(of_layout))


def _changes_of_style(x0: Tensor, light: Tensor) -> Tensor:
    """`[P, 1 + N, C, h, w]`, unchanged first, and their lightness → `[P, N, s]`."""
    parts = style(x0.flatten(0, 1), light.flatten(0, 1))
    changes = []
    for part in parts:
        part = part.unflatten(0, x0.shape[:2])
        changes.append((part[:, 1:] - part[:, :1]) / (STEP * spread_of(part[:, 0]) * math.sqrt(len(parts))))
    return torch.cat(changes, dim=2)


def _changes_of_layout(light: Tensor, looks: Tensor) -> Tensor:
    """The same of the lightness, and of where self-attention looks `[P, 1 + N, maps, places]`: `[P, N, l]`."""
    light = layout(light.flatten(0, 1)).unflatten(0, light.shape[:2])
    looks = looks * looks.shape[-1]  # 1 on average
    parts = [
        (moved(light[:, :1].expand_as(light[:, 1:]), light[:, 1:]), spread_of(light[:, 0])),
        ((looks[:, 1:] - looks[:, :1]).flatten(2), spread_of(looks[:, 0])),
    ]
    return torch.cat([change / (STEP * scale * math.sqrt(len(parts))) for change, scale in parts], dim=2)


def _noised(subject: Subject, x: Tensor, noise: Tensor, time: int) -> Tensor:
    """A finished latent at a step of the schedule, on its way from its own noise."""
    signal = subject.alphas[time]
    return (signal.sqrt() * x + (1 - signal).sqrt() * noise)[None]


def _picture(
    subject: Subject, seen: LocationConditioning, negative: LocationConditioning, x: Tensor, report: Report
) -> Tensor:
    """The finished latent of some noise, by DDIM (Song et al. 2021) with guidance."""
    times = [round(t) for t in torch.linspace(981, 1, TRAJECTORY).tolist()]
    signals = [subject.alphas[t] for t in times[1:]] + [torch.tensor(1.0)]
    for time, after in zip(times, signals, strict=True):
        down, up = (subject.looked(one, x, time)[0] for one in (negative, seen))
        noise = down + GUIDANCE * (up - down)
        signal = subject.alphas[time]
        x0 = (x - (1 - signal).sqrt() * noise) / signal.sqrt()
        x = after.sqrt() * x0 + (1 - after).sqrt() * noise
        report(2)
    return x


def _answers(
    subject: Subject,
    own: Encoded,
    negative: Encoded,
    groups: Sequence[str],
    offsets: Tensor,
    x: Tensor,
    time: int,
    report: Report,
) -> tuple[Tensor, Tensor]:
    """`x0` and the looks with each offset, `[1 + N, …]`. The negative prompt's noise is the same in all."""
    down = subject.looked(unblended(negative), x, time)[0]
    report(1)
    noises, looks = [], []
    for part in offsets.split(ROWS):
        seen = stepped(unblended(own), groups, part)
        noise, look = subject.looked(seen, x.expand(len(part), -1, -1, -1), time)
        noises.append(down + GUIDANCE * (noise - down))
        looks.append(look)
        report(len(part))
    signal = subject.alphas[time]
    return (x - (1 - signal).sqrt() * torch.cat(noises)) / signal.sqrt(), torch.cat(looks)


# --- The directions wanted


def directions(wanted: Tensor, unwanted: Tensor, rank: int, ridge: float = RIDGE) -> Tensor:
    """An orthonormal basis `[N, rank]` of the mixtures of candidates that change most of what is wanted for the least
    of what is not: the first of `W e = λ (U + ρ) e`. Both Gram matrices `[N, N]` in float64."""
    eye = torch.eye(len(wanted), dtype=wanted.dtype)
    root = torch.linalg.cholesky(unwanted + ridge * unwanted.diagonal().mean() * eye)
    half = torch.linalg.solve_triangular(root, wanted, upper=False)
    white = torch.linalg.solve_triangular(root, half.T, upper=False)
    _, vectors = torch.linalg.eigh((white + white.T) / 2)
    mixtures = torch.linalg.solve_triangular(root.T, vectors.flip(1)[:, :rank], upper=True)
    return torch.linalg.qr(mixtures).Q


def overlap(first: Tensor, second: Tensor) -> float:
    """Of two subspaces by their orthonormal bases `[N, K]`: the mean of the squared cosines of their angles, 1 where
    they are the same, K/N of two at random."""
    return float((first.T @ second).square().sum() / first.shape[1])


def ratio(mixtures: Tensor, style_gram: Tensor, layout_gram: Tensor) -> float:
    """Layout's change for a change of style, of a subspace `[N, K]`."""
    s, layout = (torch.einsum("nk,nm,mk->", mixtures, gram, mixtures) for gram in (style_gram, layout_gram))
    return float((layout / s).sqrt())


# --- What is kept


@dataclass(frozen=True)
class Found:
    """What a profile has of a model: `basis` `[n, D]`, the groups of layers, and for each name mixtures of it
    `[K, groups, n]`. figures: what was measured, for people."""

    basis: Tensor
    layers: tuple[str, ...]
    mixtures: Mapping[str, Tensor]
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subspaces(self) -> dict[str, Subspace]:
        """For `conditioning.condition`. Scaled so that a direction has, on average over the groups of layers, the
        standard deviation that the contexts have along it."""
        scale = math.sqrt(len(self.layers))
        return {
            name: Subspace(tuple((group, scale * own[:, i] @ self.basis) for i, group in enumerate(self.layers)))
            for name, own in self.mixtures.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """As a profile's `style` has it: arrays in half precision, base64, their shapes beside them."""
        return {
            "dimensions": self.basis.shape[1],
            "layers": list(self.layers),
            "basis": _packed(self.basis),
            "mixtures": {name: _packed(own) for name, own in self.mixtures.items()},
            "figures": dict(self.figures),
        }

    @classmethod
    def parse(cls, given: Any) -> Found:
        """Raises SceneError where it is none."""
        try:
            basis = _unpacked(given["basis"])
            layers = tuple(canonical(one) for one in given["layers"])
            mixtures = {str(name): _unpacked(own) for name, own in given["mixtures"].items()}
            if any(own.shape[1:] != (len(layers), len(basis)) for own in mixtures.values()):
                raise ValueError("mixtures of another size than what they mix")
            return cls(basis, layers, mixtures, dict(given.get("figures", {})))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            message = f"expected what `calibrate --style` writes, got something else ({error})"
            raise SceneError([Problem("style", message)]) from None


def _packed(t: Tensor) -> dict[str, Any]:
    data = t.to(torch.float16).contiguous().numpy().astype("<f2").tobytes()
    return {"shape": list(t.shape), "float16": base64.b64encode(data).decode("ascii")}


def _unpacked(given: Mapping[str, Any]) -> Tensor:
    data = bytearray(base64.b64decode(given["float16"], validate=True))
    return torch.frombuffer(data, dtype=torch.float16).reshape([int(n) for n in given["shape"]]).float()


def kept(model: str, folders: Iterable[Path]) -> Subspaces:
    """What the first of some folders' profiles of a model has found, by the model's hash; nothing where none has.
    Raises SceneError where a profile cannot be used."""
    for folder in folders:
        file = Profiles(folder).path(model)
        if file.is_file():
            subspaces = _read(file, file.stat().st_mtime_ns)
            if subspaces:
                return subspaces
    return {}


@functools.lru_cache(4)
def _read(file: Path, changed: int) -> Subspaces:
    given = Profile.read(file).style
    return {} if given is None else Found.parse(given).subspaces


def find(
    subject: Subject,
    prompts: Sequence[str] = PROMPTS,
    seed: int = 0,
    pictures: int = PICTURES,
    candidates: int = CANDIDATES,
    report: Report = lambda rows: None,
) -> Found:
    """Measure a model. Takes `calls(…)` rows of its denoiser, of which `report` hears. Raises ValueError for too few
    prompts."""
    if len(prompts) <= candidates:
        raise ValueError(f"style: expected more than {candidates} prompts, got {len(prompts)}")
    known = subject.encode(prompts)
    basis = principal([known[prompt] for prompt in prompts], candidates)
    chosen = [prompts[(2 * i + 1) * len(prompts) // (2 * pictures)] for i in range(pictures)]
    return solved(
        basis, layer_groups(subject.levels), responses(subject, basis, chosen, range(seed, seed + pictures), report)
    )


def solved(basis: Tensor, groups: tuple[str, ...], found: Responses, rank: int = RANK) -> Found:
    """The directions that the responses to candidates speak for, that many of each kind."""
    s, of_layout = found.grams()
    bases = {"style": directions(s, of_layout, rank), "layout": directions(of_layout, s, rank)}
    every = torch.eye(len(s), dtype=s.dtype)
    figures = {name: round(ratio(own, s, of_layout), 4) for name, own in {"all": every, **bases}.items()}
    mixtures = {name: own.T.unflatten(1, (len(groups), len(basis))).float() for name, own in bases.items()}
    return Found(basis, groups, mixtures, {"layout for style": figures})
